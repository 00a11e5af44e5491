//! Linear layers and LayerNorm: the encoder's own, public so that each can be checked by itself.

use core::ops::Range;

use bytemuck::Zeroable;
use tec_core::integer::{NormRow, norm_affine, round_shift, saturate_i8, saturate_i16};

use crate::format::Precision;
use crate::kernel::{Group, Kernel, Lanes};
use crate::panel::{PANEL, padded};
use crate::plan::Rest;
use crate::views::{part, part_mut};
use crate::{Error, int4};

pub use crate::views::I32s;

/// A linear layer with its requantization.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// `[outputs, inner]` in panels ([`panel::pack`](crate::panel::pack), [`int4::pack`]).
    pub weight: &'a [u8],
    /// How the weights are kept.
    pub precision: Precision,
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
    /// Bytes of memory that [`BackEnd::linear`](crate::BackEnd::linear) needs at most for this many rows.
    pub const fn memory(&self, rows: usize) -> usize {
        rows_memory(rows, self.inner).saturating_add(self.unpacked_len())
    }

    /// Bytes of memory for a panel of unpacked weights.
    pub(crate) const fn unpacked_len(&self) -> usize {
        match self.precision {
            Precision::Int8 => 0,
            Precision::Int4 { .. } => padded(self.inner).saturating_mul(PANEL),
        }
    }

    /// The weights of a panel, `[inner / 4][16][4]`.
    #[inline(never)]
    fn panel<'p>(&self, number: usize, unpacked: &'p mut [i8]) -> &'p [i8]
    where
        'a: 'p,
    {
        let len = padded(self.inner).saturating_mul(PANEL);
        match self.precision {
            Precision::Int8 => bytemuck::cast_slice(part(self.weight, number * len, len)),
            Precision::Int4 { group } => {
                let packed = int4::panel_len(self.inner, group);
                let unpacked = part_mut(unpacked, 0, len);
                int4::unpack(part(self.weight, number * packed, packed), self.inner, group, unpacked);
                unpacked
            }
        }
    }

    /// Applies some panels of the layer to `count` rows of factors; `inputs` may have more, which a kernel may read. Calls `emit(first row, first output, values)` for each
    /// panel and group of rows, with one value for each row and output, limited to i16. Outputs that do not exist are 0. `unpacked` has
    /// [`unpacked_len`](Self::unpacked_len) bytes.
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    pub(crate) fn apply<K: Kernel>(
        &self,
        kernel: K,
        inputs: &[K::Factor],
        count: usize,
        panels: Range<usize>,
        unpacked: &mut [i8],
        mut emit: impl FnMut(usize, usize, &[Lanes<i16>]),
    ) {
        let stride = stride::<K>(self.inner);
        let (mut sums, mut values) = (K::Sums::ZERO, K::Values::ZERO);
        for panel in panels {
            let output = panel * PANEL;
            let weights = self.panel(panel, unpacked);
            let (bias, multiplier) = (self.bias.lanes(output), self.multiplier.lanes(output));
            let groups = inputs.chunks((K::ROWS * stride).max(1)).enumerate();
            for (group, rows) in groups.take(count.div_ceil(K::ROWS)) {
                let count = (count - group * K::ROWS).min(K::ROWS);
                let (Some(sums), Some(values)) = (sums.as_mut().get_mut(..count), values.as_mut().get_mut(..count))
                else {
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
    padded(inner).saturating_add(K::TAIL)
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
    /// Bytes of memory that [`BackEnd::norm`](crate::BackEnd::norm) needs at most for a token of this width.
    pub const fn memory(&self, dim: usize) -> usize {
        rows_memory(1, dim)
    }

    /// Calls `emit(slot, value)` for each channel of a token, with the value's fractional bits unrounded.
    #[inline(always)]
    pub fn row<T>(&self, token: &[i16], out: &mut [T], mut emit: impl FnMut(&mut T, i64)) {
        let row = NormRow::new(token, self.epsilon);
        let constants = self.multiplier.iter().zip(self.offset.iter());
        for ((slot, &x), (multiplier, offset)) in out.iter_mut().zip(token).zip(constants) {
            emit(slot, norm_affine(row.normalize(x), multiplier, offset, self.bits));
        }
    }

    /// A token's values after `shift` fractional bits are dropped, limited to i16.
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    #[cfg_attr(not(target_arch = "x86_64"), inline(never))]
    pub(crate) fn output(&self, token: &[i16], shift: u32, out: &mut [i16]) {
        self.row(token, out, |slot, value| {
            *slot = saturate_i16(round_shift(value, shift))
        });
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

/// Bytes of rows of factors, whatever the kernel: they have two bytes at most, and a tail of eight.
const fn rows_memory(rows: usize, inner: usize) -> usize {
    rows.saturating_mul(padded(inner).saturating_mul(2).saturating_add(16))
        .saturating_add(16)
}

pub(crate) fn linear<K: Kernel>(
    kernel: K,
    layer: &Linear<'_>,
    rows: &[i8],
    memory: &mut [u8],
    out: &mut [i16],
) -> Result<(), Error> {
    let row_len = stride::<K>(layer.inner);
    let rows = rows.chunks_exact(layer.inner.max(1));
    let outputs = out.len() / rows.len().max(1);
    let count = rows.len();
    let (factors, memory) = factors(memory, count * row_len)?;
    let (unpacked, _) = self::factors(memory, layer.unpacked_len())?;
    factors.fill(K::Factor::zeroed());
    for (row, factors) in rows.zip(factors.chunks_exact_mut(row_len.max(1))) {
        for (input, &activation) in row.iter().enumerate() {
            if let Some(slot) = factors.get_mut(kernel.at(input)) {
                *slot = kernel.factor(activation);
            }
        }
        kernel.finish(factors);
    }
    layer.apply(
        kernel,
        factors,
        count,
        0..outputs.div_ceil(PANEL),
        unpacked,
        |row, output, values| {
            for (row, values) in (row..).zip(values) {
                let slots = part_mut(out, row * outputs + output, PANEL.min(outputs - output));
                slots.iter_mut().zip(values).for_each(|(slot, &value)| *slot = value);
            }
        },
    );
    Ok(())
}

pub(crate) fn normalize<K: Kernel>(
    kernel: K,
    norm: &Norm<'_>,
    token: &[i16],
    memory: &mut [u8],
    out: &mut [i8],
) -> Result<(), Error> {
    let (factors, _) = factors(memory, stride::<K>(token.len()))?;
    kernel.norm(norm, token, factors);
    for (input, slot) in out.iter_mut().enumerate().take(token.len()) {
        *slot = factors
            .get(kernel.at(input))
            .map_or(0, |&factor| kernel.activation(factor));
    }
    Ok(())
}

pub(crate) fn weighted<K: Kernel>(kernel: K, weights: &mut [i16], tokens: usize, values: &[i8], out: &mut [i32]) {
    let row_len = padded(tokens).max(1);
    weights
        .chunks_exact_mut(row_len)
        .for_each(|row| kernel.finish_weights(row));
    let channels = out.len() / (weights.len() / row_len).max(1);
    let groups = weights.chunks(K::ROWS.saturating_mul(row_len).max(1));
    for (weights, out) in groups.zip(out.chunks_mut(K::ROWS.saturating_mul(channels).max(1))) {
        for (panel, values) in values.chunks_exact(row_len.saturating_mul(PANEL).max(1)).enumerate() {
            let mut sums = K::Sums::ZERO;
            let sums = part_mut(sums.as_mut(), 0, weights.len() / row_len);
            kernel.weighted(weights, row_len, values, sums);
            for (out, sums) in out.chunks_mut(channels.max(1)).zip(&*sums) {
                let slots = out.get_mut(panel * PANEL..).unwrap_or_default();
                slots.iter_mut().zip(sums).for_each(|(slot, &sum)| *slot = sum);
            }
        }
    }
}

/// The first `len` elements of a memory, and the rest of it.
fn factors<T: bytemuck::Pod>(memory: &mut [u8], len: usize) -> Result<(&mut [T], &mut [u8]), Error> {
    let short = Error::Length {
        what: "memory's bytes",
        expected: len * size_of::<T>(),
        actual: memory.len(),
    };
    let mut rest = Rest(memory);
    Ok((rest.take(len).ok_or(short)?, rest.0))
}
