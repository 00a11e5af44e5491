//! From an f32 encoder and its calibration to the bytes of an encoder file.

use std::collections::HashMap;

use tec_core::integer::{EXP_STEPS_PER_UNIT, MEAN_BITS, gelu_table};
use tec_edge::format::{self, Header, Section};
use tec_edge::{Geometry, Precision};

use super::calibration::Calibration;
use super::fixed;
use super::layers::{QuantizedLinear, RealLinear};
use super::ranges::{MARGIN, Range, equalize, extents, gelu_ranges, hidden_means, means, qkv_ranges};
use super::rounding::Feedback;
use crate::data::Normalization;
use crate::model::{Head, Pool, Site, Vit};
use crate::{Error, Result};

/// LayerNorm's epsilon in every encoder.
const EPSILON: f64 = 1e-6;
/// How much larger than on the calibration images the residual stream and the outputs may become before they saturate.
const HEADROOM: f64 = 1.5;

/// What an encoder is to become.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Kept in the file, cut to 255 bytes.
    pub name: &'a str,
    /// Which output is meant as the embedding, and enters the head.
    pub pool: Pool,
    /// How the blocks' weights are kept.
    pub precision: Precision,
    /// A classification head for the logits.
    pub head: Option<&'a Head>,
}

impl Default for Target<'_> {
    /// Weights of 8 bits, the mean as embedding, neither name nor head.
    fn default() -> Self {
        Self {
            name: "",
            pool: Pool::Mean,
            precision: Precision::Int8,
            head: None,
        }
    }
}

/// Quantizes an encoder: returns the bytes of its `encoder.tec`.
///
/// # Errors
/// [`Error::Usage`] for a geometry that the file cannot hold or a normalization of other channels, [`Error::Data`] without
/// calibration, when a scale is out of range or the head is for other embeddings.
pub fn quantize(
    vit: &Vit,
    normalization: &Normalization,
    target: &Target<'_>,
    calibration: &Calibration,
) -> Result<Vec<u8>> {
    vit.require_quantizable("encoder.tec")?;
    let Target {
        name,
        pool,
        precision,
        head,
    } = *target;
    let config = vit.config();
    normalization.validate(config.channels)?;
    let geometry = Geometry {
        image_size: config.image_size,
        patch_size: config.patch_size,
        channels: config.channels,
        dim: config.dim,
        depth: config.depth,
        heads: config.heads,
        hidden: config.hidden(),
    };
    geometry.validate().map_err(|e| refused(&e))?;
    let weights = weights(vit)?;
    let mut builder = Builder {
        weights,
        calibration,
        geometry,
        precision,
        residual_bits: 0,
        drop: 0,
        sections: HashMap::new(),
    };
    builder.choose_residual_bits(0)?;
    let residual_bits = builder.residual_bits;
    let patch_shift = builder.patch_embed(normalization)?;
    for block in 0..config.depth {
        builder.choose_residual_bits(block)?;
        builder.attention(block)?;
        builder.mlp(block)?;
    }
    let fc_norm = vit.variant().pooled_norm;
    let norm_bits = builder.final_norm(if fc_norm { "fc_norm" } else { "norm" })?;
    let used = |values: &[f32]| std::array::from_fn(|i| values.get(i).copied().unwrap_or(0.0));
    let finest = norm_bits as i8 - 1;
    let largest = |pool| calibration.pooled(pool).largest();
    let (class_bits, patch_bits) = match fc_norm {
        // The tokens themselves.
        true => (builder.residual_bits, builder.residual_bits),
        false => (
            bits(largest(Pool::Cls), 14).min(finest),
            bits(calibration.largest_patch, 14).min(finest),
        ),
    };
    let mean_bits = bits(largest(Pool::Mean), 14);
    let mean_bits = if fc_norm { mean_bits.min(finest) } else { mean_bits };
    let head = match (head, pool) {
        (None, _) => None,
        (Some(head), Pool::Cls) => Some(builder.head(head, pool, class_bits)?),
        (Some(head), Pool::Mean) => Some(builder.head(head, pool, mean_bits)?),
    };
    let name = cut(name);
    let header = Header {
        geometry,
        pool: match pool {
            Pool::Cls => tec_edge::Pool::Class,
            Pool::Mean => tec_edge::Pool::Mean,
        },
        fc_norm,
        head,
        precision,
        name_len: name.len() as u8,
        residual_bits,
        epsilon: builder.epsilon(),
        patch_shift,
        norm_bits,
        class_bits,
        mean_bits,
        patch_bits,
        normalization: format::Normalization {
            mean: used(&normalization.mean),
            std: used(&normalization.std),
        },
    };
    let mut file = vec![0; format::file_len(&header).map_err(|e| refused(&e))?];
    builder
        .sections
        .insert((Section::Name as u16, 0), name.as_bytes().to_vec());
    let mut missing = None;
    format::write(&header, &mut file, |section, block, bytes| {
        match builder.sections.get(&(section as u16, block)) {
            Some(content) if content.len() == bytes.len() => bytes.copy_from_slice(content),
            _ => missing = Some((section, block)),
        }
    })
    .map_err(|e| refused(&e))?;
    match missing {
        None => Ok(file),
        Some((section, block)) => Err(Error::Data(format!(
            "section {section:?} of block {block} does not fit the encoder's geometry: load the encoder again"
        ))),
    }
}

fn refused(error: &tec_edge::Error) -> Error {
    Error::Usage(format!("this encoder cannot be quantized: {error}"))
}

/// Fractional bits with which numbers up to `largest`, and [`HEADROOM`] times that, fit in 15 bits and a sign; at most `finest`.
pub(super) fn bits(largest: f64, finest: i8) -> i8 {
    let bits = (32_767.0 / (largest * HEADROOM).max(1e-3)).log2().floor();
    bits.clamp(-16.0, finest.into()) as i8
}

fn cut(name: &str) -> &str {
    let mut end = name.len().min(format::MAX_NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

fn weights(vit: &Vit) -> Result<HashMap<String, Vec<f32>>> {
    let all = vit.weights().iter();
    all.map(|(name, tensor)| {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        if values.iter().all(|x| x.is_finite()) {
            Ok((name.clone(), values))
        } else {
            Err(Error::Data(format!(
                "parameter {name} is not finite: the encoder cannot be quantized"
            )))
        }
    })
    .collect()
}

pub(super) struct Builder<'a> {
    weights: HashMap<String, Vec<f32>>,
    pub(super) calibration: &'a Calibration,
    geometry: Geometry,
    precision: Precision,
    /// The residual stream's scale is 2^-`residual_bits` in the block at hand.
    residual_bits: i8,
    /// Bits dropped before the block at hand.
    drop: u8,
    sections: HashMap<(u16, usize), Vec<u8>>,
}

impl Builder<'_> {
    pub(super) fn dim(&self) -> usize {
        self.geometry.dim
    }

    fn weight(&self, name: &str) -> Result<&[f32]> {
        let found = self.weights.get(name).map(Vec::as_slice);
        found.ok_or_else(|| Error::Data(format!("the encoder has no parameter {name}")))
    }

    /// As fine a scale for a block's residual stream as its extent allows, but no finer than the block's before.
    fn choose_residual_bits(&mut self, block: usize) -> Result<()> {
        let largest = |block| Ok::<f64, Error>(self.calibration.channels(Site::Residual, block)?.largest());
        let bits = bits(largest(block)?.max(largest(block.saturating_sub(1))?), 14);
        if block == 0 {
            self.residual_bits = bits;
        } else {
            let bits = bits.clamp(self.residual_bits - format::MAX_DROP as i8, self.residual_bits);
            self.drop = (self.residual_bits - bits) as u8;
            self.residual_bits = bits;
        }
        Ok(())
    }

    /// LayerNorm's epsilon in the integers of the residual stream.
    fn epsilon(&self) -> u64 {
        let squared_width = (self.dim() as f64).powi(2);
        (EPSILON * squared_width * 4f64.powi(self.residual_bits.into()))
            .round()
            .max(1.0) as u64
    }

    /// What the residual stream's integers stand for.
    fn residual(&self) -> Vec<Range> {
        let range = Range {
            scale: 2f64.powi(-i32::from(self.residual_bits)),
            center: 0.0,
        };
        vec![range; self.dim()]
    }

    fn put(&mut self, section: Section, block: usize, bytes: Vec<u8>) {
        self.sections.insert((section as u16, block), bytes);
    }

    pub(super) fn put_words(&mut self, section: Section, block: usize, words: &[i32]) {
        self.put(section, block, words.iter().flat_map(|w| w.to_le_bytes()).collect());
    }

    /// Puts a layer's weights, biases and multipliers into three sections; returns its shift.
    pub(super) fn put_linear(&mut self, sections: [Section; 3], block: usize, layer: &QuantizedLinear) -> u8 {
        self.put(sections[0], block, layer.panels.clone());
        self.put_words(sections[1], block, &layer.bias);
        self.put_words(sections[2], block, &layer.multipliers.mantissas);
        layer.multipliers.shift
    }

    /// Pixels, normalization and all, into the residual stream.
    fn patch_embed(&mut self, normalization: &Normalization) -> Result<u8> {
        let (dim, channels) = (self.dim(), self.geometry.channels);
        let size = self.geometry.patch_size;
        let stored = self.weight("patch_embed.proj.weight")?;
        let mut weight = Vec::with_capacity(stored.len());
        for row in stored.chunks_exact(channels * size * size) {
            for y in 0..size {
                for x in 0..size {
                    weight.extend((0..channels).map(|c| row[(c * size + y) * size + x]));
                }
            }
        }
        // The integer q is the pixel minus 128.
        let pixel = |c: usize| {
            let (mean, std) = (f64::from(normalization.mean[c]), f64::from(normalization.std[c]));
            Range {
                scale: 1.0 / (255.0 * std),
                center: (128.0 / 255.0 - mean) / std,
            }
        };
        let inputs: Vec<Range> = (0..channels * size * size).map(|i| pixel(i % channels)).collect();
        let layer = RealLinear {
            name: "patch_embed.proj",
            weight: &weight,
            bias: self.weight("patch_embed.proj.bias")?,
            inputs: &inputs,
            outputs: &self.residual(),
            means: None,
            precision: Precision::Int8,
            feedback: None,
        }
        .quantize()?;
        let sections = [Section::PatchWeight, Section::PatchBias, Section::PatchMultiplier];
        let shift = self.put_linear(sections, 0, &layer);

        let scale = 2f64.powi(i32::from(self.residual_bits));
        let halves = |values: &mut dyn Iterator<Item = f64>| -> Vec<u8> {
            let rounded = values.map(|x| (x * scale).round().clamp(-32_768.0, 32_767.0) as i16);
            rounded.flat_map(i16::to_le_bytes).collect()
        };
        let positions = self.weight("pos_embed")?;
        let class = self.weight("cls_token")?.iter().zip(positions);
        let class = halves(&mut class.map(|(&t, &p)| f64::from(t) + f64::from(p)));
        let positions = halves(&mut positions[dim..].iter().map(|&p| f64::from(p)));
        self.put(Section::ClassToken, 0, class);
        self.put(Section::Position, 0, positions);
        Ok(shift)
    }

    /// A LayerNorm whose outputs have these ranges; returns its bits.
    fn norm(&mut self, name: &str, sections: [Section; 2], block: usize, outputs: &[Range]) -> Result<u8> {
        let gamma = self.weight(&format!("{name}.weight"))?;
        let beta = self.weight(&format!("{name}.bias"))?;
        let multipliers: Vec<f64> = gamma
            .iter()
            .zip(outputs)
            .map(|(&g, r)| f64::from(g) / r.scale)
            .collect();
        let offsets: Vec<f64> = beta
            .iter()
            .zip(outputs)
            .map(|(&b, r)| (f64::from(b) - r.center) / r.scale)
            .collect();
        let affine = fixed::affine(name, &multipliers, &offsets)?;
        self.put_words(sections[0], block, &affine.multipliers);
        self.put_words(sections[1], block, &affine.offsets);
        Ok(affine.bits)
    }

    fn attention(&mut self, block: usize) -> Result<()> {
        let name = |part: &str| format!("blocks.{block}.{part}");
        let (dim, width) = (self.dim(), self.geometry.head_width());
        let seen = self.calibration.channels(Site::Qkv, block)?;
        let outputs = qkv_ranges(seen, dim, width);
        let weight = self.weight(&name("attn.qkv.weight"))?;
        let matter: Vec<f64> = outputs.iter().map(|r| r.scale.max(1e-9)).collect();
        let seen = self.calibration.channels(Site::Norm1, block)?;
        let inputs = equalize(&extents(seen), seen, weight, &matter);
        let (exact, kept) = means(seen, &inputs);
        let qkv = RealLinear {
            name: &name("attn.qkv"),
            weight,
            bias: self.weight(&name("attn.qkv.bias"))?,
            inputs: &inputs,
            outputs: &outputs,
            means: Some((&exact, &kept)),
            precision: self.precision,
            feedback: Feedback::new(&seen.covariance, &inputs),
        }
        .quantize()?;
        let norm_shift = self.norm(
            &name("norm1"),
            [Section::Norm1Multiplier, Section::Norm1Offset],
            block,
            &inputs,
        )?;
        let qkv_shift = self.put_linear(
            [Section::QkvWeight, Section::QkvBias, Section::QkvMultiplier],
            block,
            &qkv,
        );

        // One score of a head in real numbers, and its steps in the table of exponentials.
        let per_score = outputs[..dim].iter().zip(&outputs[dim..2 * dim]).step_by(width);
        let steps: Vec<f64> = per_score
            .map(|(q, k)| q.scale * k.scale / (width as f64).sqrt() * EXP_STEPS_PER_UNIT as f64)
            .collect();
        let softmax = fixed::multipliers(&name("attn softmax"), &steps)?;
        self.put_words(Section::SoftmaxMultiplier, block, &softmax.mantissas);

        // The mean of the values has their center, whatever the weights.
        let values = &outputs[2 * dim..];
        let seen = self.calibration.channels(Site::Attention, block)?;
        let extent: Vec<Range> = (0..dim)
            .map(|c| {
                let center = values[c].center;
                let (min, max) = (f64::from(seen.min[c]), f64::from(seen.max[c]));
                Range {
                    scale: (max - center).max(center - min) * MARGIN,
                    center,
                }
            })
            .collect();
        let weight = self.weight(&name("attn.proj.weight"))?;
        let inputs = equalize(&extent, seen, weight, &vec![1.0; dim]);
        let (exact, kept) = means(seen, &inputs);
        let proj = RealLinear {
            name: &name("attn.proj"),
            weight,
            bias: self.weight(&name("attn.proj.bias"))?,
            inputs: &inputs,
            outputs: &self.residual(),
            means: Some((&exact, &kept)),
            precision: self.precision,
            feedback: Feedback::new(&seen.covariance, &inputs),
        }
        .quantize()?;
        let proj_shift = self.put_linear(
            [Section::ProjWeight, Section::ProjBias, Section::ProjMultiplier],
            block,
            &proj,
        );
        let mean_step = 2f64.powi(-(MEAN_BITS as i32));
        let ratios: Vec<f64> = values
            .iter()
            .zip(&inputs)
            .map(|(v, r)| v.scale / r.scale * mean_step)
            .collect();
        let attention = fixed::multipliers(&name("attn values"), &ratios)?;
        self.put_words(Section::AttentionMultiplier, block, &attention.mantissas);
        let mut scales = vec![0; format::SCALES_LEN];
        scales[..5].copy_from_slice(&[norm_shift, qkv_shift, softmax.shift, attention.shift, proj_shift]);
        scales[8] = self.drop;
        scales[format::SCALES_EPSILON_AT..][..8].copy_from_slice(&self.epsilon().to_le_bytes());
        self.put(Section::Scales, block, scales);
        Ok(())
    }

    fn mlp(&mut self, block: usize) -> Result<()> {
        let name = |part: &str| format!("blocks.{block}.{part}");
        let hidden = self.geometry.hidden;
        let before = self.calibration.channels(Site::Fc1, block)?;
        let ranges = gelu_ranges(before);
        let table = gelu_table(
            ranges.input_scale,
            ranges.input_zero,
            ranges.output_scale,
            ranges.output_zero,
        );
        let weight = self.weight(&name("mlp.fc1.weight"))?;
        let seen = self.calibration.channels(Site::Norm2, block)?;
        let inputs = equalize(&extents(seen), seen, weight, &vec![1.0; hidden]);
        let (exact, kept) = means(seen, &inputs);
        let before_range = Range {
            scale: ranges.input_scale,
            center: -ranges.input_zero * ranges.input_scale,
        };
        let fc1 = RealLinear {
            name: &name("mlp.fc1"),
            weight,
            bias: self.weight(&name("mlp.fc1.bias"))?,
            inputs: &inputs,
            outputs: &vec![before_range; hidden],
            means: Some((&exact, &kept)),
            precision: self.precision,
            feedback: Feedback::new(&seen.covariance, &inputs),
        }
        .quantize()?;
        let after_range = Range {
            scale: ranges.output_scale,
            center: -f64::from(ranges.output_zero) * ranges.output_scale,
        };
        let (exact, kept) = hidden_means(before, &ranges, &table);
        let after = vec![after_range; hidden];
        let fc2 = RealLinear {
            name: &name("mlp.fc2"),
            weight: self.weight(&name("mlp.fc2.weight"))?,
            bias: self.weight(&name("mlp.fc2.bias"))?,
            inputs: &after,
            outputs: &self.residual(),
            means: Some((&exact, &kept)),
            precision: self.precision,
            feedback: Feedback::new(&self.calibration.channels(Site::Hidden, block)?.covariance, &after),
        }
        .quantize()?;
        let norm_shift = self.norm(
            &name("norm2"),
            [Section::Norm2Multiplier, Section::Norm2Offset],
            block,
            &inputs,
        )?;
        let fc1_shift = self.put_linear(
            [Section::Fc1Weight, Section::Fc1Bias, Section::Fc1Multiplier],
            block,
            &fc1,
        );
        let fc2_shift = self.put_linear(
            [Section::Fc2Weight, Section::Fc2Bias, Section::Fc2Multiplier],
            block,
            &fc2,
        );
        self.put(Section::GeluTable, block, table.iter().map(|&x| x as u8).collect());
        if let Some(scales) = self.sections.get_mut(&(Section::Scales as u16, block)) {
            scales[5..8].copy_from_slice(&[norm_shift, fc1_shift, fc2_shift]);
        }
        Ok(())
    }

    /// The final norm in real numbers; returns its bits.
    fn final_norm(&mut self, name: &str) -> Result<u8> {
        let real = vec![
            Range {
                scale: 1.0,
                center: 0.0
            };
            self.dim()
        ];
        self.norm(name, [Section::NormMultiplier, Section::NormOffset], 0, &real)
    }
}
