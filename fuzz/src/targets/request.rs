//! Any bytes to a device: as a request's payload, and as the stream that it serves.

use tec_device::Operation;
use tec_device::frame::FrameKind;

use crate::input::{Random, Source};
use crate::operations;
use crate::request::{Request, ask, ask_for_any_length, converse, frame};

/// What one input's first byte chooses: how the rest is taken.
const PAYLOAD: u8 = 0;
const STREAM: u8 = 1;
const FRAMES: u8 = 2;
const ANY_LENGTH: u8 = 3;

/// Bytes that say how much memory the device has, and, for a stream, how much can be sent.
const SIZES: usize = 4;

/// Takes one input.
///
/// # Panics
/// Where something does not hold.
pub fn run(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<{ 1 + SIZES }>() else {
        return;
    };
    let [how, capacity @ .., room_low, room_high] = *head;
    let capacity = usize::from(u16::from_le_bytes(capacity));
    let room = usize::from(u16::from_le_bytes([room_low, room_high]));
    match how % 4 {
        PAYLOAD => {
            ask(rest, capacity);
        }
        STREAM => converse(rest, capacity, room),
        ANY_LENGTH => {
            let (len, memory) = rest.split_first_chunk().unwrap_or((&[0xff; 8], rest));
            ask_for_any_length(memory, u64::from_le_bytes(*len) as usize);
        }
        _ => converse(&frames(rest), capacity, room),
    }
}

/// The bytes cut into payloads of whole frames: kind, length, payload.
fn frames(mut rest: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    while let Some((&[kind, low, high], after)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes([low, high])).min(after.len());
        let (payload, after) = after.split_at(len);
        let kind = FrameKind::from_number(kind % 8).unwrap_or(FrameKind::Request);
        stream.extend(frame(kind, payload));
        rest = after;
    }
    stream
}

/// Inputs to start from: each operation once as a payload, and conversations.
///
/// # Panics
/// Where an operation computes nothing.
pub fn seeds() -> Vec<Vec<u8>> {
    const SIZE: [u8; SIZES] = [0x00, 0x40, 0xff, 0xff];
    let mut random = Random(2);
    let mut requests: Vec<Request> = Vec::new();
    for &operation in Operation::ALL {
        // The first request that is computed.
        for _ in 0..50 {
            let choices: Vec<u8> = (0..2000).map(|_| random.next_u64() as u8 % 64).collect();
            let mut done = None;
            operations::call(operation, &mut Source::new(&choices), &mut |request| {
                let answer = ask(&request.payload, 1 << 14)?;
                (answer.status == tec_device::Status::Done).then(|| done = Some(request.clone()));
                None
            });
            if let Some(request) = done {
                requests.push(request);
                break;
            }
        }
    }
    assert_eq!(requests.len(), Operation::ALL.len(), "an operation has no seed");
    let mut inputs: Vec<Vec<u8>> = requests
        .iter()
        .map(|request| [&[PAYLOAD], &SIZE[..], &request.payload].concat())
        .collect();
    let small = requests.iter().filter(|request| request.payload.len() < 300);
    let frames = small.map(|request| frame(FrameKind::Request, &request.payload));
    let conversation: Vec<u8> = [frame(FrameKind::Hello, &[])]
        .into_iter()
        .chain(frames)
        .chain([frame(FrameKind::Goodbye, &[])])
        .flatten()
        .collect();
    inputs.push([&[STREAM], &SIZE[..], &conversation].concat());
    let payload = &requests[0].payload;
    let len = (payload.len() as u16).to_le_bytes();
    inputs.push([&[ANY_LENGTH], &SIZE[..], &u64::MAX.to_le_bytes(), payload].concat());
    inputs.push([&[FRAMES], &SIZE[..], &[1, 0, 0, 2], &len, payload, &[6, 0, 0]].concat());
    inputs
}
