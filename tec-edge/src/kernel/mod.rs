//! The kernels: what a processor does its own way, behind one trait. All give the same integers.
//!
//! The scalar kernel is plain Rust. All are tested against wider integers and `tec_core::integer`, whole encoders and single calls, over
//! the whole range of their arguments.

#[cfg(all(feature = "simd", tec_neon))]
pub(crate) mod aarch64;
#[cfg(all(
    feature = "simd",
    any(
        tec_neon,
        target_arch = "x86_64",
        all(target_arch = "wasm32", target_feature = "simd128")
    )
))]
mod distances;
#[cfg(all(feature = "simd", tec_dsp))]
mod dsp;
#[cfg(all(feature = "simd", tec_mve))]
mod helium;
mod narrow;
mod needs;
#[cfg(not(all(feature = "simd", tec_dsp)))]
mod scalar;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(all(feature = "simd", target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) mod wasm;
#[cfg(all(feature = "simd", target_arch = "x86_64"))]
pub(crate) mod x86;

use bytemuck::Pod;
pub(crate) use needs::{NAMES, Needs};
use tec_core::integer::{GELU_TABLE_LEN, WeightedMean, gelu, saturate_i8, scale, softmax_weights};

use crate::layers::Norm;
use crate::panel::PANEL;

#[cfg(all(feature = "simd", tec_dsp))]
pub(crate) use dsp::Dsp;
#[cfg(all(feature = "simd", tec_mve))]
pub(crate) use helium::Helium;
#[cfg(not(all(feature = "simd", tec_dsp)))]
pub(crate) use scalar::Scalar;

/// One value for each output of a panel.
pub(crate) type Lanes<T> = [T; PANEL];

/// One value for each row of a group and each output of a panel.
pub(crate) trait Group<T>: AsMut<[Lanes<T>]> {
    const ZERO: Self;
}

impl<const ROWS: usize> Group<i32> for [Lanes<i32>; ROWS] {
    const ZERO: Self = [[0; PANEL]; ROWS];
}

impl<const ROWS: usize> Group<i16> for [Lanes<i16>; ROWS] {
    const ZERO: Self = [[0; PANEL]; ROWS];
}

/// Something to do that is always inlined: a closure need not be, and a function that is not inlined is compiled for any processor.
pub(crate) trait Work {
    type Result;

    /// To be marked `inline(always)`, as what it calls, where kernels are chosen at run time: on x86-64. Elsewhere that would only make
    /// programs larger.
    fn run(self) -> Self::Result;
}

/// Activations that enter products: rows of `padded(inner)` factors each, the last ones zeros where `inner` is no whole number of quads,
/// and [`Kernel::TAIL`] more.
///
/// `rows` has [`Kernel::ROWS`] rows at most in every call. Rows that a slice is too short for are left out.
pub(crate) trait Kernel: Copy + Send + Sync {
    /// An i8 activation as the kernel reads it.
    type Factor: Pod + Send + Sync;
    /// Sums of a group of rows.
    type Sums: Group<i32>;
    /// Layer outputs of a group of rows.
    type Values: Group<i16>;
    /// Rows of a group.
    const ROWS: usize = Self::NEEDS.rows;
    /// Factors behind each row that the kernel uses for itself.
    const TAIL: usize = Self::NEEDS.tail;
    /// Whether a faster way is worth its code: not where flash is small.
    const LARGE: bool = Self::ROWS > 4;
    /// What of this the scratch memory is planned with.
    const NEEDS: Needs;

    /// Does `work`, compiled for the instructions that the kernel stands for, as far as it is inlined.
    #[inline(always)]
    fn with<W: Work>(self, work: W) -> W::Result {
        work.run()
    }

    /// The factor of an activation.
    fn factor(self, q: i8) -> Self::Factor;

    /// The activation of a factor.
    fn activation(self, factor: Self::Factor) -> i8;

    /// Where in a row the factor of an input lies: within its quad.
    #[inline(always)]
    fn at(self, input: usize) -> usize {
        input
    }

    /// Limits a layer's outputs to i8.
    #[inline(always)]
    fn narrow(self, values: &Lanes<i16>) -> Lanes<i8> {
        values.map(|value| value.clamp(i8::MIN.into(), i8::MAX.into()) as i8)
    }

    /// The table's entries for a layer's outputs, which are limited to i8 before, of one or two tokens.
    #[inline(always)]
    fn gelu(self, table: &[i8; GELU_TABLE_LEN], values: &[Lanes<i16>], found: &mut [Lanes<i8>]) {
        for (found, values) in found.iter_mut().zip(values) {
            *found = self.narrow(values).map(|value| gelu(table, value));
        }
    }

    /// Puts activations into a row, `first` and the following, a multiple of a quad; those that the row has no place for are left out.
    #[inline(always)]
    fn put(self, values: &Lanes<i8>, row: &mut [Self::Factor], first: usize) {
        let Some(row) = row.get_mut(first..) else { return };
        for (input, &value) in values.iter().enumerate() {
            if let Some(slot) = row.get_mut(self.at(input)) {
                *slot = self.factor(value);
            }
        }
    }

    /// Called for each finished row, `[padded(inner) + TAIL]`, before it enters [`products`](Self::products).
    fn finish(self, row: &mut [Self::Factor]) {
        let _ = row;
    }

    /// Products of rows, `stride` factors apart, with a panel of weights: `sums[row][output]`.
    fn products(self, rows: &[Self::Factor], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]);

    /// A key as [`scores`](Self::scores) reads it.
    fn key(self, k: i8) -> i8 {
        k
    }

    /// Products of queries, `stride` factors apart, with a panel of keys: `scores[row][key]`, up to one number for each row.
    fn scores(self, queries: &[Self::Factor], stride: usize, keys: &[i8], scores: &mut [Lanes<i32>]) {
        self.products(queries, stride, keys, scores);
    }

    /// Called for each row of softmax weights, whole quads, before it enters [`weighted`](Self::weighted).
    fn finish_weights(self, weights: &mut [i16]) {
        let _ = weights;
    }

    /// Adds to `sums` the products of softmax weights with a panel of values (channels are the outputs, tokens the inputs). Rows of weights
    /// are `stride` apart.
    fn weighted(self, weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]);

    /// `clamp8(round(mean · multiplier, shift))` of a panel's channels, row by row, with the mean that `rows` gives for the sum.
    #[inline(always)]
    fn means(
        self,
        sums: &[Lanes<i32>],
        rows: &[WeightedMean],
        multiplier: &Lanes<i32>,
        shift: u32,
        means: &mut [Lanes<i8>],
    ) {
        for ((sums, row), means) in sums.iter().zip(rows).zip(means) {
            for ((mean, &sum), &multiplier) in means.iter_mut().zip(sums).zip(multiplier) {
                *mean = saturate_i8(scale(row.of(sum), multiplier, shift));
            }
        }
    }

    /// `clamp16(round((sum + bias) · multiplier, shift))`.
    fn requantize(
        self,
        sums: &[Lanes<i32>],
        bias: &Lanes<i32>,
        multiplier: &Lanes<i32>,
        shift: u32,
        values: &mut [Lanes<i16>],
    );

    /// A token's norm, each value rounded and limited to i8, where [`at`](Self::at) says.
    fn norm(self, norm: &Norm<'_>, token: &[i16], out: &mut [Self::Factor]);

    /// Softmax weights of a row of scores; returns their sum ([`softmax_weights`]).
    fn softmax(self, scores: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
        softmax_weights(scores, multiplier, shift, weights)
    }
}

/// Rows of `len` values, `stride` apart.
#[inline(always)]
pub(crate) fn rows<T>(all: &[T], stride: usize, len: usize) -> impl Iterator<Item = &[T]> {
    all.chunks(stride.max(1)).filter_map(move |row| row.get(..len))
}
