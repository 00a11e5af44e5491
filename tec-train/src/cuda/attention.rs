//! Multi-head attention, straight out of and into the projections' layouts; scores are never in device memory.

use super::launch::{count, size};
use super::{Arg, Float, Launch};

/// The widths of heads that there are kernels for; others take the next one, padded with zeros.
const WIDTHS: [usize; 7] = [16, 32, 48, 64, 80, 96, 128];

/// The widest head.
pub(crate) const MAX_HEAD_WIDTH: usize = 128;

/// The sizes of an attention and how it is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    /// How queries, keys, values, results and gradients are stored.
    pub dtype: Float,
    /// F32 for plain f32 arithmetic, of f32 tensors; Bf16 for tensor cores: factors of products rounded to bf16, their
    /// sums and the softmax in f32.
    pub compute: Float,
    /// At most 65,535, CUDA's limit for a grid's third axis.
    pub batch: usize,
    pub heads: usize,
    /// As many as tokens where the projections are joined.
    pub queries: usize,
    pub tokens: usize,
    /// At most [`MAX_HEAD_WIDTH`].
    pub head_width: usize,
}

/// Where queries, keys and values are, or their gradients.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Projections {
    /// `[batch, tokens, 3 width]` in the layout `[3][heads][head_width]`.
    Joined(u64),
    /// `q` `[batch, queries, width]` and `kv` `[batch, tokens, 2 width]`.
    Apart { q: u64, kv: u64 },
}

/// An address with the elements from one image to the next and from one row to the next.
#[derive(Debug, Clone, Copy)]
struct Rows {
    at: u64,
    image: usize,
    row: usize,
}

impl Rows {
    fn strides(self) -> [Arg; 2] {
        [Arg::U64(self.image as u64), size(self.row)]
    }
}

impl Attention {
    /// The width of all heads together.
    fn width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Queries, keys, and the address of the values, which lie as the keys.
    fn rows(&self, projections: Projections) -> (Rows, Rows, u64) {
        let width = self.width();
        let step = (width * self.dtype.bytes()) as u64;
        let rows = |at, rows, row| Rows {
            at,
            image: rows * row,
            row,
        };
        match projections {
            Projections::Joined(at) => {
                let rows = |at| rows(at, self.tokens, 3 * width);
                (rows(at), rows(at + step), at + 2 * step)
            }
            Projections::Apart { q, kv } => {
                let keys = rows(kv, self.tokens, 2 * width);
                (rows(q, self.queries, width), keys, kv + step)
            }
        }
    }

    /// The arguments that all kernels begin with.
    fn inputs(&self, projections: Projections) -> Vec<Arg> {
        let (q, k, v) = self.rows(projections);
        let mut args = vec![Arg::Pointer(q.at)];
        args.extend(q.strides());
        args.extend([k.at, v].map(Arg::Pointer));
        args.extend(k.strides());
        args
    }

    /// A result or its gradient, `[batch, queries, width]`.
    fn result(&self, at: u64) -> [Arg; 3] {
        [
            Arg::Pointer(at),
            Arg::U64((self.queries * self.width()) as u64),
            size(self.width()),
        ]
    }

    fn launch(&self, kernel: &str, rows: usize, mut args: Vec<Arg>) -> Launch {
        let (padded, tile) = (self.padded(), self.tile());
        args.extend([self.queries, self.tokens, self.head_width].map(size));
        args.push(Arg::F32((1.0 / (self.head_width as f64).sqrt()) as f32));
        let (dtype, compute) = (self.dtype.name(), self.compute.name());
        Launch {
            grid: [rows.div_ceil(tile), self.heads, self.batch].map(count),
            block: [if self.compute == Float::F32 { 256 } else { 128 }, 1, 1],
            ..Launch::line(format!("{kernel}_{dtype}_{compute}_{padded}"), 0, args)
        }
    }

    /// The width of the kernel's instance.
    fn padded(&self) -> usize {
        debug_assert!(
            self.head_width <= MAX_HEAD_WIDTH,
            "heads of {} are too wide",
            self.head_width
        );
        let fits = WIDTHS.into_iter().find(|&width| width >= self.head_width);
        fits.unwrap_or(MAX_HEAD_WIDTH)
    }

    /// Whether one block has all queries and tokens of a head, and so all of its gradients.
    fn is_short(&self) -> bool {
        self.compute == Float::Bf16 && self.queries.max(self.tokens) <= self.tile()
    }

    /// Rows of a block.
    fn tile(&self) -> usize {
        match self.compute {
            Float::F32 => 32,
            Float::Bf16 => 64,
        }
    }

    /// Bytes of `tiles` tiles in shared memory, and of the weights between two products where these are there.
    fn tiles(&self, tiles: usize) -> u32 {
        let rows = tiles * self.tile();
        count(match self.compute {
            Float::F32 => 4 * (rows * (self.padded() + 4) + 32 * 33),
            Float::Bf16 => 2 * rows * (self.padded() + 8),
        })
    }
}

/// `softmax(q k^T / sqrt(head_width)) v` of each head: `out` `[batch, queries, width]`.
pub(crate) fn attention(of: &Attention, inputs: Projections, out: u64) -> Launch {
    let mut args = of.inputs(inputs);
    args.extend(of.result(out));
    let tiles = match of.compute {
        Float::F32 => 2,
        Float::Bf16 => 3,
    };
    Launch {
        shared: of.tiles(tiles),
        ..of.launch("attention", of.queries, args)
    }
}

/// f32 elements of scratch for [`attention_gradient`]; short sequences leave it as it is.
pub(crate) fn attention_gradient_scratch(of: &Attention) -> usize {
    2 * of.batch * of.heads * of.queries
}

/// The gradients of queries, keys and values, all written to where `into` says, from `grad`, that of `out`; it has the shape of
/// `inputs`.
pub(crate) fn attention_gradient(
    of: &Attention,
    inputs: Projections,
    grad: u64,
    into: Projections,
    scratch: u64,
) -> Vec<Launch> {
    let (q, k, v) = of.rows(into);
    let means = scratch + 4 * (of.batch * of.heads * of.queries) as u64;
    let mut args = of.inputs(inputs);
    args.extend(of.result(grad));
    let with = |pointers: &[u64]| {
        let pointers = pointers.iter().map(|&at| Arg::Pointer(at));
        args.iter().copied().chain(pointers).collect::<Vec<_>>()
    };
    let statistics = 2 * 4 * of.tile() as u32;
    if of.is_short() {
        return vec![Launch {
            shared: of.tiles(4) + statistics,
            ..of.launch("attention_gradient_short", 1, with(&[q.at, k.at, v]))
        }];
    }
    vec![
        Launch {
            shared: of.tiles(4),
            ..of.launch("attention_gradient_q", of.queries, with(&[q.at, scratch, means]))
        },
        Launch {
            shared: of.tiles(4) + statistics,
            ..of.launch("attention_gradient_kv", of.tokens, with(&[k.at, v, scratch, means]))
        },
    ]
}
