//! Random encoder files, and a second implementation of `docs/integer-encoder.md` without tiles, in wide integers.
#![allow(dead_code, reason = "each test binary uses a part")]

use tec_edge::format::{Head, Header, Normalization, SCALES_EPSILON_AT, Section, file_len, write};
use tec_edge::panel::pack;
use tec_edge::{Geometry, Pool, Precision, int4};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn range(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }
}

/// Bytes at a 16-byte boundary, at run time.
pub struct Bytes {
    memory: Vec<u128>,
    len: usize,
}

impl Bytes {
    pub fn new(bytes: &[u8]) -> Self {
        let mut new = Self {
            memory: vec![0; bytes.len().div_ceil(16)],
            len: bytes.len(),
        };
        new.get_mut().copy_from_slice(bytes);
        new
    }

    pub fn filled(len: usize, byte: u8) -> Self {
        Self::new(&vec![byte; len])
    }

    pub fn get(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.memory)[..self.len]
    }

    pub fn get_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.memory)[..self.len]
    }
}

pub fn geometry() -> Geometry {
    Geometry {
        image_size: 12,
        patch_size: 4,
        channels: 3,
        dim: 12,
        depth: 2,
        heads: 3,
        hidden: 22,
    }
}

pub fn header(geometry: Geometry) -> Header {
    let used = |value: f32| core::array::from_fn(|i| if i < geometry.channels { value } else { 0.0 });
    Header {
        geometry,
        pool: Pool::Mean,
        fc_norm: false,
        head: None,
        precision: Precision::Int8,
        name_len: 5,
        residual_bits: 8,
        epsilon: 1000,
        patch_shift: 42,
        norm_bits: 45,
        class_bits: 11,
        mean_bits: 13,
        patch_bits: 12,
        normalization: Normalization {
            mean: used(0.5),
            std: used(0.25),
        },
    }
}

/// Headers of every kind: with and without a head on either embedding, `fc_norm`, weights of 8 and 4 bits.
pub fn variants(geometry: Geometry) -> Vec<Header> {
    let plain = header(geometry);
    let head = |classes| {
        Some(Head {
            classes,
            norm_bits: 30,
            shift: 30,
            logit_bits: 9,
        })
    };
    vec![
        plain,
        Header {
            pool: Pool::Class,
            head: head(3),
            precision: Precision::Int4 { group: 8 },
            ..plain
        },
        Header {
            fc_norm: true,
            head: head(21),
            ..plain
        },
        Header {
            head: head(16),
            ..plain
        },
        Header {
            fc_norm: true,
            precision: Precision::Int4 { group: 65_536 },
            ..plain
        },
    ]
}

/// A file whose activations have the sizes that a quantized encoder's have. `wild` draws every constant from its whole range
/// instead, so that everything saturates.
pub fn file(header: &Header, seed: u64, wild: bool) -> Vec<u8> {
    let mut random = Random(seed);
    let mut out = vec![0; file_len(header).unwrap()];
    let inner = |section| match section {
        Section::PatchWeight | Section::PatchMultiplier => header.geometry.patch_len(),
        Section::Fc2Weight | Section::Fc2Multiplier => header.geometry.hidden,
        _ => header.geometry.dim,
    };
    write(header, &mut out, |section, block, bytes| {
        use Section::*;
        let words = |bytes: &mut [u8], value: &mut dyn FnMut() -> i64| {
            bytes
                .chunks_exact_mut(4)
                .for_each(|slot| slot.copy_from_slice(&(value() as i32).to_le_bytes()));
        };
        // A sum of products of full-range values is about 75^2 * sqrt(inner).
        let sum = 5400.0 * (inner(section) as f64).sqrt();
        match section {
            PatchWeight | QkvWeight | ProjWeight | Fc1Weight | Fc2Weight | HeadWeight => {
                let (outputs, inner) = section.matrix(header).unwrap();
                let rows: Vec<i8> = (0..outputs * inner).map(|_| random.range(-127, 127) as i8).collect();
                match section.precision(header) {
                    Precision::Int8 => pack(&rows, inner, bytemuck::cast_slice_mut(bytes)),
                    Precision::Int4 { group } => {
                        let scales = outputs * inner.div_ceil(group);
                        let scales: Vec<u8> = (0..scales).map(|_| random.range(200, 255) as u8).collect();
                        int4::pack(&rows, &scales, inner, group, bytes);
                    }
                }
            }
            GeluTable => bytes.iter_mut().for_each(|slot| *slot = random.next() as u8),
            Name => bytes.copy_from_slice("tin\u{e9}".as_bytes()),
            Scales => {
                bytes[..9].copy_from_slice(&[40, 40, 30, 40, 40, 40, 40, 40, block as u8 % 16]);
                bytes[SCALES_EPSILON_AT..][..8].copy_from_slice(&(1000 + block as u64).to_le_bytes());
            }
            PatchBias | QkvBias | ProjBias | Fc1Bias | Fc2Bias | HeadBias => {
                let limit = if wild { 1 << 30 } else { 100_000 };
                words(bytes, &mut || random.range(-limit, limit));
            }
            ClassToken | Position => {
                let limit = if wild { 32767 } else { 1000 };
                let slots = bytes.chunks_exact_mut(2);
                slots.for_each(|slot| slot.copy_from_slice(&(random.range(-limit, limit) as i16).to_le_bytes()));
            }
            SoftmaxMultiplier if wild => words(bytes, &mut || random.range(0, i32::MAX.into())),
            _ if wild => words(bytes, &mut || random.range(i32::MIN.into(), i32::MAX.into())),
            SoftmaxMultiplier => words(bytes, &mut || ((1i64 << 30) as f64 * 200.0 / sum) as i64),
            AttentionMultiplier => words(bytes, &mut || random.range(1 << 24, 1 << 25)),
            Norm1Multiplier | Norm2Multiplier => words(bytes, &mut || random.range(-50 << 20, 50 << 20)),
            NormMultiplier => words(bytes, &mut || random.range(-1 << 25, 1 << 25)),
            Norm1Offset | Norm2Offset => words(bytes, &mut || random.range(-20 << 16, 20 << 16)),
            // An embedding's integers reach about 2^14, inputs of 8 bits 2^7; the head's sums are its logits.
            HeadNormMultiplier => words(bytes, &mut || random.range(-1 << 23, 1 << 23)),
            HeadNormOffset => words(bytes, &mut || random.range(-20 << 16, 20 << 16)),
            HeadMultiplier => words(bytes, &mut || random.range(1 << 26, 1 << 27)),
            NormOffset => words(bytes, &mut || random.range(-1 << 15, 1 << 15)),
            QkvMultiplier | Fc1Multiplier => {
                words(bytes, &mut || {
                    (random.range(30, 60) as f64 / sum * (1i64 << 40) as f64) as i64
                });
            }
            PatchMultiplier | ProjMultiplier | Fc2Multiplier => {
                words(bytes, &mut || {
                    (random.range(200, 500) as f64 / sum * (1i64 << 40) as f64).min(2e9) as i64
                });
            }
        }
    })
    .unwrap();
    out
}

/// The outputs as the specification defines them: class, mean, patches.
pub struct Expected {
    pub class: Vec<i16>,
    pub mean: Vec<i16>,
    pub patches: Vec<i16>,
    /// Empty without a head.
    pub logits: Vec<i16>,
}

/// Whole matrices in i128, one operation after the other, of all patches.
pub fn reference(header: &Header, file: &[u8], pixels: &[u8]) -> Expected {
    let all: Vec<u32> = (0..header.geometry.patches() as u32).collect();
    reference_of(header, file, pixels, &all)
}

/// Of some patches.
pub fn reference_of(header: &Header, file: &[u8], pixels: &[u8], wanted: &[u32]) -> Expected {
    let g = header.geometry;
    let (d, heads, tokens, hidden) = (g.dim, g.heads, wanted.len() + 1, g.hidden);
    let width = d / heads;
    let section = |wanted: Section, block: usize| -> &[u8] {
        let placed = tec_edge::format::sections(header)
            .find(|p| p.section == wanted && p.block == block as u32)
            .unwrap();
        &file[placed.offset as usize..][..placed.len as usize]
    };
    let i8s = |s, b| section(s, b).iter().map(|&x| i128::from(x as i8)).collect::<Vec<_>>();
    let words = |s, b| -> Vec<i128> {
        section(s, b)
            .chunks(4)
            .map(|x| i32::from_le_bytes(x.try_into().unwrap()).into())
            .collect()
    };
    let halves = |s, b| -> Vec<i128> {
        section(s, b)
            .chunks(2)
            .map(|x| i16::from_le_bytes(x.try_into().unwrap()).into())
            .collect()
    };
    let linear = |x: &[i128], w: Section, bias: Section, m: Section, b: usize, inner: usize, shift: u8, limit: i128| {
        let (panels, bias, multiplier) = (section(w, b), words(bias, b), words(m, b));
        let quads = inner.div_ceil(4);
        let weight = |o: usize, k: usize| match w.precision(header) {
            Precision::Int8 => i128::from(panels[((o / 16 * quads + k / 4) * 16 + o % 16) * 4 + k % 4] as i8),
            Precision::Int4 { group } => {
                let groups = inner.div_ceil(group);
                let panel = &panels[o / 16 * (16 * groups + 32 * quads)..];
                let pair = panel[16 * groups + k / 4 * 32 + o % 16 * 2 + k % 4 / 2];
                let q = i128::from(if k.is_multiple_of(2) { pair & 15 } else { pair >> 4 });
                let q = if q > 7 { q - 16 } else { q };
                (q * i128::from(panel[k / group * 16 + o % 16]) + 8).div_euclid(16)
            }
        };
        let mut out = Vec::new();
        for row in x.chunks(inner) {
            for o in 0..bias.len() {
                let sum: i128 = (0..inner).map(|k| row[k] * weight(o, k)).sum();
                assert!((sum + bias[o]).abs() < 1 << 31, "an accumulator overflows");
                out.push(round((sum + bias[o]) * multiplier[o], shift).clamp(-limit - 1, limit));
            }
        }
        out
    };
    let normalized = |x: &[i128], m: Section, o: Section, b: usize, bits: u8, epsilon: u64| {
        let (multiplier, offset) = (words(m, b), words(o, b));
        let mut out = Vec::new();
        for row in x.chunks(d) {
            let s1: i128 = row.iter().sum();
            let s2: i128 = row.iter().map(|x| x * x).sum();
            let v = d as i128 * s2 - s1 * s1 + i128::from(epsilon);
            let left = (v as u64).leading_zeros() & !1;
            let root = ((v as u64) << left).isqrt() as i128;
            let mantissa = ((1i128 << 62) + root / 2) / root;
            for c in 0..d {
                let n = round((d as i128 * row[c] - s1) * mantissa, (42 - left / 2) as u8);
                out.push(n * multiplier[c] + (offset[c] << (bits - 16)));
            }
        }
        out
    };
    let norm8 = |x: &[i128], m, o, b, bits, epsilon| -> Vec<i128> {
        normalized(x, m, o, b, bits, epsilon)
            .into_iter()
            .map(|y| round(y, bits).clamp(-128, 127))
            .collect()
    };

    let (grid, p, channels) = (g.grid(), g.patch_size, g.channels);
    let mut patches = Vec::new();
    for patch in wanted.iter().map(|&patch| patch as usize) {
        for y in 0..p {
            for x in 0..p * channels {
                let row = (patch / grid * p + y) * g.image_size * channels;
                patches.push(i128::from(pixels[row + patch % grid * p * channels + x]) - 128);
            }
        }
    }
    use Section::*;
    let embedded = linear(
        &patches,
        PatchWeight,
        PatchBias,
        PatchMultiplier,
        0,
        p * p * channels,
        header.patch_shift,
        32767,
    );
    let mut x = halves(ClassToken, 0);
    let positions = halves(Position, 0);
    let position = |i: usize| positions[wanted[i / d] as usize * d + i % d];
    x.extend(embedded.iter().enumerate().map(|(i, e)| saturate16(e + position(i))));

    for b in 0..g.depth {
        let shifts = section(Scales, b);
        let epsilon = u64::from_le_bytes(shifts[16..24].try_into().unwrap());
        x = x.iter().map(|&x| round(x, shifts[8])).collect();
        let y = norm8(&x, Norm1Multiplier, Norm1Offset, b, shifts[0], epsilon);
        let qkv = linear(&y, QkvWeight, QkvBias, QkvMultiplier, b, d, shifts[1], 127);
        let at = |token: usize, part: usize, head: usize, c: usize| qkv[token * 3 * d + part * d + head * width + c];
        let (softmax, attention) = (words(SoftmaxMultiplier, b), words(AttentionMultiplier, b));
        let mut joined = vec![0i128; tokens * d];
        for h in 0..heads {
            for t in 0..tokens {
                let scores: Vec<i128> = (0..tokens)
                    .map(|j| (0..width).map(|c| at(t, 0, h, c) * at(j, 1, h, c)).sum())
                    .collect();
                let max = *scores.iter().max().unwrap();
                let weight: Vec<i128> = scores
                    .iter()
                    .map(|s| {
                        let index = round((max - s) * softmax[h], shifts[2]).min(577);
                        (4095.0 * (-(index as f64) / 64.0).exp()).round() as i128
                    })
                    .collect();
                let sum: i128 = weight.iter().sum();
                let bits = 128 - sum.leading_zeros();
                let mantissa = ((1i128 << (30 + bits)) + sum / 2) / sum;
                for c in 0..width {
                    let total: i128 = (0..tokens).map(|j| weight[j] * at(j, 2, h, c)).sum();
                    let mean = round(total * mantissa, (30 + bits - 16) as u8);
                    joined[t * d + h * width + c] = round(mean * attention[h * width + c], shifts[3]).clamp(-128, 127);
                }
            }
        }
        let out = linear(&joined, ProjWeight, ProjBias, ProjMultiplier, b, d, shifts[4], 32767);
        x = x.iter().zip(out).map(|(x, o)| saturate16(x + o)).collect();
        let y = norm8(&x, Norm2Multiplier, Norm2Offset, b, shifts[5], epsilon);
        let table = i8s(GeluTable, b);
        let h: Vec<i128> = linear(&y, Fc1Weight, Fc1Bias, Fc1Multiplier, b, d, shifts[6], 127)
            .into_iter()
            .map(|q| table[(q + 128) as usize])
            .collect();
        let out = linear(&h, Fc2Weight, Fc2Bias, Fc2Multiplier, b, hidden, shifts[7], 32767);
        x = x.iter().zip(out).map(|(x, o)| saturate16(x + o)).collect();
    }

    let shift = |bits: i8| (i32::from(header.norm_bits) - i32::from(bits)) as u8;
    let output = |x: &[i128], bits| -> Vec<i128> {
        let y = normalized(x, NormMultiplier, NormOffset, 0, header.norm_bits, header.epsilon);
        y.iter().map(|&y| saturate16(round(y, shift(bits)))).collect()
    };
    let token = |x: &[i128], bits| if header.fc_norm { x.to_vec() } else { output(x, bits) };
    let class = token(&x[..d], header.class_bits);
    let patches = token(&x[d..], header.patch_bits);
    let count = (tokens - 1) as i128;
    let bits = 128 - count.leading_zeros() as i32;
    let mantissa = ((1i128 << (30 + bits)) + count / 2) / count;
    let finer = i32::from(header.patch_bits) - i32::from(header.mean_bits);
    let mean_shift = 30 + bits + if header.fc_norm { 0 } else { finer };
    let pooled: Vec<i128> = (0..d)
        .map(|c| {
            let sum: i128 = patches.iter().skip(c).step_by(d).sum();
            saturate16(round(sum * mantissa, mean_shift as u8))
        })
        .collect();
    let mean = match header.fc_norm {
        true => output(&pooled, header.mean_bits),
        false => pooled,
    };
    let logits = header.head.map_or(Vec::new(), |head| {
        let embedding = match header.pool {
            Pool::Class => &class,
            Pool::Mean => &mean,
        };
        let constants = words(HeadNormMultiplier, 0).into_iter().zip(words(HeadNormOffset, 0));
        let inputs: Vec<i128> = embedding
            .iter()
            .zip(constants)
            .map(|(e, (m, o))| round(e * m + (o << (head.norm_bits - 16)), head.norm_bits).clamp(-128, 127))
            .collect();
        linear(&inputs, HeadWeight, HeadBias, HeadMultiplier, 0, d, head.shift, 32767)
    });
    let narrow = |values: Vec<i128>| values.into_iter().map(|v| v as i16).collect::<Vec<_>>();
    Expected {
        class: narrow(class),
        mean: narrow(mean),
        patches: narrow(patches),
        logits: narrow(logits),
    }
}

fn round(product: i128, shift: u8) -> i128 {
    if shift == 0 {
        product
    } else {
        (product + (1 << (shift - 1))) >> shift
    }
}

fn saturate16(value: i128) -> i128 {
    value.clamp(-32768, 32767)
}

/// Recomputes the checksum after a change.
pub fn seal(file: &mut [u8]) {
    let sum = tec_edge::format::checksum(file);
    file[16..20].copy_from_slice(&sum.to_le_bytes());
}
