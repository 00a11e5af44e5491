//! Softmax by a table of exponentials, and the mean that its weights give.

use super::{reciprocal, round_shift, saturate_i32, scale};

/// Entries of [`EXP_TABLE`] for each unit of the exponent.
pub const EXP_STEPS_PER_UNIT: usize = 64;
/// Entries of [`EXP_TABLE`]: the last one is the first to be zero.
pub const EXP_TABLE_LEN: usize = 578;
/// The weight of a row's maximum. With 4,097 values of −128 a weighted sum is −2,147,483,520: just inside an i32.
pub const WEIGHT_MAX: i16 = 4095;
/// Fractional bits of [`WeightedMean::of`].
pub const MEAN_BITS: u32 = 16;

/// `round(4095 * exp(-i / 64))`: [`WEIGHT_MAX`] at distance zero from the row's maximum, 0 from a distance of 9.01 on.
pub static EXP_TABLE: [i16; EXP_TABLE_LEN] = exp_table();

const fn exp_table() -> [i16; EXP_TABLE_LEN] {
    let mut table = [0i16; EXP_TABLE_LEN];
    let mut i = 0;
    while i < EXP_TABLE_LEN {
        // Taylor's series of exp(-x/8), then three squarings: exact to 1e-14, no entry is nearer to a tie than 1e-5.
        let x = -(i as f64) / (8.0 * EXP_STEPS_PER_UNIT as f64);
        let mut term = 1.0;
        let mut sum = 1.0;
        let mut n = 1.0;
        while n < 24.0 {
            term = term * x / n;
            sum += term;
            n += 1.0;
        }
        let squared = sum * sum;
        let fourth = squared * squared;
        table[i] = (WEIGHT_MAX as f64 * fourth * fourth + 0.5) as i16;
        i += 1;
    }
    table
}

/// Unnormalized softmax weights of one row of scores; returns their sum.
///
/// The distance of each score from the row's maximum, times `mantissa * 2^-shift` (the scores' scale times
/// [`EXP_STEPS_PER_UNIT`]), is rounded to an index into [`EXP_TABLE`]. The maximum gets [`WEIGHT_MAX`]. The shorter of the two
/// slices decides how many are written.
#[inline]
pub fn softmax_weights(scores: &[i32], mantissa: i32, shift: u32, weights: &mut [i16]) -> u32 {
    let max = scores.iter().copied().max().unwrap_or(0);
    let mut sum = 0u32;
    for (weight, &score) in weights.iter_mut().zip(scores) {
        let distance = saturate_i32(i64::from(max) - i64::from(score));
        let index = scale(distance, mantissa, shift).clamp(0, EXP_TABLE_LEN as i64 - 1) as usize;
        *weight = EXP_TABLE.get(index).copied().unwrap_or(0);
        sum = sum.wrapping_add(u32::from(weight.unsigned_abs()));
    }
    sum
}

/// Divides sums of values, weighted by [`softmax_weights`], by the sum of the weights: one reciprocal serves a whole row.
#[derive(Debug, Clone, Copy)]
pub struct WeightedMean {
    /// In 2^30 ..= 2^31.
    pub mantissa: u32,
    /// Bits that are dropped of a product with the mantissa; the mean then has [`MEAN_BITS`] fractional bits.
    pub shift: u32,
}

impl WeightedMean {
    /// For weights with this sum.
    #[inline]
    pub const fn new(sum: u32) -> Self {
        let inverse = reciprocal(sum);
        Self {
            mantissa: inverse.mantissa as u32,
            shift: inverse.shift.saturating_sub(MEAN_BITS),
        }
    }

    /// `total / sum` with [`MEAN_BITS`] fractional bits.
    #[inline(always)]
    pub fn of(self, total: i32) -> i32 {
        let product = i64::from(total).wrapping_mul(self.mantissa.into());
        saturate_i32(round_shift(product, self.shift))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn table_follows_the_exponential() {
        for (i, &entry) in EXP_TABLE.iter().enumerate() {
            let exact = 4095.0 * libm::exp(-(i as f64) / 64.0);
            assert_eq!(entry, libm::round(exact) as i16, "entry {i}");
            assert!((exact - libm::floor(exact) - 0.5).abs() > 1e-5, "entry {i} is a tie");
        }
        assert_eq!(EXP_TABLE[0], WEIGHT_MAX);
        assert_eq!(EXP_TABLE[EXP_TABLE_LEN - 2], 1);
        assert_eq!(EXP_TABLE[EXP_TABLE_LEN - 1], 0);
    }

    #[test]
    fn extremes() {
        let mut weights = [9i16; 3];
        assert_eq!(
            softmax_weights(&[i32::MIN, i32::MAX, i32::MIN], i32::MAX, 0, &mut weights),
            4095
        );
        assert_eq!(weights, [0, 4095, 0]);
        assert_eq!(softmax_weights(&[7, 7, 7], i32::MAX, 62, &mut weights), 3 * 4095);
        assert_eq!(softmax_weights(&[i32::MIN, 0, i32::MAX], -1, 0, &mut weights), 3 * 4095);
        assert_eq!(softmax_weights(&[], 1, 0, &mut weights), 0);
        let mut many = vec![0i16; 4097];
        let sum = softmax_weights(&vec![-5; 4097], 1 << 30, 30, &mut many);
        assert_eq!(sum, 4095 * 4097);
        assert_eq!(WeightedMean::new(sum).of(4095 * 4097 * -128), -128 << MEAN_BITS);
        WeightedMean::new(0).of(i32::MIN);
    }

    proptest! {
        #[test]
        fn near_the_real_softmax(scores in proptest::collection::vec(-40_000i32..40_000, 1..300)) {
            let real: Vec<f64> = scores.iter().map(|&s| f64::from(s) * 1e-4).collect();
            let max = real.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = real.iter().map(|s| (s - max).exp()).sum();
            let multiplier = 1e-4 * EXP_STEPS_PER_UNIT as f64;
            let mut weights = vec![0i16; scores.len()];
            let sum = softmax_weights(&scores, (multiplier * f64::from(1u32 << 31) * 64.0) as i32, 37, &mut weights);
            prop_assert_eq!(sum, weights.iter().map(|&w| w as u32).sum::<u32>());
            for (&w, s) in weights.iter().zip(&real) {
                // Half an entry's weight, half a step of the exponent, and the sum's own error.
                let p = f64::from(w) / f64::from(sum);
                let exact = (s - max).exp() / total;
                prop_assert!((p - exact).abs() <= 0.6 / f64::from(sum) + 0.03 * exact, "{} for {}", p, exact);
            }
        }

        #[test]
        fn mean_is_the_nearest(weights in proptest::collection::vec(1i16..=WEIGHT_MAX, 1..100), values in proptest::collection::vec(any::<i8>(), 100)) {
            let sum: u32 = weights.iter().map(|&w| w as u32).sum();
            let total: i32 = weights.iter().zip(&values).map(|(&w, &v)| i32::from(w) * i32::from(v)).sum();
            let got = f64::from(WeightedMean::new(sum).of(total)) / f64::from(1u32 << MEAN_BITS);
            let exact = f64::from(total) / f64::from(sum);
            prop_assert!((got - exact).abs() <= 0.501 / f64::from(1u32 << MEAN_BITS));
        }
    }
}
