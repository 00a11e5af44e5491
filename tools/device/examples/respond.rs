//! A device that is a program of this machine. Compiled for other processors or with wider vectors it shows that they give
//! the same bits:
//!
//! ```sh
//! RUSTFLAGS=-Ctarget-cpu=x86-64-v3 cargo build --release -p tec-device --features std --example respond --target-dir target/v3
//! tec conformance --only device --device target/v3/release/examples/respond
//! ```

use tec_device::{Device, serve_standard_streams};

fn main() {
    let name = match cfg!(target_feature = "avx2") {
        true => "x86-64-v3",
        false => std::env::consts::ARCH,
    };
    serve_standard_streams(Device { name }, 64 << 20);
}
