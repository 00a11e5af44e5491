//! Errors of this crate.

use core::fmt;

/// Why an operation refused its arguments. Nothing useful was written to the output.
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
    /// A size is not a multiple of what the operation needs.
    NotMultiple {
        /// Which size.
        what: &'static str,
        /// What it must be a multiple of.
        of: usize,
        /// The size given.
        actual: usize,
    },
    /// A size is below the least that the operation is defined for.
    TooFew {
        /// Which size.
        what: &'static str,
        /// The least size.
        least: usize,
        /// The size given.
        actual: usize,
    },
    /// A size is above the most that the operation is defined for.
    TooMany {
        /// Which size.
        what: &'static str,
        /// The largest size.
        most: usize,
        /// The size given.
        actual: usize,
    },
    /// An index points outside what it indexes.
    Index {
        /// What is indexed.
        what: &'static str,
        /// The index given.
        index: usize,
        /// How many there are.
        length: usize,
    },
    /// A value that must be ordered is a NaN.
    NotANumber {
        /// Which argument.
        what: &'static str,
        /// Where in it.
        index: usize,
    },
    /// A number is outside its range; the range includes `least` and excludes `below`.
    Range {
        /// Which argument.
        what: &'static str,
        /// The least value.
        least: f64,
        /// The value that it must stay below.
        below: f64,
        /// The value given.
        actual: f64,
    },
    /// A mask ratio leaves no visible patch.
    NothingKept {
        /// Patches of an image.
        patches: usize,
        /// The mask ratio given.
        mask_ratio: f64,
    },
    /// A loss over removed patches was asked for where no patch is removed.
    NothingRemoved,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Length { what, expected, actual } => write!(f, "{what}: expected {expected} elements, got {actual}"),
            Self::NotMultiple { what, of, actual } => write!(f, "{what}: expected a multiple of {of}, got {actual}"),
            Self::TooFew { what, least, actual } => write!(f, "{what}: expected at least {least}, got {actual}"),
            Self::TooMany { what, most, actual } => write!(f, "{what}: expected at most {most}, got {actual}"),
            Self::Index { what, index, length } => {
                write!(f, "{what}: index {index} is outside 0..{length}")
            }
            Self::NotANumber { what, index } => write!(f, "{what}: element {index} is not a number"),
            Self::Range {
                what,
                least,
                below,
                actual,
            } => {
                write!(f, "{what}: expected at least {least} and below {below}, got {actual}")
            }
            Self::NothingKept { patches, mask_ratio } => {
                write!(
                    f,
                    "mask ratio {mask_ratio} of {patches} patches leaves none visible: lower the ratio"
                )
            }
            Self::NothingRemoved => {
                f.write_str("no patch is removed, so the loss has nothing to average: raise the mask ratio")
            }
        }
    }
}

impl core::error::Error for Error {}

/// Results of this crate.
pub type Result<T> = core::result::Result<T, Error>;

/// Fails unless `actual == expected`.
#[inline(always)]
pub(crate) fn length(what: &'static str, actual: usize, expected: usize) -> Result<()> {
    if actual == expected {
        Ok(())
    } else {
        Err(Error::Length { what, expected, actual })
    }
}

/// Fails unless `actual >= least`.
#[inline(always)]
pub(crate) fn at_least(what: &'static str, actual: usize, least: usize) -> Result<()> {
    if actual >= least {
        Ok(())
    } else {
        Err(Error::TooFew { what, least, actual })
    }
}

/// The product of sizes; saturates, so that an absurd shape fails the length check instead of wrapping into a match.
#[inline(always)]
pub(crate) fn product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |total: usize, &size| total.saturating_mul(size))
}
