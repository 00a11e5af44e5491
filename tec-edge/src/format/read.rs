//! The reader: everything is checked once.

use super::header::{MAGIC, MAX_EPSILON, MAX_SHIFT, NORM_BITS, VERSION};
use super::section::{Content, MAX_BIAS, MAX_DROP, Placed, SCALES_EPSILON_AT, TABLE_ENTRY_LEN, sections, table_end};
use super::{BLOCK_SECTIONS, HEAD_SECTIONS, HEADER_LEN, Header, Section, checksum};
use crate::int4;
use crate::panel::padding_is_zero;
use crate::views::I32s;
use crate::{ALIGNMENT, Error};

/// A validated file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct File<'a> {
    bytes: &'a [u8],
    pub(crate) header: Header,
}

impl<'a> File<'a> {
    pub(crate) fn from_bytes(bytes: &'a [u8]) -> Result<Self, Error> {
        let by = bytes.as_ptr().addr() % ALIGNMENT;
        if by != 0 {
            return Err(Error::Misaligned {
                what: "encoder file",
                by,
            });
        }
        if bytes.get(..MAGIC.len()) != Some(&MAGIC) {
            return Err(Error::NotAnEncoder);
        }
        let word = |at| word(bytes, at).unwrap_or(0);
        let version = word(8);
        if version != VERSION {
            return Err(Error::Version {
                expected: VERSION,
                actual: version,
            });
        }
        let total = word(12) as usize;
        if total != bytes.len() || total < HEADER_LEN {
            return Err(Error::Length {
                what: "encoder file's bytes",
                expected: total.max(HEADER_LEN),
                actual: bytes.len(),
            });
        }
        let (expected, actual) = (word(16), checksum(bytes));
        if expected != actual {
            return Err(Error::Checksum { expected, actual });
        }
        let header = Header::read(bytes)?;
        let file = Self { bytes, header };
        file.check_sections()?;
        Ok(file)
    }

    fn check_sections(&self) -> Result<(), Error> {
        let mut end = table_end(&self.header);
        for (index, expected) in sections(&self.header).enumerate() {
            let invalid = |reason| Error::Section {
                section: expected.section,
                block: expected.block,
                reason,
            };
            let entry = self.entry(index).ok_or(invalid("its entry is outside the file"))?;
            if entry
                != (
                    expected.section as u16,
                    expected.block as u16,
                    expected.offset,
                    expected.len,
                )
            {
                return Err(invalid("kind, block, offset or length do not follow from the header"));
            }
            let gap = end..expected.offset;
            if self.slice(gap).is_none_or(|gap| gap.iter().any(|&byte| byte != 0)) {
                return Err(invalid("the bytes before it are not zero"));
            }
            end = expected.offset + expected.len;
            let content = self
                .placed(&expected)
                .ok_or(invalid("it reaches beyond the file's end"))?;
            check_content(expected.section.content(&self.header), content).map_err(invalid)?;
        }
        if end != self.bytes.len() as u64 {
            return Err(Error::Header {
                what: "total length",
                value: self.bytes.len() as u64,
            });
        }
        Ok(())
    }

    /// Kind, block, offset and length of an entry of the table whose last word is zero.
    fn entry(&self, index: usize) -> Option<(u16, u16, u64, u64)> {
        let at = index.checked_mul(TABLE_ENTRY_LEN)?.checked_add(HEADER_LEN)?;
        let kind_and_block = word(self.bytes, at)?;
        let (offset, len) = (word(self.bytes, at + 4)?, word(self.bytes, at + 8)?);
        (word(self.bytes, at + 12)? == 0).then_some((
            kind_and_block as u16,
            (kind_and_block >> 16) as u16,
            offset.into(),
            len.into(),
        ))
    }

    fn slice(&self, range: core::ops::Range<u64>) -> Option<&'a [u8]> {
        self.bytes
            .get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    }

    fn placed(&self, placed: &Placed) -> Option<&'a [u8]> {
        self.slice(placed.offset..placed.offset.checked_add(placed.len)?)
    }

    /// The bytes of a section outside the blocks.
    #[inline(never)]
    pub(crate) fn outside(&self, section: Section) -> &'a [u8] {
        let kind = section as usize;
        self.section(match kind.checked_sub(Section::NormMultiplier as usize) {
            None => kind.saturating_sub(Section::PatchWeight as usize),
            Some(place) => HEAD_SECTIONS.len() + self.header.geometry.depth * BLOCK_SECTIONS.len() + place,
        })
    }

    /// The bytes of a section of a block.
    #[inline(never)]
    pub(crate) fn of_block(&self, block: usize, section: Section) -> &'a [u8] {
        let place = (section as usize).saturating_sub(Section::Scales as usize);
        self.section(HEAD_SECTIONS.len() + block * BLOCK_SECTIONS.len() + place)
    }

    /// The bytes of the section with this index in the table. Empty, which no validated file has, if it were not there.
    fn section(&self, index: usize) -> &'a [u8] {
        let found = self
            .entry(index)
            .and_then(|(_, _, offset, len)| self.slice(offset..offset.checked_add(len)?));
        found.unwrap_or(&[])
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

const BEYOND: &str = "a weight beyond its last row or column is not 0";

fn check_content(content: Content, bytes: &[u8]) -> Result<(), &'static str> {
    let (ok, reason) = match content {
        Content::Any => (true, ""),
        // No early exit: the whole pass vectorises.
        Content::Weight { .. } if bytes.iter().fold(false, |found, &w| found | (w == 0x80)) => {
            (false, "a weight is -128")
        }
        Content::Weight { outputs, inner } => (padding_is_zero(bytes, outputs, inner), BEYOND),
        Content::Nibbles { outputs, inner, group } => (int4::padding_is_zero(bytes, outputs, inner, group), BEYOND),
        Content::Bias => (
            I32s(bytes).iter().all(|b| (-MAX_BIAS..=MAX_BIAS).contains(&b)),
            "a bias is above 2^30",
        ),
        Content::NotNegative => (I32s(bytes).iter().all(|m| m >= 0), "a multiplier is negative"),
        Content::Scales => (BlockScales::read(bytes).is_some(), "a shift or epsilon is out of range"),
        Content::Text => (core::str::from_utf8(bytes).is_ok(), "it is not UTF-8"),
    };
    if ok { Ok(()) } else { Err(reason) }
}

/// The shifts of a block, and its LayerNorms' epsilon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockScales {
    pub(crate) norm1: u32,
    pub(crate) qkv: u32,
    pub(crate) softmax: u32,
    pub(crate) attention: u32,
    pub(crate) proj: u32,
    pub(crate) norm2: u32,
    pub(crate) fc1: u32,
    pub(crate) fc2: u32,
    /// Bits that the residual stream drops before the block.
    pub(crate) drop: u32,
    pub(crate) epsilon: u64,
}

impl BlockScales {
    /// The section's content; `None` if anything is out of range.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (shifts, rest) = bytes.split_first_chunk::<9>()?;
        let (zeros, rest) = rest.split_first_chunk::<{ SCALES_EPSILON_AT - 9 }>()?;
        let (epsilon, more_zeros) = rest.split_first_chunk::<8>()?;
        let epsilon = u64::from_le_bytes(*epsilon);
        let &[norm1, qkv, softmax, attention, proj, norm2, fc1, fc2, drop] = shifts;
        let ok = [norm1, norm2].iter().all(|bits| NORM_BITS.contains(bits))
            && [qkv, softmax, attention, proj, fc1, fc2]
                .iter()
                .all(|&shift| shift <= MAX_SHIFT)
            && drop <= MAX_DROP
            && (1..=MAX_EPSILON).contains(&epsilon)
            && zeros.iter().chain(more_zeros).all(|&byte| byte == 0);
        let [norm1, qkv, softmax, attention, proj, norm2, fc1, fc2, drop] = shifts.map(u32::from);
        ok.then_some(Self {
            norm1,
            qkv,
            softmax,
            attention,
            proj,
            norm2,
            fc1,
            fc2,
            drop,
            epsilon,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HEAD_SECTIONS, TAIL_SECTIONS};
    use super::*;

    #[test]
    fn kinds_are_places() {
        for (first, sections) in [
            (Section::PatchWeight, &HEAD_SECTIONS[..]),
            (Section::Scales, &BLOCK_SECTIONS),
            (Section::NormMultiplier, &TAIL_SECTIONS),
        ] {
            for (place, &section) in sections.iter().enumerate() {
                assert_eq!(section as usize - first as usize, place);
            }
        }
    }
}
