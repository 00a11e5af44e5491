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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// Cubic with a = −0.5, widened when the grid shrinks, weights normalized: PyTorch's
    /// `interpolate(mode="bicubic", antialias=True)`, which timm's `resample_abs_pos_embed` uses.
    Antialias,
    /// Cubic with a = −0.75 over four points, edges repeated: PyTorch's `interpolate(mode="bicubic")`.
    Plain,
}

/// Resizes the patch rows of a position table, [from², dim] to [to², dim]; the class token's row is the caller's to copy.
///
/// Weights and sums are f64, every value is rounded once. The same grid copies.
///
/// # Errors
/// [`Error::TooFew`] for an empty grid, [`Error::Length`] for `table` or `out`.
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
        let step = from as f64 / to as f64;
        let edge = step * (at as f64 + 0.5);
        match resample {
            Resample::Plain => {
                let center = edge - 0.5;
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
                let widening = if step > 1.0 { step } else { 1.0 };
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
        (0..self.count).map(|tap| {
            let point = self.first.wrapping_add_unsigned(tap);
            let weight = cubic((point as f64 - self.center) * self.narrow, self.a) * self.normal;
            ((point.max(0) as usize).min(self.grid.saturating_sub(1)), weight)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    #[test]
    fn sincos_of_a_small_table() {
        let mut table = vec![9.0; 5 * 8];
        sincos_2d(8, 2, &mut table).unwrap();
        assert!(table[..8].iter().all(|&v| v == 0.0));
        // Patch 1 is (y 0, x 1), patch 2 (y 1, x 0); the frequencies are 1 and 1/100.
        let one = [1.0f64.sin(), 0.01f64.sin(), 1.0f64.cos(), 0.01f64.cos()].map(|v| v as f32);
        let zero = [0.0, 0.0, 1.0, 1.0];
        assert_eq!(table[16..20], one);
        assert_eq!(table[20..24], zero);
        assert_eq!(table[24..28], zero);
        assert_eq!(table[28..32], one);
    }

    #[test]
    fn refuses_bad_shapes() {
        assert_eq!(
            sincos_2d(6, 1, &mut [0.0; 12]),
            Err(Error::NotMultiple {
                what: "dim",
                of: 4,
                actual: 6
            })
        );
        assert!(sincos_2d(0, 1, &mut []).is_err());
        assert!(sincos_2d(4, usize::MAX, &mut [0.0; 4]).is_err());
        assert_eq!(sincos_2d(4, 0, &mut [1.0; 4]), Ok(()));
        let mut out = [0.0; 4];
        for (from, to, dim) in [
            (0, 2, 1),
            (2, 0, 1),
            (2, 2, 0),
            (3, 2, 1),
            (2, 3, 1),
            (usize::MAX, 2, 1),
        ] {
            assert!(
                resize_bicubic(&[0.0; 4], from, to, dim, Resample::Plain, &mut out).is_err(),
                "{from} {to} {dim}"
            );
        }
    }

    /// Values of patches 0, 1, the middle and the last, of a separate implementation in NumPy.
    #[test]
    fn bicubic_against_numpy() {
        let table: Vec<f32> = (0..50)
            .map(|n| (n / 2, n % 2))
            .map(|(i, c)| ((7 * i * i + 3 * i * c + 11 * c) % 17 - 8) as f32)
            .collect();
        let cases: [(usize, Resample, [f32; 8]); 4] = [
            (
                3,
                Resample::Plain,
                [
                    -3.9015775,
                    2.0058298,
                    0.37037036,
                    -0.14814815,
                    -3.0,
                    -7.0,
                    -0.1244856,
                    -3.3806584,
                ],
            ),
            (
                3,
                Resample::Antialias,
                [
                    -2.6688757, 1.3900591, 0.97366726, -0.7996422, -1.707258, -3.3940077, 0.48639053, -2.4066272,
                ],
            ),
            (
                7,
                Resample::Plain,
                [
                    -8.932214, 3.3272617, -4.967454, -2.2473373, -3.0, -7.0, -6.588573, -8.509855,
                ],
            ),
            (
                7,
                Resample::Antialias,
                [
                    -8.692243, 3.2397964, -4.7635746, -1.6803108, -3.0, -7.0, -6.1576962, -8.099443,
                ],
            ),
        ];
        for (to, resample, expected) in cases {
            let mut out = vec![0.0; to * to * 2];
            resize_bicubic(&table, 5, to, 2, resample, &mut out).unwrap();
            for (pair, patch) in expected.chunks_exact(2).zip([0, 1, to * to / 2, to * to - 1]) {
                for (a, b) in out[2 * patch..].iter().zip(pair) {
                    assert!(
                        (a - b).abs() <= 1e-6 * b.abs(),
                        "{to} {resample:?} patch {patch}: {a} {b}"
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn constants_stay_constant(from in 1usize..12, to in 1usize..12, value in -5.0f32..5.0) {
            for resample in [Resample::Plain, Resample::Antialias] {
                let mut out = vec![0.0; to * to * 3];
                resize_bicubic(&vec![value; from * from * 3], from, to, 3, resample, &mut out).unwrap();
                prop_assert!(out.iter().all(|v| (v - value).abs() <= 1e-6 * value.abs()));
            }
        }

        #[test]
        fn same_grid_copies(table in prop::collection::vec(-5.0f32..5.0, 36), dim in prop::sample::select(vec![1usize, 4, 9])) {
            let grid = [6, 3, 2][[1, 4, 9].iter().position(|&d| d == dim).unwrap()];
            for resample in [Resample::Plain, Resample::Antialias] {
                let mut out = vec![0.0; 36];
                resize_bicubic(&table, grid, grid, dim, resample, &mut out).unwrap();
                prop_assert_eq!(&out, &table);
            }
        }
    }
}
