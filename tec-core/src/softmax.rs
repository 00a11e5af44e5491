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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::{self, assert_close, values, wide};
    use proptest::prelude::*;
    use std::vec;

    #[test]
    fn gradient_against_differences() {
        for (length, scale) in [(1, 1.0), (7, 0.5), (50, 0.125), (64, -1.5)] {
            let (x, up) = (values(1, length, 3.0), values(2, length, 1.0));
            let (mut p, mut grad) = (vec![0.0; length], vec![0.0; length]);
            softmax(&x, scale, &mut p).unwrap();
            softmax_backward(&p, &up, scale, &mut grad).unwrap();
            assert_close(&p, &numeric::softmax(&wide(&x), f64::from(scale)), 1e-6);
            let expected = numeric::gradient(&x, |x| {
                numeric::softmax(x, f64::from(scale))
                    .iter()
                    .zip(&up)
                    .map(|(p, &u)| p * f64::from(u))
                    .sum()
            });
            if length == 1 {
                assert!(grad[0].abs() < 1e-7);
            } else {
                assert_close(&grad, &expected, 1e-5);
            }
        }
    }

    #[test]
    fn rows_of_extremes() {
        let mut out = [0.0; 3];
        softmax(&[3e38, -3e38, 3e38], 1.0, &mut out).unwrap();
        assert_eq!(out, [0.5, 0.0, 0.5]);
        softmax(&[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY], 1.0, &mut out).unwrap();
        assert_eq!(out, [0.0, 1.0, 0.0]);
        for bad in [f32::NAN, f32::INFINITY] {
            softmax(&[bad, 0.0, 1.0], 1.0, &mut out).unwrap();
            assert!(out[0].is_nan(), "{bad}");
        }
        softmax(&[f32::NAN, 0.0, 1.0], 1.0, &mut out).unwrap();
        assert!(out.iter().all(|v| v.is_nan()));
        softmax(&[f32::NEG_INFINITY; 3], 1.0, &mut out).unwrap();
        assert!(out.iter().all(|v| v.is_nan()));
        assert_eq!(softmax(&[], 1.0, &mut []), Ok(()));
        assert_eq!(log_sum_exp(&[], 1.0), f32::NEG_INFINITY);
        assert!(softmax(&[1.0], 1.0, &mut out).is_err());
        assert!(softmax_backward(&[1.0], &[1.0, 2.0], 1.0, &mut [0.0]).is_err());
        assert!(softmax_backward(&[1.0], &[1.0], 1.0, &mut out).is_err());
    }

    proptest! {
        #[test]
        fn sums_to_one_and_ignores_a_shift(
            // Multiples of 1/16: the shift is exact, so the results must be the same bits.
            x in prop::collection::vec((-160i16..160).prop_map(|v| f32::from(v) / 16.0), 1..80),
            shift in (-64i8..64).prop_map(|v| f32::from(v) / 4.0),
        ) {
            let (mut p, mut q) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            softmax(&x, 1.0, &mut p).unwrap();
            prop_assert!((p.iter().map(|&v| f64::from(v)).sum::<f64>() - 1.0).abs() < 1e-6);
            let shifted: std::vec::Vec<f32> = x.iter().map(|v| v + shift).collect();
            softmax(&shifted, 1.0, &mut q).unwrap();
            prop_assert_eq!(p, q);
        }

        #[test]
        fn log_sum_exp_against_f64(x in prop::collection::vec(-20.0f32..20.0, 1..80), scale in -2.0f32..2.0) {
            let exact = x.iter().map(|&v| (f64::from(v) * f64::from(scale)).exp()).sum::<f64>().ln();
            prop_assert!((f64::from(log_sum_exp(&x, scale)) - exact).abs() <= 1e-5);
        }
    }
}
