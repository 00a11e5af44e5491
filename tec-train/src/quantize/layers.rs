//! The constants of linear layers.

use super::fixed::{self, Multipliers};
use super::ranges::Range;
use crate::Result;

/// A linear layer in integers.
pub(super) struct QuantizedLinear {
    pub(super) weight: Vec<i8>,
    pub(super) bias: Vec<i32>,
    pub(super) multipliers: Multipliers,
}

/// A linear layer in real numbers, and what is to become of it.
pub(super) struct RealLinear<'a> {
    /// For messages.
    pub(super) name: &'a str,
    /// `[outputs, inputs]`.
    pub(super) weight: &'a [f32],
    /// `[outputs]`.
    pub(super) bias: &'a [f32],
    /// What the input integers stand for.
    pub(super) inputs: &'a [Range],
    /// What the output integers stand for.
    pub(super) outputs: &'a [Range],
    /// Mean of each input, exact and as its integers keep it: the mean error of the outputs goes into the bias.
    pub(super) means: Option<(&'a [f64], &'a [f64])>,
}

impl RealLinear<'_> {
    /// Weights of -127 ..= 127, one scale a row, with the inputs' scales absorbed; biases and multipliers.
    pub(super) fn quantize(&self) -> Result<QuantizedLinear> {
        let inputs = self.inputs.len();
        let mut weight = Vec::with_capacity(self.weight.len());
        let mut bias = Vec::with_capacity(self.bias.len());
        let mut real = Vec::with_capacity(self.bias.len());
        for ((row, &b), output) in self.weight.chunks_exact(inputs).zip(self.bias).zip(self.outputs) {
            let absorbed: Vec<f64> = row
                .iter()
                .zip(self.inputs)
                .map(|(&w, r)| f64::from(w) * r.scale)
                .collect();
            let largest = absorbed.iter().fold(0.0f64, |max, w| max.max(w.abs()));
            let mut offset = f64::from(b) - output.center;
            offset += row
                .iter()
                .zip(self.inputs)
                .map(|(&w, r)| f64::from(w) * r.center)
                .sum::<f64>();
            // Rows of zeros, or nearly: the bias must still fit.
            let step = (largest / 127.0)
                .max(offset.abs() * 2f64.powi(-28))
                .max(output.scale * 2f64.powi(-24));
            let integers: Vec<i8> = absorbed
                .iter()
                .map(|w| (w / step).round().clamp(-127.0, 127.0) as i8)
                .collect();
            if let Some((exact, kept)) = self.means {
                for ((((&w, &q), r), mean), kept) in row.iter().zip(&integers).zip(self.inputs).zip(exact).zip(kept) {
                    offset += f64::from(w) * (mean - r.center) - f64::from(q) * step * (kept - r.center) / r.scale;
                }
            }
            bias.push((offset / step).round().clamp(-2f64.powi(30), 2f64.powi(30)) as i32);
            real.push(step / output.scale);
            weight.extend(integers);
        }
        Ok(QuantizedLinear {
            weight,
            bias,
            multipliers: fixed::multipliers(self.name, &real)?,
        })
    }
}
