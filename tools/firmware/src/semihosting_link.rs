//! The host's standard input and output, by semihosting: under QEMU, or a debugger that offers both.

use semihosting::io::{Read, Stdin, Write, stdin, stdout};
use tec_device::Transport;

/// The link.
pub struct Port {
    input: Stdin,
}

impl Port {
    /// Opens it; nothing where the host offers no input.
    pub fn open() -> Option<Self> {
        Some(Self { input: stdin().ok()? })
    }
}

impl Transport for Port {
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
        send(bytes)
    }

    fn instructions(&mut self) -> Option<u64> {
        crate::start::instructions()
    }
}

/// Sends bytes to the host.
pub fn send(bytes: &[u8]) -> bool {
    stdout().and_then(|mut output| output.write_all(bytes)).is_ok()
}

/// The host has said goodbye.
pub fn after() {
    semihosting::process::exit(0)
}

/// The end after a failure.
pub fn end() -> ! {
    semihosting::process::exit(101)
}
