//! What the fuzz targets share: bytes at a boundary, choices drawn from the fuzzer's input, small encoder files, and what must
//! hold of every encoder and of every answer.
//!
//! A property that does not hold is an assertion that fails; the fuzzer reports it like any other panic.

pub mod encoder;
pub mod input;
pub mod operations;
pub mod request;
pub mod seeds;
pub mod targets;
