//! AdamW over all parameters in one launch, with the bits of [`crate::optim`] where the gradients are scaled alike.

use super::launch::{count, size};
use super::{Arg, Launch};

/// Elements of a chunk: a block's share.
const CHUNK: usize = 16_384;

/// Which tensor (by its number) and which of its pieces each block works on: u32 `[chunks, 2]`, for device memory.
pub(crate) fn chunks(lengths: &[usize]) -> Vec<[u32; 2]> {
    let pieces = |(tensor, &length): (usize, &usize)| {
        let pieces = 0..length.div_ceil(CHUNK);
        pieces.map(move |piece| [count(tensor), count(piece)])
    };
    lengths.iter().enumerate().flat_map(pieces).collect()
}

/// The tables in device memory, one entry a tensor: addresses of its values, gradients and moments (all f32), of its values as bf16 or 0
/// where nobody keeps them, its length (u64), whether it decays (u32); and its [`chunks`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tables {
    pub parameters: u64,
    pub gradients: u64,
    pub firsts: u64,
    pub seconds: u64,
    pub rounded: u64,
    pub lengths: u64,
    pub decays: u64,
    pub chunks: u64,
    /// How many chunks there are.
    pub count: usize,
}

/// The norm of all gradients together, one f64 in device memory: NaN where one of `losses`, address and number of f32 values, is not
/// finite. `scratch` has an f64 for each chunk.
pub(crate) fn gradient_norm(tables: &Tables, losses: (u64, usize), scratch: u64, norm: u64) -> [Launch; 2] {
    let args = [tables.gradients, tables.lengths, tables.chunks, scratch];
    let args = args.map(Arg::Pointer).to_vec();
    let mut sum = [scratch, losses.0, norm].map(Arg::Pointer).to_vec();
    sum.extend([tables.count, losses.1].map(size));
    [
        Launch::line("squares_by_chunk", tables.count, args),
        Launch::line("root_of_sum", 1, sum),
    ]
}

/// What is the same for every element of a step, as [`crate::optim`] has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Update {
    pub beta1: f32,
    pub beta2: f32,
    /// 1 - lr · weight decay.
    pub decay: f32,
    /// lr / (1 - beta1^t).
    pub step_size: f32,
    /// sqrt(1 - beta2^t).
    pub correction: f32,
    pub eps: f32,
}

/// One step of every parameter, in place. Gradients are multiplied by `min(clip / norm, 1)` of the f64 at the address `norm`; where
/// that is not finite nothing changes. `clip` is infinite for no limit.
pub(crate) fn adamw(tables: &Tables, norm: u64, clip: f64, update: &Update) -> Launch {
    let &Tables {
        parameters,
        gradients,
        firsts,
        seconds,
        rounded,
        lengths,
        decays,
        chunks,
        count,
    } = tables;
    let pointers = [
        parameters, gradients, firsts, seconds, rounded, lengths, decays, chunks, norm,
    ];
    let mut args = pointers.map(Arg::Pointer).to_vec();
    args.push(Arg::U64(clip.to_bits()));
    let floats = [
        update.beta1,
        1.0 - update.beta1,
        update.beta2,
        1.0 - update.beta2,
        update.decay,
        update.step_size,
        update.correction,
        update.eps,
    ];
    args.extend(floats.map(Arg::F32));
    Launch::line("adamw", count, args)
}
