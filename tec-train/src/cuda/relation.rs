//! Relations between tokens: the base's targets and the new model's logits. `dtype` is that of queries and keys; results and
//! gradients are f32.

use super::launch::{count, size};
use super::{Arg, Float, Launch};

/// Keys and queries of a block of logits.
const TILE: (usize, usize) = (64, 16);

/// What [`rank_queries`] writes for an image whose logits hold a NaN.
#[cfg_attr(not(test), expect(dead_code, reason = "the host does not wait to look at it"))]
pub(crate) const NO_PATCH: u32 = u32::MAX;

/// The queries, keys and values `[batch, prefix + patches, 3 width]` of the base's last block, in `heads` heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Base {
    pub dtype: Float,
    pub qkv: u64,
    pub batch: usize,
    /// Tokens before the first patch, the class token first.
    pub prefix: usize,
    pub patches: usize,
    pub width: usize,
    pub heads: usize,
}

impl Base {
    /// What the products are multiplied by.
    fn scale(&self) -> f32 {
        (1.0 / ((self.width / self.heads) as f64).sqrt()) as f32
    }
}

/// The `top_k` patches that the class token attends to most, best first: `index` u32 `[batch, top_k]`. An image's are all
/// [`NO_PATCH`] where one of its logits is NaN. `width + patches` may be at most 12,000.
pub(crate) fn rank_queries(base: &Base, index: u64, top_k: usize) -> Launch {
    let sizes = [base.prefix, base.patches, base.width, top_k].map(size);
    let args = [base.qkv, index].map(Arg::Pointer).into_iter().chain(sizes);
    let args = args.chain([Arg::F32(base.scale() / base.heads as f32)]).collect();
    Launch {
        shared: count(size_of::<f32>() * (base.width + base.patches)),
        ..Launch::line(format!("rank_queries_{}", base.dtype.name()), base.batch, args)
    }
}

/// The logits `picked` f32 `[batch, 1 + top_k, heads, patches]` of the class token and of the patches in `index`.
pub(crate) fn picked_logits(base: &Base, index: u64, picked: u64, top_k: usize) -> Launch {
    let row = 3 * base.width;
    let image = (base.prefix + base.patches) * row;
    let first_key = (base.prefix * row + base.width) * base.dtype.bytes();
    logits(&Logits {
        dtype: base.dtype,
        q: (base.qkv, image, row),
        k: (base.qkv + first_key as u64, image, row),
        index: (index, base.prefix),
        out: picked,
        batch: base.batch,
        queries: 1 + top_k,
        heads: base.heads,
        patches: base.patches,
        width: base.width,
        scale: base.scale(),
    })
}

/// Queries `q` `[batch, queries, width]` and keys `k` `[batch, 1 + patches, width]` (the class token's first) of the relation
/// head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Relation {
    pub dtype: Float,
    pub q: u64,
    pub k: u64,
    pub batch: usize,
    pub queries: usize,
    pub patches: usize,
    pub width: usize,
    pub heads: usize,
    pub scale: f32,
}

/// `scale · q k^T` of all queries against all patches: `out` f32 `[batch, queries, heads, patches]`.
pub(crate) fn relation_logits(of: &Relation, out: u64) -> Launch {
    logits(&Logits {
        dtype: of.dtype,
        q: (of.q, of.queries * of.width, of.width),
        k: (
            of.k + (of.width * of.dtype.bytes()) as u64,
            (1 + of.patches) * of.width,
            of.width,
        ),
        index: (0, 0),
        out,
        batch: of.batch,
        queries: of.queries,
        heads: of.heads,
        patches: of.patches,
        width: of.width,
        scale: of.scale,
    })
}

/// The gradients `grad_q` and `grad_k`, f32 in the shapes of `q` and `k`, from `grad`, that of the logits.
pub(crate) fn relation_gradients(of: &Relation, grad: u64, grad_q: u64, grad_k: u64) -> [Launch; 2] {
    let head_width = of.width / of.heads;
    let name = of.dtype.name();
    let mut q = vec![Arg::Pointer(grad), Arg::Pointer(of.k), Arg::Pointer(grad_q)];
    q.extend([of.heads, of.patches, head_width].map(size));
    let mut k = vec![Arg::Pointer(grad), Arg::Pointer(of.q), Arg::Pointer(grad_k)];
    k.extend([of.queries, of.heads, of.patches, head_width].map(size));
    q.push(Arg::F32(of.scale));
    k.push(Arg::F32(of.scale));
    let over = |kernel: String, rows, args| Launch {
        grid: [count(rows), count(of.batch), 1],
        ..Launch::line(kernel, 0, args)
    };
    [
        over(format!("relation_gradient_q_{name}"), of.queries, q),
        over(format!("relation_gradient_k_{name}"), 1 + of.patches, k),
    ]
}

/// What the kernel of logits takes.
struct Logits {
    dtype: Float,
    /// Address, elements from one image to the next, elements from one row to the next.
    q: (u64, usize, usize),
    k: (u64, usize, usize),
    /// The patches that are queries, and their tokens' offset; 0 for rows as they are.
    index: (u64, usize),
    out: u64,
    batch: usize,
    queries: usize,
    heads: usize,
    patches: usize,
    width: usize,
    scale: f32,
}

fn logits(of: &Logits) -> Launch {
    let rows = |(at, image, row): (u64, usize, usize)| [Arg::Pointer(at), Arg::U64(image as u64), size(row)];
    let mut args = [rows(of.q), rows(of.k)].concat();
    args.extend([Arg::Pointer(of.index.0), size(of.index.1), Arg::Pointer(of.out)]);
    args.extend([of.queries, of.heads, of.patches, of.width / of.heads].map(size));
    args.push(Arg::F32(of.scale));
    let grid = [
        of.patches.div_ceil(TILE.0),
        of.queries.div_ceil(TILE.1) * of.heads,
        of.batch,
    ];
    Launch {
        grid: grid.map(count),
        ..Launch::line(format!("relation_logits_{}", of.dtype.name()), 0, args)
    }
}

/// `softmax(picked / tau)` of every row of `picked` f32 `[rows, patches]`.
pub(crate) fn tempered_target(picked: u64, out: u64, rows: usize, patches: usize, tau: f32) -> Launch {
    let args = vec![
        Arg::Pointer(picked),
        Arg::Pointer(out),
        size(rows),
        size(patches),
        Arg::F32(1.0 / tau),
    ];
    Launch::line("softmax_rows", rows.div_ceil(8), args)
}

/// Features f32 `[batch, patches, width]` normalized over at least two patches.
pub(crate) fn normalize_features(x: u64, out: u64, [batch, patches, width]: [usize; 3]) -> Launch {
    let eps = Arg::F32(tec_core::relation::FEATURE_EPS);
    let args = vec![Arg::Pointer(x), Arg::Pointer(out), size(patches), size(width), eps];
    Launch {
        grid: [count(width.div_ceil(32)), count(batch), 1],
        block: [32, 8, 1],
        ..Launch::line("normalize_features", 0, args)
    }
}
