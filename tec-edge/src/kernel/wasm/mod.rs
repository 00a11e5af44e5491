//! The kernel for WebAssembly.

mod norm;
mod simd128;
mod softmax;

pub(crate) use simd128::Simd128;
