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
    /// Another process of the job stopped, and with it all. Exit code 2 where the user asked it for something impossible, else 1.
    #[error("rank {rank}: {text}")]
    Rank {
        /// The process's number.
        rank: usize,
        /// Whether its error was [`Error::Usage`].
        usage: bool,
        /// Its error, in words.
        text: String,
    },
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Candle(#[from] candle_core::Error),
    /// An operation of `tec-core` refused its arguments.
    #[error("{0}")]
    Core(#[from] tec_core::Error),
}

impl Error {
    /// Whether the user asked for something impossible, here or in another process.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_) | Self::Rank { usage: true, .. })
    }
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
