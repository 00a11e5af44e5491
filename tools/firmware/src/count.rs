//! Firmware that counts instructions: encodes one image with the encoder that lies at `TEC_ENCODER_AT` and says what it took, and what
//! the matrix products of one block alone do.
//!
//! The emulator puts the encoder there. `ci/instructions` runs it.
#![no_std]
#![no_main]

#[path = "semihosting_link.rs"]
#[allow(dead_code, reason = "only what this program needs of it")]
mod link;
mod products;
mod start;

use core::fmt::Write;
use core::panic::PanicInfo;

use heapless::String;
use tec_edge::{ALIGNMENT, Encoder, Image, Output, Outputs};

/// Called by the start-up code with the memory that the encoder may use.
fn run(memory: &mut [u8]) -> ! {
    match count(memory) {
        Ok(text) => {
            link::send(text.as_bytes());
            link::after();
            link::end()
        }
        Err(what) => fail(what.as_bytes()),
    }
}

fn count(memory: &mut [u8]) -> Result<String<256>, &'static str> {
    let bytes = start::encoder().ok_or("TEC_ENCODER_AT is not set, or no encoder lies there")?;
    // The first call starts the counter.
    start::emulated_instructions();
    let before = start::emulated_instructions().ok_or("this processor counts no instructions")?;
    let encoder =
        Encoder::from_bytes(bytes).map_err(|_| "no encoder that this program reads lies at TEC_ENCODER_AT")?;
    let opened = start::emulated_instructions().unwrap_or(0);
    let len = encoder.scratch_len(Outputs::MEAN);
    let (scratch, rest) = memory
        .split_at_mut_checked(len.next_multiple_of(ALIGNMENT))
        .ok_or("too little memory")?;
    let (pixels, rest) = rest
        .split_at_mut_checked(encoder.geometry().image_len())
        .ok_or("too little memory")?;
    for (i, pixel) in pixels.iter_mut().enumerate() {
        *pixel = (i * 89 % 251) as u8;
    }
    let skip = rest.as_ptr().align_offset(ALIGNMENT);
    let mean = rest
        .get_mut(skip..skip + 2 * encoder.geometry().dim)
        .ok_or("too little memory")?;
    let mean = bytemuck::try_cast_slice_mut::<u8, i16>(mean).map_err(|_| "memory is not aligned")?;
    let out = Output {
        mean: Some(mean),
        ..Output::default()
    };
    let started = start::emulated_instructions().unwrap_or(0);
    let image = Image::Pixels(pixels);
    encoder
        .encode(image, scratch, out)
        .map_err(|_| "the image was not encoded")?;
    let ended = start::emulated_instructions().unwrap_or(0);
    let hash = mean
        .iter()
        .fold(0u32, |hash, &x| hash.wrapping_mul(31).wrapping_add(x as u16 as u32));
    let products = products::count(memory).ok_or("too little memory for products")?;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{{\"back_end\": \"{}\", \"open\": {}, \"encode\": {}, \"scratch\": {len}, \"hash\": {hash}, \"products\": {products}}}",
        encoder.back_end().name(),
        opened - before,
        ended - started,
    );
    Ok(text)
}

fn fail(text: &[u8]) -> ! {
    link::send(text);
    link::send(b"\n");
    link::end()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut text = String::<200>::new();
    // What does not fit is cut off.
    let _ = write!(text, "{info}");
    fail(text.as_bytes())
}
