//! WebAssembly's vectors of 128 bits: activations as i16, weights widened to i16 as they are read, `i32x4.dot_i16x8_s`.
//!
//! A program in WebAssembly either has these instructions or is not loaded, so nothing is asked at run time.

use core::arch::wasm32::*;

use bytemuck::cast;

use super::norm::normalize;
use super::softmax::softmax;
use crate::kernel::{Kernel, Lanes, Needs, narrow, rows};
use crate::layers::Norm;
use crate::panel::{PANEL, QUAD};

/// A quad of all outputs of a panel.
type Weights = [i8; PANEL * QUAD];
/// A quad of a row.
type Factors = [i16; QUAD];

/// Vectors of 128 bits, which every program with this module has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Simd128;

impl Kernel for Simd128 {
    type Factor = i16;
    type Sums = [Lanes<i32>; Self::ROWS];
    type Values = [Lanes<i16>; Self::ROWS];
    const NEEDS: Needs = Needs::WASM;

    fn factor(self, q: i8) -> i16 {
        q.into()
    }

    fn activation(self, factor: i16) -> i8 {
        factor as i8
    }

    fn put(self, values: &Lanes<i8>, row: &mut [i16], first: usize) {
        let row = row.get_mut(first..).unwrap_or_default();
        match row.first_chunk_mut() {
            Some(whole) => *whole = values.map(i16::from),
            None => row
                .iter_mut()
                .zip(values)
                .for_each(|(slot, &value)| *slot = value.into()),
        }
    }

    fn products(self, activations: &[i16], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
        sums.fill([0; PANEL]);
        self.weighted(activations, stride, panel, sums);
    }

    fn weighted(self, weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]) {
        let quads = values.as_chunks().0;
        let mut rows = rows(weights, stride, quads.len() * QUAD).map(|row| row.as_chunks().0);
        if let [a, b, c, d] = sums {
            if let (Some(first), Some(second), Some(third), Some(fourth)) =
                (rows.next(), rows.next(), rows.next(), rows.next())
            {
                four_rows([first, second, third, fourth], quads, [a, b, c, d]);
            }
        } else {
            rows.zip(sums).for_each(|(row, sums)| one_row([row], quads, [sums]));
        }
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
            Some(rest @ 0..=30) => requantize(sums, bias, multiplier, rest, values),
            _ => narrow::requantize(sums, bias, multiplier, shift, values),
        }
    }

    fn norm(self, norm: &Norm<'_>, token: &[i16], out: &mut [i16]) {
        normalize(norm, token, out);
    }

    fn softmax(self, scores: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
        softmax(scores, multiplier, shift, weights)
    }
}

/// A function that adds the products of some rows with a panel, four outputs at a time: as many sums as an x86 processor has registers
/// for. A macro, because compilers asked for small programs would keep a loop over rows, and with it the sums in memory.
macro_rules! add_products {
    ($name:ident, $count:literal: $($row:ident $sums:ident $first:ident $second:ident),+) => {
        #[inline(never)]
        fn $name([$($row),+]: [&[Factors]; $count], quads: &[Weights], [$($sums),+]: [&mut Lanes<i32>; $count]) {
            let ($(Some($row),)+) = ($($row.get(..quads.len()),)+) else {
                return;
            };
            for four in 0..PANEL / QUAD {
                // A vector: two outputs, each as the sums of its even and its odd pairs.
                $(let (mut $first, mut $second) = (i32x4_splat(0), i32x4_splat(0));)+
                for quad in 0..quads.len() {
                    let (Some(weights), $(Some($row)),+) = (quads.get(quad), $($row.get(quad)),+) else {
                        break;
                    };
                    let weights = cast(weights.as_chunks::<16>().0[four]);
                    let first = i16x8_extend_low_i8x16(weights);
                    let second = i16x8_extend_high_i8x16(weights);
                    $(
                        let factors = i64x2_splat(cast(*$row));
                        $first = i32x4_add($first, i32x4_dot_i16x8(first, factors));
                        $second = i32x4_add($second, i32x4_dot_i16x8(second, factors));
                    )+
                }
                $(add_pairs($first, $second, &mut $sums.as_chunks_mut().0[four]);)+
            }
        }
    };
}

add_products!(one_row, 1: row sums a0 a1);
add_products!(four_rows, 4: row sums a0 a1, row1 sums1 b0 b1, row2 sums2 c0 c1, row3 sums3 d0 d1);

/// Adds the pairs of two vectors to four sums.
#[inline(always)]
fn add_pairs(first: v128, second: v128, sums: &mut [i32; 4]) {
    let even = i32x4_shuffle::<0, 2, 4, 6>(first, second);
    let odd = i32x4_shuffle::<1, 3, 5, 7>(first, second);
    *sums = cast(i32x4_add(cast(*sums), i32x4_add(even, odd)));
}

/// Products are below 2^62: with half added, their upper words are what is left, of which `rest` bits remain to be dropped.
#[inline(never)]
fn requantize(sums: &[Lanes<i32>], bias: &Lanes<i32>, multiplier: &Lanes<i32>, rest: u32, values: &mut [Lanes<i16>]) {
    let half = i64x2_splat(1 << (rest + 31));
    let bias: [v128; 4] = cast(*bias);
    let multiplier: [v128; 4] = cast(*multiplier);
    for (sums, values) in sums.iter().zip(values) {
        let sums: [v128; 4] = cast(*sums);
        let words = |i: usize| {
            let sum = i32x4_add(sums[i], bias[i]);
            let first = i64x2_add(i64x2_extmul_low_i32x4(sum, multiplier[i]), half);
            let second = i64x2_add(i64x2_extmul_high_i32x4(sum, multiplier[i]), half);
            i32x4_shr(i32x4_shuffle::<1, 3, 5, 7>(first, second), rest)
        };
        *values = cast([
            i16x8_narrow_i32x4(words(0), words(1)),
            i16x8_narrow_i32x4(words(2), words(3)),
        ]);
    }
}
