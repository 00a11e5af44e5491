//! A program of this machine as a device: requests on standard input, answers on standard output.

extern crate std;

use std::io::{Read, Write, stdin, stdout};
use std::vec;

use crate::serve::{Device, Transport, serve};

struct Pipes;

impl Transport for Pipes {
    fn receive(&mut self, bytes: &mut [u8]) -> bool {
        stdin().lock().read_exact(bytes).is_ok()
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        let mut output = stdout().lock();
        output.write_all(bytes).and_then(|()| output.flush()).is_ok()
    }
}

/// Answers until the host says goodbye or the input ends, with this many bytes of memory for requests.
pub fn serve_standard_streams(device: Device<'_>, memory_bytes: usize) {
    // u128 for its alignment.
    let mut memory = vec![0u128; memory_bytes / size_of::<u128>()];
    serve(device, &mut Pipes, bytemuck::cast_slice_mut(&mut memory));
}
