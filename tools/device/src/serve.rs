//! Serving requests over a stream of bytes.

use tec_edge::{Stage, Trace, TraceValues};

use crate::frame::{FrameKind, HEADER_LEN, Header, PROTOCOL};
use crate::operation::answer;
use crate::refusal::Status;
use crate::tensors::{self, HEAD_LEN, Kind, with_instructions, write_head, write_tensor_head};

/// A stream of bytes to and from the host: semihosting, a serial port, a pipe.
pub trait Transport {
    /// Fills `bytes` from the host; false when the stream has ended.
    fn receive(&mut self, bytes: &mut [u8]) -> bool;
    /// Sends all of `bytes`; false when the stream has ended.
    fn send(&mut self, bytes: &[u8]) -> bool;
    /// Machine instructions executed so far, where the processor counts them.
    fn instructions(&mut self) -> Option<u64> {
        None
    }
}

/// What a device says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Device<'a> {
    /// Its name in reports, such as `cortex-m4f`.
    pub name: &'a str,
}

/// Answers requests until the host says goodbye or the stream ends. `memory` begins at a 16-byte boundary and holds
/// requests, results and scratch memory.
pub fn serve(device: Device<'_>, transport: &mut impl Transport, memory: &mut [u8]) {
    let capacity = memory.len();
    #[cfg(feature = "defmt")]
    defmt::info!("{=str} serves, with {=usize} bytes for requests", device.name, capacity);
    loop {
        let mut header = [0; HEADER_LEN];
        if !transport.receive(&mut header) {
            return;
        }
        let Some(header) = Header::from_bytes(&header) else {
            send(transport, FrameKind::Panic, &[b"what came is no frame"]);
            return;
        };
        let len = header.len as usize;
        let alive = match memory.get_mut(..len) {
            Some(payload) => {
                if !transport.receive(payload) {
                    return;
                }
                if !header.matches(payload) {
                    send(transport, FrameKind::Panic, &[b"a frame came damaged"]);
                    return;
                }
                match header.kind {
                    FrameKind::Hello => greet(device, transport, capacity),
                    FrameKind::Request => {
                        let before = transport.instructions();
                        let range = answer(memory, len, &mut Parts(transport));
                        let after = transport.instructions();
                        #[cfg(feature = "defmt")]
                        defmt::debug!(
                            "a request of {=usize} bytes was answered with {=usize} bytes",
                            len,
                            range.len()
                        );
                        let executed = before.zip(after).map(|(before, after)| after.wrapping_sub(before));
                        match memory.get(range).and_then(|answer| answer.split_first_chunk()) {
                            Some((head, results)) => {
                                let head = with_instructions(*head, executed.unwrap_or(0));
                                send(transport, FrameKind::Answer, &[&head, results])
                            }
                            None => send(
                                transport,
                                FrameKind::Answer,
                                &[&write_head(Status::DoesNotFit as u16, 0)],
                            ),
                        }
                    }
                    _ => return,
                }
            }
            None => {
                skip(transport, memory, len) && {
                    let head = write_head(Status::DoesNotFit as u16, 0);
                    send(transport, FrameKind::Answer, &[&head])
                }
            }
        };
        if !alive {
            return;
        }
    }
}

fn greet(device: Device<'_>, transport: &mut impl Transport, capacity: usize) -> bool {
    let mut memory = [0; 16];
    for (slot, byte) in memory.iter_mut().zip((capacity as u32).to_le_bytes()) {
        *slot = byte;
    }
    let name = device.name.as_bytes();
    let padding = &[0; tensors::ALIGNMENT][..name.len().next_multiple_of(tensors::ALIGNMENT) - name.len()];
    send(
        transport,
        FrameKind::Hello,
        &[
            &write_head(PROTOCOL, 0),
            &write_tensor_head(Kind::U32, 1),
            &memory,
            &write_tensor_head(Kind::U8, name.len() as u32),
            name,
            padding,
        ],
    )
}

/// Takes `len` bytes that do not fit out of the stream.
fn skip(transport: &mut impl Transport, memory: &mut [u8], mut len: usize) -> bool {
    while len > 0 {
        let most = memory.len().clamp(1, len);
        let Some(part) = memory.get_mut(..most) else {
            return false;
        };
        if !transport.receive(part) {
            return false;
        }
        len -= most;
    }
    true
}

fn send(transport: &mut impl Transport, kind: FrameKind, payload: &[&[u8]]) -> bool {
    transport.send(&Header::of(kind, payload).to_bytes()) && payload.iter().all(|piece| transport.send(piece))
}

/// Sends a trace ahead of its answer.
struct Parts<'t, T>(&'t mut T);

impl<T: Transport> Trace for Parts<'_, T> {
    fn record(&mut self, stage: Stage, block: usize, offset: usize, values: TraceValues<'_>) {
        let (kind, bytes): (_, &[u8]) = match values {
            TraceValues::I8(values) => (Kind::I8, bytemuck::cast_slice(values)),
            TraceValues::I16(values) => (Kind::I16, bytemuck::cast_slice(values)),
        };
        let mut place = [0; 16];
        for (slot, byte) in place.iter_mut().zip((offset as u32).to_le_bytes()) {
            *slot = byte;
        }
        let elements = (bytes.len() / kind.size()) as u32;
        let padding = &[0; tensors::ALIGNMENT][..bytes.len().next_multiple_of(tensors::ALIGNMENT) - bytes.len()];
        // A stream that has ended is noticed when the answer is sent.
        send(
            self.0,
            FrameKind::Part,
            &[
                &write_head(stage as u16, block as u32),
                &write_tensor_head(Kind::U32, 1),
                &place,
                &write_tensor_head(kind, elements),
                bytes,
                padding,
            ],
        );
    }
}

const _: () = assert!(HEAD_LEN == tensors::ALIGNMENT);
