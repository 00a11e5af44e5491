//! Who computes: the host itself, or a device at the other end of a link.

use tec_device::frame::FrameKind;
use tec_device::tensors::{ALIGNMENT, HEAD_LEN, Tensors, head, write_head, write_tensor_head};
use tec_device::{Operation, Status};
use tec_edge::{BackEnd, Stage, Trace, TraceValues};

use crate::error::{Error, Result};
use crate::link::{Link, Reply};
use crate::tensor::Data;

/// Part of a trace: some values of a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Which stage of the encoder.
    pub stage: Stage,
    /// Of which block.
    pub block: usize,
    /// Where in the stage's tensor.
    pub offset: usize,
    /// The values.
    pub values: Data,
}

/// What an operation gave.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// Its results, in the order in which [`Operation`] names them.
    pub results: Vec<Data>,
    /// What was computed on the way.
    pub parts: Vec<Part>,
    /// Machine instructions it took, where the device counts them.
    pub instructions: Option<u64>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The device has too little memory.
    #[error("does not fit the device's memory")]
    DoesNotFit,
    /// The device does not know the operation.
    #[error("the device does not know this operation")]
    Unknown,
    /// The operation refused its arguments.
    #[error("{0}")]
    Refused(String),
    /// The device stopped answering this request.
    #[error("{0}")]
    Lost(String),
    /// It was not asked, for it had stopped answering before.
    #[error("not asked, for before that {0}")]
    Gone(String),
}

/// Something that computes operations.
pub trait Provider {
    /// Its name in reports.
    fn name(&self) -> &str;

    /// Computes.
    ///
    /// # Errors
    /// [`Failure`]; after [`Failure::Lost`] it is [`Failure::Gone`] always.
    fn run(&mut self, operation: Operation, arguments: &[Data]) -> std::result::Result<Answer, Failure>;

    /// Why it will not answer any more, if so.
    fn lost(&self) -> Option<&str> {
        None
    }
}

/// The host's own `tec-core` and `tec-edge`, in this process.
#[derive(Debug)]
pub struct InProcess {
    name: String,
    back_end: BackEnd,
    // u128 for its alignment.
    memory: Vec<u128>,
}

impl InProcess {
    /// The host under a name of its own, encoders computed by the processor's best back end.
    pub fn new(name: &str) -> Self {
        Self::by(name, BackEnd::best())
    }

    /// The host with one of its back ends.
    pub fn by(name: &str, back_end: BackEnd) -> Self {
        Self {
            name: name.into(),
            back_end,
            memory: vec![0; MEMORY / 16],
        }
    }
}

/// Bytes for a request, its results and scratch memory: far more than any vector needs.
const MEMORY: usize = 64 << 20;

impl Provider for InProcess {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, operation: Operation, arguments: &[Data]) -> std::result::Result<Answer, Failure> {
        let request = encode(operation, 0, arguments);
        let memory: &mut [u8] = bytemuck::cast_slice_mut(&mut self.memory);
        let slot = memory.get_mut(..request.len()).ok_or(Failure::DoesNotFit)?;
        slot.copy_from_slice(&request);
        let mut parts = Parts::default();
        let range = tec_device::answer_by(self.back_end, memory, request.len(), &mut parts);
        let mut answer = decode(memory.get(range).unwrap_or(&[]), 0)?;
        answer.parts = parts.0;
        Ok(answer)
    }
}

#[derive(Default)]
struct Parts(Vec<Part>);

impl Trace for Parts {
    fn record(&mut self, stage: Stage, block: usize, offset: usize, values: TraceValues<'_>) {
        let values = match values {
            TraceValues::I8(values) => Data::from(values),
            TraceValues::I16(values) => Data::from(values),
        };
        self.0.push(Part {
            stage,
            block,
            offset,
            values,
        });
    }
}

/// A device at the other end of a link.
pub struct Remote {
    name: String,
    link: Box<dyn Link>,
    capacity: usize,
    requests: u32,
    lost: Option<String>,
}

impl Remote {
    /// Greets the device. `name` is for reports; without one, the device's own is taken.
    ///
    /// # Errors
    /// [`Error::Device`] when it does not answer, or speaks another version of the protocol.
    pub fn connect(name: Option<&str>, mut link: Box<dyn Link>) -> Result<Self> {
        let shown = name.unwrap_or("the device").to_owned();
        let fail = |reason: String| Error::Device {
            device: shown.clone(),
            reason,
        };
        let greeting = link
            .send(FrameKind::Hello, &write_head(tec_device::frame::PROTOCOL, 0))
            .and_then(|()| link.receive());
        let Reply { kind, payload } = greeting.map_err(|e| fail(e.to_string()))?;
        if kind != FrameKind::Hello {
            return Err(fail(format!("answered a greeting with {kind:?}: {}", text(&payload))));
        }
        let (protocol, _) = head(&payload).unwrap_or_default();
        if protocol != tec_device::frame::PROTOCOL {
            let expected = tec_device::frame::PROTOCOL;
            return Err(fail(format!(
                "its firmware speaks protocol {protocol}, this program {expected}: build the firmware again"
            )));
        }
        let mut results = results(&payload).map_err(|e| fail(e.to_string()))?.into_iter();
        let (Some(Data::U32(capacity)), Some(Data::U8(own_name))) = (results.next(), results.next()) else {
            return Err(fail("its greeting makes no sense: build the firmware again".into()));
        };
        Ok(Self {
            name: name.map_or_else(|| String::from_utf8_lossy(&own_name).into_owned(), str::to_owned),
            link,
            capacity: capacity.first().map_or(0, |&bytes| bytes as usize),
            requests: 0,
            lost: None,
        })
    }

    /// Bytes of memory that the device has for requests and results.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn exchange(&mut self, request: &[u8], number: u32) -> std::result::Result<Answer, Failure> {
        self.link.send(FrameKind::Request, request)?;
        let mut parts = Vec::new();
        loop {
            let Reply { kind, payload } = self.link.receive()?;
            match kind {
                FrameKind::Part => parts.push(part(&payload)?),
                FrameKind::Answer => {
                    let mut answer = decode(&payload, number)?;
                    answer.parts = parts;
                    return Ok(answer);
                }
                FrameKind::Panic => return Err(Failure::Lost(format!("the device failed: {}", text(&payload)))),
                other => {
                    return Err(Failure::Lost(format!(
                        "the device sent {other:?} where an answer was due"
                    )));
                }
            }
        }
    }
}

impl Provider for Remote {
    fn name(&self) -> &str {
        &self.name
    }

    fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    fn run(&mut self, operation: Operation, arguments: &[Data]) -> std::result::Result<Answer, Failure> {
        if let Some(reason) = &self.lost {
            return Err(Failure::Gone(reason.clone()));
        }
        self.requests = self.requests.wrapping_add(1);
        let request = encode(operation, self.requests, arguments);
        if request.len() > self.capacity {
            return Err(Failure::DoesNotFit);
        }
        let outcome = self.exchange(&request, self.requests);
        if let Err(Failure::Lost(reason)) = &outcome {
            self.lost = Some(reason.clone());
        }
        outcome
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // A device that does not listen any more needs no goodbye.
        let _ = self.link.send(FrameKind::Goodbye, &[]);
    }
}

fn text(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).into_owned()
}

/// A request as its payload.
fn encode(operation: Operation, number: u32, arguments: &[Data]) -> Vec<u8> {
    let mut payload = write_head(operation as u16, number).to_vec();
    for argument in arguments {
        payload.extend(write_tensor_head(argument.kind(), argument.len() as u32));
        payload.extend(argument.to_bytes());
        payload.resize(payload.len().next_multiple_of(ALIGNMENT), 0);
    }
    payload
}

fn results(payload: &[u8]) -> std::result::Result<Vec<Data>, Failure> {
    let mut tensors = Tensors::new(payload);
    let mut results = Vec::new();
    while !tensors.is_empty() {
        let (kind, bytes) = tensors
            .take_bytes()
            .map_err(|e| Failure::Lost(format!("an answer makes no sense: {e}")))?;
        results.push(Data::from_bytes(kind, bytes));
    }
    Ok(results)
}

/// An answer from its payload.
fn decode(payload: &[u8], number: u32) -> std::result::Result<Answer, Failure> {
    let (status, of) = head(payload).ok_or(Failure::DoesNotFit)?;
    let status = Status::from_number(status).ok_or_else(|| Failure::Lost(format!("an answer has status {status}")))?;
    if status == Status::DoesNotFit {
        return Err(Failure::DoesNotFit);
    }
    if of != number {
        return Err(Failure::Lost(format!(
            "request {number} got the answer of request {of}"
        )));
    }
    let results = results(payload)?;
    let explanation = || match results.first() {
        Some(Data::U8(bytes)) => text(bytes),
        _ => "for no reason given".into(),
    };
    match status {
        Status::Done => Ok(Answer {
            instructions: payload
                .get(8..HEAD_LEN)
                .and_then(|b| b.try_into().ok())
                .map(u64::from_le_bytes)
                .filter(|&n| n > 0),
            results,
            parts: Vec::new(),
        }),
        Status::DoesNotFit => Err(Failure::DoesNotFit),
        Status::Unknown => Err(Failure::Unknown),
        Status::Malformed | Status::Refused => Err(Failure::Refused(explanation())),
    }
}

/// Part of a trace from its payload.
fn part(payload: &[u8]) -> std::result::Result<Part, Failure> {
    let nonsense = || Failure::Lost("part of a trace makes no sense".into());
    let (stage, block) = head(payload).ok_or_else(nonsense)?;
    let mut tensors = results(payload)?.into_iter();
    let (Some(Data::U32(offset)), Some(values)) = (tensors.next(), tensors.next()) else {
        return Err(nonsense());
    };
    Ok(Part {
        stage: *Stage::ALL.get(usize::from(stage)).ok_or_else(nonsense)?,
        block: block as usize,
        offset: *offset.first().ok_or_else(nonsense)? as usize,
        values,
    })
}
