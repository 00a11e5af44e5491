//! What no public call of a back end shows, for every kernel that this processor has, against plain arithmetic: products of queries and
//! keys, groups of rows of softmax weights, means of values, GELU. The rest is in `tests/kernels.rs`.

extern crate std;

use std::{vec, vec::Vec};

use tec_core::integer::{WeightedMean, saturate_i8, scale};

use super::{Kernel, Lanes};
use crate::layers::stride;
use crate::panel::{PANEL, pack, padded, panels_len};

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// i8 of the whole range, the ends often.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<i8> {
        let byte = |x: u64| match x >> 60 {
            0 => i8::MIN,
            1 => i8::MAX,
            _ => x as i8,
        };
        (0..count).map(|_| byte(self.next())).collect()
    }
}

/// Memory at a 16-byte boundary.
fn aligned(len: usize) -> Vec<u128> {
    vec![0; len.div_ceil(16)]
}

/// Scores are right up to one number for each query.
pub(crate) fn check_scores<K: Kernel>(kernel: K) {
    let random = &mut Random(1);
    for width in [1, 6, 32] {
        let (queries, keys) = (random.bytes(K::ROWS * width), random.bytes(PANEL * width));
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
}

pub(crate) fn check_weighted<K: Kernel>(kernel: K) {
    let random = &mut Random(2);
    for tokens in [1, 4, 19] {
        let values = random.bytes(PANEL * tokens);
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

/// Means of the largest sums there are, and of weights whose sum is a power of two, whose reciprocal is the largest.
pub(crate) fn check_means<K: Kernel>(kernel: K) {
    let random = &mut Random(3);
    for shift in [0, 1, 20, 31, 32, 47, 62] {
        for _ in 0..20 {
            let weights: Vec<u32> = (0..K::ROWS)
                .map(|row| match row % 3 {
                    0 => 1 << (12 + random.next() % 13).min(23),
                    1 => 4095 * 4097,
                    _ => 4095 + (random.next() % (1 << 23)) as u32,
                })
                .collect();
            let sums: Vec<Lanes<i32>> = (weights.iter())
                .map(|&weight| {
                    let lane = |byte: i8| (i64::from(weight) * i64::from(byte)) as i32;
                    core::array::from_fn(|_| lane(random.bytes(1)[0]))
                })
                .collect();
            let multiplier: Lanes<i32> = core::array::from_fn(|_| match random.next() % 4 {
                0 => i32::MIN,
                1 => i32::MAX,
                _ => random.next() as i32,
            });
            let rows: Vec<_> = weights.iter().map(|&weight| WeightedMean::new(weight)).collect();
            let mut means = vec![[0; PANEL]; K::ROWS];
            kernel.means(&sums, &rows, &multiplier, shift, &mut means);
            for ((sums, row), means) in sums.iter().zip(rows).zip(means) {
                let exact = core::array::from_fn(|i| saturate_i8(scale(row.of(sums[i]), multiplier[i], shift)));
                assert_eq!(means, exact, "{shift}");
            }
        }
    }
}

/// Every activation's entry of a table with no two neighbors alike.
pub(crate) fn check_gelu<K: Kernel>(kernel: K) {
    let table: [i8; 256] = core::array::from_fn(|i| (i * 37 % 256) as u8 as i8);
    let all: Vec<Lanes<i16>> = (-144..144)
        .step_by(PANEL)
        .map(|first| core::array::from_fn(|i| first + i as i16))
        .chain([[i16::MIN; PANEL], [i16::MAX; PANEL]])
        .collect();
    for values in all.chunks(1).chain(all.chunks(2)) {
        let expected: Vec<_> = values
            .iter()
            .map(|lanes| lanes.map(|value| table[(i32::from(value).clamp(-128, 127) + 128) as usize]))
            .collect();
        let mut found = vec![[0; PANEL]; values.len()];
        kernel.gelu(&table, values, &mut found);
        assert_eq!(found, expected);
    }
}
