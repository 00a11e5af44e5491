//! NEON, which every 64-bit Arm processor with vectors has: eight products of 8 bits an instruction (`SMULL`), added in pairs to sums of
//! 32 bits (`SADALP`). Sums of 16 bits would overflow: two products of −128 by −128 are 2^15.

use core::arch::aarch64::*;

use bytemuck::cast;

use super::norm::normalize;
use super::{Products, ROWS, Weights, softmax as scores};
use crate::kernel::Lanes;
use crate::layers::Norm;
use crate::panel::{PANEL, QUAD};

/// Plain NEON, which every processor with this module has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon;

impl Products for Neon {
    fn one(self, row: &[i32], quads: &[Weights], sums: &mut Lanes<i32>) {
        // SAFETY: this module is compiled for processors with NEON alone.
        unsafe { products([row], quads, [sums]) }
    }

    fn four(self, rows: [&[i32]; ROWS], quads: &[Weights], sums: [&mut Lanes<i32>; ROWS]) {
        // SAFETY: as above.
        unsafe { four_products(rows, quads, sums) }
    }
}

/// Adds to `sums` the products of rows of softmax weights, a quad a word, with a panel of values.
pub(super) fn add_weighted<'a>(mut rows: impl Iterator<Item = &'a [i64]>, quads: &[Weights], sums: &mut [Lanes<i32>]) {
    if let [a, b, c, d] = sums {
        if let (Some(first), Some(second), Some(third), Some(fourth)) =
            (rows.next(), rows.next(), rows.next(), rows.next())
        {
            // SAFETY: as above.
            unsafe { four_weighted([first, second, third, fourth], quads, [a, b, c, d]) }
        }
    } else {
        // SAFETY: as above.
        rows.zip(sums)
            .for_each(|(row, sums)| unsafe { weighted([row], quads, [sums]) });
    }
}

/// Requantizes sums whose shift is `32 + rest`, with `rest` up to 30.
pub(super) fn shift_words(
    sums: &[Lanes<i32>],
    bias: &Lanes<i32>,
    multiplier: &Lanes<i32>,
    rest: u32,
    values: &mut [Lanes<i16>],
) {
    // SAFETY: as above.
    unsafe { requantize(sums, bias, multiplier, rest, values) }
}

/// Normalizes a token.
pub(super) fn norm(norm: &Norm<'_>, token: &[i16], out: &mut [i8]) {
    // SAFETY: as above.
    unsafe { normalize(norm, token, out) }
}

/// Softmax weights of a row of scores; returns their sum.
pub(super) fn softmax(row: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
    // SAFETY: as above.
    unsafe { scores::softmax(row, multiplier, shift, weights) }
}

/// A function that puts the products of some rows, a quad a word, with a panel into `sums`, eight outputs at a time. A macro, because
/// compilers asked for small programs would keep a loop over rows, and with it the sums in memory.
macro_rules! products {
    ($name:ident, $count:literal: $($row:ident $sums:ident $a:ident $b:ident $c:ident $d:ident),+) => {
        #[target_feature(enable = "neon")]
        #[inline(never)]
        fn $name([$($row),+]: [&[i32]; $count], quads: &[Weights], [$($sums),+]: [&mut Lanes<i32>; $count]) {
            let ($(Some($row),)+) = ($($row.get(..quads.len()),)+) else {
                return;
            };
            for half in 0..2 {
                // A vector: two outputs, each as the sums of its even and its odd pairs.
                $(let (mut $a, mut $b, mut $c, mut $d) = (
                    vdupq_n_s32(0),
                    vdupq_n_s32(0),
                    vdupq_n_s32(0),
                    vdupq_n_s32(0),
                );)+
                for quad in 0..quads.len() {
                    let (Some(weights), $(Some(&$row)),+) = (quads.get(quad), $($row.get(quad)),+) else {
                        break;
                    };
                    let [first, second] = weights.as_chunks::<2>().0[half];
                    $(
                        let factors = vreinterpretq_s8_s32(vdupq_n_s32($row));
                        $a = vpadalq_s16($a, vmull_s8(vget_low_s8(first), vget_low_s8(factors)));
                        $b = vpadalq_s16($b, vmull_high_s8(first, factors));
                        $c = vpadalq_s16($c, vmull_s8(vget_low_s8(second), vget_low_s8(factors)));
                        $d = vpadalq_s16($d, vmull_high_s8(second, factors));
                    )+
                }
                $($sums.as_chunks_mut().0[half] = cast::<_, [i32; 8]>([vpaddq_s32($a, $b), vpaddq_s32($c, $d)]);)+
            }
        }
    };
}

products!(products, 1: row sums a0 a1 a2 a3);
products!(four_products, 4: row sums a0 a1 a2 a3, row1 sums1 b0 b1 b2 b3, row2 sums2 c0 c1 c2 c3, row3 sums3 d0 d1 d2 d3);

/// As [`products!`], of rows of softmax weights, a quad a word, with a panel of values, four outputs at a time; adds them to `sums`.
macro_rules! weighted {
    ($name:ident, $count:literal: $($row:ident $sums:ident $a:ident $b:ident $c:ident $d:ident),+) => {
        #[target_feature(enable = "neon")]
        #[inline(never)]
        fn $name([$($row),+]: [&[i64]; $count], quads: &[Weights], [$($sums),+]: [&mut Lanes<i32>; $count]) {
            let ($(Some($row),)+) = ($($row.get(..quads.len()),)+) else {
                return;
            };
            for four in 0..PANEL / QUAD {
                // A vector: one output, its four inputs apart.
                $(let (mut $a, mut $b, mut $c, mut $d) = (
                    vdupq_n_s32(0),
                    vdupq_n_s32(0),
                    vdupq_n_s32(0),
                    vdupq_n_s32(0),
                );)+
                for quad in 0..quads.len() {
                    let (Some(weights), $(Some(&$row)),+) = (quads.get(quad), $($row.get(quad)),+) else {
                        break;
                    };
                    let first = vmovl_s8(vget_low_s8(weights[four]));
                    let second = vmovl_high_s8(weights[four]);
                    $(
                        let factors = vreinterpretq_s16_s64(vdupq_n_s64($row));
                        $a = vmlal_s16($a, vget_low_s16(first), vget_low_s16(factors));
                        $b = vmlal_high_s16($b, first, factors);
                        $c = vmlal_s16($c, vget_low_s16(second), vget_low_s16(factors));
                        $d = vmlal_high_s16($d, second, factors);
                    )+
                }
                $(
                    let slots: &mut [i32; 4] = &mut $sums.as_chunks_mut().0[four];
                    let found = vpaddq_s32(vpaddq_s32($a, $b), vpaddq_s32($c, $d));
                    *slots = cast(vaddq_s32(cast(*slots), found));
                )+
            }
        }
    };
}

weighted!(weighted, 1: row sums a0 a1 a2 a3);
weighted!(four_weighted, 4: row sums a0 a1 a2 a3, row1 sums1 b0 b1 b2 b3, row2 sums2 c0 c1 c2 c3, row3 sums3 d0 d1 d2 d3);

/// Products are below 2^62: with half added, their upper words are what is left, of which `rest` bits remain to be dropped.
#[target_feature(enable = "neon")]
#[inline(never)]
fn requantize(sums: &[Lanes<i32>], bias: &Lanes<i32>, multiplier: &Lanes<i32>, rest: u32, values: &mut [Lanes<i16>]) {
    let half = vdupq_n_s64(1 << (rest + 31));
    let drop = vdupq_n_s32(-(rest as i32));
    let bias: [int32x4_t; 4] = cast(*bias);
    let multiplier: [int32x4_t; 4] = cast(*multiplier);
    for (sums, values) in sums.iter().zip(values) {
        let sums: [int32x4_t; 4] = cast(*sums);
        let words = |i: usize| {
            let sum = vaddq_s32(sums[i], bias[i]);
            let first = vmull_s32(vget_low_s32(sum), vget_low_s32(multiplier[i]));
            let upper = vaddhn_s64(first, half);
            let upper = vaddhn_high_s64(upper, vmull_high_s32(sum, multiplier[i]), half);
            vshlq_s32(upper, drop)
        };
        let eight = |i: usize| vqmovn_high_s32(vqmovn_s32(words(i)), words(i + 1));
        *values = cast([eight(0), eight(2)]);
    }
}
