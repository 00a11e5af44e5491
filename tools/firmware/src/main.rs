//! Firmware that answers conformance requests over semihosting: under QEMU, or under a debugger that offers it.
//!
//! All RAM between the program's own data and the stack is lent to requests; how much that is decides the linker script.
#![no_std]
#![no_main]

#[cfg(feature = "defmt")]
mod log;
mod start;

use core::fmt::Write as _;
use core::panic::PanicInfo;

use semihosting::io::{Read, Stdin, Stdout, Write, stdin, stdout};
use tec_device::frame::{FrameKind, Header};
use tec_device::{Device, Transport, serve};

/// Standard input and output of the host.
struct Semihosting {
    input: Stdin,
    output: Stdout,
}

impl Transport for Semihosting {
    fn receive(&mut self, bytes: &mut [u8]) -> bool {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.input.read(rest) {
                Ok(0) | Err(_) => return false,
                Ok(read) => rest = rest.get_mut(read..).unwrap_or_default(),
            }
        }
        true
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        self.output.write_all(bytes).is_ok()
    }

    fn instructions(&mut self) -> Option<u64> {
        start::instructions()
    }
}

/// Called by the start-up code with the memory that requests may use.
fn run(memory: &mut [u8]) -> ! {
    if let (Ok(input), Ok(output)) = (stdin(), stdout()) {
        let device = Device { name: start::NAME };
        serve(device, &mut Semihosting { input, output }, memory);
    }
    semihosting::process::exit(0)
}

/// Tells the host, and ends: a device never spins.
fn fail(text: &[u8]) -> ! {
    if let Ok(mut output) = stdout() {
        let _ = output.write_all(&Header::of(FrameKind::Panic, &[text]).to_bytes());
        let _ = output.write_all(text);
    }
    semihosting::process::exit(101)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut text = Text { bytes: [0; 200], len: 0 };
    // What does not fit is cut off.
    let _ = write!(text, "{info}");
    fail(text.bytes.get(..text.len).unwrap_or_default())
}

struct Text {
    bytes: [u8; 200],
    len: usize,
}

impl core::fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let rest = self.bytes.get_mut(self.len..).unwrap_or_default();
        for (slot, byte) in rest.iter_mut().zip(text.bytes()) {
            *slot = byte;
            self.len += 1;
        }
        Ok(())
    }
}
