//! The errors of the readers in [`crate::data`], as `tec-train` has them.

use std::fmt;
use std::path::PathBuf;

/// What those readers can say.
#[derive(Debug)]
pub enum Error {
    /// The user asked for something impossible.
    Usage(String),
    /// A file that cannot be used.
    File {
        /// Which.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Data that cannot be used.
    Data(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Data(text) => f.write_str(text),
            Self::File { path, reason } => write!(f, "{}: {reason}", path.display()),
        }
    }
}

/// Result with this [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
