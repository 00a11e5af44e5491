//! What can go wrong, in words a user can act on.

use std::path::PathBuf;

/// An error of training, evaluation, export or quantization.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The user asked for something impossible: the message names the flag or key and what to do. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A file or folder that cannot be used: which, why, and what to do. Exit code 1.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why it cannot be used and what to do.
        reason: String,
    },
    /// Data that cannot be trained or evaluated on. Exit code 1.
    #[error("{0}")]
    Data(String),
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Candle(#[from] candle_core::Error),
    /// An operation of `tec-core` refused its arguments.
    #[error("{0}")]
    Core(#[from] tec_core::Error),
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
