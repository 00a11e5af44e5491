//! Choice of ranges: what an i8 stands for.

use tec_core::integer::gelu_table;

use super::calibration::Channels;

/// What the integers of a channel stand for: `scale * q + center`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) scale: f64,
    pub(super) center: f64,
}

impl Range {
    /// The value that an integer of 8 bits keeps of `x`.
    pub(super) fn keep(&self, x: f64) -> f64 {
        ((x - self.center) / self.scale).round_ties_even().clamp(-128.0, 127.0) * self.scale + self.center
    }
}

/// How much farther than on the calibration images values may go before they are cut. Cutting the rare large value costs far
/// more than coarser steps: see the measurements in `docs/integer-encoder.md`.
pub(super) const MARGIN: f64 = 1.2;

/// The middle of each channel's extent, and half its extent with [`MARGIN`].
pub(super) fn extents(channels: &Channels) -> Vec<Range> {
    let ends = channels.min.iter().zip(&channels.max);
    ends.map(|(&min, &max)| {
        let (min, max) = (f64::from(min), f64::from(max));
        Range {
            scale: (max - min) / 2.0 * MARGIN,
            center: (max + min) / 2.0,
        }
    })
    .collect()
}

/// Ranges for the inputs of a linear layer whose rows are `weight`, `[outputs, inputs]`: each channel gets a scale of its own,
/// which the weights of that channel absorb.
///
/// The finest scales, `extent / 127`, may make the absorbed weights so unequal that they quantize badly; scales all alike
/// may waste a quiet channel's bits. Between them lies `extent^alpha * largest weight^(alpha - 1)`, as in SmoothQuant
/// (Xiao et al., 2023), here with the alpha of least error expected at the outputs: the errors of activations and of
/// weights are seen as independent.
pub(super) fn equalize(extents: &[Range], channels: &Channels, weight: &[f32], outputs_matter: &[f64]) -> Vec<Range> {
    let inputs = extents.len();
    let largest_extent = extents.iter().fold(0.0f64, |max, e| max.max(e.scale));
    // A channel that never moved gets some scale.
    let floor = (largest_extent * 1e-4).max(1e-6);
    let extent: Vec<f64> = extents.iter().map(|e| e.scale.max(floor)).collect();
    let mut largest_weight = vec![1e-8f64; inputs];
    for row in weight.chunks_exact(inputs) {
        for (max, w) in largest_weight.iter_mut().zip(row) {
            *max = max.max(f64::from(w.abs()));
        }
    }
    let power = variances(channels);
    let mut best: Option<(f64, Vec<f64>)> = None;
    for step in 0..=10 {
        let alpha = f64::from(step) / 10.0;
        let balanced: Vec<f64> = extent
            .iter()
            .zip(&largest_weight)
            .map(|(e, w)| e.powf(alpha) * w.powf(alpha - 1.0))
            .collect();
        // As fine as the channel that needs most allows.
        let up = extent.iter().zip(&balanced).fold(0.0f64, |max, (e, b)| max.max(e / b)) / 127.0;
        let scales: Vec<f64> = balanced.iter().map(|b| b * up).collect();
        let error = expected_error(&scales, &power, weight, outputs_matter);
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, scales));
        }
    }
    let scales = best.map_or_else(Vec::new, |(_, scales)| scales);
    scales
        .iter()
        .zip(extents)
        .map(|(&scale, e)| Range {
            scale,
            center: e.center,
        })
        .collect()
}

/// Variance of each channel in the sample: errors of the mean go into the biases.
fn variances(channels: &Channels) -> Vec<f64> {
    let width = channels.width().max(1);
    let (mut sum, mut squares) = (vec![0.0; width], vec![0.0; width]);
    let rows = channels.rows.chunks_exact(width);
    let count = rows.len().max(1) as f64;
    for row in rows {
        for ((sum, squares), &x) in sum.iter_mut().zip(&mut squares).zip(row) {
            *sum += f64::from(x) / count;
            *squares += f64::from(x).powi(2) / count;
        }
    }
    squares
        .iter()
        .zip(&sum)
        .map(|(squares, mean)| (squares - mean * mean).max(0.0))
        .collect()
}

/// Mean square error of the outputs, each divided by what matters to it.
fn expected_error(scales: &[f64], power: &[f64], weight: &[f32], outputs_matter: &[f64]) -> f64 {
    let inputs = scales.len();
    let mut total = 0.0;
    for (row, matter) in weight.chunks_exact(inputs).zip(outputs_matter) {
        let largest = row
            .iter()
            .zip(scales)
            .fold(0.0f64, |max, (w, s)| max.max((f64::from(*w) * s).abs()));
        let step = largest.max(1e-30) / 127.0;
        let mut error = 0.0;
        for ((w, s), p) in row.iter().zip(scales).zip(power) {
            let absorbed = f64::from(*w) * s;
            let lost = absorbed - (absorbed / step).round() * step;
            error += absorbed * absorbed / 12.0 + lost * lost * p / (s * s);
        }
        total += error / (matter * matter);
    }
    total
}

/// The ranges around GELU.
#[derive(Debug, Clone, Copy)]
pub(super) struct GeluRanges {
    pub(super) input_scale: f64,
    /// The integer, not rounded, of input 0.
    pub(super) input_zero: f64,
    pub(super) output_scale: f64,
    /// The integer of output 0.
    pub(super) output_zero: i32,
}

/// GELU's least value, -0.16997.
const GELU_MIN: f64 = -0.17;

/// Ranges up to the largest input seen, and down to where least of GELU's outputs is lost on a sample of its inputs.
pub(super) fn gelu_ranges(channels: &Channels) -> GeluRanges {
    let (mut low, mut high) = (0.0f64, 0.0f64);
    for (&min, &max) in channels.min.iter().zip(&channels.max) {
        low = low.min(min.into());
        high = high.max(max.into());
    }
    // Below -5, GELU is 0 for all that 8 bits can tell.
    let low = low.max(-5.0);
    let high = high.max(1e-3);
    let skip = (channels.rows.len() / 50_000).max(1);
    let sample: Vec<f64> = channels.rows.iter().step_by(skip | 1).map(|&x| f64::from(x)).collect();
    let exact: Vec<f64> = sample.iter().map(|&x| gelu(x)).collect();
    let mut best = None;
    for step in 0..12 {
        let ranges = gelu_ranges_between(low * (1.0 - 0.05 * f64::from(step)), high);
        let table = gelu_table(
            ranges.input_scale,
            ranges.input_zero,
            ranges.output_scale,
            ranges.output_zero,
        );
        let error: f64 = sample
            .iter()
            .zip(&exact)
            .map(|(x, y)| (ranges.output(&table, *x) - y).powi(2))
            .sum();
        if best.is_none_or(|(least, _)| error < least) {
            best = Some((error, ranges));
        }
    }
    best.map_or_else(|| gelu_ranges_between(low, high), |(_, ranges)| ranges)
}

fn gelu_ranges_between(low: f64, high: f64) -> GeluRanges {
    let input_scale = (high - low) / 255.0;
    let lowest = if low < -0.75 { GELU_MIN } else { gelu(low) };
    let output_scale = (gelu(high) - lowest) / 255.0;
    GeluRanges {
        input_scale,
        input_zero: -128.0 - low / input_scale,
        output_scale,
        output_zero: (-128.0 - lowest / output_scale).round() as i32,
    }
}

impl GeluRanges {
    /// What GELU's table gives for the real input `x`.
    pub(super) fn output(&self, table: &[i8; 256], x: f64) -> f64 {
        let q = (x / self.input_scale + self.input_zero).round().clamp(-128.0, 127.0);
        f64::from(i32::from(tec_core::integer::gelu(table, q as i8)) - self.output_zero) * self.output_scale
    }
}

pub(super) fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

/// Ranges of queries, keys and values.
///
/// Values have ranges of their own. Keys are centered: what a query's product with the center adds is the same for all
/// keys, and softmax does not see it. A score is one sum, so the product of the scales of a query's and a key's channel is
/// the same throughout a head, that of the channel with the largest products; what the others have to spare is shared.
pub(super) fn qkv_ranges(seen: &Channels, dim: usize, width: usize) -> Vec<Range> {
    let mut ranges = extents(seen);
    for range in &mut ranges {
        range.scale = (range.scale / 127.0).max(1e-9);
    }
    let (queries, rest) = ranges.split_at_mut(dim);
    let keys = &mut rest[..dim];
    for (c, query) in queries.iter_mut().enumerate() {
        let largest = f64::from(seen.min[c].abs().max(seen.max[c].abs()));
        *query = Range {
            scale: (largest * MARGIN / 127.0).max(1e-9),
            center: 0.0,
        };
    }
    for (queries, keys) in queries.chunks_exact_mut(width).zip(keys.chunks_exact_mut(width)) {
        let product = queries
            .iter()
            .zip(&*keys)
            .fold(0.0f64, |max, (q, k)| max.max(q.scale * k.scale));
        for (q, k) in queries.iter_mut().zip(keys) {
            let spare = (product / (q.scale * k.scale)).sqrt();
            q.scale *= spare;
            k.scale *= spare;
        }
    }
    ranges
}

/// Mean of each channel, exact and as its integers keep it.
pub(super) fn means(seen: &Channels, ranges: &[Range]) -> (Vec<f64>, Vec<f64>) {
    let mut lost = vec![0.0; ranges.len()];
    let rows = seen.rows.chunks_exact(seen.width().max(1));
    let count = rows.len().max(1) as f64;
    for row in rows {
        for ((lost, &x), range) in lost.iter_mut().zip(row).zip(ranges) {
            *lost += (f64::from(x) - range.keep(x.into())) / count;
        }
    }
    let exact = seen.mean();
    let kept = exact.iter().zip(&lost).map(|(mean, lost)| mean - lost).collect();
    (exact, kept)
}

/// Mean of each hidden channel after GELU, exact and as the table gives it.
pub(super) fn hidden_means(before: &Channels, ranges: &GeluRanges, table: &[i8; 256]) -> (Vec<f64>, Vec<f64>) {
    let (mut exact, mut kept) = (vec![0.0; before.width()], vec![0.0; before.width()]);
    let rows = before.rows.chunks_exact(before.width().max(1));
    let count = rows.len().max(1) as f64;
    for row in rows {
        for ((exact, kept), &x) in exact.iter_mut().zip(&mut kept).zip(row) {
            *exact += gelu(x.into()) / count;
            *kept += ranges.output(table, x.into()) / count;
        }
    }
    (exact, kept)
}
