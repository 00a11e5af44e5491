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
