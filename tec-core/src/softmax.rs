//! Softmax of one row, its gradient, and the logarithm of its denominator.

use crate::activation::exp;
use crate::error::{Result, length};
use crate::lanes;

/// softmax(scale · x) of one row.
///
/// The maximum of the scaled row is subtracted, the exponentials are summed in lanes, and each is multiplied by the
/// reciprocal of the sum. A NaN anywhere, an infinite maximum, or a row of −∞ alone gives a row of NaN.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) where the lengths differ.
#[inline(always)]
pub fn softmax(x: &[f32], scale: f32, out: &mut [f32]) -> Result<()> {
    length("out", out.len(), x.len())?;
    let max = lanes::max_by(x, |v| v * scale);
    for (out, &v) in out.iter_mut().zip(x) {
        *out = exp(v * scale - max);
    }
    let reciprocal = 1.0 / lanes::sum(out);
    for out in out.iter_mut() {
        *out *= reciprocal;
    }
    Ok(())
}

/// The gradient of [`softmax`] from its output `p`: `grad_x = scale · p · (grad_p − Σ p · grad_p)`.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) where the lengths differ.
#[inline(always)]
pub fn softmax_backward(p: &[f32], grad_p: &[f32], scale: f32, grad_x: &mut [f32]) -> Result<()> {
    length("grad_p", grad_p.len(), p.len())?;
    length("grad_x", grad_x.len(), p.len())?;
    let mean = lanes::dot(p, grad_p);
    for ((grad_x, &p), &grad_p) in grad_x.iter_mut().zip(p).zip(grad_p) {
        *grad_x = scale * (p * (grad_p - mean));
    }
    Ok(())
}

/// ln Σ e^(scale · x) of one row; −∞ of an empty one.
///
/// NaN where [`softmax`] gives NaN. The logarithm of the softmax is `scale · x` minus this.
#[inline(always)]
pub fn log_sum_exp(x: &[f32], scale: f32) -> f32 {
    if x.is_empty() {
        return f32::NEG_INFINITY;
    }
    let max = lanes::max_by(x, |v| v * scale);
    max + libm::logf(lanes::sum_by(x, |v| exp(v * scale - max)))
}
