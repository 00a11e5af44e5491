//! What a device under test runs: it takes a request, computes it with `tec-core` or `tec-edge`, and answers with the
//! values. The comparison is the host's, so a device needs neither expected values nor an opinion.
//!
//! The same code answers everywhere: in the host's own process, in firmware, in a browser's machine. What differs is only
//! how bytes travel: [`serve`] runs over any [`Transport`], [`answer`] needs none.
//!
//! # Messages
//! A message is a [frame](mod@frame): 16 bytes of header, then a payload. A request's payload is an operation and its
//! arguments, an answer's a status and the results; both are lists of [tensors](mod@tensors), each at a 16-byte boundary, so
//! that a device reads them in place. All numbers are little-endian.
//!
//! The memory is the caller's, one slice at a 16-byte boundary: the request lies at its start, results are written behind
//! it, scratch memory is taken from its end. A request that leaves too little is refused as not fitting, never half done.
#![no_std]
#![forbid(unsafe_code)]

mod encoder;
mod float;
pub mod frame;
mod integer;
pub mod operation;
#[cfg(feature = "std")]
mod pipes;
mod refusal;
mod serve;
pub mod tensors;

pub use operation::{Operation, answer, answer_by};
#[cfg(feature = "std")]
pub use pipes::serve_standard_streams;
pub use refusal::{Refusal, Status};
pub use serve::{Device, Transport, serve};
