//! `tec respond`: this machine as a device, so that another one can check it.

use tec_device::{Device, serve_standard_streams};
use tec_train::Result;

/// Arguments of `tec respond`.
#[derive(clap::Args)]
pub struct Args {
    /// Memory for requests, in KiB: less shows what would not fit a device
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    memory: usize,
}

/// Runs the verb: answers requests on standard input until it ends.
pub fn run(args: &Args) -> Result<()> {
    let name = std::env::consts::ARCH;
    serve_standard_streams(Device { name }, args.memory.saturating_mul(1 << 10));
    Ok(())
}
