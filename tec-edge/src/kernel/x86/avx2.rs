//! AVX2: activations as i16, weights widened to i16 as they are read, `vpmaddwd`. Eight-bit `vpmaddubsw` would saturate.

use core::arch::x86_64::*;

use bytemuck::cast;
use tec_core::integer::{EXP_TABLE, EXP_TABLE_LEN, NormRow, softmax_weights};

use crate::kernel::distances::Distances;
use crate::kernel::{Kernel, Lanes, Needs, Scalar, Work, narrow, rows};
use crate::layers::Norm;
use crate::panel::{PANEL, QUAD};

/// A quad of all outputs of a panel.
type Weights = [i8; PANEL * QUAD];
/// A quad of a row.
type Factors = [i16; QUAD];

/// Proof that the processor has AVX2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// If the processor has AVX2.
    pub(crate) fn new() -> Option<Self> {
        has_avx2().then_some(Self(()))
    }
}

#[cfg(feature = "std")]
fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
}

#[cfg(not(feature = "std"))]
fn has_avx2() -> bool {
    cfg!(target_feature = "avx2")
}

impl Kernel for Avx2 {
    type Factor = i16;
    type Sums = [Lanes<i32>; Self::ROWS];
    type Values = [Lanes<i16>; Self::ROWS];
    const NEEDS: Needs = Needs::AVX2;

    #[inline(always)]
    fn with<W: Work>(self, work: W) -> W::Result {
        #[target_feature(enable = "avx2")]
        fn compiled<W: Work>(work: W) -> W::Result {
            work.run()
        }
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { compiled(work) }
    }

    #[inline(always)]
    fn factor(self, q: i8) -> i16 {
        q.into()
    }

    #[inline(always)]
    fn activation(self, factor: i16) -> i8 {
        factor as i8
    }

    #[inline(always)]
    fn narrow(self, values: &Lanes<i16>) -> Lanes<i8> {
        // SAFETY: the value of this type proves that the processor has AVX2.
        unsafe { narrow(values) }
    }

    #[inline(always)]
    fn put(self, values: &Lanes<i8>, row: &mut [i16], first: usize) {
        match row.get_mut(first..).and_then(<[i16]>::first_chunk_mut) {
            Some(whole) => *whole = values.map(i16::from),
            None => row
                .iter_mut()
                .skip(first)
                .zip(values)
                .for_each(|(slot, &value)| *slot = value.into()),
        }
    }

    #[inline(always)]
    fn products(self, activations: &[i16], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
        sums.fill([0; PANEL]);
        self.weighted(activations, stride, panel, sums);
    }

    #[inline(always)]
    fn weighted(self, weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]) {
        let quads = values.as_chunks().0;
        // SAFETY: the value of this type proves that the processor has AVX2.
        unsafe {
            match sums.len() {
                1 => add_products::<1>(weights, stride, quads, sums),
                2 => add_products::<2>(weights, stride, quads, sums),
                3 => add_products::<3>(weights, stride, quads, sums),
                4 => add_products::<4>(weights, stride, quads, sums),
                5 => add_products::<5>(weights, stride, quads, sums),
                _ => add_products::<6>(weights, stride, quads, sums),
            }
        }
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
        // SAFETY: the value of this type proves that the processor has AVX2.
        unsafe { requantize(sums, bias, multiplier, shift, values) }
    }

    #[inline(always)]
    fn norm(self, norm_of: &Norm<'_>, token: &[i16], out: &mut [i16]) {
        norm(self, norm_of, token, out);
    }

    #[inline(always)]
    fn softmax(self, scores: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
        let Some(distances) = Distances::new(scores, multiplier, shift) else {
            return softmax_weights(scores, multiplier, shift, weights);
        };
        // SAFETY: the value of this type proves that the processor has AVX2.
        unsafe { softmax(&distances, scores, weights) }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn narrow(values: &Lanes<i16>) -> Lanes<i8> {
    let [low, high]: [__m128i; 2] = cast(*values);
    cast(_mm_packs_epi16(low, high))
}

/// A factor that eight values of 16 bits, all of them within i8, can become.
pub(super) trait Slot: From<i8> {
    fn fill(slots: &mut [Self; 8], values: __m128i);
}

impl Slot for i16 {
    #[inline(always)]
    fn fill(slots: &mut [Self; 8], values: __m128i) {
        *slots = cast(values);
    }
}

impl Slot for i8 {
    #[inline(always)]
    fn fill(slots: &mut [Self; 8], values: __m128i) {
        *slots = cast::<_, [i16; 8]>(values).map(|value| value as i8);
    }
}

/// A token's norm as factors; `_avx2` proves that the processor has AVX2.
pub(super) fn norm<T: Slot>(_avx2: Avx2, norm: &Norm<'_>, token: &[i16], out: &mut [T]) {
    // SAFETY: as the argument proves.
    unsafe { normalize(norm, token, out) }
}

/// Adds the products of `ROWS` rows with a panel.
#[target_feature(enable = "avx2")]
fn add_products<const ROWS: usize>(factors: &[i16], stride: usize, quads: &[Weights], sums: &mut [Lanes<i32>]) {
    let count = quads.len();
    let mut row: [&[Factors]; ROWS] = [&[]; ROWS];
    for (slot, found) in row.iter_mut().zip(rows(factors, stride, count * QUAD)) {
        *slot = found.as_chunks().0;
    }
    let (Some(sums), true) = (sums.first_chunk_mut::<ROWS>(), row.iter().all(|row| row.len() == count)) else {
        return;
    };
    for half in 0..2 {
        // A vector: four outputs, each as the sums of its even and its odd pairs.
        let mut vectors = [[_mm256_setzero_si256(); 2]; ROWS];
        for (quad, weights) in quads.iter().enumerate() {
            let halves: [[[i8; 16]; 2]; 2] = cast(*weights);
            let [first, second] = halves[half];
            let first = _mm256_cvtepi8_epi16(cast(first));
            let second = _mm256_cvtepi8_epi16(cast(second));
            for (vectors, row) in vectors.iter_mut().zip(row) {
                // SAFETY: every row has as many quads as the panel.
                let factors = _mm256_set1_epi64x(cast(*unsafe { row.get_unchecked(quad) }));
                vectors[0] = _mm256_add_epi32(vectors[0], _mm256_madd_epi16(first, factors));
                vectors[1] = _mm256_add_epi32(vectors[1], _mm256_madd_epi16(second, factors));
            }
        }
        for (vectors, sums) in vectors.iter().zip(sums.iter_mut()) {
            // Outputs 0 1 4 5 2 3 6 7.
            let pairs = _mm256_hadd_epi32(vectors[0], vectors[1]);
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
            let (halves, _) = sums.as_chunks_mut::<8>();
            halves[half] = cast(_mm256_add_epi32(cast(halves[half]), ordered));
        }
    }
}

/// Sums of up to 2^31 and multipliers give products below 2^62: of these the upper words, of which `shift - 32` bits remain to be
/// dropped, are all that is needed once half is added.
#[target_feature(enable = "avx2")]
fn requantize(sums: &[Lanes<i32>], bias: &Lanes<i32>, multiplier: &Lanes<i32>, shift: u32, values: &mut [Lanes<i16>]) {
    let half = _mm256_set1_epi64x(1i64 << (shift - 1));
    let drop = _mm_cvtsi32_si128(shift as i32 - 32);
    let bias: [__m256i; 2] = cast(*bias);
    let even: [__m256i; 2] = cast(*multiplier);
    let odd = even.map(|multiplier| _mm256_srli_epi64::<32>(multiplier));
    for (sums, values) in sums.iter().zip(values) {
        let mut words: [__m256i; 2] = cast(*sums);
        for i in 0..2 {
            let sum = _mm256_add_epi32(words[i], bias[i]);
            let first = _mm256_add_epi64(_mm256_mul_epi32(sum, even[i]), half);
            let second = _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64::<32>(sum), odd[i]), half);
            let upper = _mm256_blend_epi32::<0b1010_1010>(_mm256_srli_epi64::<32>(first), second);
            words[i] = _mm256_sra_epi32(upper, drop);
        }
        let packed = _mm256_packs_epi32(words[0], words[1]);
        *values = cast(_mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
    }
}

#[target_feature(enable = "avx2")]
fn normalize<T: Slot>(norm: &Norm<'_>, token: &[i16], out: &mut [T]) {
    let (sum, squares) = sums(token);
    let row = NormRow::from_sums(token.len(), sum, squares, norm.epsilon);
    let (eights, rest) = token.as_chunks::<8>();
    let vectors = eights.len() * 8;
    let Some(words) = narrow::Words::new(norm, &row) else {
        return scalar_norm(&row, norm, token, out, 0);
    };
    let width = _mm256_set1_epi32(words.width);
    let sum = _mm256_set1_epi32(words.sum);
    let mantissa = _mm256_set1_epi64x(words.mantissa.into());
    // An arithmetic shift of 64 bits: a logical one of a number that 2^63 was added to.
    let round = _mm256_set1_epi64x(i64::MIN | 1 << (row.shift - 1));
    let shift = _mm_cvtsi32_si128(row.shift as i32);
    let excess = _mm256_set1_epi32((1u64 << (63 - row.shift)) as i32);
    let up = _mm256_set1_epi64x(words.up.into());
    let round_out = _mm256_set1_epi64x(i64::MIN | 1 << (norm.bits - 1));
    let shift_out = _mm_cvtsi32_si128(norm.bits as i32);
    let excess_out = _mm256_set1_epi64x(1 << (63 - norm.bits));
    let (least, most) = (_mm256_set1_epi64x(-128), _mm256_set1_epi64x(127));
    let (multipliers, offsets) = (norm.multiplier.0.as_chunks::<32>().0, norm.offset.0.as_chunks::<32>().0);
    let constants = multipliers.iter().zip(offsets);
    for ((x, out), (multiplier, offset)) in eights.iter().zip(out.as_chunks_mut::<8>().0).zip(constants) {
        let x = _mm256_cvtepi16_epi32(cast(*x));
        let centered = _mm256_sub_epi32(_mm256_mullo_epi32(x, width), sum);
        let scaled = |factor| _mm256_srl_epi64(_mm256_add_epi64(_mm256_mul_epi32(factor, mantissa), round), shift);
        let even = scaled(centered);
        let odd = scaled(_mm256_srli_epi64::<32>(centered));
        // The numbers fit into the lower words.
        let normalized = _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd));
        let normalized = _mm256_sub_epi32(normalized, excess);
        let (multiplier, offset): (__m256i, __m256i) = (cast(*multiplier), cast(*offset));
        let affine = |normalized, multiplier, offset| {
            let sum = _mm256_add_epi64(_mm256_mul_epi32(normalized, multiplier), _mm256_mul_epi32(offset, up));
            let value = _mm256_srl_epi64(_mm256_add_epi64(sum, round_out), shift_out);
            let value = _mm256_sub_epi64(value, excess_out);
            let value = _mm256_blendv_epi8(value, most, _mm256_cmpgt_epi64(value, most));
            _mm256_blendv_epi8(value, least, _mm256_cmpgt_epi64(least, value))
        };
        let even = affine(normalized, multiplier, offset);
        let upper = |words| _mm256_srli_epi64::<32>(words);
        let odd = affine(upper(normalized), upper(multiplier), upper(offset));
        let words = _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd));
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(words, words));
        T::fill(out, _mm256_castsi256_si128(packed));
    }
    if !rest.is_empty() {
        scalar_norm(&row, norm, token, out, vectors);
    }
}

/// The sum of a row and that of its squares.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn sums(row: &[i16]) -> (i64, i64) {
    let (vectors, rest) = row.as_chunks::<16>();
    let (mut sum, mut squares) = (0, _mm256_setzero_si256());
    // A lane's sum fits i32 for 32,767 vectors.
    for part in vectors.chunks(32_767) {
        let mut part_sum = _mm256_setzero_si256();
        for &vector in part {
            let x = cast(vector);
            part_sum = _mm256_add_epi32(part_sum, _mm256_madd_epi16(x, _mm256_set1_epi16(1)));
            // Two squares are 2^31 at most: unsigned.
            let pairs = _mm256_madd_epi16(x, x);
            let even = _mm256_blend_epi32::<0b1010_1010>(pairs, _mm256_setzero_si256());
            squares = _mm256_add_epi64(squares, _mm256_add_epi64(even, _mm256_srli_epi64::<32>(pairs)));
        }
        sum += cast::<_, [i32; 8]>(part_sum)
            .iter()
            .map(|&lane| i64::from(lane))
            .sum::<i64>();
    }
    let mut squares = cast::<_, [i64; 4]>(squares).iter().sum::<i64>();
    for &x in rest {
        sum += i64::from(x);
        squares += i64::from(x) * i64::from(x);
    }
    (sum, squares)
}

/// The values from `start` on.
pub(super) fn scalar_norm<T: From<i8>>(row: &NormRow, norm: &Norm<'_>, token: &[i16], out: &mut [T], start: usize) {
    let out = out.get_mut(start..).unwrap_or_default();
    norm.values(row, token, start, |i, value| {
        if let Some(slot) = out.get_mut(i) {
            *slot = value.into();
        }
    });
}

#[target_feature(enable = "avx2")]
fn softmax(distances: &Distances, scores: &[i32], weights: &mut [i16]) -> u32 {
    let limit = _mm256_set1_epi32(distances.limit);
    let half = _mm256_set1_epi64x(distances.half);
    let shift_count = _mm_cvtsi32_si128(distances.shift as i32);
    let multiplier_words = _mm256_set1_epi64x(distances.multiplier.into());
    let last = _mm256_set1_epi32(EXP_TABLE_LEN as i32 - 1);
    let maxima = _mm256_set1_epi32(distances.max);
    let (eights, rest) = scores.as_chunks::<8>();
    let (slots, rest_slots) = weights.split_at_mut((eights.len() * 8).min(weights.len()));
    let mut sum = 0;
    for (scores, slots) in eights.iter().zip(slots.as_chunks_mut::<8>().0) {
        // A distance beyond i32 is one beyond the limit, as an unsigned number.
        let distance = _mm256_min_epu32(_mm256_sub_epi32(maxima, cast(*scores)), limit);
        let scaled = |distance| {
            _mm256_srl_epi64(
                _mm256_add_epi64(_mm256_mul_epu32(distance, multiplier_words), half),
                shift_count,
            )
        };
        let (even, odd) = (scaled(distance), scaled(_mm256_srli_epi64::<32>(distance)));
        let index = _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd));
        let index: [u32; 8] = cast(_mm256_min_epi32(index, last));
        for (slot, index) in slots.iter_mut().zip(index) {
            *slot = EXP_TABLE.get(index as usize).copied().unwrap_or(0);
            sum += *slot as u32;
        }
    }
    sum + distances.rest(rest, rest_slots)
}
