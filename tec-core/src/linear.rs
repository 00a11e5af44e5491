//! The plain matrix product that faster ones are tested against.

use crate::error::{Error, Result, at_least, length};

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
        // There are as many. A zip of the two divides by both widths, of which the optimizer may forget that they are not zero.
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
    use crate::numeric::{assert_close, values};
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
