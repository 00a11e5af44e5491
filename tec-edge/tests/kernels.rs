//! Single calls of every back end that this processor has, over the whole range of their arguments, against wide integers and
//! `tec_core::integer`.

mod common;

use common::{Bytes, Random};
use tec_core::integer::{round_shift, softmax_weights};
use tec_edge::layers::{I32s, Linear, Norm};
use tec_edge::{BackEnd, Precision, int4, panel};

/// Mostly ordinary numbers of up to `bits` bits, often extreme ones.
fn number(random: &mut Random, bits: u32) -> i64 {
    let (low, high) = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1);
    match random.next() % 8 {
        0 => low,
        1 => high,
        2 => random.range(-1, 1),
        3 => random.range(low, high) >> (random.next() % u64::from(bits)),
        _ => random.range(low, high),
    }
}

/// Fewer where every instruction is interpreted.
fn cases(count: usize) -> std::ops::Range<usize> {
    0..if cfg!(miri) { count / 40 } else { count }
}

fn bytes_of(values: &[i32]) -> Bytes {
    Bytes::new(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
}

/// A copy that starts `skip` bytes behind a 16-byte boundary.
fn shifted(bytes: &[u8], skip: usize) -> Bytes {
    Bytes::new(&[&vec![0; skip], bytes].concat())
}

#[test]
fn linear_layers() {
    let random = &mut Random(1);
    for case in cases(400) {
        let (count, inner, outputs) = (
            1 + case % 37,
            random.range(1, 140) as usize,
            random.range(1, 40) as usize,
        );
        let extreme = case % 5 == 0;
        let mut eight = |len: usize| -> Vec<i8> {
            let one = |_| if extreme { -128 } else { number(random, 8) as i8 };
            (0..len).map(one).collect()
        };
        let (rows, weight) = (eight(count * inner), eight(outputs * inner));
        let mut words = |bits: u32| -> Vec<i32> { (0..outputs).map(|_| number(random, bits) as i32).collect() };
        let (bias, multiplier) = (words(31), words(32));
        // Every shift and more, those around a word most often.
        let shift = if case % 2 == 0 {
            case as u32 / 2 % 100
        } else {
            random.range(30, 34) as u32
        };
        let mut panels = vec![0; panel::panels_len(outputs, inner)];
        panel::pack(&weight, inner, &mut panels);
        let mut expected = Vec::new();
        for row in rows.chunks(inner) {
            for (output, weights) in weight.chunks(inner).enumerate() {
                let products = row.iter().zip(weights).map(|(&x, &w)| i128::from(x) * i128::from(w));
                let sum = products.sum::<i128>() + i128::from(bias[output]);
                let half = if shift == 0 { 0 } else { 1 << (shift - 1) };
                let value = (sum * i128::from(multiplier[output]) + half) >> shift;
                expected.push(value.clamp(-32768, 32767) as i16);
            }
        }
        // Weights at a boundary, as in files, and elsewhere.
        for skip in [0, 4, 1] {
            let panels = shifted(bytemuck::cast_slice(&panels), skip);
            let (bias, multiplier) = (bytes_of(&bias), bytes_of(&multiplier));
            let layer = Linear {
                weight: &panels.get()[skip..],
                precision: Precision::Int8,
                inner,
                bias: I32s::from_bytes(bias.get()),
                multiplier: I32s::from_bytes(multiplier.get()),
                shift,
            };
            for back_end in BackEnd::all() {
                let mut memory = Bytes::filled(layer.memory(count), 0x5A);
                let mut out = vec![7; count * outputs];
                back_end.linear(&layer, &rows, memory.get_mut(), &mut out).unwrap();
                let what = back_end.name();
                assert_eq!(
                    out, expected,
                    "{what}, case {case}, inner {inner}, shift {shift}, skip {skip}"
                );
            }
        }
    }
}

#[test]
fn linear_layers_of_four_bits() {
    let random = &mut Random(5);
    for case in cases(200) {
        let (count, inner, outputs) = (1 + case % 9, random.range(1, 90) as usize, random.range(1, 40) as usize);
        let group = 4 * random.range(1, 24) as usize;
        let groups = inner.div_ceil(group);
        let q: Vec<i8> = (0..outputs * inner).map(|_| random.range(-8, 7) as i8).collect();
        let scales: Vec<u8> = (0..outputs * groups).map(|_| random.next() as u8).collect();
        let weights = q.iter().enumerate().map(|(i, &q)| {
            let scale = scales[i / inner * groups + i % inner / group];
            (f64::from(q) * f64::from(scale) / 16.0 + 0.5).floor() as i8
        });
        let weights: Vec<i8> = weights.collect();
        let rows: Vec<i8> = (0..count * inner).map(|_| number(random, 8) as i8).collect();
        let mut panels = vec![0; panel::panels_len(outputs, inner)];
        panel::pack(&weights, inner, &mut panels);
        let mut packed = vec![0; int4::panels_len(outputs, inner, group)];
        int4::pack(&q, &scales, inner, group, &mut packed);
        let (eight, four) = (Bytes::new(bytemuck::cast_slice(&panels)), Bytes::new(&packed));
        let (bias, multiplier) = (bytes_of(&vec![77; outputs]), bytes_of(&vec![1 << 20; outputs]));
        let layer = |weight, precision| Linear {
            weight,
            precision,
            inner,
            bias: I32s::from_bytes(bias.get()),
            multiplier: I32s::from_bytes(multiplier.get()),
            shift: 22,
        };
        for back_end in BackEnd::all() {
            let computed = [
                layer(eight.get(), Precision::Int8),
                layer(four.get(), Precision::Int4 { group }),
            ]
            .map(|layer| {
                let mut memory = Bytes::filled(layer.memory(count), 0x5A);
                let mut out = vec![7; count * outputs];
                back_end.linear(&layer, &rows, memory.get_mut(), &mut out).unwrap();
                out
            });
            assert_eq!(computed[0], computed[1], "{}, case {case}", back_end.name());
        }
    }
}

#[test]
fn norms() {
    let random = &mut Random(2);
    for case in cases(600) {
        let dim = match case % 8 {
            0 => [384, 768, 1000, 24_576][case / 8 % 4],
            _ => random.range(1, 70) as usize,
        };
        let bits = 16 + case as u32 % 30;
        let epsilon = random.next() >> (5 + random.next() % 59);
        // Rows whose values are nearly all the same have the largest normalized values.
        let calm = random.next() as i16;
        let mut one = |_| match case % 3 {
            0 if !random.next().is_multiple_of(64) => calm,
            1 => random.range(-300, 300) as i16,
            _ => number(random, 16) as i16,
        };
        let token: Vec<i16> = (0..dim).map(&mut one).collect();
        let mut words = |tame: i64| -> Vec<i32> {
            let wild = case % 4 == 0;
            let mut one = |_| {
                if wild {
                    number(random, 32)
                } else {
                    random.range(-tame, tame)
                }
            };
            (0..dim).map(|i| one(i) as i32).collect()
        };
        // Tame ones bring a normalized value (20 bits) to about ±100.
        let (multiplier, offset) = (words((1 << bits >> 14).min(1 << 30)), words(1 << 21));
        for skip in [0, 2] {
            let (multiplier, offset) = (bytes_of(&multiplier), bytes_of(&offset));
            let norm = Norm {
                multiplier: I32s::from_bytes(multiplier.get()),
                offset: I32s::from_bytes(offset.get()),
                bits,
                epsilon,
            };
            let mut expected = vec![0i8; dim];
            norm.row(&token, &mut expected, |slot, value| {
                *slot = round_shift(value, bits).clamp(-128, 127) as i8;
            });
            let token = shifted(bytemuck::cast_slice(&token), skip);
            let token = bytemuck::cast_slice(&token.get()[skip..]);
            for back_end in BackEnd::all() {
                let mut memory = Bytes::filled(norm.memory(dim), 0x5A);
                let mut out = vec![7; dim];
                back_end.norm(&norm, token, memory.get_mut(), &mut out).unwrap();
                let what = back_end.name();
                assert_eq!(
                    out, expected,
                    "{what}, case {case}, dim {dim}, bits {bits}, skip {skip}"
                );
            }
        }
    }
}

#[test]
fn softmax() {
    let random = &mut Random(3);
    let mut between = 0;
    for case in cases(2000) {
        let count = random.range(1, 70) as usize;
        let multiplier = match case % 10 {
            0 => number(random, 32),
            _ => random.range(1, i32::MAX.into()),
        } as i32;
        let shift = if case % 2 == 0 {
            case as u32 / 2 % 63
        } else {
            random.range(36, 46) as u32
        };
        // Distances that reach all of the table, or all of i32.
        let reach = ((600u128 << shift) / u128::from(multiplier.unsigned_abs().max(1))).clamp(2, 1 << 29) as i64;
        let mut one = |_| match case % 3 {
            0 => number(random, 32),
            _ => random.range(-reach, reach),
        } as i32;
        let scores: Vec<i32> = (0..count).map(&mut one).collect();
        let mut expected = vec![0; count];
        let sum = softmax_weights(&scores, multiplier, shift, &mut expected);
        between += expected.iter().filter(|&&weight| (1..4095).contains(&weight)).count();
        for back_end in BackEnd::all() {
            let mut weights = vec![7; count];
            let got = back_end.softmax(&scores, multiplier, shift, &mut weights);
            let what = format!(
                "{}, case {case}, multiplier {multiplier}, shift {shift}",
                back_end.name()
            );
            assert_eq!((got, weights), (sum, expected.clone()), "{what}");
        }
    }
    assert!(between > cases(2000).len() * 5 / 2, "the weights say little: {between}");
}

#[test]
fn weighted_values() {
    let random = &mut Random(4);
    for case in cases(400) {
        let (tokens, channels) = (random.range(1, 160) as usize, random.range(1, 40) as usize);
        let mut many = |len: usize, low: i64, high: i64| -> Vec<i64> {
            let one = |_| match case % 4 {
                0 => low,
                1 => high,
                _ => random.range(low, high),
            };
            (0..len).map(one).collect()
        };
        let rows = 1 + case % 35;
        let weights: Vec<i16> = many(rows * tokens, 0, 4095).iter().map(|&w| w as i16).collect();
        let values: Vec<i8> = many(channels * tokens, -128, 127).iter().map(|&v| v as i8).collect();
        let mut panels = vec![0; panel::panels_len(channels, tokens)];
        panel::pack(&values, tokens, &mut panels);
        let sum = |weights: &[i16], row: &[i8]| {
            let products = row.iter().zip(weights).map(|(&v, &w)| i64::from(v) * i64::from(w));
            products.sum::<i64>() as i32
        };
        let expected: Vec<i32> = weights
            .chunks(tokens)
            .flat_map(|weights| values.chunks(tokens).map(move |row| sum(weights, row)))
            .collect();
        let padded = panel::padded(tokens);
        let mut filled = vec![0i16; rows * padded];
        for (filled, weights) in filled.chunks_mut(padded).zip(weights.chunks(tokens)) {
            filled[..tokens].copy_from_slice(weights);
        }
        for skip in [0, 2] {
            let panels = shifted(bytemuck::cast_slice(&panels), skip);
            for back_end in BackEnd::all() {
                let mut weights = shifted(bytemuck::cast_slice(&filled), skip);
                let weights = bytemuck::cast_slice_mut(&mut weights.get_mut()[skip..]);
                let mut out = vec![7; rows * channels];
                back_end.weighted(weights, tokens, bytemuck::cast_slice(&panels.get()[skip..]), &mut out);
                assert_eq!(out, expected, "{}, case {case}, skip {skip}", back_end.name());
            }
        }
    }
}
