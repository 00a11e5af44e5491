//! Firmware that answers conformance requests, over semihosting or a serial port (feature `uart`).
//!
//! All RAM between the program's own data and the stack is lent to requests; how much that is decides the linker script.
#![no_std]
#![no_main]

#[cfg_attr(feature = "uart", path = "uart_link.rs")]
#[cfg_attr(not(feature = "uart"), path = "semihosting_link.rs")]
mod link;
#[cfg(feature = "defmt")]
mod log;
mod start;

use core::fmt::Write;
use core::panic::PanicInfo;

use heapless::String;
use tec_device::frame::{FrameKind, Header};
use tec_device::{Device, serve};

/// Called by the start-up code with the memory that requests may use.
fn run(memory: &mut [u8]) -> ! {
    let Some(mut port) = link::Port::open() else {
        fail(b"there is no link to the host")
    };
    loop {
        serve(Device { name: start::NAME }, &mut port, memory);
        link::after();
    }
}

/// Tells the host, and ends.
fn fail(text: &[u8]) -> ! {
    link::send(&Header::of(FrameKind::Panic, &[text]).to_bytes());
    link::send(text);
    link::end()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut text = String::<200>::new();
    // What does not fit is cut off.
    let _ = write!(text, "{info}");
    fail(text.as_bytes())
}
