//! The one definition of every operation that training and the edge encoder share.
//!
//! Functions work on slices in row-major order with the caller's buffers: no allocation, no panic, typed errors.
//! The f32 operations give the same bits on every machine: each sum is eight partial sums combined in one order
//! ([`lanes`]), no multiplication is fused with an addition, and exponentials are polynomials written here.
//! "The same bits" counts any NaN as equal to any NaN.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod activation;
pub mod adapter;
mod error;
pub mod integer;
pub mod lanes;
pub mod linear;
pub mod loss;
pub mod mask;
pub mod norm;
#[cfg(test)]
mod numeric;
pub mod philox;
pub mod position;
pub mod relation;
pub mod softmax;

pub use error::{Error, Result};
