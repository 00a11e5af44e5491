//! AMX: products by tiles of 16 rows and 64 inputs; everything else as with AVX-512.
//!
//! Sixteen quads of a panel lie as a tile of weights has to, so nothing is repacked. Both factors are signed here, so rows need no
//! tail. Softmax weights have twelve bits: their lower and upper bytes are two tiles of unsigned factors.

mod product;
#[cfg(test)]
mod tests;
mod tiles;

use bytemuck::cast_slice;
use tec_core::integer::{GELU_TABLE_LEN, WeightedMean};

use self::product::{Factors, Multiply, TILE_INPUTS, TILE_ROWS, TileSums, add};
use self::tiles::Tiles;
use super::{Avx512, vnni};
use crate::kernel::{Group, Kernel, Lanes, Needs, Work};
use crate::layers::Norm;
use crate::panel::{PANEL, QUAD};

/// Proof that the processor has AMX for i8 and what [`Avx512`] stands for, and that the operating system lets this process use it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amx {
    vectors: Avx512,
    tiles: Tiles,
}

impl Amx {
    /// If the processor has all of it. Asks Linux for the tiles, once a process.
    pub(crate) fn new() -> Option<Self> {
        Some(Self {
            vectors: Avx512::new()?,
            tiles: Tiles::new()?,
        })
    }
}

/// Rows from the start of a cache line on, which tiles are written into faster.
#[repr(align(64))]
pub(crate) struct Lines<T>([Lanes<T>; Amx::ROWS]);

impl<T> AsMut<[Lanes<T>]> for Lines<T> {
    #[inline(always)]
    fn as_mut(&mut self) -> &mut [Lanes<T>] {
        &mut self.0
    }
}

impl Group<i32> for Lines<i32> {
    const ZERO: Self = Self([[0; PANEL]; Amx::ROWS]);
}

impl Group<i16> for Lines<i16> {
    const ZERO: Self = Self([[0; PANEL]; Amx::ROWS]);
}

impl Kernel for Amx {
    type Factor = i8;
    type Sums = Lines<i32>;
    type Values = Lines<i16>;
    const NEEDS: Needs = Needs::AMX;

    #[inline(always)]
    fn with<W: Work>(self, work: W) -> W::Result {
        let _configured = self.tiles.configure();
        self.vectors.with(work)
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
        self.vectors.narrow(values)
    }

    #[inline(always)]
    fn put(self, values: &Lanes<i8>, row: &mut [i8], first: usize) {
        vnni::put(values, row, first);
    }

    #[inline(always)]
    fn products(self, rows: &[i8], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
        products(self.tiles, rows, stride, panel, sums);
    }

    #[inline(always)]
    fn finish_weights(self, weights: &mut [i16]) {
        self.vectors.split_bytes(weights);
    }

    #[inline(always)]
    fn weighted(self, weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]) {
        weighted(self.tiles, weights, stride, values, sums);
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
        self.vectors.requantize(sums, bias, multiplier, shift, values);
    }

    #[inline(always)]
    fn norm(self, norm: &Norm<'_>, token: &[i16], out: &mut [i8]) {
        self.vectors.norm(norm, token, out);
    }

    #[inline(always)]
    fn softmax(self, scores: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
        self.vectors.softmax(scores, multiplier, shift, weights)
    }

    #[inline(always)]
    fn gelu(self, table: &[i8; GELU_TABLE_LEN], values: &[Lanes<i16>], found: &mut [Lanes<i8>]) {
        self.vectors.gelu(table, values, found);
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
        self.vectors.means(sums, rows, multiplier, shift, means);
    }
}

/// Products of up to 32 rows.
#[inline(always)]
fn products<M: Multiply>(tiles: M, rows: &[i8], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
    let panel = panel.as_chunks().0;
    let rest = panel.len() * QUAD / TILE_INPUTS * TILE_INPUTS;
    if sums.len() <= TILE_ROWS {
        let factors = Factors {
            bytes: rows,
            first: [0],
            rest: [rest],
            stride,
            advance: TILE_INPUTS,
        };
        with_sums(sums, |sums| add::<_, 1, true>(tiles, &factors, panel, true, sums));
    } else {
        let second = TILE_ROWS * stride;
        let factors = Factors {
            bytes: rows,
            first: [0, second],
            rest: [rest, second + rest],
            stride,
            advance: TILE_INPUTS,
        };
        with_sums(sums, |sums| add::<_, 2, true>(tiles, &factors, panel, true, sums));
    }
}

/// Adds the products of up to 32 rows of weights with values.
#[inline(always)]
fn weighted<M: Multiply>(tiles: M, weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]) {
    let panel: &[product::Weights] = values.as_chunks().0;
    let rest_len = panel.len() * QUAD % TILE_INPUTS;
    let rest = (panel.len() * QUAD - rest_len) * size_of::<i16>();
    let stride = stride * size_of::<i16>();
    let bytes = cast_slice(weights);
    let advance = TILE_INPUTS * size_of::<i16>();
    if sums.len() <= TILE_ROWS {
        let factors = Factors {
            bytes,
            first: [0, TILE_INPUTS],
            rest: [rest, rest + rest_len],
            stride,
            advance,
        };
        let mut parts = [[[0; PANEL]; TILE_ROWS]; 2];
        add::<_, 2, false>(tiles, &factors, panel, true, &mut parts);
        let [low, high] = &parts;
        add_parts(sums, low, high);
    } else {
        let second = TILE_ROWS * stride;
        let factors = Factors {
            bytes,
            first: [0, second, TILE_INPUTS, second + TILE_INPUTS],
            rest: [rest, second + rest, rest + rest_len, second + rest + rest_len],
            stride,
            advance,
        };
        let mut parts = [[[0; PANEL]; TILE_ROWS]; 4];
        add::<_, 4, false>(tiles, &factors, panel, true, &mut parts);
        let (low, high) = parts.split_at(2);
        add_parts(sums, low.as_flattened(), high.as_flattened());
    }
}

/// Adds the sums of lower bytes and 256 times those of upper ones.
#[inline(always)]
fn add_parts(sums: &mut [Lanes<i32>], low: &[Lanes<i32>], high: &[Lanes<i32>]) {
    for (sums, (low, high)) in sums.iter_mut().zip(low.iter().zip(high)) {
        for (sum, (&low, &high)) in sums.iter_mut().zip(low.iter().zip(high)) {
            *sum = sum.wrapping_add(low).wrapping_add(high << 8);
        }
    }
}

/// Lets whole tiles of sums be written, also where there are fewer rows.
#[inline(always)]
fn with_sums<const TILES: usize>(sums: &mut [Lanes<i32>], multiply: impl FnOnce(&mut [TileSums; TILES])) {
    if sums.len() == TILES * TILE_ROWS
        && let Some(whole) = sums.as_chunks_mut().0.first_chunk_mut()
    {
        return multiply(whole);
    }
    let mut whole = [[[0; PANEL]; TILE_ROWS]; TILES];
    multiply(&mut whole);
    sums.iter_mut()
        .zip(whole.as_flattened())
        .for_each(|(to, from)| *to = *from);
}
