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
/// `pred` and `target_normalized` are `[patches, width]`, `removed` is 1 for a removed patch and 0 for a visible one, which
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::{self, assert_close, values, wide};
    use std::{vec, vec::Vec};

    #[test]
    fn feature_loss_and_gradient_against_f64() {
        let (patches, width) = (11, 19);
        let (pred, target) = (values(1, patches * width, 2.0), values(2, patches * width, 1.0));
        let removed: Vec<f32> = (0..patches).map(|i| f32::from(u8::from(i % 3 != 0))).collect();
        let count: f64 = wide(&removed).iter().sum();
        let reference = |pred: &[f64]| -> f64 {
            let squares = pred.iter().zip(&target).map(|(p, &t)| (p - f64::from(t)).powi(2));
            squares
                .enumerate()
                .map(|(i, s)| s * f64::from(removed[i / width]))
                .sum::<f64>()
                / width as f64
                / count
        };
        let (sum, removed_count) = feature_loss(&pred, &target, &removed, width).unwrap();
        assert_eq!(f64::from(removed_count), count);
        let scale = feature_scale(removed_count).unwrap();
        assert_close(&[sum * scale], &[reference(&wide(&pred))], 1e-6);
        let mut grad = vec![5.0; pred.len()];
        feature_loss_backward(&pred, &target, &removed, width, scale, &mut grad).unwrap();
        assert_close(&grad, &numeric::gradient(&pred, reference), 1e-6);
        assert!(grad[..width].iter().all(|&g| g == 0.0));
    }

    #[test]
    fn visible_patches_are_not_looked_at() {
        let pred = [f32::NAN, f32::NAN, 3.0, 5.0];
        let mut grad = [1.0; 4];
        assert_eq!(feature_loss(&pred, &[0.0; 4], &[0.0, 1.0], 2), Ok((17.0, 1.0)));
        feature_loss_backward(&pred, &[0.0; 4], &[0.0, 1.0], 2, 1.0, &mut grad).unwrap();
        assert_eq!(grad, [0.0, 0.0, 3.0, 5.0]);
    }

    #[test]
    fn relation_loss_and_gradient_against_f64() {
        for patches in [1, 9, 49] {
            let pred = values(3, patches, 4.0);
            let mut target = vec![0.0; patches];
            crate::softmax::softmax(&values(4, patches, 3.0), 0.7, &mut target).unwrap();
            let reference = |pred: &[f64]| -> f64 {
                let p = numeric::softmax(pred, 1.0);
                p.iter().zip(&target).map(|(p, &t)| -f64::from(t) * p.ln()).sum()
            };
            let loss = relation_loss(&pred, &target).unwrap();
            assert!((f64::from(loss) - reference(&wide(&pred))).abs() <= 1e-6 * f64::from(loss.abs()).max(1.0));
            let mut grad = vec![9.0; patches];
            relation_loss_backward(&pred, &target, 0.25, &mut grad).unwrap();
            if patches == 1 {
                assert!(grad[0].abs() < 1e-6);
            } else {
                let expected = numeric::gradient(&pred, |pred| 0.25 * reference(pred));
                assert_close(&grad, &expected, 1e-5);
            }
        }
    }

    #[test]
    fn refuses_bad_arguments() {
        assert_eq!(feature_scale(0.0), Err(Error::NothingRemoved));
        assert_eq!(feature_scale(f32::NAN), Err(Error::NothingRemoved));
        let (four, two) = ([1.0; 4], [1.0; 2]);
        assert!(feature_loss(&four, &four, &two, 0).is_err());
        assert!(feature_loss(&four, &four, &two, 3).is_err());
        assert!(feature_loss(&four, &two, &two, 2).is_err());
        assert!(feature_loss_backward(&four, &four, &two, 2, 1.0, &mut [0.0; 3]).is_err());
        assert!(relation_loss(&four, &two).is_err());
        assert!(relation_loss_backward(&four, &four, 1.0, &mut [0.0; 3]).is_err());
        assert!(relation_loss_backward(&four, &two, 1.0, &mut [0.0; 4]).is_err());
    }
}
