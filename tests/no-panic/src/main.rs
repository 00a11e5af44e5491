//! A program that links only if no panic can be reached in `tec-core` or `tec-edge`.
//!
//! It calls every public function with arguments that the optimizer cannot know. Its panic handler calls a function
//! that does not exist: where the optimizer cannot prove that a panic never happens, the handler stays in the program
//! and the linker names the missing function. `ci/no-panic` builds it, and builds it with a panic to see the link fail;
//! the script also compares the calls here with the public functions in the sources, so a new function must be added.
#![no_std]
#![no_main]

mod core_calls;
mod edge_calls;

use core::ffi::c_int;
use core::hint::black_box;
use core::panic::PanicInfo;

// The C library has the start-up code and `memcpy`, and no such function.
#[link(name = "c")]
unsafe extern "C" {
    fn a_panic_is_reachable() -> !;
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    // SAFETY: never called. There is no such function, so a program that contains this call is not linked.
    unsafe { a_panic_is_reachable() }
}

/// Where the C library's start-up code goes.
// SAFETY: the one `main` of the program.
#[unsafe(no_mangle)]
extern "C" fn main() -> c_int {
    core_calls::all();
    edge_calls::all();
    #[cfg(feature = "with-a-panic")]
    used(some::<u8>()[unknown(3usize)]);
    0
}

/// The value, of which the optimizer then knows nothing but its type.
fn unknown<T>(value: T) -> T {
    black_box(value)
}

/// A slice of unknown length and content.
fn some<T>() -> &'static mut [T] {
    unknown(&mut [])
}

/// Keeps the computation of a value.
fn used<T>(value: T) {
    black_box(value);
}
