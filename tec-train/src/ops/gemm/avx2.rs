//! Matrix products for CPUs with AVX2 and FMA.
//!
//! The usual loops (Goto and van de Geijn, 2008): the depth is cut so that a panel of `b` stays in the first cache, the rows
//! so that a block of `a` stays in the second; both are packed into panels that the kernel reads from front to back, and the
//! kernel keeps 6 × 16 results in registers. How the depth is cut depends on the sizes alone, so results do not depend on
//! the number of threads.

use std::arch::x86_64::{
    __m256, _MM_HINT_T0, _mm_prefetch, _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_mul_ps, _mm256_permute2f128_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
    _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};
use std::array;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::{Matrix, Start};

/// Rows and columns of the kernel's tile.
const ROWS: usize = 6;
const COLUMNS: usize = 16;
/// The most rows of a block of `a`, columns of a block of `b`, and depth of both: 144 kB and 4 MB.
const BLOCK_ROWS: usize = 72;
const BLOCK_COLUMNS: usize = 2048;
const BLOCK_DEPTH: usize = 512;
/// Blocks of rows that a product is cut into at least, where it has as many rows: work for several threads.
const BLOCKS: usize = 8;

thread_local! {
    /// Packed panels of `a` and of `b`, kept between products.
    static PANELS: [RefCell<Vec<f32>>; 2] = const { [RefCell::new(Vec::new()), RefCell::new(Vec::new())] };
}

/// A product that this CPU can compute.
pub struct Product<'a> {
    start: Start<'a>,
    scale: f32,
    a: Matrix<'a>,
    b: Matrix<'a>,
}

impl<'a> Product<'a> {
    /// `start + scale * a b`, where `a` has as many columns as `b` has rows; nothing where the CPU has no AVX2 and FMA.
    pub fn new(start: Start<'a>, scale: f32, a: Matrix<'a>, b: Matrix<'a>) -> Option<Self> {
        let available = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        (available && a.columns == b.rows && a.columns > 0).then_some(Self { start, scale, a, b })
    }

    /// Writes every element of the result's rows, which begin `stride` elements apart in `out`; the threads of the current
    /// rayon pool do it, or the calling one.
    pub fn write(&self, out: &mut [MaybeUninit<f32>], stride: usize, on_pool: bool) {
        let (rows, columns, depth) = (self.a.rows, self.b.columns, self.a.columns);
        if rows == 0 || columns == 0 {
            return;
        }
        let out = &mut out[..(rows - 1) * stride + columns];
        let block_depth = depth.div_ceil(depth.div_ceil(BLOCK_DEPTH));
        let block_rows = rows.div_ceil(BLOCKS).next_multiple_of(ROWS).min(BLOCK_ROWS);
        // Taken, not borrowed: while a thread waits for others it may begin another product.
        let mut panels = PANELS.with(|[_, b]| b.take());
        for first_column in (0..columns).step_by(BLOCK_COLUMNS) {
            let columns = BLOCK_COLUMNS.min(columns - first_column);
            for first in (0..depth).step_by(block_depth) {
                let depth = block_depth.min(depth - first);
                let (panel, b) = (depth * COLUMNS, self.b.t());
                let needed = columns.div_ceil(COLUMNS) * panel;
                if panels.len() < needed {
                    panels.resize(needed, 0.0);
                }
                let pack_b = |(number, out): (usize, &mut [f32])| {
                    // SAFETY: `Product::new` has found AVX2 and FMA.
                    unsafe { pack::<COLUMNS>(b, first_column + number * COLUMNS, first..first + depth, out) }
                };
                match on_pool {
                    true => panels[..needed].par_chunks_mut(panel).enumerate().for_each(pack_b),
                    false => panels[..needed].chunks_mut(panel).enumerate().for_each(pack_b),
                }
                let block = Block {
                    start: match first {
                        0 => self.start.skip(first_column),
                        _ => Start::Add,
                    },
                    scale: self.scale,
                    depth: first..first + depth,
                    columns,
                    panels: &panels[..needed],
                };
                let write = |(number, out): (usize, &mut [MaybeUninit<f32>])| {
                    let first_row = number * block_rows;
                    let rows = block_rows.min(rows - first_row);
                    let mut packed = PANELS.with(|[a, _]| a.take());
                    // SAFETY: `Product::new` has found AVX2 and FMA.
                    unsafe { block.write(self.a, first_row, rows, &mut packed, &mut out[first_column..], stride) };
                    PANELS.with(|[a, _]| a.replace(packed));
                };
                match on_pool {
                    true => out.par_chunks_mut(block_rows * stride).enumerate().for_each(write),
                    false => out.chunks_mut(block_rows * stride).enumerate().for_each(write),
                }
            }
        }
        PANELS.with(|[_, b]| b.replace(panels));
    }
}

/// Some columns of a product, from a part of its depth.
struct Block<'a> {
    start: Start<'a>,
    scale: f32,
    depth: Range<usize>,
    columns: usize,
    /// Packed panels of `b`.
    panels: &'a [f32],
}

impl Block<'_> {
    /// The rows from `first` on; `packed` is scratch.
    #[target_feature(enable = "avx2,fma")]
    fn write(
        &self,
        a: Matrix,
        first: usize,
        rows: usize,
        packed: &mut Vec<f32>,
        out: &mut [MaybeUninit<f32>],
        stride: usize,
    ) {
        let depth = self.depth.len();
        let needed = rows.div_ceil(ROWS) * depth * ROWS;
        if packed.len() < needed {
            packed.resize(needed, 0.0);
        }
        for (number, panel) in packed[..needed].chunks_exact_mut(depth * ROWS).enumerate() {
            pack::<ROWS>(a, first + number * ROWS, self.depth.clone(), panel);
        }
        for (j, b) in self.panels.chunks_exact(depth * COLUMNS).enumerate() {
            let column = j * COLUMNS;
            let columns = COLUMNS.min(self.columns - column);
            let start = self.start.skip(column);
            for (i, a) in packed[..needed].chunks_exact(depth * ROWS).enumerate() {
                let rows = ROWS.min(rows - i * ROWS);
                let out = &mut out[i * ROWS * stride + column..];
                let start = start.skip_rows((first + i * ROWS) * stride);
                fetch(out, rows, columns, stride);
                if let Start::Rows(added, _) = start {
                    fetch(added, rows, columns, stride);
                }
                let tile = tile(a, b);
                match (rows, columns) {
                    (ROWS, COLUMNS) => self.store(&tile, start, out, stride),
                    _ => self.store_part(&tile, start, out, stride, rows, columns),
                }
            }
        }
    }

    /// Writes a whole tile to the rows at the start of `out`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn store(&self, tile: &[[__m256; 2]; ROWS], start: Start, out: &mut [MaybeUninit<f32>], stride: usize) {
        let scale = _mm256_set1_ps(self.scale);
        let out = &mut out[..(ROWS - 1) * stride + COLUMNS];
        for (row, (tile, out)) in tile.iter().zip(out.chunks_mut(stride)).enumerate() {
            let out = out[..COLUMNS].as_mut_ptr().cast::<f32>();
            let before = match start {
                Start::Zero => [None, None],
                Start::Bias(bias) => [Some(bias[..COLUMNS].as_ptr()), None],
                Start::Add => [Some(out.cast_const()), None],
                Start::Rows(rows, bias) => [
                    Some(bias[..COLUMNS].as_ptr()),
                    Some(rows[row * stride..][..COLUMNS].as_ptr()),
                ],
            };
            for (half, &sum) in tile.iter().enumerate() {
                let mut sum = _mm256_mul_ps(sum, scale);
                // SAFETY: all point to COLUMNS elements, of which a half begins at 8 * half; where `out` is added to, the
                // caller or the block before has written it.
                unsafe {
                    for before in before.into_iter().flatten() {
                        sum = _mm256_add_ps(sum, _mm256_loadu_ps(before.add(8 * half)));
                    }
                    _mm256_storeu_ps(out.add(8 * half), sum);
                }
            }
        }
    }

    /// As [`Block::store`], of a tile that reaches beyond the result's edge.
    #[target_feature(enable = "avx2,fma")]
    fn store_part(
        &self,
        tile: &[[__m256; 2]; ROWS],
        start: Start,
        out: &mut [MaybeUninit<f32>],
        stride: usize,
        rows: usize,
        columns: usize,
    ) {
        for (row, tile) in tile.iter().take(rows).enumerate() {
            let mut sums = [0.0; COLUMNS];
            // SAFETY: `sums` has room for two halves.
            unsafe {
                _mm256_storeu_ps(sums.as_mut_ptr(), tile[0]);
                _mm256_storeu_ps(sums.as_mut_ptr().add(8), tile[1]);
            }
            for (column, (out, sum)) in out[row * stride..].iter_mut().zip(&sums[..columns]).enumerate() {
                let sum = sum * self.scale;
                match start {
                    Start::Zero => out.write(sum),
                    Start::Bias(bias) => out.write(sum + bias[column]),
                    Start::Rows(rows, bias) => out.write(sum + bias[column] + rows[row * stride + column]),
                    // SAFETY: the caller or the block before has written it.
                    Start::Add => out.write(sum + unsafe { out.assume_init() }),
                };
            }
        }
    }
}

/// Asks for the lines of a tile's rows, which begin `stride` elements apart in `data`, so that they are in the cache when the tile
/// is computed: its end would wait for them.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn fetch<T>(data: &[T], rows: usize, columns: usize, stride: usize) {
    for row in data.chunks(stride).take(rows) {
        // 64 bytes at most lie in two lines at most.
        for end in [row.first(), row.get(columns - 1)].into_iter().flatten() {
            _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(end).cast());
        }
    }
}

/// The product of one panel of `a` and one of `b`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn tile(a: &[f32], b: &[f32]) -> [[__m256; 2]; ROWS] {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    // Two columns at a time: measured faster than one, three or four.
    let (pairs_a, pairs_b) = (a.chunks_exact(2 * ROWS), b.chunks_exact(2 * COLUMNS));
    let (last_a, last_b) = (pairs_a.remainder(), pairs_b.remainder());
    for (a, b) in pairs_a.zip(pairs_b) {
        let ((a, next_a), (b, next_b)) = (a.split_at(ROWS), b.split_at(COLUMNS));
        add_column(&mut sums, a, b);
        add_column(&mut sums, next_a, next_b);
    }
    if last_a.len() == ROWS && last_b.len() == COLUMNS {
        add_column(&mut sums, last_a, last_b);
    }
    sums
}

/// Adds the products of ROWS values of `a` with COLUMNS values of `b`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_column(sums: &mut [[__m256; 2]; ROWS], a: &[f32], b: &[f32]) {
    let b = &b[..COLUMNS];
    // SAFETY: `b` has two halves of 8 elements.
    let (left, right) = unsafe { (_mm256_loadu_ps(b.as_ptr()), _mm256_loadu_ps(b.as_ptr().add(8))) };
    for (sums, a) in sums.iter_mut().zip(a) {
        let a = _mm256_broadcast_ss(a);
        sums[0] = _mm256_fmadd_ps(a, left, sums[0]);
        sums[1] = _mm256_fmadd_ps(a, right, sums[1]);
    }
}

/// Packs `W` rows from `first` on: the values of the first column of `depth`, then those of the second, and so on. Rows that
/// do not exist are zeros.
#[target_feature(enable = "avx2,fma")]
fn pack<const W: usize>(m: Matrix, first: usize, depth: Range<usize>, out: &mut [f32]) {
    let rows = W.min(m.rows - first);
    if rows == W && m.column_stride == 1 {
        let lines: [&[f32]; W] = array::from_fn(|row| &m.data[(first + row) * m.row_stride..][depth.clone()]);
        // All but the last columns: whole vectors are written, which for 6 rows reach into the next column.
        let turned = depth.len().saturating_sub(1) / 8 * 8;
        for column in (0..turned).step_by(8) {
            for half in (0..W).step_by(8) {
                let line = |row: usize| match lines.get(half + row) {
                    // SAFETY: 8 elements, checked by the slice.
                    Some(line) => unsafe { _mm256_loadu_ps(line[column..column + 8].as_ptr()) },
                    None => _mm256_setzero_ps(),
                };
                let turned = transpose(array::from_fn(line));
                for (number, values) in turned.into_iter().enumerate() {
                    let out = &mut out[(column + number) * W + half..][..8];
                    // SAFETY: 8 elements, checked by the slice.
                    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
                }
            }
        }
        for (out, column) in out[turned * W..].chunks_exact_mut(W).zip(turned..) {
            for (out, line) in out.iter_mut().zip(&lines) {
                *out = line[column];
            }
        }
    } else if rows == W && m.row_stride == 1 {
        for (out, column) in out.chunks_exact_mut(W).zip(depth) {
            out.copy_from_slice(&m.data[column * m.column_stride + first..][..W]);
        }
    } else {
        for (out, column) in out.chunks_exact_mut(W).zip(depth) {
            for (row, out) in out.iter_mut().enumerate() {
                let at = (first + row) * m.row_stride + column * m.column_stride;
                *out = if row < rows { m.data[at] } else { 0.0 };
            }
        }
    }
}

/// Columns become rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transpose(rows: [__m256; 8]) -> [__m256; 8] {
    // Within each half of the vectors: pairs, then fours; then halves are exchanged.
    let pairs: [__m256; 8] = array::from_fn(|n| {
        let (a, b) = (rows[n / 2 * 2], rows[n / 2 * 2 + 1]);
        match n % 2 {
            0 => _mm256_unpacklo_ps(a, b),
            _ => _mm256_unpackhi_ps(a, b),
        }
    });
    let fours: [__m256; 8] = array::from_fn(|n| {
        let (a, b) = (pairs[n / 4 * 4 + n % 4 / 2], pairs[n / 4 * 4 + n % 4 / 2 + 2]);
        match n % 2 {
            0 => _mm256_shuffle_ps::<0b01_00_01_00>(a, b),
            _ => _mm256_shuffle_ps::<0b11_10_11_10>(a, b),
        }
    });
    array::from_fn(|n| match n / 4 {
        0 => _mm256_permute2f128_ps::<0x20>(fours[n], fours[n + 4]),
        _ => _mm256_permute2f128_ps::<0x31>(fours[n - 4], fours[n]),
    })
}
