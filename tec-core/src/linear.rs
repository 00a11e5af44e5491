//! The plain linear layer that faster ones are tested against, and its gradient.

use crate::error::{Error, Result, at_least, length};
use crate::lanes::{LANES, column_sums};

pub use crate::lanes::dot;

/// `out = x · weightᵀ + bias` for as many rows as `x` holds.
///
/// `x` is `[rows, width]`, `weight` `[outputs, width]`, `bias` `[outputs]`, `out` `[rows, outputs]`. Each element is one
/// [`dot`] plus the bias.
///
/// # Errors
/// [`Error::TooFew`] for `width == 0`, [`Error::NotMultiple`] where `x` or `weight` is not whole rows,
/// [`Error::Length`] where `bias` or `out` does not fit them.
#[inline(always)]
pub fn linear(x: &[f32], width: usize, weight: &[f32], bias: Option<&[f32]>, out: &mut [f32]) -> Result<()> {
    at_least("width", width, 1)?;
    let count = whole_rows("x", x, width)?;
    let outputs = whole_rows("weight", weight, width)?;
    length("bias", bias.map_or(outputs, <[f32]>::len), outputs)?;
    length("out", out.len(), count.saturating_mul(outputs))?;
    if outputs == 0 {
        return Ok(());
    }
    let mut rows = x.chunks_exact(width);
    for out in out.chunks_exact_mut(outputs) {
        // There are as many. A zip would divide by both widths, and the optimizer may forget that they are not zero.
        let x = rows.next().unwrap_or(&[]);
        for (out, weight) in out.iter_mut().zip(weight.chunks_exact(width)) {
            *out = dot(x, weight);
        }
        if let Some(bias) = bias {
            for (out, &bias) in out.iter_mut().zip(bias) {
                *out += bias;
            }
        }
    }
    Ok(())
}

/// The gradient of [`linear`]: `grad_x = grad_out · weight`, `grad_weight += grad_outᵀ · x`, `grad_bias += Σ grad_out`.
///
/// Shapes are those of [`linear`], `grad_out` that of its `out`. `grad_x` is written; `grad_weight` and `grad_bias` are
/// added to, so that a loop over batches sums them. Each element is one sum in lanes, over the outputs for `grad_x`, over
/// the rows for the others.
///
/// # Errors
/// As [`linear`].
#[inline(always)]
pub fn linear_backward(
    x: &[f32],
    width: usize,
    weight: &[f32],
    grad_out: &[f32],
    grad_x: &mut [f32],
    grad_weight: &mut [f32],
    grad_bias: Option<&mut [f32]>,
) -> Result<()> {
    at_least("width", width, 1)?;
    let count = whole_rows("x", x, width)?;
    let outputs = whole_rows("weight", weight, width)?;
    length("grad_out", grad_out.len(), count.saturating_mul(outputs))?;
    length("grad_x", grad_x.len(), x.len())?;
    length("grad_weight", grad_weight.len(), weight.len())?;
    length(
        "grad_bias",
        grad_bias.as_ref().map_or(outputs, |bias| bias.len()),
        outputs,
    )?;
    if outputs == 0 {
        grad_x.fill(0.0);
        return Ok(());
    }
    let mut grads = grad_out.chunks_exact(outputs);
    for grad_x in grad_x.chunks_exact_mut(width) {
        let grad = grads.next().unwrap_or(&[]);
        for (eight, grad_x) in grad_x.chunks_mut(LANES).enumerate() {
            let sums = column_sums(weight, width, eight * LANES, |output, _, weight| {
                at(grad, output) * weight
            });
            for (grad_x, sum) in grad_x.iter_mut().zip(sums) {
                *grad_x = sum;
            }
        }
    }
    for (output, grad_weight) in grad_weight.chunks_exact_mut(width).enumerate() {
        for (eight, grad_weight) in grad_weight.chunks_mut(LANES).enumerate() {
            let sums = column_sums(x, width, eight * LANES, |row, _, x| {
                at(grad_out, row * outputs + output) * x
            });
            for (grad_weight, sum) in grad_weight.iter_mut().zip(sums) {
                *grad_weight += sum;
            }
        }
    }
    for (eight, grad_bias) in grad_bias.unwrap_or_default().chunks_mut(LANES).enumerate() {
        let sums = column_sums(grad_out, outputs, eight * LANES, |_, _, grad| grad);
        for (grad_bias, sum) in grad_bias.iter_mut().zip(sums) {
            *grad_bias += sum;
        }
    }
    Ok(())
}

/// An element that is there, for the lengths were checked.
#[inline(always)]
fn at(x: &[f32], index: usize) -> f32 {
    x.get(index).copied().unwrap_or(0.0)
}

/// How many rows of `width` a slice holds.
#[inline(always)]
fn whole_rows(what: &'static str, x: &[f32], width: usize) -> Result<usize> {
    if x.len().is_multiple_of(width) {
        Ok(x.len() / width)
    } else {
        Err(Error::NotMultiple {
            what,
            of: width,
            actual: x.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::{assert_close, gradient, values, wide};
    use std::{vec, vec::Vec};

    #[test]
    fn against_f64() {
        let (rows, width, outputs) = (3, 21, 5);
        let (x, weight, bias) = (
            values(1, rows * width, 1.0),
            values(2, outputs * width, 1.0),
            values(3, outputs, 1.0),
        );
        let product: Vec<f64> = x
            .chunks(width)
            .flat_map(|x| weight.chunks(width).map(move |w| (x, w)))
            .map(|(x, w)| x.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum())
            .collect();
        let mut out = vec![9.0; rows * outputs];
        linear(&x, width, &weight, None, &mut out).unwrap();
        assert_close(&out, &product, 1e-6);
        linear(&x, width, &weight, Some(&bias), &mut out).unwrap();
        let with_bias: Vec<f64> = product
            .iter()
            .enumerate()
            .map(|(i, v)| v + f64::from(bias[i % outputs]))
            .collect();
        assert_close(&out, &with_bias, 1e-6);
    }

    /// The layer in f64.
    fn reference(x: &[f64], width: usize, weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let row = |x: &[f64]| -> Vec<f64> {
            let products = weight
                .chunks(width)
                .map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>());
            products.zip(bias).map(|(product, bias)| product + bias).collect()
        };
        x.chunks(width).flat_map(row).collect()
    }

    #[test]
    fn gradients_against_differences() {
        for (rows, width, outputs) in [(1, 1, 1), (3, 21, 5), (11, 8, 19)] {
            let (x, weight) = (values(1, rows * width, 1.0), values(2, outputs * width, 1.0));
            let (bias, up) = (values(3, outputs, 1.0), values(4, rows * outputs, 1.0));
            let (wide_x, wide_weight, wide_bias) = (wide(&x), wide(&weight), wide(&bias));
            let score = |x: &[f64], weight: &[f64], bias: &[f64]| -> f64 {
                let out = reference(x, width, weight, bias);
                out.iter().zip(&up).map(|(v, &u)| v * f64::from(u)).sum()
            };
            let mut grad_x = vec![7.0; x.len()];
            let (mut grad_weight, mut grad_bias) = (vec![1.0; weight.len()], vec![2.0; outputs]);
            let all = (&mut grad_x, &mut grad_weight, Some(&mut grad_bias[..]));
            linear_backward(&x, width, &weight, &up, all.0, all.1, all.2).unwrap();
            // These two are added to what was there.
            let plus = |grad: Vec<f64>, more: f64| grad.iter().map(|v| v + more).collect::<Vec<_>>();
            assert_close(&grad_x, &gradient(&x, |x| score(x, &wide_weight, &wide_bias)), 1e-6);
            assert_close(
                &grad_weight,
                &plus(gradient(&weight, |w| score(&wide_x, w, &wide_bias)), 1.0),
                1e-6,
            );
            assert_close(
                &grad_bias,
                &plus(gradient(&bias, |b| score(&wide_x, &wide_weight, b)), 2.0),
                1e-6,
            );
        }
    }

    #[test]
    fn gradients_are_sums_in_lanes() {
        let (rows, width, outputs) = (21, 11, 18);
        let (x, weight) = (values(1, rows * width, 1.0), values(2, outputs * width, 1.0));
        let up = values(3, rows * outputs, 1.0);
        let (mut grad_x, mut grad_weight) = (vec![7.0; x.len()], vec![0.0; weight.len()]);
        let mut grad_bias = vec![0.0; outputs];
        linear_backward(
            &x,
            width,
            &weight,
            &up,
            &mut grad_x,
            &mut grad_weight,
            Some(&mut grad_bias),
        )
        .unwrap();
        let column = |m: &[f32], width: usize, i: usize| m.iter().skip(i).step_by(width).copied().collect::<Vec<_>>();
        for (n, &grad) in grad_x.iter().enumerate() {
            let (row, channel) = (n / width, n % width);
            assert_eq!(
                grad,
                dot(&up[row * outputs..][..outputs], &column(&weight, width, channel))
            );
        }
        for (n, &grad) in grad_weight.iter().enumerate() {
            let (output, channel) = (n / width, n % width);
            assert_eq!(grad, dot(&column(&up, outputs, output), &column(&x, width, channel)));
        }
        for (output, &grad) in grad_bias.iter().enumerate() {
            assert_eq!(grad, crate::lanes::sum(&column(&up, outputs, output)));
        }
        let before = (grad_x.clone(), grad_weight.clone());
        grad_weight.fill(0.0);
        linear_backward(&x, width, &weight, &up, &mut grad_x, &mut grad_weight, None).unwrap();
        assert_eq!((grad_x, grad_weight), before);
    }

    #[test]
    fn backward_refuses_bad_lengths() {
        // Two rows of three, to two outputs; each slice in turn is one too long.
        for long in 0..7 {
            let n = |slot: usize, right: usize| if slot == long { right + 1 } else { right };
            let ones = [1.0; 9];
            let (mut grad_x, mut grad_weight, mut grad_bias) = ([0.0; 9], [0.0; 9], [0.0; 9]);
            let result = linear_backward(
                &ones[..n(0, 6)],
                3,
                &ones[..n(1, 6)],
                &ones[..n(2, 4)],
                &mut grad_x[..n(3, 6)],
                &mut grad_weight[..n(4, 6)],
                Some(&mut grad_bias[..n(5, 2)]),
            );
            assert_eq!(result.is_err(), long < 6, "{long}");
        }
        assert!(linear_backward(&[], 0, &[], &[], &mut [], &mut [], None).is_err());
        let mut grad_x = [5.0; 4];
        assert_eq!(
            linear_backward(&[1.0; 4], 2, &[], &[], &mut grad_x, &mut [], None),
            Ok(())
        );
        assert_eq!(grad_x, [0.0; 4]);
    }

    #[test]
    fn refuses_bad_lengths() {
        let mut out = [0.0; 4];
        let one = [1.0; 9];
        assert!(linear(&one[..4], 0, &one[..4], None, &mut out).is_err());
        assert!(linear(&one[..3], 2, &one[..4], None, &mut out).is_err());
        assert!(linear(&one[..4], 2, &one[..5], None, &mut out).is_err());
        assert!(linear(&one[..4], 2, &one[..4], Some(&one[..1]), &mut out).is_err());
        assert!(linear(&one[..4], 2, &one[..6], None, &mut out).is_err());
        assert_eq!(linear(&[], 2, &one[..6], None, &mut []), Ok(()));
        assert_eq!(linear(&one[..4], 2, &[], None, &mut []), Ok(()));
        assert_eq!(linear(&one[..4], 2, &one[..4], Some(&one[..2]), &mut out), Ok(()));
    }
}
