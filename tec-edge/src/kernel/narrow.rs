//! Requantization and LayerNorm for processors whose registers have 32 bits, and so for everything else: the same integers as
//! `tec_core::integer`'s, in products of 32 by 32 bits wherever a layer's constants allow it.

use tec_core::integer::{AFFINE_OFFSET_BITS, NormRow, saturate_i16, scale};

use super::Lanes;
use crate::format::{MAX_WIDTH_TIMES_DEPTH, NORM_BITS};
use crate::layers::Norm;

/// `clamp16(round((sum + bias) · multiplier, shift))`, all of them by one shift.
#[inline(always)]
pub(crate) fn requantize(
    sums: &[Lanes<i32>],
    bias: &Lanes<i32>,
    multiplier: &Lanes<i32>,
    shift: u32,
    values: &mut [Lanes<i16>],
) {
    let rows = sums.iter().zip(values);
    // Products are below 2^62: with half added, their upper words are what is left.
    if let (Some(rest @ 0..=30), Some(half)) = (shift.checked_sub(32), 1i64.checked_shl(shift.saturating_sub(1))) {
        for (sums, values) in rows {
            for (((value, sum), bias), multiplier) in values.iter_mut().zip(sums).zip(bias).zip(multiplier) {
                let product = i64::from(sum.wrapping_add(*bias)) * i64::from(*multiplier);
                let upper = (product.wrapping_add(half) >> 32) as i32;
                *value = (upper >> rest).clamp(i16::MIN.into(), i16::MAX.into()) as i16;
            }
        }
    } else {
        for (sums, values) in rows {
            for (((value, sum), bias), multiplier) in values.iter_mut().zip(sums).zip(bias).zip(multiplier) {
                *value = saturate_i16(scale(sum.wrapping_add(*bias), *multiplier, shift));
            }
        }
    }
}

/// Calls `emit(channel, value)` for a token's channels, each value rounded and limited to i8.
#[inline(always)]
pub(crate) fn norm(norm: &Norm<'_>, token: &[i16], mut emit: impl FnMut(usize, i8)) {
    let row = NormRow::new(token, norm.epsilon);
    let Some(Words {
        width,
        sum,
        mantissa,
        up,
    }) = Words::new(norm, &row)
    else {
        return norm.values(&row, token, 0, emit);
    };
    let (half, half_out) = (1i64 << (row.shift - 1), 1i64 << (norm.bits - 1));
    let constants = norm.multiplier.iter().zip(norm.offset.iter());
    for (i, (&x, (multiplier, offset))) in token.iter().zip(constants).enumerate() {
        let centered = (width * i32::from(x)).wrapping_sub(sum);
        let product = (i64::from(centered) * i64::from(mantissa)).wrapping_add(half);
        // Below 2^28.
        let normalized = (product >> row.shift) as i32;
        let affine = half_out
            .wrapping_add(i64::from(normalized) * i64::from(multiplier))
            .wrapping_add(i64::from(offset) * i64::from(up));
        emit(i, limit(affine, norm.bits));
    }
}

/// What a row's norm is computed from, in 32 bits.
pub(crate) struct Words {
    pub(crate) width: i32,
    pub(crate) sum: i32,
    pub(crate) mantissa: i32,
    /// What an offset is multiplied by.
    pub(crate) up: i32,
}

impl Words {
    /// `None` where the numbers do not fit, or shifts are not 1 to 62: of a file only where the mantissa is 2^31.
    pub(crate) fn new(norm: &Norm<'_>, row: &NormRow) -> Option<Self> {
        // Values times the width then stay below 2^30.
        let width = i32::try_from(row.width).ok()?;
        let fits = row.width <= MAX_WIDTH_TIMES_DEPTH as i64 && (1..=62).contains(&row.shift);
        let bits = u8::try_from(norm.bits).ok().filter(|bits| NORM_BITS.contains(bits))?;
        fits.then_some(Self {
            width,
            sum: i32::try_from(row.sum).ok()?,
            mantissa: i32::try_from(row.mantissa).ok()?,
            up: 1 << (u32::from(bits) - AFFINE_OFFSET_BITS),
        })
    }
}

/// The upper bits of a number below 2^62, limited to i8.
#[inline(always)]
fn limit(value: i64, drop: u32) -> i8 {
    let shifted = match drop.checked_sub(32) {
        Some(rest) => ((value >> 32) as i32) >> (rest & 31),
        None => {
            let shifted = value >> (drop & 63);
            shifted.clamp(i8::MIN.into(), i8::MAX.into()) as i32
        }
    };
    shifted.clamp(i8::MIN.into(), i8::MAX.into()) as i8
}
