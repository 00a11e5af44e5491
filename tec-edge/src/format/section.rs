//! The sections of a file: what they hold, their order and their lengths.

use super::{Header, Precision};
use crate::int4;
use crate::panel::panels_len;

/// What a section holds. Weight matrices lie in panels ([`panel`](crate::panel)); all else is row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u16)]
pub enum Section {
    /// Patch projection, i8 `[dim, patch_size, patch_size, channels]` in panels.
    PatchWeight = 1,
    /// i32 `[dim]`.
    PatchBias = 2,
    /// i32 `[dim]`; the shift is in the header.
    PatchMultiplier = 3,
    /// Class token with its position, i16 `[dim]` in the residual stream's scale.
    ClassToken = 4,
    /// Positions of the patches, i16 `[patches, dim]` in the residual stream's scale.
    Position = 5,
    /// The block's shifts and epsilon, 32 bytes: u8 norm1, qkv, softmax, attention, proj, norm2, fc1, fc2, drop; seven
    /// zeros; u64 epsilon at [`SCALES_EPSILON_AT`]; eight zeros.
    Scales = 16,
    /// i32 `[dim]`.
    Norm1Multiplier = 17,
    /// i32 `[dim]`.
    Norm1Offset = 18,
    /// i8 `[3, heads, head width, dim]` in panels.
    QkvWeight = 19,
    /// i32 `[3 * dim]`.
    QkvBias = 20,
    /// i32 `[3 * dim]`.
    QkvMultiplier = 21,
    /// Multiplier from score distance to index of the table of exponentials, i32 `[heads]`, none negative.
    SoftmaxMultiplier = 22,
    /// From mean of values to the input of proj, i32 `[dim]`.
    AttentionMultiplier = 23,
    /// i8 `[dim, dim]` in panels.
    ProjWeight = 24,
    /// i32 `[dim]`.
    ProjBias = 25,
    /// i32 `[dim]`.
    ProjMultiplier = 26,
    /// i32 `[dim]`.
    Norm2Multiplier = 27,
    /// i32 `[dim]`.
    Norm2Offset = 28,
    /// i8 `[hidden, dim]` in panels.
    Fc1Weight = 29,
    /// i32 `[hidden]`.
    Fc1Bias = 30,
    /// i32 `[hidden]`.
    Fc1Multiplier = 31,
    /// i8 `[256]`.
    GeluTable = 32,
    /// i8 `[dim, hidden]` in panels.
    Fc2Weight = 33,
    /// i32 `[dim]`.
    Fc2Bias = 34,
    /// i32 `[dim]`.
    Fc2Multiplier = 35,
    /// Final norm, i32 `[dim]`.
    NormMultiplier = 64,
    /// Final norm, i32 `[dim]`.
    NormOffset = 65,
    /// UTF-8, 0 to 255 bytes.
    Name = 66,
    /// From the embedding to the head's inputs, i32 `[dim]`.
    HeadNormMultiplier = 67,
    /// i32 `[dim]`.
    HeadNormOffset = 68,
    /// i8 `[classes, dim]` in panels.
    HeadWeight = 69,
    /// i32 `[classes]`.
    HeadBias = 70,
    /// i32 `[classes]`; the shift is in the header.
    HeadMultiplier = 71,
}

use Section::*;

/// The sections before the blocks.
pub const HEAD_SECTIONS: [Section; 5] = [PatchWeight, PatchBias, PatchMultiplier, ClassToken, Position];
/// The sections of each block.
pub const BLOCK_SECTIONS: [Section; 20] = [
    Scales,
    Norm1Multiplier,
    Norm1Offset,
    QkvWeight,
    QkvBias,
    QkvMultiplier,
    SoftmaxMultiplier,
    AttentionMultiplier,
    ProjWeight,
    ProjBias,
    ProjMultiplier,
    Norm2Multiplier,
    Norm2Offset,
    Fc1Weight,
    Fc1Bias,
    Fc1Multiplier,
    GeluTable,
    Fc2Weight,
    Fc2Bias,
    Fc2Multiplier,
];
/// The sections after the blocks; the last five only of an encoder with a classification head.
pub const TAIL_SECTIONS: [Section; 8] = [
    NormMultiplier,
    NormOffset,
    Name,
    HeadNormMultiplier,
    HeadNormOffset,
    HeadWeight,
    HeadBias,
    HeadMultiplier,
];
const HEADLESS: usize = 3;
/// Bytes of an entry of the section table: kind u16, block u16, offset u32, length u32, zero u32.
pub const TABLE_ENTRY_LEN: usize = 16;
/// Bytes of [`Section::Scales`].
pub const SCALES_LEN: usize = 32;
/// Where in [`Section::Scales`] the epsilon lies.
pub const SCALES_EPSILON_AT: usize = 16;
/// Largest number of bits by which the residual stream is made coarser at a block.
pub const MAX_DROP: u8 = 15;
/// Largest absolute value of a bias.
pub const MAX_BIAS: i32 = 1 << 30;

/// What the bytes of a section are, for their validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// i8 panels, −128 excluded, of this many outputs and inputs.
    Weight { outputs: usize, inner: usize },
    /// The same with weights of 4 bits.
    Nibbles { outputs: usize, inner: usize, group: usize },
    /// i32 of at most [`MAX_BIAS`].
    Bias,
    /// i32, not negative.
    NotNegative,
    /// Any bytes.
    Any,
    /// The scales of a block.
    Scales,
    /// UTF-8.
    Text,
}

impl Section {
    /// Length in bytes.
    pub(crate) fn len(self, header: &Header) -> u64 {
        let geometry = &header.geometry;
        let dim = geometry.dim as u64;
        let hidden = geometry.hidden as u64;
        if let Some((outputs, inner)) = self.matrix(header) {
            return match self.precision(header) {
                Precision::Int8 => panels_len(outputs, inner) as u64,
                Precision::Int4 { group } => int4::panels_len(outputs, inner, group) as u64,
            };
        }
        match self {
            PatchBias | PatchMultiplier | Norm1Multiplier | Norm1Offset | AttentionMultiplier | ProjBias
            | ProjMultiplier | Norm2Multiplier | Norm2Offset | Fc2Bias | Fc2Multiplier | NormMultiplier
            | NormOffset | HeadNormMultiplier | HeadNormOffset => 4 * dim,
            ClassToken => 2 * dim,
            Position => 2 * dim * geometry.patches() as u64,
            Scales => SCALES_LEN as u64,
            QkvBias | QkvMultiplier => 12 * dim,
            SoftmaxMultiplier => 4 * geometry.heads as u64,
            Fc1Bias | Fc1Multiplier => 4 * hidden,
            GeluTable => 256,
            Name => header.name_len.into(),
            HeadBias | HeadMultiplier => 4 * header.classes() as u64,
            // Matrices: above.
            PatchWeight | QkvWeight | ProjWeight | Fc1Weight | Fc2Weight | HeadWeight => 0,
        }
    }

    /// Outputs and inputs of a weight matrix; `None` for what is none.
    pub fn matrix(self, header: &Header) -> Option<(usize, usize)> {
        let geometry = &header.geometry;
        let dim = geometry.dim;
        match self {
            PatchWeight => Some((dim, geometry.patch_len())),
            QkvWeight => Some((3 * dim, dim)),
            ProjWeight => Some((dim, dim)),
            Fc1Weight => Some((geometry.hidden, dim)),
            Fc2Weight => Some((dim, geometry.hidden)),
            HeadWeight => Some((header.classes(), dim)),
            _ => None,
        }
    }

    /// What its offset is a multiple of: 64 for weight matrices, so that what a processor takes of a panel at once is in one line of its
    /// cache; 16 for all else.
    pub fn boundary(self, header: &Header) -> u64 {
        if self.matrix(header).is_some() { 64 } else { 16 }
    }

    /// How the section's weights are kept, if it has any.
    pub fn precision(self, header: &Header) -> Precision {
        match self {
            QkvWeight | ProjWeight | Fc1Weight | Fc2Weight => header.precision,
            _ => Precision::Int8,
        }
    }

    pub(crate) fn content(self, header: &Header) -> Content {
        if let Some((outputs, inner)) = self.matrix(header) {
            return match self.precision(header) {
                Precision::Int8 => Content::Weight { outputs, inner },
                Precision::Int4 { group } => Content::Nibbles { outputs, inner, group },
            };
        }
        match self {
            PatchBias | QkvBias | ProjBias | Fc1Bias | Fc2Bias | HeadBias => Content::Bias,
            SoftmaxMultiplier => Content::NotNegative,
            Self::Scales => Content::Scales,
            Name => Content::Text,
            _ => Content::Any,
        }
    }
}

/// A section in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// What it holds.
    pub section: Section,
    /// Of which block; 0 outside the blocks.
    pub block: u32,
    /// Bytes from the start of the file: a multiple of the section's [`boundary`](Section::boundary).
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// How many sections a file with this header has.
pub(crate) fn section_count(header: &Header) -> u64 {
    let outside = HEAD_SECTIONS.len() + tail(header).len();
    header.geometry.depth as u64 * BLOCK_SECTIONS.len() as u64 + outside as u64
}

/// Where the section table of a file with this header ends.
pub(crate) fn table_end(header: &Header) -> u64 {
    super::HEADER_LEN as u64 + section_count(header) * TABLE_ENTRY_LEN as u64
}

/// The sections after the blocks.
fn tail(header: &Header) -> &'static [Section] {
    match (header.head, TAIL_SECTIONS.split_at_checked(HEADLESS)) {
        (None, Some((headless, _))) => headless,
        _ => &TAIL_SECTIONS,
    }
}

/// Every section of a file with this header, in the file's order.
///
/// The header must be valid ([`Header::validate`]).
pub fn sections(header: &Header) -> impl Iterator<Item = Placed> + use<> {
    let header = *header;
    let mut offset = table_end(&header);
    let blocks =
        (0..header.geometry.depth as u32).flat_map(|block| BLOCK_SECTIONS.iter().map(move |&section| (section, block)));
    let head = HEAD_SECTIONS.iter().map(|&section| (section, 0));
    let tail = tail(&header).iter().map(|&section| (section, 0));
    head.chain(blocks).chain(tail).map(move |(section, block)| {
        let placed = Placed {
            section,
            block,
            offset: offset.next_multiple_of(section.boundary(&header)),
            len: section.len(&header),
        };
        offset = placed.offset + placed.len;
        placed
    })
}
