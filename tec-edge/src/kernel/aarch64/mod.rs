//! Kernels for 64-bit Arm processors.

mod dotprod;
mod neon;
mod norm;
mod softmax;

pub(crate) use dotprod::Dotprod;
pub(crate) use neon::Neon;
