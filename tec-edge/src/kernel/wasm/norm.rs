//! LayerNorm, eight channels at a time.

use core::arch::wasm32::*;

use bytemuck::cast;
use tec_core::integer::NormRow;

use crate::kernel::narrow;
use crate::layers::Norm;

/// Channels of a vector.
const LANES: usize = 8;

/// Puts a token's values, each rounded and limited to i8, into `out`.
#[inline(never)]
pub(super) fn normalize(norm: &Norm<'_>, token: &[i16], out: &mut [i16]) {
    let (eights, rest) = token.as_chunks::<LANES>();
    let (sum, squares) = sums(eights, rest);
    let row = NormRow::from_sums(token.len(), sum, squares, norm.epsilon);
    let Some(words) = narrow::Words::new(norm, &row) else {
        return narrow::norm(norm, token, |i, value| put(out, i, value));
    };
    let width = i32x4_splat(words.width);
    let sum = i32x4_splat(words.sum);
    let mantissa = i32x4_splat(words.mantissa);
    let half = i64x2_splat(1 << (row.shift - 1));
    let up = i32x4_splat(words.up);
    let half_out = i64x2_splat(1 << (norm.bits - 1));
    let (least, most) = (i64x2_splat(i8::MIN.into()), i64x2_splat(i8::MAX.into()));
    let limited = |affine| {
        let value = i64x2_shr(i64x2_add(affine, half_out), norm.bits);
        let value = v128_bitselect(most, value, i64x2_gt(value, most));
        v128_bitselect(least, value, i64x2_lt(value, least))
    };
    let four = |x, multiplier, offset| {
        let centered = i32x4_sub(i32x4_mul(x, width), sum);
        let scaled = |product| i64x2_shr(i64x2_add(product, half), row.shift);
        // Below 2^28.
        let normalized = lower_words(
            scaled(i64x2_extmul_low_i32x4(centered, mantissa)),
            scaled(i64x2_extmul_high_i32x4(centered, mantissa)),
        );
        let first = i64x2_add(
            i64x2_extmul_low_i32x4(normalized, multiplier),
            i64x2_extmul_low_i32x4(offset, up),
        );
        let second = i64x2_add(
            i64x2_extmul_high_i32x4(normalized, multiplier),
            i64x2_extmul_high_i32x4(offset, up),
        );
        lower_words(limited(first), limited(second))
    };
    let constants = norm.multiplier.0.as_chunks().0.iter().zip(norm.offset.0.as_chunks().0);
    let mut slots = out.as_chunks_mut::<LANES>().0.iter_mut();
    for ((x, slots), (multiplier, offset)) in eights.iter().zip(&mut slots).zip(constants) {
        let x = cast(*x);
        let multiplier = cast::<[u8; 4 * LANES], [v128; 2]>(*multiplier);
        let offset = cast::<[u8; 4 * LANES], [v128; 2]>(*offset);
        let first = four(i32x4_extend_low_i16x8(x), multiplier[0], offset[0]);
        let second = four(i32x4_extend_high_i16x8(x), multiplier[1], offset[1]);
        *slots = cast(i16x8_narrow_i32x4(first, second));
    }
    let done = eights.len() * LANES;
    norm.values(&row, token, done, |i, value| put(out, done + i, value));
}

/// The lower words of four numbers.
#[inline(always)]
pub(super) fn lower_words(first: v128, second: v128) -> v128 {
    i32x4_shuffle::<0, 2, 4, 6>(first, second)
}

/// The sum of a row and that of its squares.
#[inline(always)]
fn sums(eights: &[[i16; LANES]], rest: &[i16]) -> (i64, i64) {
    let (mut sum, mut squares) = (0, i64x2_splat(0));
    // A lane's sum of pairs fits i32 for 32,767 vectors.
    for part in eights.chunks(32_767) {
        let mut part_sum = i32x4_splat(0);
        for &x in part {
            let x = cast(x);
            part_sum = i32x4_add(part_sum, i32x4_dot_i16x8(x, i16x8_splat(1)));
            // Two squares are 2^31 at most: unsigned.
            let pairs = i32x4_dot_i16x8(x, x);
            squares = i64x2_add(squares, u64x2_extend_low_u32x4(pairs));
            squares = i64x2_add(squares, u64x2_extend_high_u32x4(pairs));
        }
        sum += cast::<_, [i32; 4]>(part_sum)
            .iter()
            .map(|&lane| i64::from(lane))
            .sum::<i64>();
    }
    let mut squares = cast::<_, [i64; 2]>(squares).iter().sum::<i64>();
    for &x in rest {
        sum += i64::from(x);
        squares += i64::from(x) * i64::from(x);
    }
    (sum, squares)
}

#[inline(always)]
fn put(out: &mut [i16], i: usize, value: i8) {
    if let Some(slot) = out.get_mut(i) {
        *slot = value.into();
    }
}
