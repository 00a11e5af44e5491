//! The differentiable operations of training, on candle tensors.
//!
//! B images, N tokens, L patches, D width, T base width, K selected queries. Tensors are f32 on one device.

mod composed;

use candle_core::Tensor;

use crate::Result;

/// The order of values within one flattened patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchOrder {
    /// Channel, row, column: the order of a patch convolution's weight.
    ChannelsFirst,
    /// Row, column, channel: the order of the masked autoencoder's pixel targets.
    ChannelsLast,
}

/// `x weight^T + bias`: `x` [.., K], `weight` [M, K], `bias` [M] gives [.., M]. Differentiable in all three.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    Ok(composed::linear(x, weight, bias)?)
}

/// Layer normalization over the last axis (biased variance): `x` [.., D], `weight` and `bias` [D].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    Ok(composed::layer_norm(x, weight, bias, eps)?)
}

/// GELU with the exact error function, element by element.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    Ok(x.gelu_erf()?)
}

/// `x + y`, both of the same shape.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok((x + y)?)
}

/// Multi-head self-attention, `softmax(q k^T / sqrt(D / heads)) v`: `qkv` [B, N, 3 D] in the layout [3][heads][D / heads]
/// gives [B, N, D] with the heads joined.
pub fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    Ok(composed::attention(qkv, heads)?)
}

/// Cuts images [B, C, H, W] into flattened patches [B, L, patch * patch * C], row by row. No gradient.
pub fn patchify(images: &Tensor, patch: usize, order: PatchOrder) -> Result<Tensor> {
    Ok(composed::patchify(images, patch, order)?)
}

/// The tokens `index` (u32 [B, n]) of `x` [B, L, D], as [B, n, D].
pub fn gather_tokens(x: &Tensor, index: &Tensor) -> Result<Tensor> {
    Ok(composed::gather_tokens(x, index)?)
}

/// Puts visible patches back in place and the mask token everywhere else: `x` [B, 1 + keep, d] (class token first),
/// `mask_token` [1, 1, d], `restore` u32 [B, L], gives [B, 1 + L, d].
pub fn unmask(x: &Tensor, mask_token: &Tensor, restore: &Tensor) -> Result<Tensor> {
    Ok(composed::unmask(x, mask_token, restore)?)
}

/// Squared error, mean over channels, averaged over the removed patches of the batch: `pred` and `target_normalized`
/// [B, L, T], `removed` [B, L] (1 where a patch was removed). A scalar.
pub fn feature_loss(pred: &Tensor, target_normalized: &Tensor, removed: &Tensor) -> Result<Tensor> {
    Ok(composed::feature_loss(pred, target_normalized, removed)?)
}

/// Logits `scale * q k^T` of the class token and the selected patches against all patches: `qk` [B, 1 + L, 2 T] in the
/// layout [2][heads][T / heads], `index` u32 [B, K], gives [B, 1 + K, heads, L].
pub fn relation_logits(qk: &Tensor, index: &Tensor, heads: usize, scale: f32) -> Result<Tensor> {
    Ok(composed::relation_logits(qk, index, heads, scale)?)
}

/// Cross-entropy of `pred_logits` against the distribution `target_prob`, both [B, 1 + K, H, L], mean over rows. A scalar.
pub fn relation_loss(pred_logits: &Tensor, target_prob: &Tensor) -> Result<Tensor> {
    Ok(composed::relation_loss(pred_logits, target_prob)?)
}

/// The base's relation targets: `qkv` [B, prefix + L, 3 T] of its last block; `prefix` is 1 + the number of registers.
/// Gives the logits [B, 1 + K, heads, L] of the class token and the K selected patches, and their numbers u32 [B, K]. No gradient.
pub fn base_relation(
    qkv: &Tensor,
    heads: usize,
    prefix: usize,
    top_k: usize,
) -> Result<(Tensor, Tensor)> {
    Ok(composed::base_relation(
        &qkv.detach(),
        heads,
        prefix,
        top_k,
    )?)
}

/// `softmax(picked / tau)` over the last axis. No gradient.
pub fn tempered_target(picked: &Tensor, tau: f32) -> Result<Tensor> {
    Ok(composed::tempered_target(&picked.detach(), tau)?)
}

/// Normalizes `x` [B, L, T] over its patches, each image and channel alone (unbiased variance, eps 1e-6). No gradient.
pub fn normalize_features(x: &Tensor) -> Result<Tensor> {
    Ok(composed::normalize_features(&x.detach())?)
}
