//! The one definition of every operation that training and the edge encoder share.
#![no_std]
#![forbid(unsafe_code)]

mod error;
pub mod integer;

pub use error::Error;
