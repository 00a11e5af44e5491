//! The kernels: sums of products of 8-bit integers. A back end for a processor replaces this file's functions and gives the
//! same integers, for integer sums have no order.
//!
//! The loops are plain, over slices of known equal length, so that LLVM vectorises them. Sums wrap in machine code that
//! could overflow; the reader's caps rule that out (`docs/integer-encoder.md`).

use crate::plan::TILE;

/// Sum of products.
#[inline(always)]
pub fn dot(a: &[i8], b: &[i8]) -> i32 {
    a.iter()
        .zip(b)
        .fold(0i32, |sum, (&a, &b)| sum.wrapping_add(i32::from(a) * i32::from(b)))
}

/// Sum of products of softmax weights and values.
#[inline(always)]
pub fn dot_weights(weights: &[i16], values: &[i8]) -> i32 {
    weights
        .iter()
        .zip(values)
        .fold(0i32, |sum, (&w, &v)| sum.wrapping_add(i32::from(w) * i32::from(v)))
}

/// The products of up to [`TILE`] tokens, `[.., inner]`, with every row of `weights`, `[outputs, inner]`: calls
/// `emit(output, sums)` with one sum for each token (0 for tokens that are not there), output by output.
#[inline(always)]
pub fn tile_products(tokens: &[i8], inner: usize, weights: &[i8], mut emit: impl FnMut(usize, [i32; TILE])) {
    let inner = inner.max(1);
    let mut rows = [&tokens[..0]; TILE];
    for (row, token) in rows.iter_mut().zip(tokens.chunks_exact(inner)) {
        *row = token;
    }
    for (output, weight) in weights.chunks_exact(inner).enumerate() {
        emit(output, rows.map(|row| dot(row, weight)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_at_the_ends_of_the_range() {
        for len in 0..70 {
            let (low, high) = (&[-128i8; 70][..len], &[127i8; 70][..len]);
            let n = len as i32;
            assert_eq!(
                (dot(low, low), dot(low, high), dot(high, high)),
                (16384 * n, -16256 * n, 16129 * n)
            );
            assert_eq!(dot_weights(&[4095; 70][..len], low), -524_160 * n);
        }
    }

    #[test]
    fn a_tile_is_dot_by_dot() {
        let tokens: [i8; 15] = core::array::from_fn(|i| (i as i32 * 91 % 256 - 128) as i8);
        let weights: [i8; 20] = core::array::from_fn(|i| (i as i32 * 57 % 255 - 127) as i8);
        let mut outputs = 0;
        tile_products(&tokens, 5, &weights, |output, sums| {
            for (t, &sum) in sums.iter().enumerate().take(3) {
                let expected: i32 = (0..5)
                    .map(|k| i32::from(tokens[t * 5 + k]) * i32::from(weights[output * 5 + k]))
                    .sum();
                assert_eq!(sum, expected);
            }
            assert_eq!(sums[3], 0);
            outputs += 1;
        });
        assert_eq!(outputs, 4);
        tile_products(&[], 0, &[], |_, _| panic!("no outputs"));
    }
}
