//! Every kernel that this processor has, call by call, against plain arithmetic: whole ranges, odd sizes.
//!
//! Miri can run them for processors that are not at hand: CONTRIBUTING.md says how.

extern crate std;

use std::{vec, vec::Vec};

use tec_core::integer::{NormRow, norm_affine, round_shift, saturate_i8, softmax_weights};

use super::{Kernel, Lanes};
use crate::layers::{I32s, Linear, Norm, linear, stride};
use crate::panel::{PANEL, pack, padded, panels_len};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// i8 of the whole range, the ends often.
    fn bytes(&mut self, count: usize, least: i8) -> Vec<i8> {
        let byte = |x: u64| match x >> 60 {
            0 => i8::MIN,
            1 => i8::MAX,
            _ => x as i8,
        };
        (0..count).map(|_| byte(self.next()).max(least)).collect()
    }
}

fn bytes_of(words: &[i32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Memory at a 16-byte boundary.
fn aligned(len: usize) -> Vec<u128> {
    vec![0; len.div_ceil(16)]
}

fn linear_layers<K: Kernel>(kernel: K, random: &mut Random) {
    for (inner, outputs) in [(1, 1), (4, 16), (22, 19), (48, 33)] {
        for rows in 1..=K::ROWS + 1 {
            let (weight, inputs) = (random.bytes(outputs * inner, -127), random.bytes(rows * inner, -128));
            let bias: Vec<i32> = (0..outputs).map(|_| random.next() as i32 >> 2).collect();
            let multiplier: Vec<i32> = (0..outputs).map(|_| random.next() as i32).collect();
            let shift = [0, 31, 32, 40, 62][random.next() as usize % 5];
            let mut panels = aligned(panels_len(outputs, inner));
            pack(&weight, inner, bytemuck::cast_slice_mut(&mut panels));
            let (bias_bytes, multiplier_bytes) = (bytes_of(&bias), bytes_of(&multiplier));
            let layer = Linear {
                weight: &bytemuck::cast_slice(&panels)[..panels_len(outputs, inner)],
                inner,
                bias: I32s(&bias_bytes),
                multiplier: I32s(&multiplier_bytes),
                shift,
            };
            let mut out = vec![7; rows * outputs];
            let mut memory = aligned(layer.memory(rows));
            linear(kernel, &layer, &inputs, bytemuck::cast_slice_mut(&mut memory), &mut out).unwrap();
            for (row, out) in inputs.chunks(inner).zip(out.chunks(outputs)) {
                for (o, &found) in out.iter().enumerate() {
                    let sum: i64 = (0..inner)
                        .map(|k| i64::from(row[k]) * i64::from(weight[o * inner + k]))
                        .sum();
                    let product = i128::from(sum + i64::from(bias[o])) * i128::from(multiplier[o]);
                    let half = if shift == 0 { 0 } else { 1 << (shift - 1) };
                    let expected = ((product + half) >> shift).clamp(-32768, 32767);
                    assert_eq!(i128::from(found), expected, "{inner} {outputs} {rows} {shift}");
                }
            }
        }
    }
}

/// Scores are right up to one number for each query.
fn scores_and_means<K: Kernel>(kernel: K, random: &mut Random) {
    for width in [1, 6, 32] {
        let (queries, keys) = (random.bytes(K::ROWS * width, -128), random.bytes(PANEL * width, -128));
        let mut panel = aligned(panels_len(PANEL, width));
        let kept: Vec<i8> = keys.iter().map(|&k| kernel.key(k)).collect();
        pack(&kept, width, bytemuck::cast_slice_mut(&mut panel));
        let row_len = stride::<K>(width);
        let mut factors: Vec<K::Factor> = vec![kernel.factor(0); K::ROWS * row_len];
        for (row, factors) in queries.chunks(width).zip(factors.chunks_mut(row_len)) {
            for (c, &q) in row.iter().enumerate() {
                factors[kernel.at(c)] = kernel.factor(q);
            }
            kernel.finish(factors);
        }
        let mut scores = vec![[7; PANEL]; K::ROWS];
        let panel = &bytemuck::cast_slice(&panel)[..panels_len(PANEL, width)];
        kernel.scores(&factors, row_len, panel, &mut scores);
        for (query, scores) in queries.chunks(width).zip(&scores) {
            let exact = |key: &[i8]| -> i32 { query.iter().zip(key).map(|(&q, &k)| i32::from(q) * i32::from(k)).sum() };
            let exact: Vec<i32> = keys.chunks(width).map(exact).collect();
            for (score, expected) in scores.iter().zip(&exact) {
                assert_eq!(score - scores[0], expected - exact[0], "{width}");
            }
        }
    }
    for tokens in [1, 4, 19] {
        let values = random.bytes(PANEL * tokens, -128);
        let mut panel = aligned(panels_len(PANEL, tokens));
        pack(&values, tokens, bytemuck::cast_slice_mut(&mut panel));
        let panel = &bytemuck::cast_slice(&panel)[..panels_len(PANEL, tokens)];
        let weight = |random: &mut Random| (random.next() % 4096) as i16;
        let weights: Vec<i16> = (0..K::ROWS * tokens).map(|_| weight(random)).collect();
        let mut rows = vec![0; K::ROWS * padded(tokens)];
        for (row, weights) in rows.chunks_mut(padded(tokens)).zip(weights.chunks(tokens)) {
            row[..tokens].copy_from_slice(weights);
            kernel.finish_weights(row);
        }
        let mut sums: Vec<Lanes<i32>> = vec![[5; PANEL]; K::ROWS];
        kernel.weighted(&rows, padded(tokens), panel, &mut sums);
        for (weights, sums) in weights.chunks(tokens).zip(sums) {
            for (channel, sum) in values.chunks(tokens).zip(sums) {
                let exact: i32 = weights
                    .iter()
                    .zip(channel)
                    .map(|(&w, &v)| i32::from(w) * i32::from(v))
                    .sum();
                assert_eq!(sum, 5 + exact, "{tokens}");
            }
        }
    }
}

fn norms<K: Kernel>(kernel: K, random: &mut Random) {
    for (dim, bits) in [(1, 16), (9, 32), (40, 45), (64, 40)] {
        for extent in [15, 8, 0] {
            let token: Vec<i16> = (0..dim).map(|_| random.next() as i16 >> extent).collect();
            let (multiplier, offset): (Vec<i32>, Vec<i32>) = (0..dim)
                .map(|_| (random.next() as i32 >> 4, random.next() as i32 >> 8))
                .unzip();
            let (multiplier_bytes, offset_bytes) = (bytes_of(&multiplier), bytes_of(&offset));
            let norm = Norm {
                multiplier: I32s(&multiplier_bytes),
                offset: I32s(&offset_bytes),
                bits,
                epsilon: 1 + random.next() % 1000,
            };
            let mut factors: Vec<K::Factor> = vec![kernel.factor(0); stride::<K>(dim)];
            kernel.norm(&norm, &token, &mut factors);
            let row = NormRow::new(&token, norm.epsilon);
            for c in 0..dim {
                let value = norm_affine(row.normalize(token[c]), multiplier[c], offset[c], bits);
                let expected = saturate_i8(round_shift(value, bits));
                assert_eq!(
                    kernel.activation(factors[kernel.at(c)]),
                    expected,
                    "{dim} {bits} {extent} {c}"
                );
            }
        }
    }
}

fn softmaxes<K: Kernel>(kernel: K, random: &mut Random) {
    for count in [1, 8, 21] {
        for (multiplier, shift, extent) in [
            (1 << 30, 30, 22),
            (i32::MAX, 50, 3),
            (0, 10, 3),
            (12345, 62, 3),
            (1, 0, 25),
        ] {
            let scores: Vec<i32> = (0..count).map(|_| random.next() as i32 >> extent).collect();
            let (mut found, mut expected) = (vec![0; count], vec![0; count]);
            let sum = kernel.softmax(&scores, multiplier, shift, &mut found);
            assert_eq!(sum, softmax_weights(&scores, multiplier, shift, &mut expected));
            assert_eq!(found, expected, "{count} {multiplier} {shift}");
        }
    }
}

pub(crate) fn check<K: Kernel>(kernel: K) {
    let random = &mut Random(1);
    linear_layers(kernel, random);
    scores_and_means(kernel, random);
    norms(kernel, random);
    softmaxes(kernel, random);
}
