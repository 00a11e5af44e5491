//! Kernels for 64-bit Arm processors.

mod dotprod;
mod neon;

pub(crate) use dotprod::Dotprod;
pub(crate) use neon::Neon;
