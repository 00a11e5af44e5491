//! `tec-edge` for programs in C: a static library and its header, `include/tec_edge.h`.
//!
//! The header is written from this crate by cbindgen, documentation included; `docs/edge.md` says how a program is built with
//! it. Nothing is allocated: the encoder, the scratch memory and the outputs are the caller's. What a caller can get wrong and
//! a function can see (NULL, alignment, lengths, overlaps, an encoder that was never opened) is an error code.
//!
//! On a target without an operating system the library brings a panic handler, which the compiler demands. Nothing reaches it:
//! `ci/c` looks for it in a linked program.
#![cfg_attr(target_os = "none", no_std)]

mod failure;
mod functions;
mod interface;
mod memory;

pub use functions::*;
pub use interface::*;

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
