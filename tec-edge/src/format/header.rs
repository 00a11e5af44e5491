//! The header: geometry, scales and what the outputs are.

use super::checksum::CHECKSUM_AT;
use super::section::section_count;
use super::{Geometry, MAX_INNER};
use crate::Error;
use crate::panel::QUAD;

/// The first eight bytes of a file. The end-of-file and line-feed characters show transfers that change text.
pub const MAGIC: [u8; 8] = *b"TECENC\x1a\n";
/// The version this library reads and writes.
pub const VERSION: u32 = 4;
/// Bytes of the header.
pub const HEADER_LEN: usize = 144;
/// Longest name in bytes.
pub const MAX_NAME: usize = u8::MAX as usize;
/// Kinds of mean: that over the patches of the final norm's outputs, and the norm of the mean over the patches.
const MEAN_OF_NORM: u32 = 0;
const NORM_OF_MEAN: u32 = 1;

/// How pixels were normalized in training: `(pixel / 255 - mean) / std`. Folded into the patch projection already; kept for
/// images that come normalized, and for inspection. Grey encoders use the first entry, the others are 0.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Normalization {
    /// Mean of each channel.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, positive.
    pub std: [f32; 3],
}

/// Which output is meant as the image's embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Pool {
    /// The class token.
    Class,
    /// The mean of the patch tokens.
    Mean,
}

/// The classification head: a linear layer on the embedding ([`Header::pool`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Head {
    /// Logits.
    pub classes: usize,
    /// Fractional bits of the layer's inputs before rounding.
    pub norm_bits: u8,
    /// Shift of the layer's multipliers.
    pub shift: u8,
    /// The logits' scale is 2^-`logit_bits`.
    pub logit_bits: i8,
}

/// How weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Precision {
    /// 8 bits a weight.
    Int8,
    /// 4 bits a weight, and one scale for each `group` inputs of an output ([`int4`](crate::int4)).
    Int4 {
        /// Inputs that share a scale: a multiple of [`QUAD`](crate::panel::QUAD).
        group: usize,
    },
}

/// Everything the header says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Header {
    /// Shapes.
    pub geometry: Geometry,
    /// The embedding.
    pub pool: Pool,
    /// Whether the final norm is that of the mean alone (timm's `fc_norm`, of encoders that were fine-tuned with it): class token and
    /// patch tokens are put out as they leave the last block then. Otherwise every token passes it, and the mean is that of its outputs.
    pub fc_norm: bool,
    /// The classification head.
    pub head: Option<Head>,
    /// How the blocks' weights are kept; patch projection and head have i8 weights always.
    pub precision: Precision,
    /// Bytes of the name.
    pub name_len: u8,
    /// The residual stream's scale is 2^-`residual_bits` from the embedding on; blocks may drop bits.
    pub residual_bits: i8,
    /// The final norm's epsilon in integers: `round(eps * dim^2 * 4^bits)`, at least 1, where the residual stream's scale
    /// after the last block is 2^-bits.
    pub epsilon: u64,
    /// Shift of the patch projection's multipliers.
    pub patch_shift: u8,
    /// Fractional bits of the final norm before rounding.
    pub norm_bits: u8,
    /// The class output's scale is 2^-`class_bits`.
    pub class_bits: i8,
    /// The mean output's scale is 2^-`mean_bits`.
    pub mean_bits: i8,
    /// The patch outputs' scale is 2^-`patch_bits`.
    pub patch_bits: i8,
    /// Pixels' normalization.
    pub normalization: Normalization,
}

/// Most classes of a head.
pub const MAX_CLASSES: usize = 65_536;
/// Largest shift of a multiplier.
pub(crate) const MAX_SHIFT: u8 = 62;
/// Fractional bits that LayerNorm can have before rounding.
pub(crate) const NORM_BITS: core::ops::RangeInclusive<u8> = 16..=45;
pub(crate) const MAX_EPSILON: u64 = 1 << 59;

impl Header {
    /// Whether every number is in range.
    ///
    /// # Errors
    /// [`Error::Header`] naming the first that is not.
    pub fn validate(&self) -> Result<(), Error> {
        self.geometry.validate()?;
        let check = |what, value: u32, ok: bool| {
            if ok {
                Ok(())
            } else {
                Err(Error::Header {
                    what,
                    value: value.into(),
                })
            }
        };
        let signed = |what, value: i8, range: core::ops::RangeInclusive<i8>| {
            check(what, i32::from(value) as u32, range.contains(&value))
        };
        signed("residual_bits", self.residual_bits, -16..=24)?;
        if !(1..=MAX_EPSILON).contains(&self.epsilon) {
            return Err(Error::Header {
                what: "epsilon",
                value: self.epsilon,
            });
        }
        check("patch_shift", self.patch_shift.into(), self.patch_shift <= MAX_SHIFT)?;
        check("norm_bits", self.norm_bits.into(), NORM_BITS.contains(&self.norm_bits))?;
        let finest = self.norm_bits as i8 - 1;
        let tokens = if self.fc_norm { 24 } else { finest };
        signed("class_bits", self.class_bits, -16..=tokens)?;
        signed("patch_bits", self.patch_bits, -16..=tokens)?;
        signed(
            "mean_bits",
            self.mean_bits,
            -16..=if self.fc_norm { finest } else { 44 },
        )?;
        check(
            "mean_bits",
            i32::from(self.mean_bits) as u32,
            // Of all patches or one; of any number between it lies between.
            [1, self.geometry.patches()]
                .iter()
                .all(|&patches| self.mean_shift(patches).is_some()),
        )?;
        if let Some(head) = self.head {
            check(
                "classes",
                head.classes as u32,
                (1..=MAX_CLASSES).contains(&head.classes),
            )?;
            check(
                "head's norm_bits",
                head.norm_bits.into(),
                NORM_BITS.contains(&head.norm_bits),
            )?;
            check("head's shift", head.shift.into(), head.shift <= MAX_SHIFT)?;
            signed("logit_bits", head.logit_bits, -16..=44)?;
        }
        if let Precision::Int4 { group } = self.precision {
            let ok = (QUAD..=MAX_INNER).contains(&group) && group.is_multiple_of(QUAD);
            check("group of weights", group as u32, ok)?;
        }
        let channels = self.geometry.channels;
        for (i, (&mean, &std)) in self.normalization.mean.iter().zip(&self.normalization.std).enumerate() {
            let used = i < channels;
            check(
                "mean",
                mean.to_bits(),
                if used { mean.is_finite() } else { mean.to_bits() == 0 },
            )?;
            check(
                "std",
                std.to_bits(),
                if used {
                    std.is_normal() && std > 0.0
                } else {
                    std.to_bits() == 0
                },
            )?;
        }
        Ok(())
    }

    /// Logits of the classification head; 0 without one.
    pub fn classes(&self) -> usize {
        self.head.map_or(0, |head| head.classes)
    }

    /// The shift that takes a sum over the patches, times the mantissa of the reciprocal of `patches`, their number, to the mean's scale;
    /// with `fc_norm` to the tokens' own.
    pub(crate) fn mean_shift(&self, patches: usize) -> Option<u32> {
        let inverse = tec_core::integer::reciprocal(u32::try_from(patches).ok()?);
        if self.fc_norm {
            return Some(inverse.shift);
        }
        let shift = inverse
            .shift
            .checked_add_signed(i32::from(self.patch_bits) - i32::from(self.mean_bits))?;
        (1..=u32::from(MAX_SHIFT)).contains(&shift).then_some(shift)
    }

    /// Reads and validates the first [`HEADER_LEN`] bytes of `file`.
    pub(crate) fn read(file: &[u8]) -> Result<Self, Error> {
        let Some(bytes) = file.first_chunk::<HEADER_LEN>() else {
            return Err(Error::Length {
                what: "file's bytes",
                expected: HEADER_LEN,
                actual: file.len(),
            });
        };
        let mut fields = Fields { bytes: &bytes[20..] };
        let flags = fields.u32();
        if flags != 0 {
            return Err(Error::Unsupported {
                what: "flags",
                value: flags,
            });
        }
        let geometry = Geometry {
            image_size: fields.u32() as usize,
            patch_size: fields.u32() as usize,
            channels: fields.u32() as usize,
            dim: fields.u32() as usize,
            depth: fields.u32() as usize,
            heads: fields.u32() as usize,
            hidden: fields.u32() as usize,
        };
        let pool = match fields.u32() {
            0 => Pool::Class,
            1 => Pool::Mean,
            value => return Err(Error::Unsupported { what: "pool", value }),
        };
        let fc_norm = match fields.u32() {
            MEAN_OF_NORM => false,
            NORM_OF_MEAN => true,
            value => {
                return Err(Error::Unsupported {
                    what: "mean kind",
                    value,
                });
            }
        };
        let epsilon = u64::from(fields.u32()) | u64::from(fields.u32()) << 32;
        let [residual_bits, class_bits, mean_bits, patch_bits] = fields.u32().to_le_bytes().map(|byte| byte as i8);
        let [patch_shift, norm_bits, name_len, logit_bits] = fields.u32().to_le_bytes();
        let normalization = Normalization {
            mean: core::array::from_fn(|_| f32::from_bits(fields.u32())),
            std: core::array::from_fn(|_| f32::from_bits(fields.u32())),
        };
        let sections = fields.u32();
        let classes = fields.u32() as usize;
        let group = fields.u32() as usize;
        let [head_bits, head_shift, zeros @ ..] = fields.u32().to_le_bytes();
        let head = Head {
            classes,
            norm_bits: head_bits,
            shift: head_shift,
            logit_bits: logit_bits as i8,
        };
        let no_head = u32::from_le_bytes([head_bits, head_shift, logit_bits, 0]);
        let mut reserved = core::iter::repeat_with(|| fields.u32())
            .take(7)
            .fold(u16::from_le_bytes(zeros).into(), |all, word| all | word);
        if classes == 0 {
            reserved |= no_head;
        }
        if reserved != 0 {
            return Err(Error::Unsupported {
                what: "reserved bytes",
                value: reserved,
            });
        }
        let header = Self {
            geometry,
            pool,
            fc_norm,
            head: (classes > 0).then_some(head),
            precision: match group {
                0 => Precision::Int8,
                group => Precision::Int4 { group },
            },
            name_len,
            residual_bits,
            epsilon,
            patch_shift,
            norm_bits,
            class_bits,
            mean_bits,
            patch_bits,
            normalization,
        };
        header.validate()?;
        if u64::from(sections) != section_count(&header) {
            return Err(Error::Header {
                what: "number of sections",
                value: sections.into(),
            });
        }
        Ok(header)
    }

    /// The header's bytes, with the file's length and with zeros for the checksum.
    pub(crate) fn to_bytes(self, total: u32) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..CHECKSUM_AT].copy_from_slice(&total.to_le_bytes());
        let g = self.geometry;
        let pool = match self.pool {
            Pool::Class => 0,
            Pool::Mean => 1,
        };
        let head = self.head.unwrap_or(Head {
            classes: 0,
            norm_bits: 0,
            shift: 0,
            logit_bits: 0,
        });
        let group = match self.precision {
            Precision::Int8 => 0,
            Precision::Int4 { group } => group as u32,
        };
        let outputs = [self.residual_bits, self.class_bits, self.mean_bits, self.patch_bits].map(|bits| bits as u8);
        let words = [
            0,
            g.image_size as u32,
            g.patch_size as u32,
            g.channels as u32,
            g.dim as u32,
            g.depth as u32,
            g.heads as u32,
            g.hidden as u32,
            pool,
            if self.fc_norm { NORM_OF_MEAN } else { MEAN_OF_NORM },
            self.epsilon as u32,
            (self.epsilon >> 32) as u32,
            u32::from_le_bytes(outputs),
            u32::from_le_bytes([self.patch_shift, self.norm_bits, self.name_len, head.logit_bits as u8]),
        ];
        let n = self.normalization;
        let floats = n.mean.iter().chain(&n.std).map(|value| value.to_bits());
        let last = [
            section_count(&self) as u32,
            head.classes as u32,
            group,
            u32::from_le_bytes([head.norm_bits, head.shift, 0, 0]),
        ];
        let all = words.into_iter().chain(floats).chain(last);
        for (slot, word) in bytes[CHECKSUM_AT + 4..].chunks_exact_mut(4).zip(all) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// The header's words one after the other; zeros after the end.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn u32(&mut self) -> u32 {
        match self.bytes.split_first_chunk::<4>() {
            Some((word, rest)) => {
                self.bytes = rest;
                u32::from_le_bytes(*word)
            }
            None => 0,
        }
    }
}
