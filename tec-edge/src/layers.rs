//! Linear layers and LayerNorm over a tile of tokens: the encoder's own, public so that each can be checked by itself.

use tec_core::integer::{NormRow, norm_affine, round_shift, saturate_i8, scale};

use crate::kernel;
use crate::views::part;

pub use crate::plan::TILE;
pub use crate::views::I32s;

/// A linear layer with its requantization.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// `[outputs, inner]`.
    pub weight: &'a [i8],
    /// Inputs of an output.
    pub inner: usize,
    /// `[outputs]`.
    pub bias: I32s<'a>,
    /// `[outputs]`.
    pub multiplier: I32s<'a>,
    /// Bits that the rounding drops.
    pub shift: u32,
}

impl<'a> Linear<'a> {
    /// The layer of `count` outputs from `start` on.
    pub fn outputs(&self, start: usize, count: usize) -> Self {
        Self {
            weight: part(
                self.weight,
                start.saturating_mul(self.inner),
                count.saturating_mul(self.inner),
            ),
            bias: self.bias.part(start, count),
            multiplier: self.multiplier.part(start, count),
            ..*self
        }
    }

    /// Applies the layer to a tile, `[up to TILE, inner]`: calls `emit(token, output, value)` with each rounded value, for
    /// every token of the tile, which saturates it to its type.
    #[inline(always)]
    pub fn apply(&self, tile: &[i8], mut emit: impl FnMut(usize, usize, i64)) {
        let count = tile.len() / self.inner.max(1);
        let mut constants = self.bias.iter().zip(self.multiplier.iter());
        kernel::tile_products(tile, self.inner, self.weight, |output, sums| {
            let Some((bias, multiplier)) = constants.next() else {
                return;
            };
            for (token, &sum) in sums.iter().enumerate().take(count) {
                emit(token, output, scale(sum.wrapping_add(bias), multiplier, self.shift));
            }
        });
    }
}

/// A LayerNorm with its multipliers.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// `[dim]`.
    pub multiplier: I32s<'a>,
    /// `[dim]`.
    pub offset: I32s<'a>,
    /// Fractional bits before rounding.
    pub bits: u32,
    /// What is added to `D·S2 − S1²`.
    pub epsilon: u64,
}

impl Norm<'_> {
    /// Calls `emit(slot, value)` for each channel of a token, with the value's fractional bits unrounded.
    #[inline(always)]
    pub fn row<T>(&self, token: &[i16], out: &mut [T], mut emit: impl FnMut(&mut T, i64)) {
        let row = NormRow::new(token, self.epsilon);
        let constants = self.multiplier.iter().zip(self.offset.iter());
        for ((slot, &x), (multiplier, offset)) in out.iter_mut().zip(token).zip(constants) {
            emit(slot, norm_affine(row.normalize(x), multiplier, offset, self.bits));
        }
    }

    /// Normalizes a tile of tokens, `[.., dim]`, to i8; returns the part of `out` that was written.
    pub fn tile<'o>(&self, tokens: &[i16], dim: usize, out: &'o mut [i8]) -> &'o [i8] {
        for (token, out) in tokens.chunks_exact(dim.max(1)).zip(out.chunks_exact_mut(dim.max(1))) {
            self.row(token, out, |slot, value| {
                *slot = saturate_i8(round_shift(value, self.bits))
            });
        }
        part(out, 0, tokens.len())
    }
}
