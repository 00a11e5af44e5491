//! The way into and through a decoder: embed the visible tokens, fill in mask tokens, add positions, run the blocks.

use candle_core::Tensor;

use super::layers::{Block, Init, LayerNorm, Linear, NORM_EPS, Scope};
use crate::{Result, ops};

/// What a decoder has of its own even if it shares its blocks: embedding, mask token and norm.
#[derive(Clone)]
pub(crate) struct Decoder {
    embed: Linear,
    mask_token: Tensor,
    norm: LayerNorm,
}

impl Decoder {
    pub(crate) fn new(scope: &mut Scope, dim: usize, decoder_dim: usize) -> Result<Self> {
        Ok(Self {
            embed: Linear::new(scope.child("decoder_embed"), dim, decoder_dim)?,
            mask_token: scope.take("mask_token", &[1, 1, decoder_dim], Init::Token)?,
            norm: LayerNorm::new(scope.child("decoder_norm"), decoder_dim, NORM_EPS)?,
        })
    }

    /// Visible tokens `[B, 1+keep, D]` → every token in its place, decoded and normalized `[B, 1+L, d]`.
    pub(crate) fn forward(
        &self,
        visible: &Tensor,
        restore: &Tensor,
        positions: &Tensor,
        blocks: &[Block],
    ) -> Result<Tensor> {
        let tokens = ops::unmask(&self.embed.forward(visible)?, &self.mask_token, restore)?;
        let mut x = tokens.broadcast_add(positions)?;
        for block in blocks {
            x = block.forward(&x)?;
        }
        self.norm.forward(&x)
    }
}

/// The patches of `[B, 1+L, d]`: everything after the class token.
pub(crate) fn patches_of(tokens: &Tensor) -> Result<Tensor> {
    Ok(tokens.narrow(1, 1, tokens.dim(1)? - 1)?.contiguous()?)
}
