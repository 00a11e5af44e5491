//! What happens to values between the products: requantization, GELU, LayerNorm, softmax and the means of values, sixteen at a time.

use core::arch::x86_64::*;

use bytemuck::cast;
use tec_core::integer::{EXP_STEPS_PER_UNIT, EXP_TABLE_LEN, GELU_TABLE_LEN, NormRow, WEIGHT_MAX, WeightedMean};

use crate::kernel::distances::Distances;
use crate::kernel::x86::avx2;
use crate::kernel::{Lanes, narrow::Words};
use crate::layers::Norm;
use crate::panel::PANEL;

/// The upper one of each pair of 32-bit words.
const UPPER: __mmask16 = 0b1010_1010_1010_1010;

#[target_feature(enable = "avx512f")]
#[inline]
fn load(lanes: &Lanes<i32>) -> __m512i {
    // SAFETY: the array has 64 bytes.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}

/// As in AVX2: of products below 2^62 with half added the upper words are all that is needed. `shift` is 32 or more.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn requantize(
    sums: &[Lanes<i32>],
    bias: &Lanes<i32>,
    multiplier: &Lanes<i32>,
    shift: u32,
    values: &mut [Lanes<i16>],
) {
    let half = _mm512_set1_epi64(1i64 << (shift - 1));
    let drop = _mm_cvtsi32_si128(shift as i32 - 32);
    let bias = load(bias);
    let even = load(multiplier);
    let odd = _mm512_srli_epi64::<32>(even);
    for (sums, values) in sums.iter().zip(values) {
        let sum = _mm512_add_epi32(load(sums), bias);
        let first = _mm512_add_epi64(_mm512_mul_epi32(sum, even), half);
        let second = _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64::<32>(sum), odd), half);
        let upper = _mm512_mask_blend_epi32(UPPER, _mm512_srli_epi64::<32>(first), second);
        *values = cast(_mm512_cvtsepi32_epi16(_mm512_sra_epi32(upper, drop)));
    }
}

/// The table is four registers of pairs of entries. Two tokens at once.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn gelu(table: &[i8; GELU_TABLE_LEN], values: &[Lanes<i16>], found: &mut [Lanes<i8>]) {
    let (quarters, _) = table.as_chunks::<64>();
    // SAFETY: each quarter has 64 bytes.
    let quarter = |i: usize| unsafe { _mm512_loadu_si512(quarters[i].as_ptr().cast()) };
    // The table begins at -128.
    let (least, most) = (_mm512_set1_epi16(i8::MIN.into()), _mm512_set1_epi16(i8::MAX.into()));
    let gelu = |two: [Lanes<i16>; 2]| -> [Lanes<i8>; 2] {
        let limited = _mm512_min_epi16(_mm512_max_epi16(load(&cast(two)), least), most);
        let index = _mm512_sub_epi16(limited, least);
        let pair = _mm512_srli_epi16::<1>(index);
        let low = _mm512_permutex2var_epi16(quarter(0), pair, quarter(1));
        let high = _mm512_permutex2var_epi16(quarter(2), pair, quarter(3));
        let second_half = _mm512_movepi16_mask(_mm512_slli_epi16::<8>(index));
        let pairs = _mm512_mask_blend_epi16(second_half, low, high);
        let shift = _mm512_slli_epi16::<3>(_mm512_and_si512(index, _mm512_set1_epi16(1)));
        cast(_mm512_cvtepi16_epi8(_mm512_srlv_epi16(pairs, shift)))
    };
    let (pairs, rest) = values.as_chunks();
    let (found_pairs, found_rest) = found.as_chunks_mut();
    found_pairs
        .iter_mut()
        .zip(pairs)
        .for_each(|(found, &pair)| *found = gelu(pair));
    for (found, &values) in found_rest.iter_mut().zip(rest) {
        [*found, _] = gelu([values; 2]);
    }
}

/// Means of values with 16 fractional bits, scaled. `shift` is 1 to 62.
#[target_feature(enable = "avx512f,avx512vl")]
#[inline]
pub(super) fn means(
    sums: &[Lanes<i32>],
    rows: &[WeightedMean],
    multiplier: &Lanes<i32>,
    shift: u32,
    means: &mut [Lanes<i8>],
) {
    let even_multiplier = load(multiplier);
    let odd_multiplier = _mm512_srli_epi64::<32>(even_multiplier);
    let half = _mm512_set1_epi64(1i64 << (shift - 1));
    let drop = _mm_cvtsi32_si128(shift as i32);
    for ((sums, row), means) in sums.iter().zip(rows).zip(means) {
        // A mantissa of 2^31 is one of 2^30 with a bit less to drop.
        let (mantissa, bits) = match row.mantissa {
            0x8000_0000.. => (0x4000_0000, row.shift - 1),
            mantissa => (mantissa, row.shift),
        };
        let row_mantissa = _mm512_set1_epi64(mantissa.into());
        let row_half = _mm512_set1_epi64(1i64 << (bits - 1));
        let row_drop = _mm_cvtsi32_si128(bits as i32);
        let scaled = |sum, multiplier| {
            let product = _mm512_add_epi64(_mm512_mul_epi32(sum, row_mantissa), row_half);
            // Means are below 2^31.
            let mean = _mm512_sra_epi64(product, row_drop);
            let product = _mm512_add_epi64(_mm512_mul_epi32(mean, multiplier), half);
            limited(_mm512_sra_epi64(product, drop))
        };
        let sum = load(sums);
        let even = scaled(sum, even_multiplier);
        let odd = scaled(_mm512_srli_epi64::<32>(sum), odd_multiplier);
        *means = joined(even, odd);
    }
}

/// Limits eight numbers of 64 bits to i8.
#[target_feature(enable = "avx512f")]
#[inline]
fn limited(values: __m512i) -> __m512i {
    let least = _mm512_set1_epi64(i8::MIN.into());
    let most = _mm512_set1_epi64(i8::MAX.into());
    _mm512_min_epi64(_mm512_max_epi64(values, least), most)
}

/// The lowest bytes of the even and the odd channels.
#[target_feature(enable = "avx512f")]
#[inline]
fn joined(even: __m512i, odd: __m512i) -> Lanes<i8> {
    let words = _mm512_mask_blend_epi32(UPPER, even, _mm512_slli_epi64::<32>(odd));
    cast(_mm512_cvtepi32_epi8(words))
}

#[target_feature(enable = "avx2,avx512f,avx512vl")]
#[inline]
pub(super) fn norm(norm: &Norm<'_>, token: &[i16], out: &mut [i8]) {
    let (sum, squares) = avx2::sums(token);
    let row = NormRow::from_sums_by(token.len(), sum, squares, norm.epsilon, root);
    let (vectors, rest) = token.as_chunks::<PANEL>();
    let Some(words) = Words::new(norm, &row) else {
        return avx2::scalar_norm(&row, norm, token, out, 0);
    };
    let width = _mm512_set1_epi32(words.width);
    let sum = _mm512_set1_epi32(words.sum);
    let mantissa = _mm512_set1_epi64(words.mantissa.into());
    let half = _mm512_set1_epi64(1 << (row.shift - 1));
    let drop = _mm_cvtsi32_si128(row.shift as i32);
    let up = _mm512_set1_epi64(words.up.into());
    let half_out = _mm512_set1_epi64(1 << (norm.bits - 1));
    let drop_out = _mm_cvtsi32_si128(norm.bits as i32);
    let (multipliers, offsets) = (norm.multiplier.0.as_chunks::<64>().0, norm.offset.0.as_chunks::<64>().0);
    let constants = multipliers.iter().zip(offsets);
    for ((x, out), (multiplier, offset)) in vectors.iter().zip(out.as_chunks_mut().0).zip(constants) {
        let x = _mm512_cvtepi16_epi32(cast(*x));
        let centered = _mm512_sub_epi32(_mm512_mullo_epi32(x, width), sum);
        let value = |centered, multiplier, offset| {
            let product = _mm512_add_epi64(_mm512_mul_epi32(centered, mantissa), half);
            // Below 2^28.
            let normalized = _mm512_sra_epi64(product, drop);
            let affine = _mm512_add_epi64(_mm512_mul_epi32(normalized, multiplier), _mm512_mul_epi32(offset, up));
            limited(_mm512_sra_epi64(_mm512_add_epi64(affine, half_out), drop_out))
        };
        let (multiplier, offset) = (load(&cast(*multiplier)), load(&cast(*offset)));
        let even = value(centered, multiplier, offset);
        let upper = |words| _mm512_srli_epi64::<32>(words);
        let odd = value(upper(centered), upper(multiplier), upper(offset));
        *out = joined(even, odd);
    }
    if !rest.is_empty() {
        avx2::scalar_norm(&row, norm, token, out, token.len() - rest.len());
    }
}

/// The largest integer whose square is not above `value`: the processor's root of the nearest f64, set right.
#[inline]
fn root(value: u64) -> u32 {
    // SAFETY: every x86-64 processor has SSE2.
    let near = unsafe {
        let float = _mm_set_sd(value as f64);
        _mm_cvtsd_f64(_mm_sqrt_sd(float, float)) as u32
    };
    let square = |root: u32| u64::from(root) * u64::from(root);
    // One too many or too few at most: an f64 has 53 bits. 2^32 has become 2^32 - 1.
    if square(near) > value {
        near - 1
    } else if near < u32::MAX && square(near + 1) <= value {
        near + 1
    } else {
        near
    }
}

/// The table's entries, computed: an f32 comes nearer to every entry than that is to a tie.
#[target_feature(enable = "avx512f,avx512vl")]
#[inline]
pub(super) fn softmax(distances: &Distances, scores: &[i32], weights: &mut [i16]) -> u32 {
    let limit = _mm512_set1_epi32(distances.limit);
    let half = _mm512_set1_epi64(distances.half);
    let drop = _mm_cvtsi32_si128(distances.shift as i32);
    let multiplier_words = _mm512_set1_epi64(distances.multiplier.into());
    let last = _mm512_set1_epi32(EXP_TABLE_LEN as i32 - 1);
    let maxima = _mm512_set1_epi32(distances.max);
    let (vectors, rest) = scores.as_chunks::<PANEL>();
    let (slots, rest_slots) = weights.split_at_mut((vectors.len() * PANEL).min(weights.len()));
    let mut sums = _mm512_setzero_si512();
    for (scores, slots) in vectors.iter().zip(slots.as_chunks_mut::<PANEL>().0) {
        // A distance beyond i32 is one beyond the limit, as an unsigned number.
        let distance = _mm512_min_epu32(_mm512_sub_epi32(maxima, load(scores)), limit);
        let scaled = |distance| {
            let product = _mm512_mul_epu32(distance, multiplier_words);
            _mm512_srl_epi64(_mm512_add_epi64(product, half), drop)
        };
        let (even, odd) = (scaled(distance), scaled(_mm512_srli_epi64::<32>(distance)));
        let index = _mm512_mask_blend_epi32(UPPER, even, _mm512_slli_epi64::<32>(odd));
        let found = exponential(_mm512_min_epi32(index, last));
        sums = _mm512_add_epi32(sums, found);
        *slots = cast(_mm512_cvtepi32_epi16(found));
    }
    let sum = _mm512_reduce_add_epi32(sums) as u32;
    sum + distances.rest(rest, rest_slots)
}

/// `round(4095 · exp(-index / 64))` for indices of the table.
#[target_feature(enable = "avx512f")]
#[inline]
fn exponential(index: __m512i) -> __m512i {
    const SCALE: f32 = -core::f32::consts::LOG2_E / EXP_STEPS_PER_UNIT as f32;
    /// 2^x = Σ (x · ln 2)^n / n!, the highest power first.
    const SERIES: [f32; 7] = [
        1.540_353_e-4,
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265e-1,
        core::f32::consts::LN_2,
        1.0,
    ];
    let power = _mm512_mul_ps(_mm512_cvtepi32_ps(index), _mm512_set1_ps(SCALE));
    let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(power);
    let rest = _mm512_sub_ps(power, whole);
    let mut sum = _mm512_set1_ps(SERIES[0]);
    for &coefficient in &SERIES[1..] {
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(coefficient));
    }
    let exponential = _mm512_scalef_ps(sum, whole);
    _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
        exponential,
        _mm512_set1_ps(WEIGHT_MAX as f32),
    ))
}

/// See [`Avx512::split_bytes`](super::Avx512::split_bytes).
#[cfg(tec_amx)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
pub(super) fn split_bytes(numbers: &mut [i16]) {
    let bytes = |half| {
        (
            _mm512_cvtepi16_epi8(half),
            _mm512_cvtepi16_epi8(_mm512_srli_epi16::<8>(half)),
        )
    };
    let (whole, rest) = numbers.as_chunks_mut::<64>();
    for numbers in whole {
        let [first, second]: [Lanes<i32>; 2] = cast(*numbers);
        let (first, second) = (bytes(load(&first)), bytes(load(&second)));
        *numbers = cast([[first.0, second.0], [first.1, second.1]]);
    }
    // What is left, 32 numbers at a time, only those that there are.
    let len = rest.len();
    let at = rest.as_mut_ptr();
    let mask = |first: usize| match len.saturating_sub(first) {
        0 => 0,
        count @ 1..32 => (1u32 << count) - 1,
        _ => u32::MAX,
    };
    // SAFETY: the masks leave out what is not in the slice, whose lower half gets the lower bytes.
    unsafe {
        let (first, second) = (
            _mm512_maskz_loadu_epi16(mask(0), at),
            _mm512_maskz_loadu_epi16(mask(32), at.wrapping_add(32)),
        );
        let (first, second) = (bytes(first), bytes(second));
        let bytes = at.cast::<i8>();
        _mm256_mask_storeu_epi8(bytes, mask(0), first.0);
        _mm256_mask_storeu_epi8(bytes.wrapping_add(32), mask(32), second.0);
        let bytes = bytes.wrapping_add(len);
        _mm256_mask_storeu_epi8(bytes, mask(0), first.1);
        _mm256_mask_storeu_epi8(bytes.wrapping_add(32), mask(32), second.1);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use tec_core::integer::EXP_TABLE;

    #[test]
    fn every_exponential_is_the_tables() {
        if !std::is_x86_feature_detected!("avx512f") {
            std::println!("skipped: this processor has no AVX-512");
            return;
        }
        for first in (0..EXP_TABLE_LEN).step_by(PANEL) {
            let index: Lanes<i32> = core::array::from_fn(|i| (first + i).min(EXP_TABLE_LEN - 1) as i32);
            let mut found = [0i32; PANEL];
            // SAFETY: the processor has AVX-512, and the array 64 bytes.
            unsafe { _mm512_storeu_si512(found.as_mut_ptr().cast(), exponential(load(&index))) };
            for (index, found) in index.into_iter().zip(found) {
                assert_eq!(found, EXP_TABLE[index as usize].into(), "{index}");
            }
        }
    }

    #[test]
    fn roots_are_exact() {
        let check = |value: u64| {
            assert_eq!(root(value), tec_core::integer::sqrt(value), "{value}");
        };
        for base in [
            1u64,
            2,
            3,
            1 << 16,
            94_906_265,
            94_906_266,
            94_906_267,
            (1 << 31) - 1,
            1 << 31,
            3_037_000_499,
            (1 << 32) - 1,
        ] {
            for near in base.saturating_sub(3)..(base + 3).min(1 << 32) {
                let square = near.saturating_mul(near);
                (square.saturating_sub(2)..=square.saturating_add(2)).for_each(check);
            }
        }
        [0, u64::MAX, u64::MAX - 1, 1 << 62, 1 << 63]
            .into_iter()
            .for_each(check);
    }
}
