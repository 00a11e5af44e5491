//! Weights as integers, so that a layer's outputs change as little as possible.
//!
//! Each input's weights are rounded in turn, and what an output loses by that is made up for, as far as the inputs go together, by the
//! weights of the inputs after it: as in *Optimal Brain Compression* (Frantar and Alistarh, 2022) and GPTQ (Frantar et al., 2023), with
//! the inputs in their order and the scales of groups chosen before.

use rayon::prelude::*;
use tec_edge::{Precision, int4};

use super::calibration::Covariance;
use super::ranges::Range;

/// A matrix of integers, `[outputs, inputs]`.
pub(super) struct Rounded {
    /// What enters products.
    pub(super) weight: Vec<i8>,
    /// What an integer of each output stands for.
    pub(super) steps: Vec<f64>,
    /// With 4 bits: the integers of 4 bits, and the scales `[outputs, groups]`.
    pub(super) four: Option<(Vec<i8>, Vec<u8>)>,
}

/// Rounds `weight`, `[outputs, inputs]`; `least_steps` are the smallest allowed, one an output.
pub(super) fn round(weight: &[f64], least_steps: &[f64], precision: Precision, feedback: Option<&Feedback>) -> Rounded {
    let inputs = weight.len() / least_steps.len().max(1);
    let rows: Vec<(Grid, Vec<i8>)> = weight
        .par_chunks_exact(inputs.max(1))
        .zip(least_steps)
        .map(|(row, &least)| {
            let grid = Grid::new(row, least, precision, feedback);
            let integers = grid.round(row, feedback);
            (grid, integers)
        })
        .collect();
    let steps = rows.iter().map(|(grid, _)| grid.step).collect();
    match precision {
        Precision::Int8 => Rounded {
            weight: rows.into_iter().flat_map(|(_, integers)| integers).collect(),
            steps,
            four: None,
        },
        Precision::Int4 { .. } => Rounded {
            weight: rows
                .iter()
                .flat_map(|(grid, q)| q.iter().enumerate().map(|(k, &q)| grid.weight(k, q)))
                .collect(),
            steps,
            four: Some((
                rows.iter().flat_map(|(_, q)| q).copied().collect(),
                rows.iter().flat_map(|(grid, _)| &grid.scales).copied().collect(),
            )),
        },
    }
}

/// The numbers that an output's weights can be.
struct Grid {
    step: f64,
    /// With 4 bits.
    scales: Vec<u8>,
    group: usize,
}

/// The largest weight that 4 bits and the largest scale stand for.
const LARGEST_OF_FOUR_BITS: f64 = 112.0;
/// By how much less than its largest weight needs the scale of a group is tried.
const CUTS: [f64; 8] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65];

impl Grid {
    fn new(row: &[f64], least_step: f64, precision: Precision, feedback: Option<&Feedback>) -> Self {
        let largest = |weights: &[f64]| weights.iter().fold(0.0f64, |max, w| max.max(w.abs()));
        match precision {
            Precision::Int8 => Self {
                step: (largest(row) / 127.0).max(least_step),
                scales: Vec::new(),
                group: row.len(),
            },
            Precision::Int4 { group } => {
                let step = (largest(row) / LARGEST_OF_FOUR_BITS).max(least_step);
                let mut grid = Self {
                    step,
                    scales: Vec::new(),
                    group,
                };
                for (number, weights) in row.chunks(group).enumerate() {
                    // 7 is the largest integer of both signs.
                    let most = largest(weights) / step * 16.0 / 7.0;
                    let matter = |k: usize| feedback.map_or(1.0, |f| f.power[number * group + k]);
                    let error = |scale: u8| -> f64 {
                        let lost = |w: f64| w - f64::from(int4::weight(nearest(w / step, scale), scale)) * step;
                        weights
                            .iter()
                            .enumerate()
                            .map(|(k, &w)| lost(w).powi(2) * matter(k))
                            .sum()
                    };
                    let scales = CUTS.map(|cut| (most * cut).round().clamp(0.0, 255.0) as u8);
                    let best = scales.into_iter().map(|scale| (error(scale), scale));
                    let best = best.min_by(|a, b| a.0.total_cmp(&b.0));
                    grid.scales.push(best.map_or(0, |(_, scale)| scale));
                }
                grid
            }
        }
    }

    /// The integer nearest to a weight: of 8 bits, or of 4.
    fn nearest(&self, k: usize, w: f64) -> i8 {
        match self.scales.get(k / self.group.max(1)) {
            None => (w / self.step).round().clamp(-127.0, 127.0) as i8,
            Some(&scale) => nearest(w / self.step, scale),
        }
    }

    /// What enters products.
    fn weight(&self, k: usize, q: i8) -> i8 {
        match self.scales.get(k / self.group.max(1)) {
            None => q,
            Some(&scale) => int4::weight(q, scale),
        }
    }

    fn round(&self, row: &[f64], feedback: Option<&Feedback>) -> Vec<i8> {
        let Some(feedback) = feedback else {
            return row.iter().enumerate().map(|(k, &w)| self.nearest(k, w)).collect();
        };
        let mut left = row.to_vec();
        let mut integers = Vec::with_capacity(row.len());
        for k in 0..row.len() {
            let q = self.nearest(k, left[k]);
            let lost = left[k] - f64::from(self.weight(k, q)) * self.step;
            integers.push(q);
            let factors = &feedback.upper[k * row.len()..(k + 1) * row.len()];
            let share = lost / factors[k];
            for (later, factor) in left[k + 1..].iter_mut().zip(&factors[k + 1..]) {
                *later -= share * factor;
            }
        }
        integers
    }
}

/// The integer of 4 bits nearest to `w`, a number of the grid of [`int4::weight`].
fn nearest(w: f64, scale: u8) -> i8 {
    match scale {
        0 => 0,
        scale => (w * 16.0 / f64::from(scale)).round().clamp(-8.0, 7.0) as i8,
    }
}

/// How inputs go together.
pub(super) struct Feedback {
    /// Mean square of each input.
    power: Vec<f64>,
    /// The upper triangular U with `Uᵀ·U` the inverse of the inputs' second moments, `[inputs, inputs]`.
    upper: Vec<f64>,
}

/// Share of the mean power that is added to every input's, for what so few images do not show.
const DAMPING: f64 = 0.01;
/// What rounding an input to an integer adds to its power.
const ROUNDING: f64 = 1.0 / 12.0;

impl Feedback {
    /// Of inputs whose integers stand for `inputs`; `None` if nothing was seen of them.
    pub(super) fn new(seen: &Covariance, inputs: &[Range]) -> Option<Self> {
        let n = inputs.len();
        let mut moments = seen.values()?;
        if moments.len() != n * n {
            return None;
        }
        for (row, a) in moments.chunks_exact_mut(n).zip(inputs) {
            row.iter_mut()
                .zip(inputs)
                .for_each(|(value, b)| *value /= a.scale * b.scale);
        }
        let mean = (0..n).map(|k| moments[k * n + k]).sum::<f64>() / n as f64;
        for k in 0..n {
            moments[k * n + k] += DAMPING * mean + ROUNDING;
        }
        let power = (0..n).map(|k| moments[k * n + k]).collect();
        Some(Self {
            power,
            upper: inverse_factor(moments, n)?,
        })
    }
}

/// U with `Uᵀ·U = M⁻¹`, upper triangular: the inverse of the upper triangular V with `V·Vᵀ = M`. `None` if M is not positive.
fn inverse_factor(moments: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    // V·Vᵀ = M from the last row up is Cholesky's factorization with rows and columns counted from the end.
    let mut lower: Vec<f64> = (0..n * n).map(|i| moments[n * n - 1 - i]).collect();
    for column in 0..n {
        let (done, rest) = lower.split_at_mut((column + 1) * n);
        let row = &mut done[column * n..];
        let diagonal = row[column] - row[..column].iter().map(|x| x * x).sum::<f64>();
        if diagonal.is_nan() || diagonal <= 0.0 {
            return None;
        }
        let diagonal = diagonal.sqrt();
        row[column] = diagonal;
        let row = &row[..column];
        rest.par_chunks_exact_mut(n).with_min_len(64).for_each(|other| {
            let known: f64 = other[..column].iter().zip(row).map(|(a, b)| a * b).sum();
            other[column] = (other[column] - known) / diagonal;
        });
    }
    // The inverse of a lower triangular matrix, column by column; a column is kept as a row.
    let mut inverse = vec![0.0; n * n];
    inverse.par_chunks_exact_mut(n).enumerate().for_each(|(column, out)| {
        for row in column..n {
            let factors = &lower[row * n..row * n + row + 1];
            let unit = if row == column { 1.0 } else { 0.0 };
            let known: f64 = factors[column..row]
                .iter()
                .zip(&out[column..row])
                .map(|(a, b)| a * b)
                .sum();
            out[row] = (unit - known) / factors[row];
        }
    });
    // Transposed by its columns being rows, and counted from the end again: (i, j) of U is (n−1−i, n−1−j) of the inverse.
    let mut upper = vec![0.0; n * n];
    for (i, row) in upper.chunks_exact_mut(n).enumerate() {
        for (j, slot) in row.iter_mut().enumerate().skip(i) {
            *slot = inverse[(n - 1 - j) * n + (n - 1 - i)];
        }
    }
    Some(upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let n = 5;
        // Positive: a product with its transpose, and a little more.
        let a: Vec<f64> = (0..n * n).map(|i| ((i * 37 % 11) as f64 - 5.0) / 3.0).collect();
        let moments: Vec<f64> = (0..n * n)
            .map(|at| {
                let (i, j) = (at / n, at % n);
                let product: f64 = (0..n).map(|k| a[i * n + k] * a[j * n + k]).sum();
                product + if i == j { 0.5 } else { 0.0 }
            })
            .collect();
        let upper = inverse_factor(moments.clone(), n).unwrap();
        for i in 0..n {
            assert!(upper[i * n..i * n + i].iter().all(|&x| x == 0.0));
            for j in 0..n {
                // Uᵀ·U·M is the unit matrix.
                let inverse = |i: usize, k: usize| (0..n).map(|r| upper[r * n + i] * upper[r * n + k]).sum::<f64>();
                let unit: f64 = (0..n).map(|k| inverse(i, k) * moments[k * n + j]).sum();
                assert!((unit - f64::from(u8::from(i == j))).abs() < 1e-9, "{i} {j} {unit}");
            }
        }
        assert!(inverse_factor(vec![1.0, 2.0, 2.0, 1.0], 2).is_none());
    }

    /// Inputs that go together, and the outputs' error with and without making up for it.
    #[test]
    fn feedback_keeps_outputs_nearer() {
        let (n, outputs, samples) = (24, 8, 400);
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as f64 / 2f64.powi(30) - 1.0
        };
        let sources: Vec<f64> = (0..samples * 4).map(|_| random()).collect();
        let mix: Vec<f64> = (0..4 * n).map(|_| random() * 60.0).collect();
        let x: Vec<f64> = (0..samples * n)
            .map(|at| (0..4).map(|k| sources[at / n * 4 + k] * mix[k * n + at % n]).sum())
            .collect();
        let mut moments = vec![0.0; n * n];
        for row in x.chunks_exact(n) {
            for i in 0..n {
                for j in 0..n {
                    moments[i * n + j] += row[i] * row[j] / samples as f64;
                }
            }
        }
        for i in 0..n {
            moments[i * n + i] += ROUNDING;
        }
        let feedback = Feedback {
            power: (0..n).map(|i| moments[i * n + i]).collect(),
            upper: inverse_factor(moments, n).unwrap(),
        };
        let weight: Vec<f64> = (0..outputs * n).map(|_| random()).collect();
        let error = |rounded: &Rounded| -> f64 {
            let mut error = 0.0;
            for (o, row) in weight.chunks_exact(n).enumerate() {
                for x in x.chunks_exact(n) {
                    let lost =
                        (0..n).map(|k| x[k] * (row[k] - f64::from(rounded.weight[o * n + k]) * rounded.steps[o]));
                    error += lost.sum::<f64>().powi(2);
                }
            }
            error
        };
        for precision in [Precision::Int8, Precision::Int4 { group: 8 }] {
            let least = vec![0.0; outputs];
            let plain = error(&round(&weight, &least, precision, None));
            let better = round(&weight, &least, precision, Some(&feedback));
            assert!(
                error(&better) < plain / 4.0,
                "{precision:?}: {} of {plain}",
                error(&better)
            );
            if let Some((q, scales)) = &better.four {
                let weight = |i: usize| int4::weight(q[i], scales[i / 8]);
                assert!((0..q.len()).all(|i| weight(i) == better.weight[i]));
            }
        }
    }
}
