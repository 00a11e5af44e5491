//! The same transforms for processors with AVX2: the same bits as [`super::idct`] and [`super::color`], faster.
#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;
use std::sync::LazyLock;

use super::idct::*;

static AVX2: LazyLock<bool> = LazyLock::new(|| is_x86_feature_detected!("avx2"));

/// As [`super::idct::block`]; `None` where the processor has no AVX2.
#[inline(always)]
pub(super) fn block(coefficients: &[i16; 64], steps: &[i32; 64]) -> Option<[u8; 64]> {
    // SAFETY: the processor has AVX2.
    AVX2.then(|| unsafe { block_avx2(coefficients, steps) })
}

/// As [`super::color::ycc_row`] for the first multiple of 16 pixels, whose number it returns; 0 without AVX2.
pub(super) fn ycc_row(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) -> usize {
    let pixels = y.len().min(cb.len()).min(cr.len()).min(out.len() / 3) / 16 * 16;
    if !*AVX2 {
        return 0;
    }
    let planes = y.chunks_exact(16).zip(cb.chunks_exact(16)).zip(cr.chunks_exact(16));
    for (((y, cb), cr), out) in planes.zip(out.chunks_exact_mut(48)) {
        // SAFETY: the processor has AVX2; the chunks have 16, 16, 16 and 48 bytes.
        unsafe { ycc16_avx2(y.as_ptr(), cb.as_ptr(), cr.as_ptr(), out.as_mut_ptr()) };
    }
    pixels
}

#[inline]
#[target_feature(enable = "avx2")]
fn block_avx2(coefficients: &[i16; 64], steps: &[i32; 64]) -> [u8; 64] {
    let mut x = [_mm256_setzero_si256(); 8];
    for (row, x) in x.iter_mut().enumerate() {
        // SAFETY: rows of eight values within 64.
        let (values, steps) = unsafe {
            (
                _mm_loadu_si128(coefficients.as_ptr().add(8 * row).cast()),
                _mm256_loadu_si256(steps.as_ptr().add(8 * row).cast()),
            )
        };
        *x = _mm256_mullo_epi32(_mm256_cvtepi16_epi32(values), steps);
    }
    pass_avx2::<FIRST>(&mut x);
    transpose(&mut x);
    pass_avx2::<SECOND>(&mut x);

    // Columns of 32 bits to rows of 8: packing interleaves fours, the shuffle turns them.
    let bias = _mm256_set1_epi16(128);
    let pack = |a, b, c, d| {
        let low = _mm256_adds_epi16(_mm256_packs_epi32(a, b), bias);
        let high = _mm256_adds_epi16(_mm256_packs_epi32(c, d), bias);
        _mm256_packus_epi16(low, high)
    };
    #[rustfmt::skip]
    let turn = _mm256_setr_epi8(
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
    );
    let left = _mm256_shuffle_epi8(pack(x[0], x[1], x[2], x[3]), turn);
    let right = _mm256_shuffle_epi8(pack(x[4], x[5], x[6], x[7]), turn);
    let (even, odd) = (_mm256_unpacklo_epi32(left, right), _mm256_unpackhi_epi32(left, right));
    let mut out = [0; 64];
    // SAFETY: two stores of 32 bytes into 64.
    unsafe {
        let to: *mut __m256i = out.as_mut_ptr().cast();
        _mm256_storeu_si256(to, _mm256_permute2x128_si256::<0x20>(even, odd));
        _mm256_storeu_si256(to.add(1), _mm256_permute2x128_si256::<0x31>(even, odd));
    }
    out
}

/// As `pass` of [`super::idct`], all lanes at once.
#[inline]
#[target_feature(enable = "avx2")]
fn pass_avx2<const SHIFT: i32>(x: &mut [__m256i; 8]) {
    let add = |a, b| _mm256_add_epi32(a, b);
    let sub = |a, b| _mm256_sub_epi32(a, b);
    let mul = |a, factor| _mm256_mullo_epi32(a, _mm256_set1_epi32(factor));
    let [x0, x1, x2, x3, x4, x5, x6, x7] = *x;
    let z1 = mul(add(x2, x6), F_0_541);
    let (even2, even3) = (sub(z1, mul(x6, F_1_847)), add(z1, mul(x2, F_0_765)));
    let (even0, even1) = (
        _mm256_slli_epi32::<13>(add(x0, x4)),
        _mm256_slli_epi32::<13>(sub(x0, x4)),
    );
    // What rounds the shift is added once, before the sums.
    let half = _mm256_set1_epi32(1 << (SHIFT - 1));
    let (even0, even1) = (add(even0, half), add(even1, half));
    let sums = [
        add(even0, even3),
        add(even1, even2),
        sub(even1, even2),
        sub(even0, even3),
    ];

    let z5 = mul(add(add(x7, x3), add(x5, x1)), F_1_175);
    let (z1, z2) = (mul(add(x7, x1), F_0_899), mul(add(x5, x3), F_2_562));
    let (z3, z4) = (sub(z5, mul(add(x7, x3), F_1_961)), sub(z5, mul(add(x5, x1), F_0_390)));
    let odd = [
        add(sub(mul(x1, F_1_501), z1), z4),
        add(sub(mul(x3, F_3_072), z2), z3),
        add(sub(mul(x5, F_2_053), z2), z4),
        add(sub(mul(x7, F_0_298), z1), z3),
    ];
    for at in 0..4 {
        x[at] = _mm256_srai_epi32::<SHIFT>(add(sums[at], odd[at]));
        x[7 - at] = _mm256_srai_epi32::<SHIFT>(sub(sums[at], odd[at]));
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn transpose(x: &mut [__m256i; 8]) {
    let pairs = |a, b| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let fours = |a, b| (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let ((a0, a1), (a2, a3)) = (pairs(x[0], x[1]), pairs(x[2], x[3]));
    let ((a4, a5), (a6, a7)) = (pairs(x[4], x[5]), pairs(x[6], x[7]));
    let ((b0, b1), (b2, b3)) = (fours(a0, a2), fours(a1, a3));
    let ((b4, b5), (b6, b7)) = (fours(a4, a6), fours(a5, a7));
    for (at, (low, high)) in [(b0, b4), (b1, b5), (b2, b6), (b3, b7)].into_iter().enumerate() {
        x[at] = _mm256_permute2x128_si256::<0x20>(low, high);
        x[at + 4] = _mm256_permute2x128_si256::<0x31>(low, high);
    }
}

/// Sixteen pixels.
///
/// # Safety
/// `y`, `cb` and `cr` must be readable for 16 bytes, `out` writable for 48.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn ycc16_avx2(y: *const u8, cb: *const u8, cr: *const u8, out: *mut u8) {
    use super::color::{CB_B, CB_G, CR_G, CR_R, HALF};
    let eight = |half: usize| {
        // SAFETY: eight bytes from the first or the ninth of sixteen.
        let load = |from: *const u8| unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8 * half).cast())) };
        let center = _mm256_set1_epi32(128);
        let (y, cb, cr) = (
            load(y),
            _mm256_sub_epi32(load(cb), center),
            _mm256_sub_epi32(load(cr), center),
        );
        let scaled = |value, factor| _mm256_mullo_epi32(value, _mm256_set1_epi32(factor));
        let rounded = |sum| {
            _mm256_add_epi32(
                y,
                _mm256_srai_epi32::<16>(_mm256_add_epi32(sum, _mm256_set1_epi32(HALF))),
            )
        };
        [
            rounded(scaled(cr, CR_R)),
            rounded(_mm256_add_epi32(scaled(cb, CB_G), scaled(cr, CR_G))),
            rounded(scaled(cb, CB_B)),
        ]
    };
    let ([r0, g0, b0], [r1, g1, b1]) = (eight(0), eight(1));
    let channel = |low, high| {
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
        _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words))
    };
    let (r, g, b) = (channel(r0, r1), channel(g0, g1), channel(b0, b1));
    const N: i8 = -1;
    #[rustfmt::skip]
    let places = [
        [
            _mm_setr_epi8(0, N, N, 1, N, N, 2, N, N, 3, N, N, 4, N, N, 5),
            _mm_setr_epi8(N, 0, N, N, 1, N, N, 2, N, N, 3, N, N, 4, N, N),
            _mm_setr_epi8(N, N, 0, N, N, 1, N, N, 2, N, N, 3, N, N, 4, N),
        ],
        [
            _mm_setr_epi8(N, N, 6, N, N, 7, N, N, 8, N, N, 9, N, N, 10, N),
            _mm_setr_epi8(5, N, N, 6, N, N, 7, N, N, 8, N, N, 9, N, N, 10),
            _mm_setr_epi8(N, 5, N, N, 6, N, N, 7, N, N, 8, N, N, 9, N, N),
        ],
        [
            _mm_setr_epi8(N, 11, N, N, 12, N, N, 13, N, N, 14, N, N, 15, N, N),
            _mm_setr_epi8(N, N, 11, N, N, 12, N, N, 13, N, N, 14, N, N, 15, N),
            _mm_setr_epi8(10, N, N, 11, N, N, 12, N, N, 13, N, N, 14, N, N, 15),
        ],
    ];
    for (at, [first, second, third]) in places.into_iter().enumerate() {
        let merged = _mm_or_si128(
            _mm_or_si128(_mm_shuffle_epi8(r, first), _mm_shuffle_epi8(g, second)),
            _mm_shuffle_epi8(b, third),
        );
        // SAFETY: the sixteen bytes from 0, 16 or 32 of 48.
        unsafe { _mm_storeu_si128(out.add(16 * at).cast(), merged) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The processors without AVX2 must see the same images.
    #[test]
    fn the_same_bits_as_without() {
        let mut state = 1u64;
        let mut random = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32
        };
        for round in 0..2000 {
            let reach = [8, 200, 2047][round % 3];
            let coefficients = std::array::from_fn(|_| (random() % (2 * reach + 1)) as i16 - reach as i16);
            let steps = std::array::from_fn(|_| 1 + (random() % 3) as i32);
            let Some(found) = block(&coefficients, &steps) else {
                println!("not run: this processor has no AVX2");
                return;
            };
            assert_eq!(
                found,
                super::super::idct::block(&coefficients, &steps),
                "{coefficients:?}"
            );
        }
        for length in [16, 64] {
            let mut plane = || (0..length).map(|_| random() as u8).collect::<Vec<_>>();
            let (y, cb, cr) = (plane(), plane(), plane());
            let mut out = vec![0; 3 * length];
            assert_eq!(ycc_row(&y, &cb, &cr, &mut out), length);
            let expected: Vec<u8> = (0..length)
                .flat_map(|at| super::super::color::ycc(y[at], cb[at], cr[at]))
                .collect();
            assert_eq!(out, expected);
        }
    }
}
