//! The scratch memory: what lies where, and when it is overwritten.
//!
//! The tokens (the residual stream) live from the embedding to the end. Everything else is used by one phase at a time,
//! and the phases share the rest of the memory:
//!
//! | phase | buffers after the tokens |
//! |---|---|
//! | embedding | the pixels of a tile of patches |
//! | attention | all heads' outputs; one head's keys and values; a tile of normalized tokens and of queries; one row of scores and weights |
//! | projection | all heads' outputs |
//! | MLP | a tile of normalized tokens and of hidden activations |
//! | mean | one sum a channel |
//!
//! A tile is [`TILE`] tokens: each row of weights that comes from flash serves that many. Every buffer starts at a 16-byte boundary.

use crate::encoder::Outputs;
use crate::{ALIGNMENT, Error, Geometry};

/// Tokens that share one pass over a layer's weights.
pub const TILE: usize = 4;

/// The buffers of the attention phase.
pub(crate) struct AttentionBuffers<'s> {
    /// Heads joined, `[tokens, dim]`.
    pub(crate) joined: &'s mut [i8],
    /// One head, `[tokens, head width]`.
    pub(crate) keys: &'s mut [i8],
    /// One head, transposed: `[head width, tokens]`.
    pub(crate) values: &'s mut [i8],
    /// `[TILE, dim]`.
    pub(crate) normalized: &'s mut [i8],
    /// `[TILE, head width]`.
    pub(crate) queries: &'s mut [i8],
    /// `[tokens]`.
    pub(crate) scores: &'s mut [i32],
    /// `[tokens]`.
    pub(crate) weights: &'s mut [i16],
}

/// The buffers of the MLP phase.
pub(crate) struct MlpBuffers<'s> {
    /// `[TILE, dim]`.
    pub(crate) normalized: &'s mut [i8],
    /// `[TILE, hidden]`.
    pub(crate) hidden: &'s mut [i8],
}

/// Bytes of scratch memory for these outputs.
pub(crate) fn scratch_len(geometry: &Geometry, outputs: Outputs) -> usize {
    let tokens = geometry.tokens();
    let dim = geometry.dim;
    let width = geometry.head_width();
    let embedding = buffer(TILE * geometry.patch_len());
    let attention = buffer(tokens * dim)
        + 2 * buffer(tokens * width)
        + buffer(TILE * dim)
        + buffer(TILE * width)
        + buffer(4 * tokens)
        + buffer(2 * tokens);
    let mlp = buffer(TILE * dim) + buffer(TILE * geometry.hidden);
    let mean = if outputs.mean { buffer(4 * dim) } else { 0 };
    buffer(2 * tokens * dim) + embedding.max(attention).max(mlp).max(mean)
}

const fn buffer(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// The tokens, `[tokens, dim]`, and the memory that the phases share.
///
/// # Errors
/// [`Error::Misaligned`], or [`Error::Length`] with the bytes needed.
pub(crate) fn split<'s>(
    scratch: &'s mut [u8],
    geometry: &Geometry,
    outputs: Outputs,
) -> Result<(&'s mut [i16], Shared<'s>), Error> {
    let by = scratch.as_ptr().addr() % ALIGNMENT;
    if by != 0 {
        return Err(Error::Misaligned {
            what: "scratch memory",
            by,
        });
    }
    let (expected, actual) = (scratch_len(geometry, outputs), scratch.len());
    let short = Error::Length {
        what: "scratch memory's bytes",
        expected,
        actual,
    };
    let mut rest = Rest(scratch.get_mut(..expected).ok_or(short)?);
    let tokens = rest.take(geometry.tokens() * geometry.dim).ok_or(short)?;
    Ok((tokens, Shared { memory: rest.0, short }))
}

/// The memory that the phases share.
pub(crate) struct Shared<'s> {
    memory: &'s mut [u8],
    /// What to say if it did not suffice, which [`scratch_len`] rules out.
    short: Error,
}

impl Shared<'_> {
    /// Pixels of a tile of patches, `[TILE, patch_len]`.
    pub(crate) fn embedding(&mut self, geometry: &Geometry) -> Result<&mut [i8], Error> {
        Rest(self.memory).take(TILE * geometry.patch_len()).ok_or(self.short)
    }

    pub(crate) fn attention(&mut self, geometry: &Geometry) -> Result<AttentionBuffers<'_>, Error> {
        let (tokens, dim, width) = (geometry.tokens(), geometry.dim, geometry.head_width());
        let short = self.short;
        let mut rest = Rest(self.memory);
        Ok(AttentionBuffers {
            joined: rest.take(tokens * dim).ok_or(short)?,
            keys: rest.take(tokens * width).ok_or(short)?,
            values: rest.take(tokens * width).ok_or(short)?,
            normalized: rest.take(TILE * dim).ok_or(short)?,
            queries: rest.take(TILE * width).ok_or(short)?,
            scores: rest.take(tokens).ok_or(short)?,
            weights: rest.take(tokens).ok_or(short)?,
        })
    }

    pub(crate) fn mlp(&mut self, geometry: &Geometry) -> Result<MlpBuffers<'_>, Error> {
        let short = self.short;
        let mut rest = Rest(self.memory);
        Ok(MlpBuffers {
            normalized: rest.take(TILE * geometry.dim).ok_or(short)?,
            hidden: rest.take(TILE * geometry.hidden).ok_or(short)?,
        })
    }

    /// Sums over the patches, `[dim]`.
    pub(crate) fn sums(&mut self, geometry: &Geometry) -> Result<&mut [i32], Error> {
        Rest(self.memory).take(geometry.dim).ok_or(self.short)
    }
}

/// Memory not given out yet; starts at a 16-byte boundary.
struct Rest<'s>(&'s mut [u8]);

impl<'s> Rest<'s> {
    /// The next `len` elements, and the padding after them.
    fn take<T: bytemuck::Pod>(&mut self, len: usize) -> Option<&'s mut [T]> {
        let bytes = len.checked_mul(size_of::<T>())?;
        let (taken, rest) =
            core::mem::take(&mut self.0).split_at_mut_checked(bytes.checked_next_multiple_of(ALIGNMENT)?)?;
        self.0 = rest;
        bytemuck::try_cast_slice_mut(taken.get_mut(..bytes)?).ok()
    }
}
