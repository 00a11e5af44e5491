//! Moving tokens: pixels to images, images to patches, visible patches out of all, and back. All tensors f32, all exact.

use super::launch::{count, size};
use super::{Arg, Launch};
use crate::data::Normalization;
use crate::ops::PatchOrder;

/// Images f32 `[batch, channels, height, width]` from pixels u8 `[batch, height, width, channels]`, where `plane` is
/// `height · width`; with the bits of [`crate::data::to_tensor`]. The normalization has a mean and a deviation for each of 1 or
/// 3 channels.
pub(crate) fn images_from_pixels(
    pixels: u64,
    images: u64,
    batch: usize,
    plane: usize,
    normalization: &Normalization,
) -> Launch {
    let channels = normalization.mean.len();
    let three = |values: &[f32], missing| [0, 1, 2].map(|at| Arg::F32(values.get(at).copied().unwrap_or(missing)));
    let count = batch * plane;
    let mut args = vec![Arg::Pointer(pixels), Arg::Pointer(images)];
    args.extend([count, plane, channels].map(size));
    args.extend(three(&normalization.mean, 0.0));
    args.extend(three(&normalization.std, 1.0));
    Launch::line("images_from_pixels", count.div_ceil(256), args)
}

/// Patches `[batch, L, patch · patch · channels]` of images `[batch, channels, height, width]`; `shape` is theirs.
pub(crate) fn patchify(images: u64, patches: u64, shape: [usize; 4], patch: usize, order: PatchOrder) -> Launch {
    let [batch, channels, height, width] = shape;
    let mut args = vec![Arg::Pointer(images), Arg::Pointer(patches)];
    args.extend([channels, height, width, patch].map(size));
    args.push(Arg::U32((order == PatchOrder::ChannelsLast).into()));
    Launch::line("patchify", batch * (height / patch) * (width / patch), args)
}

/// The tokens `index` (u32 `[batch, n]`) of `x` `[batch, tokens, width]`: `y` `[batch, n, width]`.
pub(crate) fn gather_tokens(x: u64, index: u64, y: u64, [batch, tokens, n, width]: [usize; 4]) -> Launch {
    let pointers = [x, index, y].map(Arg::Pointer).into_iter();
    let args = pointers.chain([tokens, n, width].map(size)).collect();
    Launch::line("gather_tokens", batch * n, args)
}

/// The gradient of `x` in [`gather_tokens`] from `grad`, that of `y`.
pub(crate) fn gather_tokens_gradient(
    grad: u64,
    index: u64,
    grad_x: u64,
    [batch, tokens, n, width]: [usize; 4],
) -> Launch {
    let pointers = [grad, index, grad_x].map(Arg::Pointer).into_iter();
    let args = pointers.chain([tokens, n, width].map(size)).collect();
    Launch::line("gather_tokens_gradient", batch * tokens, args)
}

/// The sizes of [`unmask`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnmaskSizes {
    pub batch: usize,
    /// Tokens of `x`, the class token included.
    pub visible: usize,
    pub patches: usize,
    pub width: usize,
}

/// Visible patches back in place and mask tokens everywhere else: `x` `[batch, visible, width]` (class token first),
/// `mask_tokens` `[patches, width]`, `restore` u32 `[batch, patches]`, each row a permutation, gives `y`
/// `[batch, 1 + patches, width]`.
pub(crate) fn unmask(x: u64, mask_tokens: u64, restore: u64, y: u64, sizes: UnmaskSizes) -> Launch {
    let UnmaskSizes {
        batch,
        visible,
        patches,
        width,
    } = sizes;
    let pointers = [x, mask_tokens, restore, y].map(Arg::Pointer).into_iter();
    let args = pointers.chain([visible, patches, width].map(size)).collect();
    Launch::line("unmask", batch * (1 + patches), args)
}

/// The gradient of `x` in [`unmask`] from `grad`, that of `y`.
pub(crate) fn unmask_gradient_visible(grad: u64, restore: u64, grad_x: u64, sizes: UnmaskSizes) -> Launch {
    let UnmaskSizes {
        batch,
        visible,
        patches,
        width,
    } = sizes;
    let pointers = [grad, restore, grad_x].map(Arg::Pointer).into_iter();
    let args = pointers.chain([visible, patches, width].map(size)).collect();
    Launch::line("unmask_gradient_visible", batch * (1 + patches), args)
}

/// The gradient of `mask_tokens` in [`unmask`] from `grad`, that of `y`.
pub(crate) fn unmask_gradient_masked(grad: u64, restore: u64, grad_tokens: u64, sizes: UnmaskSizes) -> Launch {
    let UnmaskSizes {
        batch,
        visible,
        patches,
        width,
    } = sizes;
    let pointers = [grad, restore, grad_tokens].map(Arg::Pointer).into_iter();
    let args = pointers.chain([batch, visible, patches, width].map(size)).collect();
    Launch {
        grid: [count(patches), count(width.div_ceil(128)), 1],
        block: [128, 1, 1],
        ..Launch::line("unmask_gradient_masked", 0, args)
    }
}
