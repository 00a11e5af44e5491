//! Conformance: golden vectors, and one set of checks for everything that computes.
//!
//! A [`Provider`] computes operations: the host's own `tec-core` and `tec-edge` ([`InProcess`]), or a device at the other end
//! of a stream of bytes ([`Remote`]). A group of checks takes vectors and a provider and says in a [`Row`] how many cases
//! there were, how many bits differ where none may, and the largest error elsewhere. [`run`] puts them together.
//!
//! The vectors are safetensors files, described in `tests/goldens/README.md`.

mod error;
pub mod goldens;
mod groups;
mod link;
mod matrix;
mod provider;
mod record;
mod tensor;
#[cfg(feature = "train")]
pub mod training;

pub use error::{Error, Result};
pub use goldens::{Goldens, max_error};
pub use groups::{Group, find_groups};
pub use link::{Command, Link, Log, Reply, Stream};
pub use matrix::run;
pub use provider::{Answer, Failure, InProcess, Part, Provider, Remote};
pub use record::{Record, Row};
pub use tensor::{Data, Tensor};
