//! Layer normalization over rows, and sums down columns.

use super::launch::{count, size};
use super::{Arg, Float, Launch};

/// Rows up to this width belong to one warp, eight to a block; each wider one to a block.
const WARP_WIDTH: usize = 1024;
/// Rows up to this width fit the shared memory that every kernel may have.
pub(crate) const MAX_WIDTH: usize = 12_000;
/// Columns of a block in sums over rows.
const COLUMNS: usize = 32;
/// The parts that the rows of a sum are split into, at most: few enough that adding their sums is quick, many enough for
/// every GPU.
const PARTS: usize = 128;

/// A launch over rows of `width`, which may be at most [`MAX_WIDTH`].
fn by_rows(kernel: String, rows: usize, width: usize, args: Vec<Arg>) -> Launch {
    debug_assert!(width <= MAX_WIDTH, "rows of {width} do not fit shared memory");
    let wide = width > WARP_WIDTH;
    let rows_per_block = if wide { 1 } else { 8 };
    let kernel = if wide { format!("{kernel}_wide") } else { kernel };
    let shared = count(rows_per_block * width.next_multiple_of(4) * size_of::<f32>());
    Launch {
        shared,
        ..Launch::line(kernel, rows.div_ceil(rows_per_block), args)
    }
}

/// `y = layer_norm(x)`: `x` f32 `[rows, width]`, `y` as `dtype` says, weight and bias f32 `[width]`.
#[expect(clippy::too_many_arguments, reason = "the operation's arguments")]
pub(crate) fn layer_norm(
    dtype: Float,
    x: u64,
    weight: u64,
    bias: u64,
    y: u64,
    rows: usize,
    width: usize,
    eps: f32,
) -> Launch {
    let args = [x, weight, bias, y].map(Arg::Pointer).into_iter();
    let args = args.chain([size(rows), size(width), Arg::F32(eps)]).collect();
    by_rows(format!("layer_norm_f32_{}", dtype.name()), rows, width, args)
}

/// What the gradients of a layer normalization are computed from, and where they go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerNormGradient {
    /// f32 `[rows, width]`
    pub x: u64,
    /// f32 `[width]`
    pub weight: u64,
    /// The gradient of the result, `[rows, width]`, stored as `dtype` says.
    pub grad: u64,
    /// f32 `[rows, width]`, added to the gradient of x; 0 for none.
    pub residual: u64,
    /// f32 `[rows, width]`; may be `residual`.
    pub grad_x: u64,
    /// f32 `[width]`
    pub grad_weight: u64,
    /// f32 `[width]`
    pub grad_bias: u64,
    /// f32, [`layer_norm_gradient_scratch`] elements.
    pub scratch: u64,
    pub rows: usize,
    pub width: usize,
    pub eps: f32,
}

/// f32 elements of scratch for [`layer_norm_gradient`].
pub(crate) fn layer_norm_gradient_scratch(rows: usize, width: usize) -> usize {
    2 * rows + 2 * parts(rows).0 * width
}

/// The gradients of x, weight and bias, one launch after the other; `dtype` is that of `grad`.
pub(crate) fn layer_norm_gradient(dtype: Float, of: &LayerNormGradient) -> [Launch; 4] {
    let &LayerNormGradient { rows, width, .. } = of;
    let (parts, rows_per_part) = parts(rows);
    let (stats, partial) = (of.scratch, of.scratch + 4 * 2 * rows as u64);
    let args = [of.x, of.weight, of.grad, of.residual, of.grad_x, stats].map(Arg::Pointer);
    let args = args
        .into_iter()
        .chain([size(rows), size(width), Arg::F32(of.eps)])
        .collect();
    let first = by_rows(format!("layer_norm_gradient_{}", dtype.name()), rows, width, args);
    let args = [of.x, stats, of.grad, partial].map(Arg::Pointer).into_iter();
    let args = args.chain([size(rows), size(width), size(rows_per_part)]).collect();
    let sums = by_columns(format!("layer_norm_parts_{}", dtype.name()), width, parts, args);
    let half = 4 * (parts * width) as u64;
    let add = |partial, out| column_sums_of(Float::F32, partial, out, (parts, width), (1, parts));
    [
        first,
        sums,
        add(partial, of.grad_weight),
        add(partial + half, of.grad_bias),
    ]
}

/// f32 elements of scratch for [`column_sums`].
pub(crate) fn column_sums_scratch(rows: usize, width: usize) -> usize {
    parts(rows).0 * width
}

/// `sums` f32 `[width]` of `x` `[rows, width]`; `scratch` f32 has [`column_sums_scratch`] elements.
pub(crate) fn column_sums(dtype: Float, x: u64, sums: u64, scratch: u64, rows: usize, width: usize) -> [Launch; 2] {
    let (parts, rows_per_part) = parts(rows);
    [
        column_sums_of(dtype, x, scratch, (rows, width), (parts, rows_per_part)),
        column_sums_of(Float::F32, scratch, sums, (parts, width), (1, parts)),
    ]
}

fn column_sums_of(
    dtype: Float,
    x: u64,
    sums: u64,
    (rows, width): (usize, usize),
    (parts, rows_per_part): (usize, usize),
) -> Launch {
    let args = vec![
        Arg::Pointer(x),
        Arg::Pointer(sums),
        size(rows),
        size(width),
        size(rows_per_part),
    ];
    by_columns(format!("column_sums_{}", dtype.name()), width, parts, args)
}

fn by_columns(kernel: String, width: usize, parts: usize, args: Vec<Arg>) -> Launch {
    Launch {
        grid: [count(width.div_ceil(COLUMNS)), count(parts), 1],
        block: [COLUMNS as u32, 8, 1],
        ..Launch::line(kernel, 0, args)
    }
}

/// How many parts the rows of a sum are split into, and rows of each: a function of the rows alone. None is empty.
fn parts(rows: usize) -> (usize, usize) {
    let rows_per_part = rows.div_ceil(PARTS).max(32);
    (rows.div_ceil(rows_per_part).max(1), rows_per_part)
}
