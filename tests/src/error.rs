//! Errors of reading vectors and of reaching devices.

use std::path::PathBuf;

/// Why a check could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or a directory of vectors cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A vector file lacks something, or holds something else.
    #[error("{file}: {reason}")]
    Vectors {
        /// Which file.
        file: String,
        /// What was expected and what is there.
        reason: String,
    },
    /// A device cannot be reached or does not speak the protocol.
    #[error("{device}: {reason}")]
    Device {
        /// Which.
        device: String,
        /// What happened, and what to do.
        reason: String,
    },
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
