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
//! | mean | a sum and a mean a channel |
//! | logits | the embedding, normalized and not |
//!
//! Weights of 4 bits are unpacked before everything else of a tile, a panel at a time.
//!
//! The fewest rows of a tile are a group of the kernel's: each row of weights that comes from flash serves that many. With more
//! memory tiles have more rows. Every buffer starts at a 16-byte boundary.

use core::ops::Range;

use crate::kernel::Needs;
use crate::panel::{PANEL, QUAD, padded, panels_len};
use crate::{ALIGNMENT, Error, Geometry};

/// What decides how the memory is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) geometry: Geometry,
    /// Tokens that are encoded, with the class token.
    pub(crate) tokens: usize,
    /// Whether a panel of weights is unpacked before it is used.
    pub(crate) unpacks: bool,
    /// What is wanted, and needs memory when all blocks are done.
    pub(crate) last: Last,
    /// Shares of the tokens that are computed side by side.
    pub(crate) workers: usize,
}

/// What the least scratch memory of an encoder is used for, in bytes; of every block the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScratchUsage {
    /// The tokens, from the embedding to the end.
    pub tokens: usize,
    /// The keys and values of all tokens, through a block.
    pub keys_and_values: usize,
    /// Rows (tokens) of a tile.
    pub tile_rows: usize,
    /// What a tile needs in each phase; the largest counts.
    pub tile: Phases,
}

/// The bytes of a tile, phase by phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases {
    /// Pixels of its patches.
    pub embedding: usize,
    /// A block's first pass: normalized tokens.
    pub keys_and_values: usize,
    /// Its second: normalized tokens, queries, scores, softmax weights.
    pub attention: usize,
    /// Normalized tokens, hidden activations.
    pub mlp: usize,
    /// Mean and logits.
    pub outputs: usize,
}

/// Outputs that need memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Last {
    /// The mean, wanted or pooled for the logits.
    pub(crate) mean: bool,
    pub(crate) logits: bool,
}

impl ScratchUsage {
    /// All of it: the least scratch memory.
    pub fn total(&self) -> usize {
        let tile = &self.tile;
        let phases = [
            tile.embedding,
            tile.keys_and_values,
            tile.attention,
            tile.mlp,
            tile.outputs,
        ];
        self.tokens + self.keys_and_values + phases.into_iter().fold(0, usize::max)
    }
}

impl Plan {
    /// Bytes for tiles of at least `rows` rows.
    pub(crate) fn len(&self, needs: Needs, rows: usize) -> usize {
        self.fixed_len() + self.workers.max(1) * self.tile_len(needs, rows.max(1).next_multiple_of(needs.rows.max(1)))
    }

    /// The least memory for tokens, keys and values, whatever the tiles.
    fn fixed_len(&self) -> usize {
        buffer(2 * self.tokens * self.geometry.dim) + buffer(self.kept_len(0..self.workers))
    }

    /// Bytes of a worker's tile.
    fn tile_len(&self, needs: Needs, rows: usize) -> usize {
        let usage = ScratchUsage {
            tokens: 0,
            keys_and_values: 0,
            tile_rows: rows,
            tile: self.phases(needs, rows),
        };
        usage.total()
    }

    /// Bytes of a tile of so many rows, phase by phase.
    fn phases(&self, needs: Needs, rows: usize) -> Phases {
        let g = &self.geometry;
        let factors = |rows: usize, inner: usize| buffer(rows * needs.stride(inner) * needs.factor);
        let unpacked = match self.unpacks {
            true => buffer(PANEL * padded(g.dim.max(g.hidden))),
            false => 0,
        };
        let normalized = unpacked + factors(rows, g.dim);
        let scores = buffer(4 * needs.rows * self.scores_stride()) + buffer(2 * self.weights_len(needs));
        let sums = if self.last.mean {
            buffer(4 * g.dim) + buffer(2 * g.dim)
        } else {
            0
        };
        Phases {
            embedding: factors(rows, g.patch_len()),
            keys_and_values: normalized,
            attention: normalized + factors(rows * g.heads, g.head_width()) + scores,
            mlp: normalized + factors(rows, g.hidden),
            outputs: match self.last.logits {
                true => buffer(2 * g.dim) + sums.max(factors(1, g.dim)),
                false => sums,
            },
        }
    }

    /// What the least memory is used for.
    pub(crate) fn usage(&self, needs: Needs) -> ScratchUsage {
        ScratchUsage {
            tokens: buffer(2 * self.tokens * self.geometry.dim),
            keys_and_values: buffer(self.kept_len(0..self.workers)),
            tile_rows: needs.rows,
            tile: self.phases(needs, needs.rows),
        }
    }

    /// Splits the memory.
    ///
    /// # Errors
    /// [`Error::Misaligned`], or [`Error::Length`] with the bytes needed.
    pub(crate) fn split<'s>(&self, needs: Needs, scratch: &'s mut [u8]) -> Result<Memory<'s>, Error> {
        let by = scratch.as_ptr().addr() % ALIGNMENT;
        if by != 0 {
            return Err(Error::Misaligned {
                what: "scratch memory",
                by,
            });
        }
        let short = Error::Length {
            what: "scratch memory's bytes",
            expected: self.len(needs, 0),
            actual: scratch.len(),
        };
        let mut rest = Rest(scratch);
        let tokens = rest.take(self.tokens * self.geometry.dim).ok_or(short)?;
        let kept = rest.take(self.kept_len(0..self.workers)).ok_or(short)?;
        // Of equal length, from a boundary on.
        let tile_len = rest.0.len() / self.workers.max(1) / ALIGNMENT * ALIGNMENT;
        let rows = self.rows_that_fit(needs, tile_len).ok_or(short)?;
        Ok(Memory {
            tokens,
            kept,
            tiles: rest.0,
            tile_len,
            rows,
        })
    }

    /// The most rows of tiles of this many bytes, whole groups, but no more than a worker's tokens need.
    fn rows_that_fit(&self, needs: Needs, bytes: usize) -> Option<usize> {
        let groups = self.largest_share().div_ceil(needs.rows.max(1)).max(1);
        let (mut least, mut most) = (0, groups);
        while least < most {
            let middle = (least + most).div_ceil(2);
            if self.tile_len(needs, middle * needs.rows) <= bytes {
                least = middle;
            } else {
                most = middle - 1;
            }
        }
        (least > 0).then_some(least * needs.rows)
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

    /// Tokens of the worker that has most.
    #[inline(never)]
    pub(crate) fn largest_share(&self) -> usize {
        let shares = (0..self.workers.max(1)).map(|worker| count(&self.share(worker..worker + 1)));
        shares.max().unwrap_or(0)
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

    /// Softmax weights of a group of rows.
    pub(crate) fn weights_len(&self, needs: Needs) -> usize {
        needs.rows * self.weights_stride() + needs.reach / 2
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
