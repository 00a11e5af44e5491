//! LayerNorm of a row of i16 from integer sums.

use super::{reciprocal, round_shift, saturate_i32, sqrt};

/// Fractional bits of a normalized value.
pub const NORM_BITS: u32 = 20;
/// Fractional bits of the offset that [`norm_affine`] adds.
pub const AFFINE_OFFSET_BITS: u32 = 16;

/// Statistics of one row of D values of i16, from which each normalized value follows.
///
/// With `S1 = sum x`, `S2 = sum x^2`, `V = D*S2 - S1^2 + epsilon`: the normalized value is `(D*x - S1) / sqrt(V)`, the
/// same as `(x - mean) / sqrt(variance + eps)` when `epsilon = eps * D^2 / s^2` for residual scale `s`.
#[derive(Debug, Clone, Copy)]
pub struct NormRow {
    /// D.
    pub width: i64,
    /// `S1`.
    pub sum: i64,
    /// `1 / sqrt(V)` is about `mantissa * 2^-(shift + NORM_BITS)`; at most 2^31.
    pub mantissa: i64,
    /// Bits that [`normalize`](Self::normalize) drops: 11 ..= 40.
    pub shift: u32,
}

impl NormRow {
    /// Reads the row once. For rows of up to 65,536 values and `epsilon` of up to 2^62 nothing saturates.
    #[inline]
    pub fn new(row: &[i16], epsilon: u64) -> Self {
        let mut sum = 0i64;
        let mut squares = 0i64;
        // A chunk's sums fit in i32 and u32 lanes: 32 * 2^15 and, in halves, 2 * 2^30.
        for chunk in row.chunks(32) {
            let mut s = 0i32;
            for &x in chunk {
                s = s.wrapping_add(i32::from(x));
            }
            sum = sum.wrapping_add(i64::from(s));
            for pair in chunk.chunks(2) {
                let mut q = 0u32;
                for &x in pair {
                    q = q.wrapping_add(u32::from(x.unsigned_abs()).wrapping_mul(u32::from(x.unsigned_abs())));
                }
                squares = squares.wrapping_add(i64::from(q));
            }
        }
        Self::from_sums(row.len(), sum, squares, epsilon)
    }

    /// From the sum of a row of `width` values and the sum of their squares.
    #[inline]
    pub fn from_sums(width: usize, sum: i64, squares: i64, epsilon: u64) -> Self {
        Self::from_sums_by(width, sum, squares, epsilon, sqrt)
    }

    /// With a square root of the caller's, which gives what [`sqrt`] gives.
    #[inline]
    pub fn from_sums_by(width: usize, sum: i64, squares: i64, epsilon: u64, sqrt: impl Fn(u64) -> u32) -> Self {
        let width = width as i64;
        let spread = width.saturating_mul(squares).saturating_sub(sum.saturating_mul(sum));
        let variance = (spread.max(0) as u64).saturating_add(epsilon).max(1);
        // The even shift that brings it to 2^62 or more: then the root has all of its 32 bits.
        let left = variance.leading_zeros() & !1;
        let inverse = reciprocal(sqrt(variance << left));
        Self {
            width,
            sum,
            mantissa: inverse.mantissa,
            // The root has 32 bits, so its reciprocal's shift is 62; left is at most 62.
            shift: inverse.shift.saturating_sub(left / 2).saturating_sub(NORM_BITS),
        }
    }

    /// The normalized value of one element of the row, with [`NORM_BITS`] fractional bits.
    #[inline(always)]
    pub fn normalize(&self, x: i16) -> i32 {
        let centered = saturate_i32(self.width.wrapping_mul(i64::from(x)).wrapping_sub(self.sum));
        saturate_i32(round_shift(i64::from(centered).wrapping_mul(self.mantissa), self.shift))
    }
}

/// A normalized value times a multiplier plus an offset, unrounded: a number with `bits` fractional bits.
///
/// `multiplier` has `bits - NORM_BITS` fractional bits and `offset` has [`AFFINE_OFFSET_BITS`]; `bits` is 16 ..= 45, so that
/// the sum stays below 2^61. [`round_shift`] by `bits - k` gives a value of scale 2^-k.
#[inline(always)]
pub const fn norm_affine(normalized: i32, multiplier: i32, offset: i32, bits: u32) -> i64 {
    let up = bits.saturating_sub(AFFINE_OFFSET_BITS);
    let up = if up > 31 { 31 } else { up };
    (normalized as i64 * multiplier as i64).saturating_add((offset as i64) << up)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn reference(row: &[i16], epsilon: f64) -> Vec<f64> {
        let n = row.len() as f64;
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        row.iter()
            .map(|&x| (f64::from(x) - mean) / (variance + epsilon / (n * n)).sqrt())
            .collect()
    }

    fn check(row: &[i16], epsilon: u64) {
        let stats = NormRow::new(row, epsilon);
        for (&x, expected) in row.iter().zip(reference(row, epsilon as f64)) {
            let got = f64::from(stats.normalize(x)) / f64::from(1u32 << NORM_BITS);
            let tolerance = 1.0 / f64::from(1u32 << NORM_BITS) + expected.abs() * 4e-9;
            assert!(
                (got - expected).abs() <= tolerance,
                "{got} for {expected}, width {}",
                row.len()
            );
        }
    }

    #[test]
    fn extremes() {
        check(&[5], 1);
        check(&[i16::MIN; 7], 1);
        check(&[i16::MIN, i16::MAX], 1);
        let mut widest = vec![i16::MIN; 24_576];
        check(&widest, 1);
        for x in widest.iter_mut().skip(1).step_by(2) {
            *x = i16::MAX;
        }
        check(&widest, 1 << 59);
        let mut one_outlier = vec![0i16; 24_576];
        one_outlier[0] = i16::MIN;
        check(&one_outlier, 1);
        NormRow::new(&[], 0).normalize(i16::MIN);
        NormRow::new(&vec![i16::MIN; 70_000], u64::MAX).normalize(i16::MIN);
    }

    #[test]
    fn affine_at_its_bounds() {
        assert_eq!(norm_affine(1 << 20, 1 << 25, 3 << 16, 45), (1i64 << 45) + (3i64 << 45));
        assert_eq!(
            norm_affine(i32::MIN, i32::MIN, i32::MAX, 200),
            (1i64 << 62) + ((i64::from(i32::MAX)) << 31)
        );
    }

    proptest! {
        #[test]
        fn follows_the_definition(row in proptest::collection::vec(any::<i16>(), 1..200), narrow in 0u32..14, epsilon in 1u64..1 << 40) {
            let row: Vec<i16> = row.into_iter().map(|x| x >> narrow).collect();
            check(&row, epsilon);
        }
    }
}
