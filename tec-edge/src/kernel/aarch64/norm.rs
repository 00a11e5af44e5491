//! LayerNorm, eight channels at a time. `VRSHL` by a negative number is the integer encoder's rounding: half added, then shifted.

use core::arch::aarch64::*;

use bytemuck::{cast, try_cast_slice};
use tec_core::integer::NormRow;

use crate::kernel::narrow;
use crate::layers::Norm;

/// Channels of a vector.
const LANES: usize = 8;

/// Puts a token's values, each rounded and limited to i8, into `out`.
#[target_feature(enable = "neon")]
#[inline(never)]
pub(super) fn normalize(norm: &Norm<'_>, token: &[i16], out: &mut [i8]) {
    let (eights, rest) = token.as_chunks::<LANES>();
    let done = eights.len() * LANES;
    let (Ok(vectors), Ok(multipliers), Ok(offsets)) = (
        try_cast_slice::<_, int16x8_t>(eights),
        try_cast_slice::<_, [int32x4_t; 2]>(norm.multiplier.part(0, done).0),
        try_cast_slice::<_, [int32x4_t; 2]>(norm.offset.part(0, done).0),
    ) else {
        return all_channels(norm, token, out);
    };
    let (sum, squares) = sums(vectors, rest);
    let row = NormRow::from_sums(token.len(), sum, squares, norm.epsilon);
    let Some(words) = narrow::Words::new(norm, &row) else {
        return all_channels(norm, token, out);
    };
    let width = vdupq_n_s32(words.width);
    let sum = vdupq_n_s32(words.sum);
    let mantissa = vdup_n_s32(words.mantissa);
    let shift = vdupq_n_s64(-i64::from(row.shift));
    let up = vdup_n_s32(words.up);
    let shift_out = vdupq_n_s64(-i64::from(norm.bits));
    let two = |centered, multiplier, offset| {
        // Below 2^28.
        let normalized = vmovn_s64(vrshlq_s64(vmull_s32(centered, mantissa), shift));
        let affine = vmlal_s32(vmull_s32(offset, up), normalized, multiplier);
        vqmovn_s64(vrshlq_s64(affine, shift_out))
    };
    let four = |x, multiplier, offset| {
        let centered = vsubq_s32(vmulq_s32(vmovl_s16(x), width), sum);
        let first = two(vget_low_s32(centered), vget_low_s32(multiplier), vget_low_s32(offset));
        let second = two(
            vget_high_s32(centered),
            vget_high_s32(multiplier),
            vget_high_s32(offset),
        );
        vqmovn_s32(vcombine_s32(first, second))
    };
    let constants = multipliers.iter().zip(offsets);
    for ((&x, out), (multiplier, offset)) in vectors.iter().zip(out.as_chunks_mut().0).zip(constants) {
        let first = four(vget_low_s16(x), multiplier[0], offset[0]);
        let second = four(vget_high_s16(x), multiplier[1], offset[1]);
        *out = cast::<_, [i8; LANES]>(vqmovn_s16(vcombine_s16(first, second)));
    }
    let out = out.get_mut(done..).unwrap_or_default();
    norm.values(&row, token, done, |i, value| {
        if let Some(slot) = out.get_mut(i) {
            *slot = value;
        }
    });
}

/// The sum of a row and that of its squares.
#[target_feature(enable = "neon")]
#[inline]
fn sums(vectors: &[int16x8_t], rest: &[i16]) -> (i64, i64) {
    let (mut sum, mut squares) = (0, vdupq_n_s64(0));
    // A lane's sum of pairs fits i32 for 32,767 vectors.
    for part in vectors.chunks(32_767) {
        let mut part_sum = vdupq_n_s32(0);
        for &x in part {
            part_sum = vpadalq_s16(part_sum, x);
            squares = vpadalq_s32(squares, vmull_s16(vget_low_s16(x), vget_low_s16(x)));
            squares = vpadalq_s32(squares, vmull_high_s16(x, x));
        }
        sum += vaddlvq_s32(part_sum);
    }
    let mut squares = vaddvq_s64(squares);
    for &x in rest {
        sum += i64::from(x);
        squares += i64::from(x) * i64::from(x);
    }
    (sum, squares)
}

/// One channel after the other.
fn all_channels(norm: &Norm<'_>, token: &[i16], out: &mut [i8]) {
    narrow::norm(norm, token, |i, value| {
        if let Some(slot) = out.get_mut(i) {
            *slot = value;
        }
    });
}
