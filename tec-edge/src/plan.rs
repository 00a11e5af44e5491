//! The scratch memory: what lies where, and when it is overwritten.
//!
//! The tokens (the residual stream) live from the embedding to the end, the keys and values of all heads through a block. Everything
//! else belongs to a tile of rows, which one worker takes through all of a block's layers before the next:
//!
//! | phase | buffers of a tile |
//! |---|---|
//! | embedding | pixels |
//! | keys and values | normalized tokens |
//! | attention | normalized tokens, which the heads' outputs replace; queries; scores and weights of a group of rows |
//! | MLP | normalized tokens; hidden activations |
//! | mean | one sum a channel |
//!
//! The fewest rows of a tile are a group of the kernel's: each row of weights that comes from flash serves that many. With more
//! memory tiles have more rows. Every buffer starts at a 16-byte boundary.

use core::ops::Range;

use crate::kernel::Kernel;
use crate::layers::stride;
use crate::panel::{PANEL, QUAD, padded, panels_len};
use crate::{ALIGNMENT, Error, Geometry};

/// What decides how the memory is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) geometry: Geometry,
    /// Tokens that are encoded, with the class token.
    pub(crate) tokens: usize,
    /// Whether the mean is wanted.
    pub(crate) mean: bool,
    /// Shares of the tokens that are computed side by side.
    pub(crate) workers: usize,
}

impl Plan {
    /// Bytes for tiles of at least `rows` rows.
    pub(crate) fn len<K: Kernel>(&self, rows: usize) -> usize {
        self.fixed_len() + self.workers.max(1) * self.tile_len::<K>(whole_groups::<K>(rows))
    }

    /// The least memory for tokens, keys and values, whatever the tiles.
    fn fixed_len(&self) -> usize {
        buffer(2 * self.tokens * self.geometry.dim) + buffer(self.kept_len(0..self.workers))
    }

    /// Bytes of a worker's tile.
    fn tile_len<K: Kernel>(&self, rows: usize) -> usize {
        let g = &self.geometry;
        let factors = |row: usize| buffer(rows * row * size_of::<K::Factor>());
        let attention = factors(g.heads * stride::<K>(g.head_width()))
            + buffer(4 * K::ROWS * self.scores_stride())
            + buffer(2 * K::ROWS * self.weights_stride());
        let block = factors(stride::<K>(g.dim)) + attention.max(factors(stride::<K>(g.hidden)));
        let mean = if self.mean { buffer(4 * g.dim) } else { 0 };
        block.max(factors(stride::<K>(g.patch_len()))).max(mean)
    }

    /// Splits the memory.
    ///
    /// # Errors
    /// [`Error::Misaligned`], or [`Error::Length`] with the bytes needed.
    pub(crate) fn split<'s, K: Kernel>(&self, scratch: &'s mut [u8]) -> Result<Memory<'s>, Error> {
        let by = scratch.as_ptr().addr() % ALIGNMENT;
        if by != 0 {
            return Err(Error::Misaligned {
                what: "scratch memory",
                by,
            });
        }
        let short = Error::Length {
            what: "scratch memory's bytes",
            expected: self.len::<K>(0),
            actual: scratch.len(),
        };
        let mut rest = Rest(scratch);
        let tokens = rest.take(self.tokens * self.geometry.dim).ok_or(short)?;
        let kept = rest.take(self.kept_len(0..self.workers)).ok_or(short)?;
        // Of equal length, from a boundary on.
        let tile_len = rest.0.len() / self.workers.max(1) / ALIGNMENT * ALIGNMENT;
        let rows = self.rows_that_fit::<K>(tile_len).ok_or(short)?;
        Ok(Memory {
            tokens,
            kept,
            tiles: rest.0,
            tile_len,
            rows,
        })
    }

    /// The most rows of tiles of this many bytes, whole groups, but no more than a worker's tokens need.
    fn rows_that_fit<K: Kernel>(&self, bytes: usize) -> Option<usize> {
        let groups = self.tokens.div_ceil(self.workers.max(1)).div_ceil(K::ROWS).max(1);
        let (mut least, mut most) = (0, groups);
        while least < most {
            let middle = (least + most).div_ceil(2);
            if self.tile_len::<K>(middle * K::ROWS) <= bytes {
                least = middle;
            } else {
                most = middle - 1;
            }
        }
        (least > 0).then_some(least * K::ROWS)
    }

    /// The tokens of some workers: contiguous, in the workers' order. Only the last share ends within a quad.
    pub(crate) fn share(&self, workers: Range<usize>) -> Range<usize> {
        let bound = |worker: usize| {
            let all = self.workers.max(1);
            if worker >= all {
                self.tokens
            } else {
                (self.tokens * worker / all).next_multiple_of(QUAD).min(self.tokens)
            }
        };
        bound(workers.start)..bound(workers.end)
    }

    /// Bytes of the keys and values that some workers keep.
    pub(crate) fn kept_len(&self, workers: Range<usize>) -> usize {
        workers
            .map(|worker| self.kept(self.share(worker..worker + 1)).len())
            .sum()
    }

    /// The keys and values of a worker's share of the tokens.
    pub(crate) fn kept(&self, share: Range<usize>) -> Kept {
        Kept {
            tokens: count(&share),
            heads: self.geometry.heads,
            width: self.geometry.head_width(),
        }
    }

    /// Scores from one row to the next.
    pub(crate) fn scores_stride(&self) -> usize {
        self.tokens.saturating_add(PANEL)
    }

    /// Softmax weights from one row to the next.
    pub(crate) fn weights_stride(&self) -> usize {
        padded(self.tokens)
    }
}

/// How many numbers a range has; `len` of the standard library could panic.
pub(crate) fn count(range: &Range<usize>) -> usize {
    range.end.saturating_sub(range.start)
}

fn whole_groups<K: Kernel>(rows: usize) -> usize {
    rows.max(1).next_multiple_of(K::ROWS)
}

const fn buffer(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Keys and values of a share of the tokens: for each head the panels of its keys (tokens are the outputs, channels the inputs), then for
/// each head the panels of its values (channels are the outputs, tokens the inputs).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) tokens: usize,
    heads: usize,
    width: usize,
}

impl Kept {
    /// Bytes of one head's keys.
    pub(crate) fn keys_len(&self) -> usize {
        panels_len(self.tokens, self.width)
    }

    /// Bytes of one head's values.
    pub(crate) fn values_len(&self) -> usize {
        panels_len(self.width, self.tokens)
    }

    /// Where a head's keys begin.
    pub(crate) fn keys(&self, head: usize) -> usize {
        head * self.keys_len()
    }

    /// Where a head's values begin.
    pub(crate) fn values(&self, head: usize) -> usize {
        self.heads * self.keys_len() + head * self.values_len()
    }

    /// Bytes in all, a multiple of the alignment.
    pub(crate) fn len(&self) -> usize {
        self.heads * (self.keys_len() + self.values_len())
    }
}

/// The scratch memory of an image.
pub(crate) struct Memory<'s> {
    /// `[tokens, dim]`.
    pub(crate) tokens: &'s mut [i16],
    /// [`Kept`] of each worker.
    pub(crate) kept: &'s mut [i8],
    /// One of `tile_len` bytes for each worker.
    pub(crate) tiles: &'s mut [u8],
    pub(crate) tile_len: usize,
    /// Rows of a tile, whole groups.
    pub(crate) rows: usize,
}

/// What of the memory one worker writes, or several before they part.
pub(crate) struct Part<'s> {
    /// Which workers.
    pub(crate) workers: Range<usize>,
    pub(crate) tokens: &'s mut [i16],
    pub(crate) kept: &'s mut [i8],
    pub(crate) tiles: &'s mut [u8],
}

impl<'s> Part<'s> {
    /// The part of the workers before `middle`, and that of the others.
    pub(crate) fn split(self, plan: &Plan, tile_len: usize, middle: usize) -> Option<(Self, Self)> {
        let (first, second) = (self.workers.start..middle, middle..self.workers.end);
        let rows = count(&plan.share(first.clone())) * plan.geometry.dim;
        let (tokens, other_tokens) = self.tokens.split_at_mut_checked(rows)?;
        // Empty where the phase only reads them.
        let kept_len = plan.kept_len(first.clone()).min(self.kept.len());
        let (kept, other_kept) = self.kept.split_at_mut_checked(kept_len)?;
        let (tiles, other_tiles) = self.tiles.split_at_mut_checked(count(&first) * tile_len)?;
        let part = |workers, tokens, kept, tiles| Self {
            workers,
            tokens,
            kept,
            tiles,
        };
        Some((
            part(first, tokens, kept, tiles),
            part(second, other_tokens, other_kept, other_tiles),
        ))
    }
}

/// Memory not given out yet; starts at a 16-byte boundary.
pub(crate) struct Rest<'s>(pub(crate) &'s mut [u8]);

impl<'s> Rest<'s> {
    /// The next `len` elements, and the padding after them.
    pub(crate) fn take<T: bytemuck::Pod>(&mut self, len: usize) -> Option<&'s mut [T]> {
        let bytes = len.checked_mul(size_of::<T>())?;
        let (taken, rest) =
            core::mem::take(&mut self.0).split_at_mut_checked(bytes.checked_next_multiple_of(ALIGNMENT)?)?;
        self.0 = rest;
        bytemuck::try_cast_slice_mut(taken.get_mut(..bytes)?).ok()
    }
}
