//! What the fuzz targets share: bytes at a boundary, choices drawn from the fuzzer's input, small encoder files, and what must
//! hold of every encoder and of every answer.
//!
//! A property that does not hold is an assertion that fails; the fuzzer reports it like any other panic.

pub mod encoder;
pub mod error;
pub mod input;
pub mod operations;
pub mod request;
pub mod seeds;
pub mod targets;

pub use error::{Error, Result};

/// The readers of data sets, compiled from the files of `tec-train`: the crate as a whole brings candle along, which takes many
/// minutes to compile with coverage.
// What only the rest of that crate calls is unused here.
#[allow(dead_code, unused_imports)]
#[path = "../../tec-train/src/data"]
pub mod data {
    mod cifar;
    mod folder;
    mod idx;
    mod list;
    mod paths;
    mod shard;
    mod source;
    mod tar;

    use std::path::PathBuf;

    pub use self::cifar::Cifar;
    pub use self::idx::Idx;
    pub use self::list::List;
    pub use self::source::{Source, Stored};
    pub use self::tar::TarShards;
    pub use tec_image::{Pixels, decode};

    /// A text list whose paths are relative to `folder`.
    ///
    /// # Errors
    /// The reason why it is none.
    pub fn list(text: &[u8], folder: PathBuf) -> Result<List, String> {
        List::parse(text, folder)
    }
}
