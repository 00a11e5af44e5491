//! What can go wrong, as codes and as sentences.

use core::fmt;

use tec_edge::Error;

use crate::tec_code;

/// Why a call failed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Failure {
    /// A pointer is NULL.
    Null { what: &'static str },
    /// The encoder's memory holds none.
    NotOpen,
    /// There is no such kind.
    Kind { what: &'static str, kind: u32 },
    /// Memory overlaps.
    Overlap { what: &'static str, other: &'static str },
    /// A pointer is not where its values can be.
    Misaligned {
        what: &'static str,
        boundary: usize,
        by: usize,
    },
    /// More values than memory can hold.
    TooLong { what: &'static str, len: usize },
    /// What the encoder says.
    Encoder(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            // Its text names a Rust type.
            Error::Misaligned { what, by } => Self::Misaligned {
                what,
                boundary: tec_edge::ALIGNMENT,
                by,
            },
            error => Self::Encoder(error),
        }
    }
}

impl Failure {
    pub(crate) fn code(&self) -> tec_code {
        match self {
            Self::Null { .. } => tec_code::TEC_ERROR_NULL,
            Self::NotOpen => tec_code::TEC_ERROR_NOT_OPEN,
            Self::Kind { .. } => tec_code::TEC_ERROR_KIND,
            Self::Overlap { .. } => tec_code::TEC_ERROR_OVERLAP,
            Self::Misaligned { .. } => tec_code::TEC_ERROR_MISALIGNED,
            Self::TooLong { .. } => tec_code::TEC_ERROR_LENGTH,
            Self::Encoder(error) => match error {
                Error::Misaligned { .. } => tec_code::TEC_ERROR_MISALIGNED,
                Error::Length { .. } => tec_code::TEC_ERROR_LENGTH,
                Error::Patch { .. } => tec_code::TEC_ERROR_PATCH,
                Error::NotAnEncoder => tec_code::TEC_ERROR_NOT_AN_ENCODER,
                Error::Version { .. } => tec_code::TEC_ERROR_VERSION,
                Error::Checksum { .. } => tec_code::TEC_ERROR_CHECKSUM,
                Error::Header { .. } => tec_code::TEC_ERROR_HEADER,
                Error::Unsupported { .. } => tec_code::TEC_ERROR_UNSUPPORTED,
                Error::Section { .. } => tec_code::TEC_ERROR_SECTION,
                Error::NotANumber { .. } => tec_code::TEC_ERROR_NAN,
                Error::NoOutput { .. } => tec_code::TEC_ERROR_NO_OUTPUT,
                _ => tec_code::TEC_ERROR_OTHER,
            },
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Null { what } => write!(f, "{what} is NULL"),
            Self::NotOpen => write!(
                f,
                "the encoder is not open: call tec_encoder_open first, and look at what it returns"
            ),
            Self::Kind { what, kind } => write!(f, "there is no kind {kind} of {what}: see tec_edge.h"),
            Self::Overlap { what, other } => write!(f, "{what} and {other} overlap: give each memory of its own"),
            Self::Misaligned { what, boundary, by } => write!(
                f,
                "{what} starts {by} bytes past a {boundary}-byte boundary: align it, for example with \
                 __attribute__((aligned({boundary})))"
            ),
            Self::TooLong { what, len } => write!(f, "{what}: no memory holds {len} values"),
            Self::Encoder(error) => write!(f, "{error}"),
        }
    }
}
