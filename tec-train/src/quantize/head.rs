//! The classification head in integers.

use tec_core::integer::NORM_BITS;
use tec_edge::Precision;
use tec_edge::format::{self, Section};

use super::encoder::{Builder, bits};
use super::fixed;
use super::layers::RealLinear;
use super::ranges::{Range, equalize, extents, means};
use super::rounding::Feedback;
use crate::model::{Head, Pool};
use crate::{Error, Result};

impl Builder<'_> {
    /// The classification head on embeddings whose scale is 2^-`embedding_bits`.
    pub(super) fn head(&mut self, head: &Head, pool: Pool, embedding_bits: i8) -> Result<format::Head> {
        let (dim, classes) = (self.dim(), head.classes());
        if head.weight.len() != classes * dim {
            return Err(Error::Data(format!(
                "a head of {} weights and {classes} biases is none for embeddings of width {dim}",
                head.weight.len()
            )));
        }
        let seen = self.calibration.pooled(pool);
        let inputs = equalize(&extents(seen), seen, &head.weight, &vec![1.0; classes]);
        let (exact, kept) = means(seen, &inputs);
        let logits = seen.rows.chunks_exact(dim).flat_map(|embedding| head.logits(embedding));
        let logit_bits = bits(logits.fold(0.0f64, |max, x| max.max(x.abs().into())), 14);
        let output = Range {
            scale: 2f64.powi(-i32::from(logit_bits)),
            center: 0.0,
        };
        let layer = RealLinear {
            name: "head",
            weight: &head.weight,
            bias: &head.bias,
            inputs: &inputs,
            outputs: &vec![output; classes],
            means: Some((&exact, &kept)),
            precision: Precision::Int8,
            feedback: Feedback::new(&seen.covariance, &inputs),
        }
        .quantize()?;
        let shift = self.put_linear(
            [Section::HeadWeight, Section::HeadBias, Section::HeadMultiplier],
            0,
            &layer,
        );
        // The embedding's integers as if they were normalized values.
        let unit = 2f64.powi(NORM_BITS as i32 - i32::from(embedding_bits));
        let multipliers: Vec<f64> = inputs.iter().map(|r| unit / r.scale).collect();
        let offsets: Vec<f64> = inputs.iter().map(|r| -r.center / r.scale).collect();
        let affine = fixed::affine("the head's inputs", &multipliers, &offsets)?;
        self.put_words(Section::HeadNormMultiplier, 0, &affine.multipliers);
        self.put_words(Section::HeadNormOffset, 0, &affine.offsets);
        Ok(format::Head {
            classes,
            norm_bits: affine.bits,
            shift,
            logit_bits,
        })
    }
}
