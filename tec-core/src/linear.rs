//! The plain matrix product that faster ones are tested against.

use crate::error::{Error, Result, at_least, length};

pub use crate::lanes::dot;

/// `out = x · weightᵀ + bias` for as many rows as `x` holds.
///
/// `x` is [rows, width], `weight` [outputs, width], `bias` [outputs], `out` [rows, outputs]. Each element is one
/// [`dot`] plus the bias.
///
/// # Errors
/// [`Error::TooFew`] for `width == 0`, [`Error::NotMultiple`] where `x` or `weight` is not whole rows,
/// [`Error::Length`] where `bias` or `out` does not fit them.
#[inline(always)]
pub fn linear(x: &[f32], width: usize, weight: &[f32], bias: Option<&[f32]>, out: &mut [f32]) -> Result<()> {
    at_least("width", width, 1)?;
    let rows = whole_rows("x", x, width)?;
    let outputs = whole_rows("weight", weight, width)?;
    length("bias", bias.map_or(outputs, <[f32]>::len), outputs)?;
    length("out", out.len(), rows.saturating_mul(outputs))?;
    if outputs == 0 {
        return Ok(());
    }
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(outputs)) {
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
