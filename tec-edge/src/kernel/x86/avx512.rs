//! AVX-512 with VNNI: a panel's quad is one register.

use core::arch::x86_64::*;

use bytemuck::cast;

use super::{Avx2, avx2, vnni};
use crate::kernel::{Kernel, Lanes, Needs};
use crate::layers::Norm;
use crate::panel::{PANEL, QUAD};

/// A quad of all outputs of a panel.
type Weights = [i8; PANEL * QUAD];

/// Proof that the processor has AVX2 and AVX-512 F, BW, VL and VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(Avx2);

impl Avx512 {
    /// If the processor has all of them.
    pub(crate) fn new() -> Option<Self> {
        has_avx512().then(Avx2::new).flatten().map(Self)
    }
}

#[cfg(feature = "std")]
fn has_avx512() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni")
}

#[cfg(not(feature = "std"))]
fn has_avx512() -> bool {
    cfg!(all(
        target_feature = "avx512f",
        target_feature = "avx512bw",
        target_feature = "avx512vl",
        target_feature = "avx512vnni"
    ))
}

impl Kernel for Avx512 {
    type Factor = i8;
    type Sums = [Lanes<i32>; Self::ROWS];
    type Values = [Lanes<i16>; Self::ROWS];
    const NEEDS: Needs = Needs::AVX512_VNNI;

    fn factor(self, q: i8) -> i8 {
        q
    }

    fn activation(self, factor: i8) -> i8 {
        factor
    }

    fn narrow(self, values: &Lanes<i16>) -> Lanes<i8> {
        self.0.narrow(values)
    }

    fn put(self, values: &Lanes<i8>, row: &mut [i8], first: usize) {
        vnni::put(values, row, first);
    }

    fn finish(self, row: &mut [i8]) {
        vnni::finish(row);
    }

    fn products(self, activations: &[i8], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { products::<true>(activations, stride, panel, sums) }
    }

    fn key(self, k: i8) -> i8 {
        vnni::unsigned(k)
    }

    fn scores(self, queries: &[i8], stride: usize, keys: &[i8], scores: &mut [Lanes<i32>]) {
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { products::<false>(queries, stride, keys, scores) }
    }

    fn weighted(self, weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]) {
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { weighted(weights, stride, values, sums) }
    }

    fn requantize(
        self,
        sums: &[Lanes<i32>],
        bias: &Lanes<i32>,
        multiplier: &Lanes<i32>,
        shift: u32,
        values: &mut [Lanes<i16>],
    ) {
        self.0.requantize(sums, bias, multiplier, shift, values);
    }

    fn norm(self, norm: &Norm<'_>, token: &[i16], out: &mut [i8]) {
        avx2::norm(self.0, norm, token, out);
    }

    fn softmax(self, scores: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
        self.0.softmax(scores, multiplier, shift, weights)
    }
}

/// Products of up to 12 rows. `SIGNED`: of weights, which become unsigned here; otherwise of unsigned keys.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn products<const SIGNED: bool>(factors: &[i8], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
    let quads = panel.as_chunks().0;
    match sums.len() {
        1 => products_of::<1, SIGNED>(factors, stride, quads, sums),
        2 => products_of::<2, SIGNED>(factors, stride, quads, sums),
        3 => products_of::<3, SIGNED>(factors, stride, quads, sums),
        4 => products_of::<4, SIGNED>(factors, stride, quads, sums),
        5 => products_of::<5, SIGNED>(factors, stride, quads, sums),
        6 => products_of::<6, SIGNED>(factors, stride, quads, sums),
        7 => products_of::<7, SIGNED>(factors, stride, quads, sums),
        8 => products_of::<8, SIGNED>(factors, stride, quads, sums),
        9 => products_of::<9, SIGNED>(factors, stride, quads, sums),
        10 => products_of::<10, SIGNED>(factors, stride, quads, sums),
        11 => products_of::<11, SIGNED>(factors, stride, quads, sums),
        _ => products_of::<12, SIGNED>(factors, stride, quads, sums),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn products_of<const ROWS: usize, const SIGNED: bool>(
    factors: &[i8],
    stride: usize,
    quads: &[Weights],
    sums: &mut [Lanes<i32>],
) {
    let mut rows: [&[[i8; QUAD]]; ROWS] = [&[]; ROWS];
    let mut vectors = [_mm512_setzero_si512(); ROWS];
    for ((row, vector), factors) in rows.iter_mut().zip(&mut vectors).zip(factors.chunks(stride.max(1))) {
        if let Some((quads, tail)) = vnni::quads_and_tail(factors, quads.len()) {
            *row = quads;
            if SIGNED {
                *vector = _mm512_set1_epi32(tail);
            }
        }
    }
    if rows.iter().any(|row| row.len() != quads.len()) {
        return;
    }
    let sign = _mm512_set1_epi8(i8::MIN);
    for (quad, weights) in quads.iter().enumerate() {
        // SAFETY: the array has 64 bytes.
        let mut weights = unsafe { _mm512_loadu_si512(weights.as_ptr().cast()) };
        if SIGNED {
            weights = _mm512_xor_si512(weights, sign);
        }
        for (vector, row) in vectors.iter_mut().zip(rows) {
            // SAFETY: every row has as many quads as the panel.
            let factors = _mm512_set1_epi32(cast(*unsafe { row.get_unchecked(quad) }));
            *vector = _mm512_dpbusd_epi32(*vector, weights, factors);
        }
    }
    for (sums, vector) in sums.iter_mut().zip(vectors) {
        // SAFETY: the array has 64 bytes.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), vector) };
    }
}

/// A row at a time: weights of 16 bits, values widened to as many. (`vpdpwssd` would add, too; Miri, which checks this file, has none.)
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn weighted(weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]) {
    let quads: &[Weights] = values.as_chunks().0;
    for (row, sums) in crate::kernel::rows(weights, stride, quads.len() * QUAD).zip(sums) {
        let (mut low, mut high) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        for (weights, values) in row.as_chunks::<QUAD>().0.iter().zip(quads) {
            let weights = _mm512_set1_epi64(cast(*weights));
            let [first, second]: [__m256i; 2] = cast(*values);
            low = _mm512_add_epi32(low, _mm512_madd_epi16(_mm512_cvtepi8_epi16(first), weights));
            high = _mm512_add_epi32(high, _mm512_madd_epi16(_mm512_cvtepi8_epi16(second), weights));
        }
        // Two lanes a channel: of the channels 0 to 7, then 8 to 15.
        let mut pairs = [[0i32; 2]; PANEL];
        let (first, second) = pairs.split_at_mut(PANEL / 2);
        // SAFETY: each half has 64 bytes.
        unsafe {
            _mm512_storeu_si512(first.as_mut_ptr().cast(), low);
            _mm512_storeu_si512(second.as_mut_ptr().cast(), high);
        }
        for (sum, [even, odd]) in sums.iter_mut().zip(pairs) {
            *sum = sum.wrapping_add(even).wrapping_add(odd);
        }
    }
}
