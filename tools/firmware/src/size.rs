//! The least program with an encoder: encodes a black image and sends the mean. Built without `TEC_ENCODER_AT`, the same without the
//! encoder; the difference is what the encoder takes of a device's flash. `ci/instructions` compares the two.
#![no_std]
#![no_main]

#[path = "semihosting_link.rs"]
#[allow(dead_code, reason = "only what this program needs of it")]
mod link;
mod start;

use core::panic::PanicInfo;

use tec_edge::{Encoder, Image, Output, Outputs};

/// Called by the start-up code with the memory that the encoder may use.
fn run(memory: &mut [u8]) -> ! {
    if encode(memory).is_none() {
        fail(b"nothing encoded");
    }
    link::send(memory);
    link::after();
    link::end()
}

fn encode(memory: &mut [u8]) -> Option<()> {
    let encoder = Encoder::from_bytes(start::encoder()?).ok()?;
    let (scratch, rest) = memory.split_at_mut_checked(encoder.scratch_len(Outputs::MEAN))?;
    let (pixels, rest) = rest.split_at_mut_checked(encoder.geometry().image_len())?;
    let mean = bytemuck::try_cast_slice_mut(rest.get_mut(..2 * encoder.geometry().dim)?).ok()?;
    let out = Output {
        mean: Some(mean),
        ..Output::default()
    };
    encoder.encode(Image::Pixels(pixels), scratch, out).ok()
}

fn fail(text: &[u8]) -> ! {
    link::send(text);
    link::end()
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    fail(b"panic")
}
