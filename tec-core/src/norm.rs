//! Layer normalization of one row (Ba, Kiros, Hinton: *Layer normalization*, 2016), and its gradient.

use crate::error::{Result, at_least, length};
use crate::lanes;

/// What the forward pass keeps of a row for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowStats {
    /// The mean over channels.
    pub mean: f32,
    /// 1 / √(variance + eps), with the biased variance.
    pub rstd: f32,
}

impl RowStats {
    /// The statistics of one row: the mean first, then the mean squared distance from it.
    #[inline(always)]
    fn of(x: &[f32], eps: f32) -> Self {
        let inverse = 1.0 / x.len() as f32;
        let mean = lanes::sum(x) * inverse;
        let variance = lanes::sum_by(x, |v| (v - mean) * (v - mean)) * inverse;
        Self {
            mean,
            rstd: 1.0 / libm::sqrtf(variance + eps),
        }
    }
}

/// One row: `out = (x − mean) · rstd · weight + bias`. All slices have the row's length.
///
/// # Errors
/// [`Error::TooFew`](crate::Error::TooFew) for an empty row, [`Error::Length`](crate::Error::Length) where lengths differ.
#[inline(always)]
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) -> Result<RowStats> {
    at_least("x", x.len(), 1)?;
    length("weight", weight.len(), x.len())?;
    length("bias", bias.len(), x.len())?;
    length("out", out.len(), x.len())?;
    let stats = RowStats::of(x, eps);
    for (((out, &x), &weight), &bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = (x - stats.mean) * stats.rstd * weight + bias;
    }
    Ok(stats)
}

/// The gradient of [`layer_norm`] for one row.
///
/// `grad_x` is written; `grad_weight` and `grad_bias` are added to, so that a loop over rows sums them.
///
/// # Errors
/// As [`layer_norm`].
#[inline(always)]
pub fn layer_norm_backward(
    x: &[f32],
    weight: &[f32],
    stats: RowStats,
    grad_out: &[f32],
    grad_x: &mut [f32],
    grad_weight: &mut [f32],
    grad_bias: &mut [f32],
) -> Result<()> {
    at_least("x", x.len(), 1)?;
    length("weight", weight.len(), x.len())?;
    length("grad_out", grad_out.len(), x.len())?;
    length("grad_x", grad_x.len(), x.len())?;
    length("grad_weight", grad_weight.len(), x.len())?;
    length("grad_bias", grad_bias.len(), x.len())?;
    let RowStats { mean, rstd } = stats;

    // The normalized row waits in grad_x.
    for (normal, &x) in grad_x.iter_mut().zip(x) {
        *normal = (x - mean) * rstd;
    }
    for (((sum_weight, sum_bias), &grad), &normal) in
        grad_weight.iter_mut().zip(grad_bias).zip(grad_out).zip(grad_x.iter())
    {
        *sum_weight += grad * normal;
        *sum_bias += grad;
    }
    let inverse = 1.0 / x.len() as f32;
    let along_ones = lanes::sum_by2(grad_out, weight, |g, w| g * w) * inverse;
    let along_normal = lanes::sum_by3(grad_out, weight, grad_x, |g, w, n| (g * w) * n) * inverse;
    for ((grad_x, &grad), &weight) in grad_x.iter_mut().zip(grad_out).zip(weight) {
        *grad_x = rstd * ((grad * weight - along_ones) - *grad_x * along_normal);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::{assert_close, gradient, values, wide};
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    fn reference(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let normal = x.iter().map(|v| (v - mean) / (variance + eps).sqrt());
        normal.zip(weight).zip(bias).map(|((v, w), b)| v * w + b).collect()
    }

    #[test]
    fn value_and_gradients_against_f64() {
        for width in [2, 8, 27, 96] {
            // Shifted, so that a one-pass variance would show.
            let x: Vec<f32> = values(3, width, 2.0).iter().map(|v| v + 100.0).collect();
            let (weight, bias, up) = (values(4, width, 1.0), values(5, width, 1.0), values(6, width, 1.0));
            let eps = 1e-6;
            let mut out = vec![0.0; width];
            let stats = layer_norm(&x, &weight, &bias, eps, &mut out).unwrap();
            let f = |x: &[f64], w: &[f64], b: &[f64]| reference(x, w, b, f64::from(eps));
            let (wide_x, wide_weight, wide_bias) = (wide(&x), wide(&weight), wide(&bias));
            assert_close(&out, &f(&wide_x, &wide_weight, &wide_bias), 1e-5);

            let score = |out: Vec<f64>| out.iter().zip(&up).map(|(v, &u)| v * f64::from(u)).sum::<f64>();
            let (mut grad_x, mut grad_weight, mut grad_bias) = (vec![7.0; width], vec![1.0; width], vec![2.0; width]);
            layer_norm_backward(&x, &weight, stats, &up, &mut grad_x, &mut grad_weight, &mut grad_bias).unwrap();
            if width > 2 {
                assert_close(&grad_x, &gradient(&x, |x| score(f(x, &wide_weight, &wide_bias))), 1e-4);
            }
            // These two are added to what was there.
            let plus = |grad: Vec<f64>, more: f64| grad.iter().map(|v| v + more).collect::<Vec<_>>();
            assert_close(
                &grad_weight,
                &plus(gradient(&weight, |w| score(f(&wide_x, w, &wide_bias))), 1.0),
                1e-5,
            );
            assert_close(
                &grad_bias,
                &plus(gradient(&bias, |b| score(f(&wide_x, &wide_weight, b))), 2.0),
                1e-6,
            );
        }
    }

    #[test]
    fn refuses_bad_lengths() {
        let mut out = [0.0; 3];
        assert!(layer_norm(&[], &[], &[], 1e-6, &mut []).is_err());
        assert!(layer_norm(&[1.0; 3], &[1.0; 2], &[0.0; 3], 1e-6, &mut out).is_err());
        assert!(layer_norm(&[1.0; 3], &[1.0; 3], &[0.0; 4], 1e-6, &mut out).is_err());
        assert!(layer_norm(&[1.0; 2], &[1.0; 2], &[0.0; 2], 1e-6, &mut out).is_err());
        let stats = RowStats { mean: 0.0, rstd: 1.0 };
        for short in 0..5 {
            let n = |slot: usize| if slot == short { 2 } else { 3 };
            let (mut x, mut w, mut b) = ([0.0; 3], [0.0; 3], [0.0; 3]);
            let ones = [1.0; 3];
            let result = layer_norm_backward(
                &ones,
                &ones[..n(0)],
                stats,
                &ones[..n(1)],
                &mut x[..n(2)],
                &mut w[..n(3)],
                &mut b[..n(4)],
            );
            assert!(result.is_err(), "{short}");
        }
    }

    proptest! {
        #[test]
        fn normalizes(x in prop::collection::vec(-50.0f32..50.0, 2..70)) {
            let ones = vec![1.0; x.len()];
            let zeros = vec![0.0; x.len()];
            let mut out = vec![0.0; x.len()];
            let stats = layer_norm(&x, &ones, &zeros, 1e-6, &mut out).unwrap();
            let mean = out.iter().map(|&v| f64::from(v)).sum::<f64>() / x.len() as f64;
            prop_assert!(mean.abs() < 1e-4);
            prop_assert!(stats.rstd.is_finite() && out.iter().all(|v| v.is_finite()));
            // A row twice as large has the same direction.
            let twice: Vec<f32> = x.iter().map(|v| 2.0 * v).collect();
            let mut again = vec![0.0; x.len()];
            layer_norm(&twice, &ones, &zeros, 4e-6, &mut again).unwrap();
            for (a, b) in out.iter().zip(&again) {
                prop_assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0));
            }
        }
    }
}
