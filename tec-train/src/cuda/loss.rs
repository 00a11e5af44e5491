//! The two losses, f32. A value is two f32 in device memory: the loss, and what the sum over rows was multiplied by.

use super::launch::size;
use super::{Arg, Launch};

/// f32 elements of scratch for a loss over as many rows.
pub(crate) fn scratch(rows: usize) -> usize {
    rows
}

/// The squared error, mean over channels, averaged over the removed patches: `pred` and `target` `[rows, width]`, `removed`
/// `[rows]` (1 where a patch was removed). Writes `value` `[2]`; NaN where nothing was removed.
pub(crate) fn feature_loss(
    [pred, target, removed]: [u64; 3],
    value: u64,
    scratch: u64,
    rows: usize,
    width: usize,
) -> [Launch; 2] {
    let mut args = [pred, target, removed, scratch].map(Arg::Pointer).to_vec();
    args.extend([rows, width].map(size));
    [
        Launch::line("feature_loss_rows", rows.div_ceil(8), args),
        weighted_mean(scratch, removed, value, rows),
    ]
}

/// The gradient of `pred` in [`feature_loss`] from its `value` and `upstream`, the gradient of the loss in device memory.
pub(crate) fn feature_loss_gradient(
    [pred, target, removed]: [u64; 3],
    upstream: u64,
    value: u64,
    grad: u64,
    rows: usize,
    width: usize,
) -> Launch {
    let mut args = [pred, target, removed, upstream, value, grad]
        .map(Arg::Pointer)
        .to_vec();
    args.push(size(width));
    Launch::line("feature_loss_gradient", rows, args)
}

/// The cross-entropy of `pred` against the distributions `target`, both `[rows, width]`, mean over rows. Writes `value` `[2]`.
pub(crate) fn relation_loss(
    pred: u64,
    target: u64,
    value: u64,
    scratch: u64,
    rows: usize,
    width: usize,
) -> [Launch; 2] {
    let mut args = [pred, target, scratch].map(Arg::Pointer).to_vec();
    args.extend([rows, width].map(size));
    [
        Launch::line("relation_loss_rows", rows.div_ceil(8), args),
        weighted_mean(scratch, 0, value, rows),
    ]
}

/// The gradient of `pred` in [`relation_loss`], from `upstream`, the gradient of the loss in device memory.
pub(crate) fn relation_loss_gradient(
    pred: u64,
    target: u64,
    upstream: u64,
    grad: u64,
    rows: usize,
    width: usize,
) -> Launch {
    let mut args = [pred, target, upstream, grad].map(Arg::Pointer).to_vec();
    args.extend([rows, width].map(size));
    Launch::line("relation_loss_gradient", rows.div_ceil(8), args)
}

fn weighted_mean(values: u64, weights: u64, out: u64, n: usize) -> Launch {
    let mut args = [values, weights, out].map(Arg::Pointer).to_vec();
    args.push(size(n));
    Launch::line("weighted_mean", 1, args)
}
