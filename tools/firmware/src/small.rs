//! Firmware for a microcontroller with little memory: its linker script (`boards/small-*.x`) has what this program needs, and no more.
//!
//! Encodes one image with the encoder that lies at `TEC_ENCODER_AT`, in flash on a real board, and prints the outputs as
//! `tec-edge/examples/embed.rs` does, then what memory it took. `ci/small-memory` builds it for two encoders and compares.
#![no_std]
#![no_main]

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::ptr::addr_of;

use cortex_m_rt::{ExceptionFrame, entry, exception};
use semihosting::io::Write as _;
use tec_edge::{Aligned, Encoder, Image, Output, OutputKind, Outputs};

/// What the buffers are made for.
struct Sizes {
    scratch: usize,
    image: usize,
    dim: usize,
    patches: usize,
}

/// `TEC_SCRATCH` gives another size of the scratch memory, to see that less does not do.
const SIZES: Sizes = {
    let mut sizes = if matches!(option_env!("TEC_SMALL"), Some(_)) {
        // ViT-Ti/16 at 224x224.
        Sizes {
            scratch: 256 * 1024,
            image: 224 * 224 * 3,
            dim: 192,
            patches: 14 * 14,
        }
    } else {
        // A ViT of 0.45 million parameters at 32x32, patch 4.
        Sizes {
            scratch: 32 * 1024,
            image: 32 * 32 * 3,
            dim: 96,
            patches: 8 * 8,
        }
    };
    if let Some(text) = option_env!("TEC_SCRATCH") {
        sizes.scratch = match usize::from_str_radix(text, 10) {
            Ok(bytes) => bytes,
            Err(_) => panic!("TEC_SCRATCH is no number"),
        };
    }
    sizes
};

static mut SCRATCH: Aligned<[u8; SIZES.scratch]> = Aligned::zeroed();
static mut CLASS: [i16; SIZES.dim] = [0; SIZES.dim];
static mut MEAN: [i16; SIZES.dim] = [0; SIZES.dim];
#[unsafe(link_section = ".camera")]
static mut CAMERA: [u8; SIZES.image] = [0; SIZES.image];
#[unsafe(link_section = ".patches")]
static mut PATCHES: [i16; SIZES.patches * SIZES.dim] = [0; SIZES.patches * SIZES.dim];

unsafe extern "C" {
    /// The lowest address of the stack.
    static _stack_end: u32;
    /// Where the stack begins: its highest address.
    static _stack_start: u32;
}

/// What the unused stack holds.
const PAINT: u32 = 0x5AFE_57AC;
/// Words below the stack pointer that are not painted, for the painter itself.
const UNPAINTED: usize = 8;

#[entry]
fn main() -> ! {
    paint_stack();
    // SAFETY: the entry point runs once; nothing else refers to the statics.
    let (scratch, class, mean, camera, patches) = unsafe {
        (
            &mut *(&raw mut SCRATCH),
            &mut *(&raw mut CLASS),
            &mut *(&raw mut MEAN),
            &mut *(&raw mut CAMERA),
            &mut *(&raw mut PATCHES),
        )
    };
    for (i, pixel) in camera.iter_mut().enumerate() {
        *pixel = (i * 89 % 251) as u8;
    }
    let Some(bytes) = encoder() else {
        end(format_args!("TEC_ENCODER_AT is not set, or no encoder lies there"))
    };
    let encoder = match Encoder::from_bytes(bytes) {
        Ok(encoder) => encoder,
        Err(e) => end(format_args!("{e}")),
    };
    let out = Output {
        class: Some(class),
        mean: Some(mean),
        patches: Some(patches),
        logits: None,
    };
    if let Err(e) = encoder.encode(Image::Pixels(camera), &mut scratch.0, out) {
        end(format_args!("{e}"))
    }
    let used = stack_used();
    report(&encoder, "class", OutputKind::Class, class);
    report(&encoder, "mean", OutputKind::Mean, mean);
    report(&encoder, "patches", OutputKind::Patches, patches);
    let _ = writeln!(
        Console,
        "memory: back end {}, scratch {} (least {}), stack {used} of {}",
        encoder.back_end().name(),
        scratch.0.len(),
        encoder.scratch_len(Outputs::ALL),
        addr_of!(_stack_start) as usize - addr_of!(_stack_end) as usize,
    );
    semihosting::process::exit(0)
}

/// Fills what the stack has not used yet.
#[inline(never)]
fn paint_stack() {
    let here = 0u32;
    let (mut at, end) = (addr_of!(_stack_end).cast_mut(), addr_of!(here).wrapping_sub(UNPAINTED));
    while at.cast_const() < end {
        // SAFETY: between the stack's end and this frame, where nothing is alive.
        unsafe {
            at.write_volatile(PAINT);
            at = at.add(1);
        }
    }
}

/// Bytes of the stack that were ever written since.
fn stack_used() -> usize {
    let (mut at, start) = (addr_of!(_stack_end), addr_of!(_stack_start));
    // SAFETY: the stack's own memory.
    while at < start && unsafe { at.read_volatile() } == PAINT {
        at = at.wrapping_add(1);
    }
    start as usize - at as usize
}

/// The encoder's bytes, whose length its header says.
fn encoder() -> Option<&'static [u8]> {
    let digits = option_env!("TEC_ENCODER_AT")?.strip_prefix("0x")?;
    let at = usize::from_str_radix(digits, 16).ok()? as *const u8;
    // SAFETY: the emulator has put a file there, in memory that this program does not write, whose bytes 12 to 15 are its length.
    unsafe {
        let len = at.add(12).cast::<u32>().read_volatile();
        Some(core::slice::from_raw_parts(at, len as usize))
    }
}

fn report(encoder: &Encoder<'_>, name: &str, kind: OutputKind, values: &[i16]) {
    let _ = write!(
        Console,
        "{name}: {} values, step 2^{}, checksum {:016x}, first",
        values.len(),
        -encoder.output_scale_shift(kind),
        checksum(values),
    );
    for value in values.iter().take(8) {
        let _ = write!(Console, " {value}");
    }
    let _ = writeln!(Console);
}

/// FNV-1a, 64 bits, of the values' bytes, the low one first.
fn checksum(values: &[i16]) -> u64 {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    bytes.fold(0xCBF2_9CE4_8422_2325, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    })
}

/// The host's standard output.
struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut out = semihosting::io::stdout().map_err(|_| fmt::Error)?;
        out.write_all(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

fn end(why: fmt::Arguments<'_>) -> ! {
    let _ = writeln!(Console, "{why}");
    semihosting::process::exit(101)
}

// SAFETY: touches nothing that the fault may have left half done, and does not return.
#[exception]
unsafe fn HardFault(_: &ExceptionFrame) -> ! {
    end(format_args!("hard fault"))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    end(format_args!("{info}"))
}
