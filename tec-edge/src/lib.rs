//! The quantized encoder for devices: reads its file in place, computes in integers, needs no heap and no operating system.
//!
//! ```
//! use tec_edge::{Aligned, Encoder, Error, Image, Output, Outputs};
//!
//! fn embed(file: &[u8], pixels: &[u8], embedding: &mut [i16]) -> Result<(), Error> {
//!     let encoder = Encoder::from_bytes(file)?;
//!     let mut scratch = Aligned::<[u8; 32 * 1024]>::zeroed();
//!     assert!(encoder.scratch_len(Outputs::MEAN) <= scratch.0.len());
//!     encoder.encode(Image::Pixels(pixels), &mut scratch.0, Output { mean: Some(embedding), ..Output::default() })
//! }
//! ```
//!
//! What it computes, bit for bit, is written in `docs/integer-encoder.md`; the file's format in `docs/encoder-file.md`. Every
//! operation but the matrix products is `tec_core::integer`'s. Nothing here panics, whatever the file, the image or the
//! lengths of the slices.
#![no_std]
#![cfg_attr(not(feature = "simd"), forbid(unsafe_code))]

#[cfg(feature = "std")]
extern crate std;

mod aligned;
mod back_end;
mod block;
mod encoder;
mod error;
pub mod format;
pub mod int4;
mod kernel;
pub mod layers;
mod outputs;
pub mod panel;
mod plan;
mod run;
mod team;
mod trace;
mod views;

pub use aligned::{ALIGNMENT, Aligned};
pub use back_end::BackEnd;
pub use encoder::{Encoder, Image, Options, Output, OutputKind, Outputs};
pub use error::Error;
pub use format::{Geometry, MAGIC, Pool, Precision};
pub use plan::{Phases, ScratchUsage};
pub use trace::{Stage, Trace, TraceValues};
