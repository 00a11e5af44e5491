//! CUDA's execution model on a CPU: the kernels of `tec-train/kernels`, compiled for the host, so that tests run them without
//! a GPU.
//!
//! The threads of a block are fibers, its warps have 32 lanes with true warp operations, blocks run one after another. Shared
//! memory begins as NaNs; a barrier that only some threads reach is an error, and so is writing outside a [`Buffer`].
//! [`run_backwards`] takes threads in the opposite order, so that results differ where a barrier is missing.
//! `cpp/emulator.h` is the same for other languages.

mod buffer;
mod launch;

pub use buffer::Buffer;
pub use launch::{Argument, has_kernel, launch, launch_raw, parameter_sizes, run_backwards};
