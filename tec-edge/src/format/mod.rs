//! The encoder file: `docs/encoder-file.md` in code, for the reader and for writers.
//!
//! A file is a header of [`HEADER_LEN`] bytes, a table of sections, and the sections, each at its boundary ([`Section::boundary`]). Which
//! sections there are, in which order and how long they are follows from the header alone ([`sections`]), so the reader
//! accepts exactly one layout.

mod checksum;
mod geometry;
mod header;
mod read;
mod section;
mod write;

pub use checksum::checksum;
pub use geometry::{Geometry, MAX_INNER, MAX_TOKENS, MAX_WIDTH_TIMES_DEPTH};
pub(crate) use header::NORM_BITS;
pub use header::{HEADER_LEN, Head, Header, MAGIC, MAX_CLASSES, MAX_NAME, Normalization, Pool, Precision, VERSION};
pub(crate) use read::{BlockScales, File};
pub use section::{
    BLOCK_SECTIONS, HEAD_SECTIONS, MAX_BIAS, MAX_DROP, Placed, SCALES_EPSILON_AT, SCALES_LEN, Section, TABLE_ENTRY_LEN,
    TAIL_SECTIONS, sections,
};
pub use write::{file_len, write};
