//! The same answers from WebAssembly. The host provides two functions that move bytes (`wasm/run.mjs` does so with Node's
//! standard input and output) and calls `run`.
#![cfg_attr(target_arch = "wasm32", no_std)]
#![cfg(target_arch = "wasm32")]

use core::cell::UnsafeCell;
use core::panic::PanicInfo;
use tec_device::{Device, Transport, serve};

#[link(wasm_import_module = "host")]
unsafe extern "C" {
    /// Fills `len` bytes at `address` from the host; 0 when there are no more.
    fn receive(address: *mut u8, len: usize) -> i32;
    /// Takes `len` bytes at `address`; 0 when nobody listens.
    fn send(address: *const u8, len: usize) -> i32;
}

struct Host;

impl Transport for Host {
    fn receive(&mut self, bytes: &mut [u8]) -> bool {
        // SAFETY: the host writes exactly these bytes.
        unsafe { receive(bytes.as_mut_ptr(), bytes.len()) != 0 }
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        // SAFETY: the host reads exactly these bytes.
        unsafe { send(bytes.as_ptr(), bytes.len()) != 0 }
    }
}

const MEMORY: usize = 16 << 20;

#[repr(C, align(16))]
struct Memory(UnsafeCell<[u8; MEMORY]>);

// SAFETY: a module has one thread.
unsafe impl Sync for Memory {}

static REQUESTS: Memory = Memory(UnsafeCell::new([0; MEMORY]));

/// Serves requests until the host says goodbye. To be called once.
#[unsafe(no_mangle)]
pub extern "C" fn run() {
    let device = Device { name: "wasm32" };
    // SAFETY: the one use of this memory, by the contract above.
    let memory: &mut [u8] = unsafe { &mut *REQUESTS.0.get() };
    serve(device, &mut Host, memory);
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}
