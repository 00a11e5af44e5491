//! Requests to a device, and what must hold of its answers.

use std::ops::Range;

use tec_device::frame::{FrameKind, HEADER_LEN, Header};
use tec_device::tensors::{ALIGNMENT, Element, HEAD_LEN, Tensors, head, write_head, write_tensor_head};
use tec_device::{Device, Operation, Status, Transport, answer, serve};
use tec_edge::{Stage, Trace, TraceValues};

use crate::input::Bytes;

/// A request's payload, as it is built.
#[derive(Debug, Clone)]
pub struct Request {
    /// What is asked for.
    pub operation: Operation,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Request {
    /// No arguments yet.
    pub fn new(operation: Operation) -> Self {
        Self {
            operation,
            payload: write_head(operation as u16, 7).to_vec(),
        }
    }

    /// Adds an argument.
    pub fn tensor<T: Element>(mut self, values: &[T]) -> Self {
        self.payload.extend(write_tensor_head(T::KIND, values.len() as u32));
        self.payload.extend_from_slice(bytemuck::cast_slice(values));
        self.payload.resize(self.payload.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// Adds sizes, as one argument.
    pub fn sizes<const N: usize>(self, sizes: [usize; N]) -> Self {
        self.tensor(&sizes.map(|size| size as u32))
    }
}

/// A device's answer.
#[derive(Debug)]
pub struct Answer {
    /// How it ended.
    pub status: Status,
    payload: Bytes,
}

impl Answer {
    /// The results.
    pub fn results(&self) -> Tensors<'_> {
        Tensors::new(self.payload.get())
    }
}

/// Asks a device with `capacity` bytes of memory, twice, with different garbage behind the request. Nothing for a request that
/// leaves no room for an answer.
///
/// # Panics
/// Where something does not hold that must hold of every answer.
pub fn ask(payload: &[u8], capacity: usize) -> Option<Answer> {
    let capacity = capacity.max(payload.len());
    let (range, memory) = compute(payload, capacity, 0x5a);
    let (range_again, memory_again) = compute(payload, capacity, 0xc3);
    assert!(
        range.start <= range.end && range.end <= capacity,
        "{range:?} is outside {capacity}"
    );
    assert_eq!(range, range_again, "the answer depends on what the memory held");
    let found = &memory.get()[range.clone()];
    assert!(
        found == &memory_again.get()[range.clone()],
        "the answer depends on what the memory held"
    );
    if range.is_empty() {
        let left = capacity.saturating_sub(payload.len().next_multiple_of(ALIGNMENT));
        assert!(left < HEAD_LEN, "{left} bytes are enough for an answer's head");
        return None;
    }
    assert!(range.start >= payload.len() && range.start.is_multiple_of(ALIGNMENT));

    let (status, number) = head(found).expect("an answer has a head");
    assert_eq!(number, head(payload).unwrap_or_default().1);
    let answer = Answer {
        status: Status::from_number(status).expect("a status"),
        payload: Bytes::new(found),
    };
    let mut results = answer.results();
    while !results.is_empty() {
        results.take_bytes().expect("results are whole tensors");
    }
    Some(answer)
}

/// Asks for an answer to the first `len` bytes of a memory that may have fewer.
///
/// # Panics
/// Where the answer is said to lie outside the memory.
pub fn ask_for_any_length(memory: &[u8], len: usize) {
    let mut memory = Bytes::new(memory);
    let range = answer(memory.get_mut(), len, &mut Ignore);
    assert!(memory.get().get(range.clone()).is_some(), "{range:?}");
}

struct Ignore;

impl Trace for Ignore {
    fn record(&mut self, _: Stage, _: usize, _: usize, _: TraceValues<'_>) {}
}

fn compute(payload: &[u8], capacity: usize, garbage: u8) -> (Range<usize>, Bytes) {
    let mut memory = Bytes::filled(capacity + ALIGNMENT, garbage);
    let (usable, behind) = memory.get_mut().split_at_mut(capacity);
    usable[..payload.len()].copy_from_slice(payload);
    let range = answer(usable, payload.len(), &mut Ignore);
    assert!(usable[..payload.len()] == *payload, "the request was overwritten");
    assert!(behind.iter().all(|&byte| byte == garbage), "written behind the memory");
    (range, memory)
}

struct Stream<'a> {
    incoming: &'a [u8],
    sent: Vec<u8>,
    /// How many bytes can be sent before the stream ends.
    room: usize,
}

impl Transport for Stream<'_> {
    fn receive(&mut self, bytes: &mut [u8]) -> bool {
        let Some((now, later)) = self.incoming.split_at_checked(bytes.len()) else {
            return false;
        };
        bytes.copy_from_slice(now);
        self.incoming = later;
        true
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        let Some(room) = self.room.checked_sub(bytes.len()) else {
            return false;
        };
        self.room = room;
        self.sent.extend_from_slice(bytes);
        true
    }
}

/// Serves a stream of bytes with `capacity` bytes of memory, once to its end and once to a host that stops reading.
///
/// # Panics
/// Where the device sends what is no frame.
pub fn converse(stream: &[u8], capacity: usize, room: usize) {
    let sent = talk(stream, capacity, usize::MAX);
    let mut rest = &sent[..];
    while !rest.is_empty() {
        let (bytes, after) = rest.split_first_chunk::<HEADER_LEN>().expect("a whole header");
        let header = Header::from_bytes(bytes).expect("a header");
        assert!(!matches!(header.kind, FrameKind::Request | FrameKind::Goodbye));
        let (payload, after) = after.split_at_checked(header.len as usize).expect("a whole payload");
        assert!(header.matches(payload));
        rest = after;
    }
    let cut = talk(stream, capacity, room);
    assert!(cut.len() <= room);
}

fn talk(stream: &[u8], capacity: usize, room: usize) -> Vec<u8> {
    let mut memory = Bytes::filled(capacity, 0x96);
    let mut stream = Stream {
        incoming: stream,
        sent: Vec::new(),
        room,
    };
    serve(Device { name: "fuzz" }, &mut stream, memory.get_mut());
    stream.sent
}

/// A frame with a right checksum.
pub fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let mut frame = Header::of(kind, &[payload]).to_bytes().to_vec();
    frame.extend_from_slice(payload);
    frame
}
