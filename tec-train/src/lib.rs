//! Training on candle: data, models, objective, optimizer, loop, evaluation, export and quantization.
//!
//! The way of an image: [`data`] decodes and augments it, [`model`] turns the whole image into relation targets with the
//! frozen base and encodes the visible patches with the new model, [`ops`] holds the differentiable operations that call
//! `tec-core`, [`optim`] steps, [`quantize`] makes the file that `tec-edge` runs.

pub mod atomic;
pub mod checkpoint;
// Without the feature nothing launches them but tests, on an emulator.
#[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code))]
mod cuda;
pub mod data;
pub mod device;
pub mod embed;
mod error;
pub mod eval;
pub mod model;
pub mod ops;
pub mod optim;
pub mod pretrain;
pub mod quantize;
pub mod ranks;
pub mod recipe;
pub mod report;
pub mod run_dir;

pub use error::{Error, Result};
