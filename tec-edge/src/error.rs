//! Errors: what was expected, what came.

use core::fmt;

use crate::format::Section;

/// Why a file, an image, scratch memory or an output was refused. Nothing was written to any output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Error {
    /// A slice does not start at a 16-byte boundary: wrap it in [`Aligned`](crate::Aligned).
    Misaligned {
        /// Which slice: the file or the scratch memory.
        what: &'static str,
        /// Bytes past the last boundary.
        by: usize,
    },
    /// A slice has another length than this encoder needs.
    Length {
        /// Which slice.
        what: &'static str,
        /// Elements expected (scratch memory: at least).
        expected: usize,
        /// Elements given.
        actual: usize,
    },
    /// A patch to encode that the image does not have.
    Patch {
        /// Patches of an image.
        patches: usize,
        /// The number given.
        patch: u32,
    },
    /// An output that this encoder does not have: class logits, if no head was exported with it.
    NoOutput {
        /// Which output.
        what: &'static str,
    },
    /// The file does not begin as encoder files do.
    NotAnEncoder,
    /// The file is of a version this library does not read: export it again, or use the library of that version.
    Version {
        /// What this library reads.
        expected: u32,
        /// What the file is.
        actual: u32,
    },
    /// The file's checksum does not match its bytes: it was damaged or is incomplete.
    Checksum {
        /// What the file says.
        expected: u32,
        /// What its bytes give.
        actual: u32,
    },
    /// A number in the file's header is outside what encoders can have.
    Header {
        /// Which number.
        what: &'static str,
        /// Its value, as the file's unsigned 32 bits (64 for `epsilon`).
        value: u64,
    },
    /// The file needs something that this library does not do.
    Unsupported {
        /// What.
        what: &'static str,
        /// The value in the file.
        value: u32,
    },
    /// A section is not where or what the header's geometry says.
    Section {
        /// Which section.
        section: Section,
        /// In which block; 0 for sections outside the blocks.
        block: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The f32 image holds a NaN.
    NotANumber {
        /// Index of the first one.
        index: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Misaligned { what, by } => {
                write!(
                    f,
                    "{what} starts {by} bytes past a 16-byte boundary: align it, for example with `tec_edge::Aligned`"
                )
            }
            Self::Length { what, expected, actual } => write!(f, "{what}: expected {expected}, got {actual}"),
            Self::Patch { patches, patch } => {
                write!(f, "there is no patch {patch}: the image has {patches}, counted from 0")
            }
            Self::NoOutput { what } => write!(
                f,
                "this encoder has no {what}: it was quantized without what computes them"
            ),
            Self::NotAnEncoder => write!(
                f,
                "not an encoder file: it does not begin as one; `tec quantize` writes them"
            ),
            Self::Version { expected, actual } => {
                write!(
                    f,
                    "encoder file of version {actual}, this library reads version {expected}: export the encoder again"
                )
            }
            Self::Checksum { expected, actual } => {
                write!(
                    f,
                    "the encoder file is damaged: its checksum is {actual:#010x}, it should be {expected:#010x}; copy it again"
                )
            }
            Self::Header { what, value } => write!(f, "the encoder file's header is invalid: {what} is {value}"),
            Self::Unsupported { what, value } => {
                write!(
                    f,
                    "the encoder file has {what} {value}, which this library does not support"
                )
            }
            Self::Section { section, block, reason } => {
                write!(
                    f,
                    "the encoder file's section {section:?} of block {block} is invalid: {reason}"
                )
            }
            Self::NotANumber { index } => write!(f, "the image holds a NaN at index {index}"),
        }
    }
}

impl core::error::Error for Error {}
