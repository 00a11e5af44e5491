//! Training on NVIDIA GPUs: the kernels in `tec-train/kernels` and how each is launched.
//!
//! A *launch plan* is a function that takes device addresses and sizes and gives the whole [`Launch`]: kernel, geometry and
//! arguments. It touches no device, so tests run the same launches on an emulator. Weights, biases, statistics and gradients
//! of parameters are always f32; [`Float`] is how other tensors are stored, their arithmetic is f32.

pub(crate) mod attention;
pub(crate) mod elementwise;
mod launch;
pub(crate) mod loss;
pub(crate) mod norm;
pub(crate) mod optimizer;
pub(crate) mod relation;
#[cfg(test)]
mod tests;
pub(crate) mod tokens;

pub(crate) use launch::{Arg, Float, Launch};
