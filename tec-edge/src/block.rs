//! One block, in two passes over the tokens: all keys and values first, then everything else, a tile of rows at a time.
//!
//! A token's attention needs the keys and values of all tokens before any changes; after that, nothing in a block mixes tokens. So the
//! second pass takes a tile through attention, projection and MLP at once, and the first norm is computed twice instead of kept,
//! unless one tile holds all tokens.

use bytemuck::Zeroable;
use tec_core::integer::{GELU_TABLE_LEN, WeightedMean, round_shift, saturate_i8, saturate_i16};

use crate::Error;
use crate::format::{BlockScales, File, Section};
use crate::kernel::{Group, Kernel, Lanes};
use crate::layers::{Linear, Norm, stride};
use crate::panel::{PANEL, QUAD, padded, place};
use crate::plan::{Part, Plan, Rest};
use crate::trace::{Stage, Trace, TraceValues};
use crate::views::{I32s, part, part_mut};

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
        let section = |section| file.of_block(block, section);
        let scales = BlockScales::read(section(Section::Scales)).ok_or(invalid(Section::Scales))?;
        let dim = file.header.geometry.dim;
        let epsilon = scales.epsilon;
        let linear = |weight, bias, multiplier, inner, shift| Linear {
            weight: section(weight),
            precision: file.header.precision,
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
        // Of the same size and alignment: it cannot fail.
        let table: &[i8] = bytemuck::try_cast_slice(section(Section::GeluTable)).unwrap_or_default();
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

    /// First pass, of one worker: brings its tokens to the scale of this block's residual stream and keeps their keys and values.
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    pub(crate) fn keys_and_values<K: Kernel, T: Trace>(
        &self,
        kernel: K,
        plan: &Plan,
        rows: usize,
        work: Part<'_>,
        trace: &mut T,
    ) -> Option<()> {
        let Part {
            workers, tokens, kept, ..
        } = work;
        self.rescale(tokens);
        let share = plan.share(workers);
        trace.record(
            Stage::Scaled,
            self.index,
            share.start * self.dim,
            TraceValues::I16(tokens),
        );
        let mut memory = Rest(work.tiles);
        let unpacked = memory.take(self.unpacked_len())?;
        let normalized = memory.take(rows * stride::<K>(self.dim))?;
        let shape = plan.kept(share.clone());
        let width = self.width();
        for (number, tile) in tokens.chunks((rows * self.dim).max(1)).enumerate() {
            let first = number * rows;
            let inputs = self.normalize(kernel, &self.norm1, tile, normalized);
            let count = tile.len() / self.dim.max(1);
            self.trace_factors(kernel, trace, Stage::Norm1, share.start + first, count, inputs);
            let panels = self.dim / PANEL..(3 * self.dim).div_ceil(PANEL);
            self.qkv
                .apply(kernel, inputs, count, panels, unpacked, |row, output, values| {
                    let mut token = first + row;
                    if let (Some((which, channel)), false) = (self.whole_panel(output), T::RECORDS) {
                        if which == 1 {
                            let keys = shape.keys(channel.head);
                            for (token, lanes) in (token..).zip(values) {
                                let lanes = kernel.narrow(lanes);
                                put_key(kernel, &lanes, kept, keys + place(token, channel.number, width));
                            }
                            return;
                        }
                        let panel = shape.values(channel.head) + place(channel.number, 0, shape.tokens);
                        let mut values = values;
                        if K::LARGE && token.is_multiple_of(QUAD) {
                            let (quads, rest) = values.as_chunks::<QUAD>();
                            for quad in quads {
                                put_values(&quad.map(|lanes| kernel.narrow(&lanes)), kept, panel, token);
                                token += QUAD;
                            }
                            values = rest;
                        }
                        for (token, lanes) in (token..).zip(values) {
                            put_value(&kernel.narrow(lanes), kept, panel, token);
                        }
                        return;
                    }
                    for (token, values) in (token..).zip(values) {
                        for (channel, value) in self.channels(output, 1, values) {
                            let at = shape.keys(channel.head) + place(token, channel.number, width);
                            write(kept, at, kernel.key(value));
                            let at = (channel.head * plan.tokens + share.start + token) * width + channel.number;
                            trace.record(Stage::Keys, self.index, at, TraceValues::I8(&[value]));
                        }
                        for (channel, value) in self.channels(output, 2, values) {
                            let at = shape.values(channel.head) + place(channel.number, token, shape.tokens);
                            write(kept, at, value);
                            let at = (channel.head * width + channel.number) * plan.tokens + share.start + token;
                            trace.record(Stage::Values, self.index, at, TraceValues::I8(&[value]));
                        }
                    }
                });
        }
        Some(())
    }

    /// Second pass, of one worker: attention and MLP of its tokens. `kept` is all workers'.
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    pub(crate) fn attention_and_mlp<K: Kernel>(
        &self,
        kernel: K,
        plan: &Plan,
        rows: usize,
        kept: &[i8],
        work: Part<'_>,
        trace: &mut impl Trace,
    ) -> Option<()> {
        let share = plan.share(work.workers);
        let mut memory = Rest(work.tiles);
        let unpacked = memory.take(self.unpacked_len())?;
        let normalized = memory.take(rows * stride::<K>(self.dim))?;
        let rest = memory.0;
        // All of the share's tokens are in one tile, whose norms the first pass left here.
        let known = work.tokens.len() <= rows * self.dim;
        for (number, tile) in work.tokens.chunks_mut((rows * self.dim).max(1)).enumerate() {
            let first = share.start + number * rows;
            self.attention(
                kernel, plan, kept, first, tile, unpacked, normalized, known, rest, trace,
            )?;
            trace.record(Stage::Attended, self.index, first * self.dim, TraceValues::I16(tile));
            self.mlp(kernel, first, tile, unpacked, normalized, rest, trace)?;
            trace.record(Stage::Tokens, self.index, first * self.dim, TraceValues::I16(tile));
        }
        Some(())
    }

    /// Bytes for a panel of any layer's unpacked weights.
    fn unpacked_len(&self) -> usize {
        self.qkv.unpacked_len().max(self.fc2.unpacked_len())
    }

    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn rescale(&self, tokens: &mut [i16]) {
        if self.drop > 0 {
            for x in tokens {
                *x = saturate_i16(round_shift(i64::from(*x), self.drop));
            }
        }
    }

    /// Adds the attention's output to a tile of tokens, of which `first` is the first. Where their norms are `known`, `normalized` holds them.
    #[expect(clippy::too_many_arguments, reason = "one phase with its memory")]
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn attention<K: Kernel, T: Trace>(
        &self,
        kernel: K,
        plan: &Plan,
        kept: &[i8],
        first: usize,
        tile: &mut [i16],
        unpacked: &mut [i8],
        normalized: &mut [K::Factor],
        known: bool,
        memory: &mut [u8],
        trace: &mut T,
    ) -> Option<()> {
        let count = tile.len() / self.dim.max(1);
        let in_groups = count.next_multiple_of(K::ROWS);
        let width = self.width();
        let head_stride = stride::<K>(width);
        let mut memory = Rest(memory);
        let queries = memory.take::<K::Factor>(in_groups * self.heads * head_stride)?;
        let scores = memory.take::<i32>(K::ROWS * plan.scores_stride())?;
        let weights = memory.take::<i16>(plan.weights_len(K::NEEDS))?;

        if !known {
            self.normalize(kernel, &self.norm1, tile, normalized);
        }
        let inputs = part(normalized, 0, in_groups * stride::<K>(self.dim));
        if padded(width) > width {
            queries.fill(K::Factor::zeroed());
        }
        self.qkv.apply(
            kernel,
            inputs,
            count,
            0..self.dim.div_ceil(PANEL),
            unpacked,
            |row, output, values| {
                if let (Some((_, channel)), false) = (self.whole_panel(output), T::RECORDS) {
                    let first = (row * self.heads + channel.head) * head_stride + channel.number;
                    for (row, values) in values.iter().enumerate() {
                        kernel.put(&kernel.narrow(values), queries, first + row * self.heads * head_stride);
                    }
                    return;
                }
                for (token, values) in (row..).zip(values) {
                    for (channel, value) in self.channels(output, 0, values) {
                        let at = (token * self.heads + channel.head) * head_stride + kernel.at(channel.number);
                        write(queries, at, kernel.factor(value));
                        let at = (channel.head * plan.tokens + first + token) * width + channel.number;
                        trace.record(Stage::Queries, self.index, at, TraceValues::I8(&[value]));
                    }
                }
            },
        );
        queries
            .chunks_exact_mut(head_stride.max(1))
            .take(count * self.heads)
            .for_each(|row| kernel.finish(row));

        // The heads' outputs take the place of the normalized tokens.
        let joined = part_mut(normalized, 0, in_groups * stride::<K>(self.dim));
        for head in 0..self.heads {
            let row_len = self.heads * head_stride;
            let softmax_multiplier = self.softmax_multiplier.get(head).unwrap_or(0);
            let groups = queries.chunks((K::ROWS * row_len).max(1));
            let outputs = joined.chunks_mut((K::ROWS * stride::<K>(self.dim)).max(1));
            for (group, (queries, joined)) in groups.zip(outputs).enumerate() {
                let in_group = (count - group * K::ROWS).min(K::ROWS);
                let queries = queries.get(head * head_stride..)?;
                self.scores(kernel, plan, kept, head, queries, in_group, scores);
                let mut means = [WeightedMean::new(0); MAX_ROWS];
                let means = means.get_mut(..in_group)?;
                let score_rows = scores.chunks_exact(plan.scores_stride());
                let weight_rows = weights.chunks_exact_mut(plan.weights_stride().max(1));
                for (row, ((mean, scores), weights)) in means.iter_mut().zip(score_rows).zip(weight_rows).enumerate() {
                    let (used, padding) = weights.split_at_mut_checked(plan.tokens)?;
                    let sum = kernel.softmax(
                        part(scores, 0, plan.tokens),
                        softmax_multiplier,
                        self.softmax_shift,
                        used,
                    );
                    *mean = WeightedMean::new(sum);
                    padding.fill(0);
                    let token = first + group * K::ROWS + row;
                    let at = (head * plan.tokens + token) * plan.tokens;
                    trace.record(Stage::Weights, self.index, at, TraceValues::I16(used));
                    for worker in 0..plan.workers {
                        let share = plan.share(worker..worker + 1);
                        kernel.finish_weights(part_mut(weights, share.start, padded(plan.kept(share.clone()).tokens)));
                    }
                }
                self.mean_values(kernel, plan, kept, head, weights, means, |row, channel, values| {
                    let column = head * width + channel;
                    let at = (first + group * K::ROWS + row) * self.dim + column;
                    let used = part(values, 0, PANEL.min(width - channel));
                    trace.record(Stage::Attention, self.index, at, TraceValues::I8(used));
                    let row = part_mut(joined, row * stride::<K>(self.dim), padded(self.dim));
                    if used.len() == PANEL && column.is_multiple_of(QUAD) {
                        return kernel.put(values, row, column);
                    }
                    for (column, &value) in (column..).zip(used) {
                        write(row, kernel.at(column), kernel.factor(value));
                    }
                });
            }
        }
        joined
            .chunks_exact_mut(stride::<K>(self.dim).max(1))
            .take(count)
            .for_each(|row| kernel.finish(row));
        self.add_layer(kernel, &self.proj, joined, unpacked, tile);
        Some(())
    }

    /// Scores of a group of queries of one head with all keys, `[in_group, scores_stride]`.
    #[expect(clippy::too_many_arguments, reason = "one product with its shapes")]
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn scores<K: Kernel>(
        &self,
        kernel: K,
        plan: &Plan,
        kept: &[i8],
        head: usize,
        queries: &[K::Factor],
        in_group: usize,
        scores: &mut [i32],
    ) {
        let row_len = self.heads * stride::<K>(self.width());
        let panel_len = (PANEL * padded(self.width())).max(1);
        let mut found = K::Sums::ZERO;
        let found = part_mut(found.as_mut(), 0, in_group);
        let mut at = 0;
        for worker in 0..plan.workers {
            let share = plan.share(worker..worker + 1);
            let shape = plan.kept(share.clone());
            let keys = part(kept, at + shape.keys(head), shape.keys_len());
            // What a share's last panel has too much is overwritten by the next share, or lies behind the last token.
            for (panel, keys) in keys.chunks_exact(panel_len).enumerate() {
                kernel.scores(queries, row_len, keys, found);
                for (row, found) in scores.chunks_exact_mut(plan.scores_stride()).zip(&*found) {
                    let slots = part_mut(row, share.start + panel * PANEL, PANEL);
                    slots.iter_mut().zip(found).for_each(|(slot, &score)| *slot = score);
                }
            }
            at += shape.len();
        }
    }

    /// Calls `emit(row, first channel, values)` with the weighted means of one head's values, a panel of channels at a time.
    #[expect(clippy::too_many_arguments, reason = "one product with its shapes")]
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn mean_values<K: Kernel>(
        &self,
        kernel: K,
        plan: &Plan,
        kept: &[i8],
        head: usize,
        weights: &[i16],
        rows: &[WeightedMean],
        mut emit: impl FnMut(usize, usize, &Lanes<i8>),
    ) {
        let width = self.width();
        for panel in 0..width.div_ceil(PANEL) {
            let mut totals = K::Sums::ZERO;
            let totals = part_mut(totals.as_mut(), 0, rows.len());
            let mut at = 0;
            for worker in 0..plan.workers {
                let share = plan.share(worker..worker + 1);
                let shape = plan.kept(share.clone());
                let panel_len = PANEL * padded(shape.tokens);
                let values = part(kept, at + shape.values(head) + panel * panel_len, panel_len);
                if let Some(weights) = weights.get(share.start..) {
                    kernel.weighted(weights, plan.weights_stride(), values, totals);
                }
                at += shape.len();
            }
            let channel = panel * PANEL;
            let multiplier = self.attention_multiplier.part(head * width, width).lanes(channel);
            // A few rows at a time: a device's stack is small.
            let mut means = [[0; PANEL]; 4];
            for (number, (totals, rows)) in totals.chunks(4).zip(rows.chunks(4)).enumerate() {
                kernel.means(totals, rows, &multiplier, self.attention_shift, &mut means);
                for (row, (means, _)) in means.iter().zip(rows).enumerate() {
                    emit(4 * number + row, channel, means);
                }
            }
        }
    }

    /// Adds the MLP's output to a tile of tokens, of which `first` is the first.
    #[expect(clippy::too_many_arguments, reason = "one phase with its memory")]
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn mlp<K: Kernel, T: Trace>(
        &self,
        kernel: K,
        first: usize,
        tile: &mut [i16],
        unpacked: &mut [i8],
        normalized: &mut [K::Factor],
        memory: &mut [u8],
        trace: &mut T,
    ) -> Option<()> {
        let count = tile.len() / self.dim.max(1);
        let width = self.fc2.inner;
        let hidden_stride = stride::<K>(width);
        let hidden = Rest(memory).take::<K::Factor>(count.next_multiple_of(K::ROWS) * hidden_stride)?;
        if padded(width) > width {
            hidden.fill(K::Factor::zeroed());
        }
        let inputs = self.normalize(kernel, &self.norm2, tile, normalized);
        self.trace_factors(kernel, trace, Stage::Norm2, first, count, inputs);
        self.fc1.apply(
            kernel,
            inputs,
            count,
            0..width.div_ceil(PANEL),
            unpacked,
            |row, output, values| {
                let used = PANEL.min(width - output);
                let together = if K::LARGE { 2 } else { 1 };
                for (row, values) in (row..).step_by(together).zip(values.chunks(together)) {
                    let mut two = [[0; PANEL]; 2];
                    let two = part_mut(&mut two, 0, values.len());
                    kernel.gelu(self.gelu, values, two);
                    for (token, (before, lanes)) in (row..).zip(values.iter().zip(&*two)) {
                        let row = part_mut(hidden, token * hidden_stride, padded(width));
                        kernel.put(lanes, row, output);
                        let at = (first + token) * width + output;
                        if T::RECORDS {
                            let before = kernel.narrow(before);
                            trace.record(Stage::Fc1, self.index, at, TraceValues::I8(part(&before, 0, used)));
                        }
                        trace.record(Stage::Hidden, self.index, at, TraceValues::I8(part(lanes, 0, used)));
                    }
                }
            },
        );
        hidden
            .chunks_exact_mut(hidden_stride.max(1))
            .take(count)
            .for_each(|row| kernel.finish(row));
        self.add_layer(kernel, &self.fc2, hidden, unpacked, tile);
        Some(())
    }

    /// Normalizes a tile of tokens into rows of factors; returns those, and what is left of the last group.
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn normalize<'o, K: Kernel>(
        &self,
        kernel: K,
        norm: &Norm<'_>,
        tile: &[i16],
        out: &'o mut [K::Factor],
    ) -> &'o [K::Factor] {
        let row_len = stride::<K>(self.dim);
        let rows = tile.chunks_exact(self.dim.max(1));
        let count = rows.len();
        for (token, row) in rows.zip(out.chunks_exact_mut(row_len.max(1))) {
            part_mut(row, self.dim / QUAD * QUAD, QUAD).fill(K::Factor::zeroed());
            kernel.norm(norm, token, row);
            kernel.finish(row);
        }
        part(out, 0, count.next_multiple_of(K::ROWS) * row_len)
    }

    /// Adds a layer's outputs to a tile of the residual stream.
    #[cfg_attr(target_arch = "x86_64", inline(always))]
    fn add_layer<K: Kernel>(
        &self,
        kernel: K,
        layer: &Linear<'_>,
        inputs: &[K::Factor],
        unpacked: &mut [i8],
        tile: &mut [i16],
    ) {
        layer.apply(
            kernel,
            inputs,
            tile.len() / self.dim.max(1),
            0..self.dim.div_ceil(PANEL),
            unpacked,
            |row, output, values| {
                for (token, values) in (row..).zip(values) {
                    let slots = part_mut(tile, token * self.dim + output, PANEL.min(self.dim - output));
                    add(slots, values);
                }
            },
        );
    }

    /// Those of a panel's outputs of the layer `qkv` that are queries (0), keys (1) or values (2), limited to i8.
    #[inline(always)]
    fn channels(&self, output: usize, which: usize, values: &Lanes<i16>) -> impl Iterator<Item = (Channel, i8)> {
        let width = self.width().max(1);
        let (start, end) = (which * self.dim, (which + 1) * self.dim);
        let skipped = start.saturating_sub(output);
        let first = (output + skipped).saturating_sub(start);
        let count = end.saturating_sub(output).min(PANEL).saturating_sub(skipped);
        let mut channel = Channel {
            head: first / width,
            number: first % width,
        };
        let values = *values;
        (skipped..skipped + count).map(move |i| {
            let this = channel;
            channel.number += 1;
            if channel.number == width {
                channel = Channel {
                    head: channel.head + 1,
                    number: 0,
                };
            }
            (this, saturate_i8(values.get(i).copied().unwrap_or(0).into()))
        })
    }

    /// Which of queries, keys and values (0, 1, 2) a panel's outputs of the layer `qkv` are, and of which channels from which on, where
    /// they are all of one head.
    #[inline(always)]
    fn whole_panel(&self, output: usize) -> Option<(usize, Channel)> {
        let width = self.width().max(1);
        let channel = output % self.dim.max(1);
        width.is_multiple_of(PANEL).then(|| {
            let head = channel / width;
            let number = channel % width;
            (output / self.dim.max(1), Channel { head, number })
        })
    }

    fn width(&self) -> usize {
        self.dim / self.heads.max(1)
    }

    /// Records `count` rows of factors, of which `first` is the first token's.
    #[inline(always)]
    fn trace_factors<K: Kernel, T: Trace>(
        &self,
        kernel: K,
        trace: &mut T,
        stage: Stage,
        first: usize,
        count: usize,
        rows: &[K::Factor],
    ) {
        if !T::RECORDS {
            return;
        }
        for (token, row) in (first..first + count).zip(rows.chunks_exact(stride::<K>(self.dim).max(1))) {
            for column in 0..self.dim {
                let value = row
                    .get(kernel.at(column))
                    .map_or(0, |&factor| kernel.activation(factor));
                trace.record(stage, self.index, token * self.dim + column, TraceValues::I8(&[value]));
            }
        }
    }
}

/// The most rows that any kernel takes at once.
const MAX_ROWS: usize = if cfg!(target_arch = "x86_64") { 32 } else { 4 };

/// A channel of a head.
#[derive(Clone, Copy)]
struct Channel {
    head: usize,
    number: usize,
}

/// Adds a panel's outputs to a token's channels, as many as there are.
#[inline(always)]
pub(crate) fn add(slots: &mut [i16], values: &Lanes<i16>) {
    let sum = |token: i16, value| token.saturating_add(value);
    match slots.first_chunk_mut::<PANEL>() {
        Some(slots) => *slots = core::array::from_fn(|i| sum(slots[i], values[i])),
        None => slots
            .iter_mut()
            .zip(values)
            .for_each(|(slot, &value)| *slot = sum(*slot, value)),
    }
}

/// Keeps a panel's channels of a key, of which the first lies at `at`.
#[inline(always)]
fn put_key<K: Kernel>(kernel: K, values: &Lanes<i8>, kept: &mut [i8], at: usize) {
    let values = values.map(|value| kernel.key(value));
    // The last quad ends where the panel may.
    const LEN: usize = (PANEL / QUAD - 1) * (PANEL * QUAD) + QUAD;
    if let Some(slots) = kept.get_mut(at..).and_then(<[i8]>::first_chunk_mut::<LEN>) {
        for (number, quad) in values.as_chunks::<QUAD>().0.iter().enumerate() {
            if let Some(slots) = slots
                .get_mut(number * (PANEL * QUAD)..)
                .and_then(<[i8]>::first_chunk_mut)
            {
                *slots = *quad;
            }
        }
    }
}

/// Keeps a panel's channels of a token's value; the panel of values begins at `at`.
#[inline(always)]
fn put_value(values: &Lanes<i8>, kept: &mut [i8], at: usize, token: usize) {
    let quads = kept.get_mut(at + token / QUAD * (PANEL * QUAD)..).unwrap_or_default();
    if let Some(quad) = quads.first_chunk_mut::<{ PANEL * QUAD }>() {
        for (slots, &value) in quad.as_chunks_mut::<QUAD>().0.iter_mut().zip(values) {
            slots[token % QUAD] = value;
        }
    }
}

/// As [`put_value`], of the four tokens of a quad, of which `token` is the first.
#[inline(always)]
fn put_values(values: &[Lanes<i8>; QUAD], kept: &mut [i8], at: usize, token: usize) {
    let quads = kept.get_mut(at + token / QUAD * (PANEL * QUAD)..).unwrap_or_default();
    if let Some(quad) = quads.first_chunk_mut::<{ PANEL * QUAD }>() {
        *quad = core::array::from_fn(|i| values[i % QUAD][i / QUAD]);
    }
}

#[inline(always)]
fn write<T>(all: &mut [T], at: usize, value: T) {
    if let Some(slot) = all.get_mut(at) {
        *slot = value;
    }
}
