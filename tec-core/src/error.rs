//! Errors of this crate.

use core::fmt;

/// Why an operation refused its arguments. Nothing was computed.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Error {
    /// A slice has another length than the shapes say.
    Length {
        /// Which argument.
        what: &'static str,
        /// Elements expected.
        expected: usize,
        /// Elements given.
        actual: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { what, expected, actual } => write!(f, "{what}: expected {expected} elements, got {actual}"),
        }
    }
}

impl core::error::Error for Error {}
