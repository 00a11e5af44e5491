//! Linear layers and LayerNorm: the encoder's own, public so that each can be checked by itself.

use core::ops::Range;

use tec_core::integer::{NormRow, norm_affine, round_shift, saturate_i8};

use crate::kernel::{Group, Kernel, Lanes};
use crate::panel::{PANEL, padded};
use crate::views::part;

pub use crate::views::I32s;

/// A linear layer with its requantization.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// `[outputs, inner]` in panels ([`panel::pack`](crate::panel::pack)).
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

impl Linear<'_> {
    /// Applies some panels of the layer to rows of factors, as many as `inputs` has: calls `emit(first row, first output, values)` for each
    /// panel and group of rows, with one value for each row and output, limited to i16. Outputs that do not exist are 0.
    pub(crate) fn apply<K: Kernel>(
        &self,
        kernel: K,
        inputs: &[K::Factor],
        panels: Range<usize>,
        mut emit: impl FnMut(usize, usize, &[Lanes<i16>]),
    ) {
        let stride = stride::<K>(self.inner);
        let panel_len = padded(self.inner) * PANEL;
        for panel in panels {
            let output = panel * PANEL;
            let weights = part(self.weight, panel * panel_len, panel_len);
            let (bias, multiplier) = (self.bias.lanes(output), self.multiplier.lanes(output));
            for (group, rows) in inputs.chunks((K::ROWS * stride).max(1)).enumerate() {
                let count = rows.len() / stride.max(1);
                let (mut sums, mut values) = (K::Sums::ZERO, K::Values::ZERO);
                let (Some(sums), Some(values)) = (sums.as_mut().get_mut(..count), values.as_mut().get_mut(..count)) else {
                    continue;
                };
                kernel.products(rows, stride, weights, sums);
                kernel.requantize(sums, &bias, &multiplier, self.shift, values);
                emit(group * K::ROWS, output, values);
            }
        }
    }
}

/// Factors from one row to the next.
pub(crate) const fn stride<K: Kernel>(inner: usize) -> usize {
    padded(inner) + K::TAIL
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

    /// Calls `emit(i, value)` for the channels `start + i` of a token, with the value rounded and limited to i8.
    #[inline(always)]
    pub(crate) fn values(&self, row: &NormRow, token: &[i16], start: usize, mut emit: impl FnMut(usize, i8)) {
        let count = token.len().saturating_sub(start);
        let (multipliers, offsets) = (self.multiplier.part(start, count), self.offset.part(start, count));
        let constants = multipliers.iter().zip(offsets.iter());
        for (i, (&x, (multiplier, offset))) in token.iter().skip(start).zip(constants).enumerate() {
            let value = norm_affine(row.normalize(x), multiplier, offset, self.bits);
            emit(i, saturate_i8(round_shift(value, self.bits)));
        }
    }
}
