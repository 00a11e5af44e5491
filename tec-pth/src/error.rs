//! What is wrong with a file, and how to make one that can be read.

use std::path::Path;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading failed.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// A file of PyTorch that this crate does not read; [`Refused::conversion`] says how to convert it.
    #[error("{0}")]
    Refused(Refused),
    /// Not a file of PyTorch at all.
    #[error("is no PyTorch checkpoint: {0}")]
    Foreign(String),
    /// A PyTorch file whose content contradicts itself.
    #[error("is a damaged PyTorch checkpoint: {0}; download or copy it again")]
    Damaged(String),
    /// More of something than any checkpoint has.
    #[error("is no checkpoint that can be read: {0}")]
    TooLarge(String),
}

/// Kinds of PyTorch files that are not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Written before PyTorch 1.6, or with `_use_new_zipfile_serialization=False`.
    #[error("is a legacy PyTorch file (no zip archive, from before PyTorch 1.6)")]
    Legacy,
    /// A compiled program with its weights.
    #[error("is a TorchScript archive (a program, saved by torch.jit.save)")]
    TorchScript,
    /// A pickle newer than `torch.save` writes unasked.
    #[error("holds a pickle of protocol {0}, and only protocol 2, PyTorch's default, is read")]
    Protocol(u8),
    /// A pickled `nn.Module` rather than its state dict.
    #[error("holds a whole model object instead of a dictionary of tensors")]
    WholeModel,
    /// Written on a big-endian machine.
    #[error("was written on a big-endian machine")]
    BigEndian,
}

impl Refused {
    /// Two lines of Python that write the same weights as a file that can be read.
    pub fn conversion(self, path: &Path) -> String {
        let from = path.display().to_string();
        let to = path.with_extension("converted.pth").display().to_string();
        let (load, state) = match self {
            // Loads without running code; PyTorch explains what to do for the few files that need to.
            Self::Legacy | Self::BigEndian => (
                format!("torch.load({from:?}, map_location=\"cpu\", weights_only=True)"),
                "state",
            ),
            Self::TorchScript => (
                format!("torch.jit.load({from:?}, map_location=\"cpu\")"),
                "state.state_dict()",
            ),
            Self::Protocol(_) => (
                format!(
                    "torch.load({from:?}, map_location=\"cpu\", weights_only=False)  # runs the file's code: only if you trust it"
                ),
                "state",
            ),
            Self::WholeModel => (
                format!(
                    "torch.load({from:?}, map_location=\"cpu\", weights_only=False)  # runs the file's code: only if you trust it"
                ),
                "state.state_dict()",
            ),
        };
        format!("    import torch; state = {load}\n    torch.save({state}, {to:?})")
    }
}

impl Error {
    /// The reason and, where there is one, the way to convert the file `path`.
    pub fn advice(&self, path: &Path) -> String {
        match self {
            Self::Refused(refused) => format!(
                "{refused}; convert it once, with these two lines of Python:\n{}",
                refused.conversion(path)
            ),
            other => other.to_string(),
        }
    }
}

pub(crate) fn damaged<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::Damaged(reason.into()))
}

pub(crate) fn too_large<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::TooLarge(reason.into()))
}
