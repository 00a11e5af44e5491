//! AVX-VNNI: as AVX-512's, in registers of 256 bits.

use core::arch::x86_64::*;

use bytemuck::cast;

use super::{Avx2, avx2, vnni};
use crate::kernel::{Kernel, Lanes, Needs, Work};
use crate::layers::Norm;
use crate::panel::{PANEL, QUAD};

/// A quad of all outputs of a panel.
type Weights = [i8; PANEL * QUAD];

/// Proof that the processor has AVX2 and AVX-VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AvxVnni(Avx2);

impl AvxVnni {
    /// If the processor has both.
    pub(crate) fn new() -> Option<Self> {
        has_avx_vnni().then(Avx2::new).flatten().map(Self)
    }
}

#[cfg(feature = "std")]
fn has_avx_vnni() -> bool {
    std::arch::is_x86_feature_detected!("avxvnni")
}

#[cfg(not(feature = "std"))]
fn has_avx_vnni() -> bool {
    cfg!(target_feature = "avxvnni")
}

impl Kernel for AvxVnni {
    type Factor = i8;
    type Sums = [Lanes<i32>; Self::ROWS];
    type Values = [Lanes<i16>; Self::ROWS];
    const NEEDS: Needs = Needs::AVX_VNNI;

    #[inline(always)]
    fn with<W: Work>(self, work: W) -> W::Result {
        #[target_feature(enable = "avx2,avxvnni")]
        fn compiled<W: Work>(work: W) -> W::Result {
            work.run()
        }
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { compiled(work) }
    }

    #[inline(always)]
    fn factor(self, q: i8) -> i8 {
        q
    }

    #[inline(always)]
    fn activation(self, factor: i8) -> i8 {
        factor
    }

    #[inline(always)]
    fn narrow(self, values: &Lanes<i16>) -> Lanes<i8> {
        self.0.narrow(values)
    }

    #[inline(always)]
    fn put(self, values: &Lanes<i8>, row: &mut [i8], first: usize) {
        vnni::put(values, row, first);
    }

    #[inline(always)]
    fn finish(self, row: &mut [i8]) {
        vnni::finish(row);
    }

    #[inline(always)]
    fn products(self, activations: &[i8], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { products::<true>(activations, stride, panel, sums) }
    }

    #[inline(always)]
    fn key(self, k: i8) -> i8 {
        vnni::unsigned(k)
    }

    #[inline(always)]
    fn scores(self, queries: &[i8], stride: usize, keys: &[i8], scores: &mut [Lanes<i32>]) {
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { products::<false>(queries, stride, keys, scores) }
    }

    #[inline(always)]
    fn weighted(self, weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]) {
        self.0.weighted(weights, stride, values, sums);
    }

    #[inline(always)]
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

    #[inline(always)]
    fn norm(self, norm: &Norm<'_>, token: &[i16], out: &mut [i8]) {
        avx2::norm(self.0, norm, token, out);
    }

    #[inline(always)]
    fn softmax(self, scores: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
        self.0.softmax(scores, multiplier, shift, weights)
    }
}

/// Products of up to 6 rows. `SIGNED`: of weights, which become unsigned here; otherwise of unsigned keys.
#[target_feature(enable = "avx2,avxvnni")]
fn products<const SIGNED: bool>(factors: &[i8], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
    let quads = panel.as_chunks().0;
    match sums.len() {
        1 => products_of::<1, SIGNED>(factors, stride, quads, sums),
        2 => products_of::<2, SIGNED>(factors, stride, quads, sums),
        3 => products_of::<3, SIGNED>(factors, stride, quads, sums),
        4 => products_of::<4, SIGNED>(factors, stride, quads, sums),
        5 => products_of::<5, SIGNED>(factors, stride, quads, sums),
        _ => products_of::<6, SIGNED>(factors, stride, quads, sums),
    }
}

#[target_feature(enable = "avx2,avxvnni")]
fn products_of<const ROWS: usize, const SIGNED: bool>(
    factors: &[i8],
    stride: usize,
    quads: &[Weights],
    sums: &mut [Lanes<i32>],
) {
    let mut rows: [&[[i8; QUAD]]; ROWS] = [&[]; ROWS];
    let mut vectors = [[_mm256_setzero_si256(); 2]; ROWS];
    for ((row, vectors), factors) in rows.iter_mut().zip(&mut vectors).zip(factors.chunks(stride.max(1))) {
        if let Some((quads, tail)) = vnni::quads_and_tail(factors, quads.len()) {
            *row = quads;
            if SIGNED {
                *vectors = [_mm256_set1_epi32(tail); 2];
            }
        }
    }
    if rows.iter().any(|row| row.len() != quads.len()) {
        return;
    }
    let sign = _mm256_set1_epi8(i8::MIN);
    for (quad, weights) in quads.iter().enumerate() {
        let [mut low, mut high]: [__m256i; 2] = cast(*weights);
        if SIGNED {
            low = _mm256_xor_si256(low, sign);
            high = _mm256_xor_si256(high, sign);
        }
        for (vectors, row) in vectors.iter_mut().zip(rows) {
            // SAFETY: every row has as many quads as the panel.
            let factors = _mm256_set1_epi32(cast(*unsafe { row.get_unchecked(quad) }));
            vectors[0] = _mm256_dpbusd_avx_epi32(vectors[0], low, factors);
            vectors[1] = _mm256_dpbusd_avx_epi32(vectors[1], high, factors);
        }
    }
    for (sums, vectors) in sums.iter_mut().zip(vectors) {
        *sums = cast(vectors);
    }
}
