//! Answers conformance requests on standard input and output: a device that is a program of this machine. Compiled for
//! other processors or with wider vectors it shows that they give the same bits:
//!
//! ```sh
//! RUSTFLAGS=-Ctarget-cpu=x86-64-v3 cargo build --release -p tec-device --example respond --target-dir target/x86-64-v3
//! tec conformance --only device --device target/x86-64-v3/release/examples/respond
//! ```

use std::io::{Read, Write};

use tec_device::{Device, Transport, serve};

struct Pipes;

impl Transport for Pipes {
    fn receive(&mut self, bytes: &mut [u8]) -> bool {
        std::io::stdin().lock().read_exact(bytes).is_ok()
    }

    fn send(&mut self, bytes: &[u8]) -> bool {
        let mut output = std::io::stdout().lock();
        output.write_all(bytes).and_then(|()| output.flush()).is_ok()
    }
}

fn main() {
    // u128 for its alignment.
    let mut memory = vec![0u128; 1 << 22];
    let name = if cfg!(target_feature = "avx2") {
        "x86-64-v3"
    } else {
        std::env::consts::ARCH
    };
    serve(Device { name }, &mut Pipes, bytemuck::cast_slice_mut(&mut memory));
}
