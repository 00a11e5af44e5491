//! The two losses of TEC (Gao et al., 2022, section 3) and their gradients.
//!
//! *Features*: squared error, mean over channels, averaged over the removed patches of the whole batch.
//! *Relations*: cross-entropy against the tempered target, mean over images, rows and heads.

use crate::activation::exp;
use crate::error::{Error, Result, at_least, length, product};
use crate::lanes::{self, Accumulator};
use crate::softmax::log_sum_exp;

/// One image's part of the feature loss: the sum over removed patches of the mean squared error over channels, and the
/// number of removed patches.
///
/// `pred` and `target_normalized` are [patches, width], `removed` is 1 for a removed patch and 0 for a visible one, which
/// is not looked at. The loss of a batch is the sum of sums times [`feature_scale`] of the total count.
///
/// # Errors
/// [`Error::TooFew`] for `width == 0`, [`Error::Length`].
#[inline(always)]
pub fn feature_loss(pred: &[f32], target_normalized: &[f32], removed: &[f32], width: usize) -> Result<(f32, f32)> {
    at_least("width", width, 1)?;
    length("pred", pred.len(), product(&[removed.len(), width]))?;
    length("target_normalized", target_normalized.len(), pred.len())?;
    let (mut errors, mut count) = (Accumulator::new(), Accumulator::new());
    let rows = pred.chunks_exact(width).zip(target_normalized.chunks_exact(width));
    for ((pred, target), &removed) in rows.zip(removed) {
        count.push(removed);
        if removed == 0.0 {
            errors.push(0.0);
        } else {
            errors.push(removed * (lanes::sum_by2(pred, target, |p, t| (p - t) * (p - t)) / width as f32));
        }
    }
    Ok((errors.total(), count.total()))
}

/// What the sums of [`feature_loss`] are multiplied by: one over the removed patches of the whole batch.
///
/// # Errors
/// [`Error::NothingRemoved`] unless the count is positive.
#[inline(always)]
pub fn feature_scale(removed_count: f32) -> Result<f32> {
    if removed_count > 0.0 {
        Ok(1.0 / removed_count)
    } else {
        Err(Error::NothingRemoved)
    }
}

/// The gradient of `scale ·` [`feature_loss`]'s sum with respect to `pred`; zero at visible patches.
///
/// `scale` is the gradient of the loss times [`feature_scale`].
///
/// # Errors
/// As [`feature_loss`].
#[inline(always)]
pub fn feature_loss_backward(
    pred: &[f32],
    target_normalized: &[f32],
    removed: &[f32],
    width: usize,
    scale: f32,
    grad_pred: &mut [f32],
) -> Result<()> {
    at_least("width", width, 1)?;
    length("pred", pred.len(), product(&[removed.len(), width]))?;
    length("target_normalized", target_normalized.len(), pred.len())?;
    length("grad_pred", grad_pred.len(), pred.len())?;
    let scale = 2.0 * scale / width as f32;
    let rows = pred.chunks_exact(width).zip(target_normalized.chunks_exact(width));
    for (((pred, target), grad), &removed) in rows.zip(grad_pred.chunks_exact_mut(width)).zip(removed) {
        if removed == 0.0 {
            grad.fill(0.0);
            continue;
        }
        let scale = scale * removed;
        for ((grad, &pred), &target) in grad.iter_mut().zip(pred).zip(target) {
            *grad = scale * (pred - target);
        }
    }
    Ok(())
}

/// The cross-entropy of one row: −Σ target · log softmax(pred).
///
/// `target` is the tempered target's row. The loss of a batch is the mean over images, rows and heads.
///
/// # Errors
/// [`Error::Length`] where the lengths differ.
#[inline(always)]
pub fn relation_loss(pred: &[f32], target: &[f32]) -> Result<f32> {
    length("target", target.len(), pred.len())?;
    let log_sum = log_sum_exp(pred, 1.0);
    Ok(lanes::sum_by2(pred, target, |p, t| t * (log_sum - p)))
}

/// The gradient of `scale ·` [`relation_loss`] with respect to `pred`: scale · (softmax(pred) · Σ target − target).
///
/// # Errors
/// [`Error::Length`] where the lengths differ.
#[inline(always)]
pub fn relation_loss_backward(pred: &[f32], target: &[f32], scale: f32, grad: &mut [f32]) -> Result<()> {
    length("target", target.len(), pred.len())?;
    length("grad", grad.len(), pred.len())?;
    let max = lanes::max_by(pred, |v| v);
    for (grad, &pred) in grad.iter_mut().zip(pred) {
        *grad = exp(pred - max);
    }
    // A tempered target sums to 1 but for rounding, which belongs to the loss and so to its gradient.
    let mass = lanes::sum(target) / lanes::sum(grad);
    for (grad, &target) in grad.iter_mut().zip(target) {
        *grad = scale * (*grad * mass - target);
    }
    Ok(())
}
