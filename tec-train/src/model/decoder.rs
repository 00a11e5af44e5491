//! The way into and through a decoder: embed the visible tokens, fill in mask tokens, add positions, run the blocks.

use candle_core::Tensor;

use super::layers::{Block, Init, LayerNorm, Linear, NORM_EPS, Scope, Tokens};
use super::masks::Masks;
use crate::{Error, Result};

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

    /// Visible tokens `[B, 1+keep, D]` → every token in its place, decoded and normalized `[B, 1+L, d]`; with `wanted` (u32
    /// `[B, R]`) only those tokens, `[B, R, d]`.
    pub(crate) fn forward(
        &self,
        visible: &Tensor,
        masks: &Masks,
        positions: &Tensor,
        blocks: &[Block],
        wanted: Option<&Tensor>,
    ) -> Result<Tensor> {
        let masked = positions.narrow(1, 1, positions.dim(1)? - 1)?.squeeze(0)?;
        let mut tokens = Tokens::Masked {
            visible: (self.embed.forward(visible)? + visible_positions(positions, masks)?)?,
            masked: masked.broadcast_add(&self.mask_token.flatten_all()?)?,
            restore: masks.restore.clone(),
        };
        let Some((last, blocks)) = blocks.split_last() else {
            return Err(Error::Usage("`decoder.depth` 0 must be at least 1".into()));
        };
        for block in blocks {
            tokens = Tokens::Whole(block.decode(&tokens, None)?);
        }
        self.norm.forward(&last.decode(&tokens, wanted)?)
    }
}

/// The positions `[B, 1+keep, d]` of class token and visible patches, out of `[1, 1+L, d]`.
fn visible_positions(positions: &Tensor, masks: &Masks) -> Result<Tensor> {
    let (batch, keep) = masks.keep.dims2()?;
    let table = positions.squeeze(0)?;
    let index = with_class(&masks.keep)?.flatten_all()?;
    Ok(table
        .index_select(&index, 0)?
        .reshape((batch, 1 + keep, table.dim(1)?))?)
}

/// Patch numbers `[B, n]` → token numbers `[B, 1+n]`, the class token's first.
pub(crate) fn with_class(patches: &Tensor) -> Result<Tensor> {
    let tokens = token_numbers(patches)?;
    Ok(Tensor::cat(&[&tokens.narrow(1, 0, 1)?.zeros_like()?, &tokens], 1)?)
}

/// Patch numbers → token numbers: the class token comes first.
pub(crate) fn token_numbers(patches: &Tensor) -> Result<Tensor> {
    Ok((patches + patches.ones_like()?)?)
}

/// The patches of `[B, 1+L, d]`: everything after the class token.
pub(crate) fn patches_of(tokens: &Tensor) -> Result<Tensor> {
    Ok(tokens.narrow(1, 1, tokens.dim(1)? - 1)?.contiguous()?)
}
