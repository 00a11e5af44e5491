//! The writer: the reader's counterpart, for whoever quantizes an encoder.

use super::checksum::{CHECKSUM_AT, checksum};
use super::section::{Section, TABLE_ENTRY_LEN, sections};
use super::{HEADER_LEN, Header};
use crate::Error;

/// Bytes of the file with this header.
///
/// # Errors
/// [`Error::Header`] if the header is invalid or the file would not fit in 2^32 - 1 bytes.
pub fn file_len(header: &Header) -> Result<usize, Error> {
    header.validate()?;
    let end = sections(header).last().map_or(0, |last| last.offset + last.len);
    match u32::try_from(end) {
        Ok(end) => Ok(end as usize),
        Err(_) => Err(Error::Header {
            what: "total length",
            value: end,
        }),
    }
}

/// Writes a file into `out`, whose length must be [`file_len`]'s: `fill` gets each section, its block (0 outside the blocks)
/// and its bytes, all zero, to fill in little-endian order. The checksum comes last.
///
/// What is filled in is checked when the file is read, not here.
///
/// # Errors
/// [`Error::Header`] as [`file_len`], [`Error::Length`] if `out` has another length.
pub fn write(header: &Header, out: &mut [u8], mut fill: impl FnMut(Section, usize, &mut [u8])) -> Result<(), Error> {
    let expected = file_len(header)?;
    let actual = out.len();
    let wrong = Error::Length {
        what: "encoder file's bytes",
        expected,
        actual,
    };
    if actual != expected {
        return Err(wrong);
    }
    out.fill(0);
    let (start, _) = out.split_first_chunk_mut::<HEADER_LEN>().ok_or(wrong)?;
    *start = header.to_bytes(expected as u32);
    for (index, placed) in sections(header).enumerate() {
        let at = HEADER_LEN + index * TABLE_ENTRY_LEN;
        let words = [
            placed.section as u32 | placed.block << 16,
            placed.offset as u32,
            placed.len as u32,
            0,
        ];
        let entry = out.get_mut(at..at + TABLE_ENTRY_LEN).ok_or(wrong)?;
        for (slot, word) in entry.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        let range = placed.offset as usize..(placed.offset + placed.len) as usize;
        fill(placed.section, placed.block as usize, out.get_mut(range).ok_or(wrong)?);
    }
    let sum = checksum(out);
    out.get_mut(CHECKSUM_AT..CHECKSUM_AT + 4)
        .ok_or(wrong)?
        .copy_from_slice(&sum.to_le_bytes());
    Ok(())
}
