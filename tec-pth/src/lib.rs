//! PyTorch checkpoints (`.pth`, `.pt`, `.bin`) as `torch.save` writes them since version 1.6: a zip archive with a pickle of
//! protocol 2 and one file for each storage.
//!
//! The pickle is interpreted, never executed: a small machine ([`pickle::parse`]) knows the dozen callables that rebuild tensors
//! and dictionaries; every other class and function becomes an opaque object. No bytes make it panic, recurse or allocate more
//! than a small multiple of their length.
//!
//! [`TensorFile`] finds every tensor in the nested dictionaries and lists, names it by its path (`model.blocks.0.norm1.weight`),
//! and reads only those that are asked for.
#![forbid(unsafe_code)]

mod dtype;
mod error;
mod file;
pub mod pickle;
mod reduce;
mod tensors;

pub use dtype::DType;
pub use error::{Error, Refused, Result};
pub use file::TensorFile;
pub use tensors::TensorInfo;
