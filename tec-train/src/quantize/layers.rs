//! The constants of linear layers.

use tec_edge::{Precision, int4, panel};

use super::fixed::{self, Multipliers};
use super::ranges::Range;
use super::rounding::{self, Feedback};
use crate::Result;

/// A linear layer in integers.
pub(super) struct QuantizedLinear {
    /// Weights in panels, as the encoder file has them.
    pub(super) panels: Vec<u8>,
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
    pub(super) precision: Precision,
    /// How the inputs go together, if it is known.
    pub(super) feedback: Option<Feedback>,
}

impl RealLinear<'_> {
    /// Weights with one scale a row, the inputs' scales absorbed; biases and multipliers.
    pub(super) fn quantize(&self) -> Result<QuantizedLinear> {
        let inputs = self.inputs.len();
        let rows = || self.weight.chunks_exact(inputs);
        let absorbed: Vec<f64> = rows()
            .flat_map(|row| row.iter().zip(self.inputs).map(|(&w, r)| f64::from(w) * r.scale))
            .collect();
        let offsets = rows().zip(self.bias).zip(self.outputs).map(|((row, &b), output)| {
            let centers = row.iter().zip(self.inputs).map(|(&w, r)| f64::from(w) * r.center);
            f64::from(b) - output.center + centers.sum::<f64>()
        });
        let mut offsets: Vec<f64> = offsets.collect();
        // Rows of zeros, or nearly: the bias must still fit.
        let least = offsets.iter().zip(self.outputs);
        let least = least.map(|(offset, output)| (offset.abs() * 2f64.powi(-28)).max(output.scale * 2f64.powi(-24)));
        let least: Vec<f64> = least.collect();
        let rounded = rounding::round(&absorbed, &least, self.precision, self.feedback.as_ref());
        if let Some((exact, kept)) = self.means {
            let integers = rounded.weight.chunks_exact(inputs).zip(&rounded.steps);
            for ((offset, row), (integers, step)) in offsets.iter_mut().zip(rows()).zip(integers) {
                for ((((&w, &q), r), mean), kept) in row.iter().zip(integers).zip(self.inputs).zip(exact).zip(kept) {
                    *offset += f64::from(w) * (mean - r.center) - f64::from(q) * step * (kept - r.center) / r.scale;
                }
            }
        }
        let limit = 2f64.powi(30);
        let scaled = offsets.iter().zip(&rounded.steps);
        let bias = scaled
            .map(|(offset, step)| (offset / step).round().clamp(-limit, limit) as i32)
            .collect();
        let real: Vec<f64> = rounded
            .steps
            .iter()
            .zip(self.outputs)
            .map(|(step, output)| step / output.scale)
            .collect();
        let panels = match (&rounded.four, self.precision) {
            (Some((q, scales)), Precision::Int4 { group }) => {
                let mut panels = vec![0; int4::panels_len(real.len(), inputs, group)];
                int4::pack(q, scales, inputs, group, &mut panels);
                panels
            }
            _ => {
                let mut panels = vec![0; panel::panels_len(real.len(), inputs)];
                panel::pack(&rounded.weight, inputs, bytemuck::cast_slice_mut(&mut panels));
                panels
            }
        };
        Ok(QuantizedLinear {
            panels,
            bias,
            multipliers: fixed::multipliers(self.name, &real)?,
        })
    }
}
