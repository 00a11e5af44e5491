//! Position tables: fixed sines and cosines, and resizing a learned table to another grid.

use crate::error::{Error, Result, at_least, length, product};

/// The fixed position table of a square grid, [1 + grid², dim]; row 0, the class token's, is zero.
///
/// Patch (y, x) has sin(x·ω), cos(x·ω), sin(y·ω), cos(y·ω), a quarter of the width each, with
/// ωᵢ = 10000^(−i / (dim / 4)). The x axis comes first, as in the published MAE and TEC code. Computed in f64.
///
/// # Errors
/// [`Error::NotMultiple`] unless `dim` is a multiple of 4, [`Error::Length`] for `out`.
pub fn sincos_2d(dim: usize, grid: usize, out: &mut [f32]) -> Result<()> {
    let quarter = dim / 4;
    at_least("dim", dim, 4)?;
    if !dim.is_multiple_of(4) {
        return Err(Error::NotMultiple {
            what: "dim",
            of: 4,
            actual: dim,
        });
    }
    length(
        "out",
        out.len(),
        product(&[grid, grid]).saturating_add(1).saturating_mul(dim),
    )?;
    let mut rows = out.chunks_exact_mut(dim);
    if let Some(class) = rows.next() {
        class.fill(0.0);
    }
    for (patch, row) in rows.enumerate() {
        // There are grid² rows here, so grid is not zero.
        let (y, x) = (patch / grid.max(1), patch % grid.max(1));
        for (at, axis) in [x, y].into_iter().zip(row.chunks_exact_mut(2 * quarter)) {
            let (sines, cosines) = axis.split_at_mut(quarter);
            for (i, (sine, cosine)) in sines.iter_mut().zip(cosines).enumerate() {
                let angle = at as f64 * (1.0 / libm::pow(10_000.0, i as f64 / quarter as f64));
                *sine = libm::sin(angle) as f32;
                *cosine = libm::cos(angle) as f32;
            }
        }
    }
    Ok(())
}

/// How bicubic resizing reads between the points of a grid; both with half-pixel centers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Resample {
    /// Cubic with a = −0.5, widened when the grid shrinks, weights normalized: PyTorch's
    /// `interpolate(mode="bicubic", antialias=True)`, which timm's `resample_abs_pos_embed` uses.
    Antialias,
    /// Cubic with a = −0.75 over four points, edges repeated: PyTorch's `interpolate(mode="bicubic")`.
    ///
    /// `offset` is added to the new grid when the step between points is computed, step = from / (to + offset):
    /// 0 for a plain resize to a size; 0.1 as DINOv2's published code does.
    Plain {
        /// What is added to the new grid, 0 or 0.1.
        offset: f64,
    },
}

/// Resizes the patch rows of a position table, [from², dim] to [to², dim]; the class token's row is the caller's to copy.
///
/// Weights and sums are f64, every value is rounded once. The same grid with an offset of zero copies.
///
/// # Errors
/// [`Error::TooFew`] for an empty grid, [`Error::Length`] for `table` or `out`, [`Error::Range`] for an offset
/// outside [0, 1).
pub fn resize_bicubic(
    table: &[f32],
    from_grid: usize,
    to_grid: usize,
    dim: usize,
    resample: Resample,
    out: &mut [f32],
) -> Result<()> {
    at_least("from_grid", from_grid, 1)?;
    at_least("to_grid", to_grid, 1)?;
    at_least("dim", dim, 1)?;
    length("table", table.len(), product(&[from_grid, from_grid, dim]))?;
    length("out", out.len(), product(&[to_grid, to_grid, dim]))?;
    if let Resample::Plain { offset } = resample
        && !(0.0..1.0).contains(&offset)
    {
        return Err(Error::Range {
            what: "offset",
            least: 0.0,
            below: 1.0,
            actual: offset,
        });
    }
    for (patch, row) in out.chunks_exact_mut(dim).enumerate() {
        let down = Taps::new(from_grid, to_grid, patch / to_grid, resample);
        let across = Taps::new(from_grid, to_grid, patch % to_grid, resample);
        for (block, values) in row.chunks_mut(BLOCK).enumerate() {
            let mut sums = [0.0f64; BLOCK];
            for (y, weight_y) in down.iter() {
                for (x, weight_x) in across.iter() {
                    let start = (y * from_grid + x) * dim + block * BLOCK;
                    let weight = weight_y * weight_x;
                    for (sum, &value) in sums
                        .iter_mut()
                        .zip(table.get(start..start + values.len()).unwrap_or(&[]))
                    {
                        *sum += weight * f64::from(value);
                    }
                }
            }
            for (value, sum) in values.iter_mut().zip(sums) {
                *value = sum as f32;
            }
        }
    }
    Ok(())
}

/// Channels summed at a time.
const BLOCK: usize = 8;

/// The old points that one new point reads along an axis.
struct Taps {
    /// Where the new point lies on the old grid.
    center: f64,
    /// First point read; negative where the edge is repeated.
    first: isize,
    count: usize,
    grid: usize,
    /// One over the kernel's widening.
    narrow: f64,
    a: f64,
    /// One over the sum of weights.
    normal: f64,
}

impl Taps {
    fn new(from: usize, to: usize, at: usize, resample: Resample) -> Self {
        match resample {
            Resample::Plain { offset } => {
                let center = from as f64 / (to as f64 + offset) * (at as f64 + 0.5) - 0.5;
                let first = libm::floor(center) as isize - 1;
                Self {
                    center,
                    first,
                    count: 4,
                    grid: from,
                    narrow: 1.0,
                    a: -0.75,
                    normal: 1.0,
                }
            }
            Resample::Antialias => {
                let step = from as f64 / to as f64;
                let widening = if step > 1.0 { step } else { 1.0 };
                let edge = step * (at as f64 + 0.5);
                // Casts truncate toward zero and saturate, as the published rule does.
                let first = ((edge - 2.0 * widening + 0.5) as usize).min(from);
                let end = ((edge + 2.0 * widening + 0.5) as usize).min(from);
                let count = end.saturating_sub(first);
                let taps = Self {
                    center: edge - 0.5,
                    first: first as isize,
                    count,
                    grid: from,
                    narrow: 1.0 / widening,
                    a: -0.5,
                    normal: 1.0,
                };
                let total: f64 = taps.iter().map(|(_, weight)| weight).sum();
                Self {
                    normal: 1.0 / total,
                    ..taps
                }
            }
        }
    }

    /// Points of the old grid with their weights.
    fn iter(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        (self.first..).take(self.count).map(|point| {
            let weight = cubic((point as f64 - self.center) * self.narrow, self.a) * self.normal;
            (point.clamp(0, self.grid as isize - 1) as usize, weight)
        })
    }
}

/// The cubic convolution kernel (Keys, 1981).
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}
