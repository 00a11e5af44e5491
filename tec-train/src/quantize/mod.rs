//! From an f32 encoder to the int8 encoder of a device.
//!
//! [`Calibration`] watches the encoder on images; [`quantize`](fn@quantize) chooses what every integer stands for and writes
//! the encoder file; [`EdgeEncoder`] runs it by the device's own code; [`compare`] says how near it comes. [`from_source`]
//! does all of it. What the integers mean is written in `docs/integer-encoder.md`, together with the measurements behind
//! the choices made here.

mod calibration;
mod edge_encoder;
mod encoder;
mod fidelity;
mod fixed;
mod layers;
mod ranges;
#[cfg(test)]
mod tests;

pub use calibration::Calibration;
pub use edge_encoder::{AlignedBytes, EdgeEncoder};
pub use encoder::quantize;
pub use fidelity::{Fidelity, Quantized, compare, cosines, from_source};
