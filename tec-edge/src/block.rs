//! One block: attention, one head at a time, and the MLP, one tile of tokens at a time.

use tec_core::integer::{
    GELU_TABLE_LEN, gelu, round_shift, saturate_i8, saturate_i16, scale, softmax_weights, weighted_mean,
};

use crate::format::{BlockScales, File, Section, place_in_block, section_index};
use crate::layers::{Linear, Norm};
use crate::plan::{AttentionBuffers, MlpBuffers, TILE};
use crate::trace::{Stage, Trace, TraceValues};
use crate::views::{I32s, part, part_mut};
use crate::{Error, kernel};

/// The constants of one block.
pub(crate) struct Block<'a> {
    /// Its number, for traces.
    index: usize,
    dim: usize,
    drop: u32,
    heads: usize,
    norm1: Norm<'a>,
    qkv: Linear<'a>,
    softmax_multiplier: I32s<'a>,
    softmax_shift: u32,
    attention_multiplier: I32s<'a>,
    attention_shift: u32,
    proj: Linear<'a>,
    norm2: Norm<'a>,
    fc1: Linear<'a>,
    gelu: &'a [i8; GELU_TABLE_LEN],
    fc2: Linear<'a>,
}

impl<'a> Block<'a> {
    pub(crate) fn read(file: &File<'a>, block: usize) -> Result<Self, Error> {
        // The file was validated, so neither happens.
        let invalid = |section| Error::Section {
            section,
            block: block as u32,
            reason: "its values are not valid",
        };
        let section = |section| file.section(section_index(block, place_in_block(section)));
        let scales = BlockScales::read(section(Section::Scales)).ok_or(invalid(Section::Scales))?;
        let dim = file.header.geometry.dim;
        let epsilon = scales.epsilon;
        let linear = |weight, bias, multiplier, inner, shift| Linear {
            weight: bytemuck::cast_slice(section(weight)),
            inner,
            bias: I32s(section(bias)),
            multiplier: I32s(section(multiplier)),
            shift,
        };
        let norm = |multiplier, offset, bits| Norm {
            multiplier: I32s(section(multiplier)),
            offset: I32s(section(offset)),
            bits,
            epsilon,
        };
        let table: &[i8] = bytemuck::cast_slice(section(Section::GeluTable));
        use Section::*;
        Ok(Self {
            index: block,
            dim,
            drop: scales.drop,
            heads: file.header.geometry.heads,
            norm1: norm(Norm1Multiplier, Norm1Offset, scales.norm1),
            qkv: linear(QkvWeight, QkvBias, QkvMultiplier, dim, scales.qkv),
            softmax_multiplier: I32s(section(SoftmaxMultiplier)),
            softmax_shift: scales.softmax,
            attention_multiplier: I32s(section(AttentionMultiplier)),
            attention_shift: scales.attention,
            proj: linear(ProjWeight, ProjBias, ProjMultiplier, dim, scales.proj),
            norm2: norm(Norm2Multiplier, Norm2Offset, scales.norm2),
            fc1: linear(Fc1Weight, Fc1Bias, Fc1Multiplier, dim, scales.fc1),
            gelu: table.first_chunk().ok_or(invalid(GeluTable))?,
            fc2: linear(
                Fc2Weight,
                Fc2Bias,
                Fc2Multiplier,
                file.header.geometry.hidden,
                scales.fc2,
            ),
        })
    }

    /// Brings `tokens` to the scale of this block's residual stream.
    pub(crate) fn rescale(&self, tokens: &mut [i16]) {
        if self.drop > 0 {
            for x in tokens {
                *x = saturate_i16(round_shift(i64::from(*x), self.drop));
            }
        }
    }

    /// Adds the attention's output to `tokens`, `[.., dim]`.
    pub(crate) fn attention(&self, tokens: &mut [i16], mut buffers: AttentionBuffers<'_>, trace: &mut impl Trace) {
        for head in 0..self.heads {
            self.keys_and_values(head, tokens, &mut buffers, trace);
            self.attend(head, tokens, &mut buffers, trace);
        }
        trace.record(Stage::Attention, self.index, 0, TraceValues::I8(buffers.joined));
        let tile_len = (TILE * self.dim).max(1);
        for (tile, joined) in tokens.chunks_mut(tile_len).zip(buffers.joined.chunks(tile_len)) {
            self.add_layer(&self.proj, joined, tile);
        }
    }

    /// Adds the MLP's output to `tokens`, `[.., dim]`.
    pub(crate) fn mlp(&self, tokens: &mut [i16], buffers: MlpBuffers<'_>, trace: &mut impl Trace) {
        let hidden_len = self.fc2.inner;
        for (tile_index, tile) in tokens.chunks_mut((TILE * self.dim).max(1)).enumerate() {
            let first = tile_index * TILE;
            let normalized = self.norm2.tile(tile, self.dim, buffers.normalized);
            trace.record(Stage::Norm2, self.index, first * self.dim, TraceValues::I8(normalized));
            self.fc1.apply(normalized, |token, output, value| {
                let before = saturate_i8(value);
                let at = (first + token) * hidden_len + output;
                trace.record(Stage::Fc1, self.index, at, TraceValues::I8(&[before]));
                if let Some(slot) = buffers.hidden.get_mut(token * hidden_len + output) {
                    *slot = gelu(self.gelu, before);
                }
            });
            let count = tile.len() / self.dim.max(1);
            let hidden = part(buffers.hidden, 0, count * hidden_len);
            trace.record(Stage::Hidden, self.index, first * hidden_len, TraceValues::I8(hidden));
            self.add_layer(&self.fc2, hidden, tile);
        }
    }

    /// Adds a layer's outputs to a tile of the residual stream.
    fn add_layer(&self, layer: &Linear<'_>, inputs: &[i8], tile: &mut [i16]) {
        layer.apply(inputs, |token, output, value| {
            if let Some(slot) = tile.get_mut(token * self.dim + output) {
                *slot = slot.saturating_add(saturate_i16(value));
            }
        });
    }

    fn keys_and_values(&self, head: usize, tokens: &[i16], buffers: &mut AttentionBuffers<'_>, trace: &mut impl Trace) {
        let count = buffers.scores.len();
        let width = self.dim / self.heads.max(1);
        let keys = self.qkv.outputs(self.dim + head * width, width);
        let values = self.qkv.outputs(2 * self.dim + head * width, width);
        for (tile_index, tile) in tokens.chunks((TILE * self.dim).max(1)).enumerate() {
            let first = tile_index * TILE;
            let normalized = self.norm1.tile(tile, self.dim, buffers.normalized);
            if head == 0 {
                trace.record(Stage::Norm1, self.index, first * self.dim, TraceValues::I8(normalized));
            }
            keys.apply(normalized, |token, output, value| {
                if let Some(slot) = buffers.keys.get_mut((first + token) * width + output) {
                    *slot = saturate_i8(value);
                }
            });
            values.apply(normalized, |token, output, value| {
                if let Some(slot) = buffers.values.get_mut(output * count + first + token) {
                    *slot = saturate_i8(value);
                }
            });
        }
        let start = head * count * width;
        trace.record(Stage::Keys, self.index, start, TraceValues::I8(buffers.keys));
        trace.record(Stage::Values, self.index, start, TraceValues::I8(buffers.values));
    }

    fn attend(&self, head: usize, tokens: &[i16], buffers: &mut AttentionBuffers<'_>, trace: &mut impl Trace) {
        let count = buffers.scores.len();
        let width = self.dim / self.heads.max(1);
        let queries = self.qkv.outputs(head * width, width);
        let softmax_multiplier = self.softmax_multiplier.get(head).unwrap_or(0);
        let multipliers = self.attention_multiplier.part(head * width, width);
        for (tile_index, tile) in tokens.chunks((TILE * self.dim).max(1)).enumerate() {
            let normalized = self.norm1.tile(tile, self.dim, buffers.normalized);
            queries.apply(normalized, |token, output, value| {
                if let Some(slot) = buffers.queries.get_mut(token * width + output) {
                    *slot = saturate_i8(value);
                }
            });
            let in_tile = tile.len() / self.dim.max(1);
            let first = head * count + tile_index * TILE;
            let in_use = part(buffers.queries, 0, in_tile * width);
            trace.record(Stage::Queries, self.index, first * width, TraceValues::I8(in_use));
            for (t, query) in buffers.queries.chunks_exact(width.max(1)).take(in_tile).enumerate() {
                for (score, key) in buffers.scores.iter_mut().zip(buffers.keys.chunks_exact(width.max(1))) {
                    *score = kernel::dot(query, key);
                }
                let sum = softmax_weights(buffers.scores, softmax_multiplier, self.softmax_shift, buffers.weights);
                let row = TraceValues::I16(buffers.weights);
                trace.record(Stage::Weights, self.index, (first + t) * count, row);
                let mean = weighted_mean(sum);
                let out = part_mut(buffers.joined, (tile_index * TILE + t) * self.dim + head * width, width);
                let rows = buffers.values.chunks_exact(count.max(1));
                for ((slot, values), multiplier) in out.iter_mut().zip(rows).zip(multipliers.iter()) {
                    let total = kernel::dot_weights(buffers.weights, values);
                    *slot = saturate_i8(scale(mean(total), multiplier, self.attention_shift));
                }
            }
        }
    }
}
