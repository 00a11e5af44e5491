//! From an f32 encoder to the int8 encoder of a device.
//!
//! [`Samples`] are images of the user's; [`Calibration`] watches the encoder on them; [`quantize`](fn@quantize) chooses what every integer
//! stands for and writes the encoder file; [`EdgeEncoder`] runs it by the device's own code; [`Reference`] and [`noise`](fn@noise) say how
//! near it comes. What the integers mean is written in `docs/integer-encoder.md`, together with the measurements behind the choices made
//! here.

mod calibration;
mod comparison;
mod edge_encoder;
mod encoder;
mod fidelity;
mod fixed;
mod head;
mod layers;
mod noise;
mod ranges;
mod rounding;
mod samples;
#[cfg(test)]
mod tests;

pub use calibration::Calibration;
pub use comparison::{Quality, Reference};
pub use edge_encoder::{AlignedBytes, EdgeEncoder, Embedded};
pub use encoder::{Target, quantize};
pub use fidelity::{Fidelity, cosines};
pub use noise::{Noise, noise};
pub use samples::Samples;
