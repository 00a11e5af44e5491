//! Kernels for 64-bit Arm processors: NEON for everything, and products of 8 bits by the best instructions that there are.
//!
//! Vectors are read through slices of vectors, so they are aligned, as processors without an MMU want it. Where a caller's slice is not,
//! the scalar kernel computes.

mod dotprod;
mod i8mm;
mod neon;
mod norm;
mod softmax;

use core::arch::aarch64::int8x16_t;

use bytemuck::try_cast_slice;

pub(crate) use self::dotprod::Dotprod;
pub(crate) use self::i8mm::I8mm;
pub(crate) use self::neon::Neon;
use super::{Kernel, Lanes, Needs, Scalar, narrow, rows};
use crate::layers::Norm;
use crate::panel::{PANEL, QUAD};

/// A quad of all outputs of a panel, four outputs a vector.
type Weights = [int8x16_t; PANEL / QUAD];

/// Rows of a group.
const ROWS: usize = Needs::NEON.rows;

/// How a processor multiplies numbers of 8 bits. A value proves that it has the instructions.
pub(crate) trait Products: Copy + Send + Sync {
    /// The products of a row, a quad a word, with a panel.
    fn one(self, row: &[i32], quads: &[Weights], sums: &mut Lanes<i32>);

    /// Those of four rows.
    fn four(self, rows: [&[i32]; ROWS], quads: &[Weights], sums: [&mut Lanes<i32>; ROWS]);
}

/// NEON with some products.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vectors<P>(pub(crate) P);

impl<P: Products> Kernel for Vectors<P> {
    type Factor = i8;
    type Sums = [Lanes<i32>; ROWS];
    type Values = [Lanes<i16>; ROWS];
    const NEEDS: Needs = Needs::NEON;

    fn factor(self, q: i8) -> i8 {
        q
    }

    fn activation(self, factor: i8) -> i8 {
        factor
    }

    fn put(self, values: &Lanes<i8>, row: &mut [i8], first: usize) {
        let row = row.get_mut(first..).unwrap_or_default();
        match row.first_chunk_mut() {
            Some(whole) => *whole = *values,
            None => row.iter_mut().zip(values).for_each(|(slot, &value)| *slot = value),
        }
    }

    fn products(self, activations: &[i8], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
        let (Ok(quads), Ok(factors)) = (try_cast_slice(panel), try_cast_slice(activations)) else {
            return Scalar.products(activations, stride, panel, sums);
        };
        let mut rows = rows(factors, stride / QUAD, quads.len());
        if let [a, b, c, d] = sums {
            if let (Some(first), Some(second), Some(third), Some(fourth)) =
                (rows.next(), rows.next(), rows.next(), rows.next())
            {
                self.0.four([first, second, third, fourth], quads, [a, b, c, d]);
            }
        } else {
            rows.zip(sums).for_each(|(row, sums)| self.0.one(row, quads, sums));
        }
    }

    fn weighted(self, weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]) {
        let (Ok(quads), Ok(factors)) = (try_cast_slice(values), try_cast_slice(weights)) else {
            return Scalar.weighted(weights, stride, values, sums);
        };
        neon::add_weighted(rows(factors, stride / QUAD, quads.len()), quads, sums);
    }

    fn requantize(
        self,
        sums: &[Lanes<i32>],
        bias: &Lanes<i32>,
        multiplier: &Lanes<i32>,
        shift: u32,
        values: &mut [Lanes<i16>],
    ) {
        match shift.checked_sub(32) {
            Some(rest @ 0..=30) => neon::shift_words(sums, bias, multiplier, rest, values),
            _ => narrow::requantize(sums, bias, multiplier, shift, values),
        }
    }

    fn norm(self, norm: &Norm<'_>, token: &[i16], out: &mut [i8]) {
        neon::norm(norm, token, out);
    }

    fn softmax(self, scores: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
        neon::softmax(scores, multiplier, shift, weights)
    }
}
