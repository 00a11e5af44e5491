//! AVX-512 with VNNI: a panel's quad is one register.

mod values;

use core::arch::x86_64::*;

use bytemuck::cast;
use tec_core::integer::{GELU_TABLE_LEN, WeightedMean, softmax_weights};

use super::{Avx2, vnni};
use crate::kernel::distances::Distances;
use crate::kernel::{Kernel, Lanes, Needs, Scalar, Work};
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

    /// Of each 64 numbers, and of what is left, all lower bytes, then all upper ones.
    #[cfg(tec_amx)]
    #[inline(always)]
    pub(super) fn split_bytes(self, numbers: &mut [i16]) {
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { values::split_bytes(numbers) }
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

    #[inline(always)]
    fn with<W: Work>(self, work: W) -> W::Result {
        #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni")]
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
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { weighted(weights, stride, values, sums) }
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
        if !(32..=62).contains(&shift) {
            return Scalar.requantize(sums, bias, multiplier, shift, values);
        }
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { values::requantize(sums, bias, multiplier, shift, values) }
    }

    #[inline(always)]
    fn norm(self, norm: &Norm<'_>, token: &[i16], out: &mut [i8]) {
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { values::norm(norm, token, out) }
    }

    #[inline(always)]
    fn softmax(self, scores: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
        let Some(distances) = Distances::new(scores, multiplier, shift) else {
            return softmax_weights(scores, multiplier, shift, weights);
        };
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { values::softmax(&distances, scores, weights) }
    }

    #[inline(always)]
    fn gelu(self, table: &[i8; GELU_TABLE_LEN], values: &[Lanes<i16>], found: &mut [Lanes<i8>]) {
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { values::gelu(table, values, found) }
    }

    #[inline(always)]
    fn means(
        self,
        sums: &[Lanes<i32>],
        rows: &[WeightedMean],
        multiplier: &Lanes<i32>,
        shift: u32,
        means: &mut [Lanes<i8>],
    ) {
        if !(1..=62).contains(&shift) {
            return Scalar.means(sums, rows, multiplier, shift, means);
        }
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { values::means(sums, rows, multiplier, shift, means) }
    }
}

/// Calls a function made for as many rows as there are.
macro_rules! for_rows {
    ($rows:expr, $function:ident, $arguments:tt $(, $constant:ident)?) => {
        for_rows!(@ $rows, $function, $arguments, ($($constant)?), 1 2 3 4 5 6 7 8 9 10 11; 12)
    };
    (@ $rows:expr, $function:ident, $arguments:tt, $constants:tt, $($count:literal)*; $most:literal) => {
        match $rows {
            $($count => for_rows!(= $function, $count, $arguments, $constants),)*
            _ => for_rows!(= $function, $most, $arguments, $constants),
        }
    };
    (= $function:ident, $count:literal, ($($argument:expr),*), ($($constant:ident)?)) => {
        $function::<$count $(, $constant)?>($($argument),*)
    };
}
/// Products of up to 12 rows. `SIGNED`: of weights, which become unsigned here; otherwise of unsigned keys.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn products<const SIGNED: bool>(factors: &[i8], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
    for_rows!(
        sums.len(),
        products_of,
        (factors, stride, panel.as_chunks().0, sums),
        SIGNED
    )
}

/// Pointers from which the rows of a group are reached.
const THIRDS: usize = Avx512::ROWS / 3;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn products_of<const ROWS: usize, const SIGNED: bool>(
    factors: &[i8],
    stride: usize,
    quads: &[Weights],
    sums: &mut [Lanes<i32>],
) {
    let len = quads.len() * QUAD;
    if stride < len + vnni::TAIL || factors.len() < (ROWS - 1) * stride + len + vnni::TAIL {
        return;
    }
    // Twelve pointers would not fit into the registers: rows are reached from every third one.
    let mut thirds: [*const i8; THIRDS] =
        core::array::from_fn(|third| factors.as_ptr().wrapping_add(3 * third * stride));
    // SAFETY: a row is followed by its tail, as was just checked.
    let word = |row: usize, thirds: &[*const i8; THIRDS], at: usize| unsafe {
        _mm512_set1_epi32(
            thirds[row / 3]
                .add(row % 3 * stride + at)
                .cast::<i32>()
                .read_unaligned(),
        )
    };
    let mut vectors = [_mm512_setzero_si512(); ROWS];
    if SIGNED {
        for (row, vector) in vectors.iter_mut().enumerate() {
            *vector = word(row, &thirds, len);
        }
    }
    let sign = _mm512_set1_epi8(i8::MIN);
    for weights in quads {
        // SAFETY: the array has 64 bytes.
        let mut weights = unsafe { _mm512_loadu_si512(weights.as_ptr().cast()) };
        if SIGNED {
            weights = _mm512_xor_si512(weights, sign);
        }
        for (row, vector) in vectors.iter_mut().enumerate() {
            *vector = _mm512_dpbusd_epi32(*vector, weights, word(row, &thirds, 0));
        }
        thirds = thirds.map(|third| third.wrapping_add(QUAD));
    }
    for (sums, vector) in sums.iter_mut().zip(vectors) {
        // SAFETY: the array has 64 bytes.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), vector) };
    }
}

/// Adds the products of up to 12 rows of weights of 16 bits with values widened to as many.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn weighted(weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]) {
    for_rows!(sums.len(), weighted_of, (weights, stride, values.as_chunks().0, sums))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn weighted_of<const ROWS: usize>(weights: &[i16], stride: usize, quads: &[Weights], sums: &mut [Lanes<i32>]) {
    let mut rows: [&[[i16; QUAD]]; ROWS] = [&[]; ROWS];
    for (row, weights) in rows
        .iter_mut()
        .zip(crate::kernel::rows(weights, stride, quads.len() * QUAD))
    {
        *row = weights.as_chunks().0;
    }
    if rows.iter().any(|row| row.len() != quads.len()) {
        return;
    }
    // Two lanes a channel: of the channels 0 to 7, then 8 to 15.
    let mut vectors = [[_mm512_setzero_si512(); 2]; ROWS];
    for (quad, values) in quads.iter().enumerate() {
        let [first, second]: [__m256i; 2] = cast(*values);
        let (first, second) = (_mm512_cvtepi8_epi16(first), _mm512_cvtepi8_epi16(second));
        for ([low, high], row) in vectors.iter_mut().zip(rows) {
            // SAFETY: every row has as many quads as the panel.
            let weights = _mm512_set1_epi64(cast(*unsafe { row.get_unchecked(quad) }));
            *low = _mm512_dpwssd_epi32(*low, first, weights);
            *high = _mm512_dpwssd_epi32(*high, second, weights);
        }
    }
    let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    let odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    for (sums, [low, high]) in sums.iter_mut().zip(vectors) {
        let even = _mm512_permutex2var_epi32(low, even, high);
        let found = _mm512_add_epi32(even, _mm512_permutex2var_epi32(low, odd, high));
        // SAFETY: the array has 64 bytes.
        unsafe {
            let sum = _mm512_add_epi32(_mm512_loadu_si512(sums.as_ptr().cast()), found);
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum);
        }
    }
}
