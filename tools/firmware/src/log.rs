//! The log: defmt's frames, each in a frame of the protocol, so that one stream carries both.

use core::cell::UnsafeCell;

use defmt::Encoder;
use heapless::Vec;
use tec_device::frame::{FrameKind, Header};

use crate::link;

/// The longest message; what is longer is cut off, and the host says that it cannot be decoded.
const LONGEST: usize = 256;

struct State {
    encoder: Encoder,
    message: Vec<u8, LONGEST>,
}

struct Shared(UnsafeCell<State>);

// SAFETY: the firmware has one thread and its interrupt handlers do not log.
unsafe impl Sync for Shared {}

static STATE: Shared = Shared(UnsafeCell::new(State {
    encoder: Encoder::new(),
    message: Vec::new(),
}));

/// Calls `f` with the encoder and where it writes to.
fn with(f: impl FnOnce(&mut Encoder, &mut dyn FnMut(&[u8]))) {
    // SAFETY: one thread, and `f` does not log.
    let State { encoder, message } = unsafe { &mut *STATE.0.get() };
    f(encoder, &mut |bytes| {
        let _ = message.extend_from_slice(bytes);
    });
}

#[defmt::global_logger]
struct Logger;

// SAFETY: one thread, so nobody else can acquire the logger between `acquire` and `release`.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        with(|encoder, write| encoder.start_frame(write));
    }

    // SAFETY: sound on its own; defmt calls it between `acquire` and `release` only.
    unsafe fn write(bytes: &[u8]) {
        with(|encoder, write| encoder.write(bytes, write));
    }

    // SAFETY: does nothing, for messages are sent whole.
    unsafe fn flush() {}

    // SAFETY: sound on its own; defmt calls it once after `acquire`.
    unsafe fn release() {
        with(|encoder, write| encoder.end_frame(write));
        // SAFETY: one thread.
        let message = unsafe { &mut (*STATE.0.get()).message };
        link::send(&Header::of(FrameKind::Log, &[message.as_slice()]).to_bytes());
        link::send(message);
        message.clear();
    }
}
