//! Encodes one image and prints length, scale, checksum and first values of each output: what programs on devices are compared with.
//!
//!     cargo run --release -p tec-edge --example embed -- encoder.tec [PIXELS]
//!
//! `PIXELS` is a file of 8-bit pixels, `[height, width, channels]`; without one, pixel i is `89 i mod 251`, as in
//! `tec-edge-c/example` and `tools/firmware`.

use std::error::Error;
use std::{env, fs};

use tec_edge::{ALIGNMENT, Encoder, Image, Output, OutputKind, Outputs};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let path = arguments
        .next()
        .ok_or("give an encoder.tec, and a file of pixels if you like")?;
    let bytes = fs::read(&path).map_err(|e| format!("{path}: {e}"))?;
    let mut memory = vec![0; bytes.len() + ALIGNMENT];
    let file = aligned(&mut memory, bytes.len());
    file.copy_from_slice(&bytes);
    let encoder = Encoder::from_bytes(file).map_err(|e| format!("{path}: {e}"))?;

    let pixels = match arguments.next() {
        Some(path) => fs::read(&path).map_err(|e| format!("{path}: {e}"))?,
        None => (0..encoder.geometry().image_len())
            .map(|i| (i * 89 % 251) as u8)
            .collect(),
    };
    let len = encoder.scratch_len(Outputs::ALL);
    let mut memory = vec![0; len + ALIGNMENT];
    let [mut class, mut mean, mut patches] =
        [OutputKind::Class, OutputKind::Mean, OutputKind::Patches].map(|kind| vec![0; encoder.output_len(kind)]);
    let out = Output {
        class: Some(&mut class),
        mean: Some(&mut mean),
        patches: Some(&mut patches),
        ..Output::default()
    };
    encoder.encode(Image::Pixels(&pixels), aligned(&mut memory, len), out)?;
    print(&encoder, "class", OutputKind::Class, &class);
    print(&encoder, "mean", OutputKind::Mean, &mean);
    print(&encoder, "patches", OutputKind::Patches, &patches);
    Ok(())
}

/// `len` bytes of `memory` from a 16-byte boundary on.
fn aligned(memory: &mut [u8], len: usize) -> &mut [u8] {
    let skip = memory.as_ptr().align_offset(ALIGNMENT);
    &mut memory[skip..skip + len]
}

fn print(encoder: &Encoder<'_>, name: &str, kind: OutputKind, values: &[i16]) {
    let first: Vec<String> = values.iter().take(8).map(i16::to_string).collect();
    println!(
        "{name}: {} values, step 2^{}, checksum {:016x}, first {}",
        values.len(),
        -encoder.output_scale_shift(kind),
        checksum(values),
        first.join(" ")
    );
}

/// FNV-1a, 64 bits, of the values' bytes, the low one first.
fn checksum(values: &[i16]) -> u64 {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    bytes.fold(0xCBF2_9CE4_8422_2325, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    })
}
