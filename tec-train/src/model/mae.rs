//! The masked autoencoder: the usual base, and the baseline of pretraining on.

use candle_core::{Device, Tensor};

use super::config::MaeConfig;
use super::decoder::{Decoder, token_numbers};
use super::layers::{Block, Init, LayerNorm, Linear, NORM_EPS, PatchEmbed, Scope};
use super::masks::Masks;
use super::params::{FreshParams, Params};
use super::tec::embed_visible;
use super::vit::{Vit, image_patches, with_class_token};
use crate::{
    Result,
    ops::{self, Amp},
};

/// A masked autoencoder in training (He et al., 2022). Parameter names are those of the published checkpoints.
pub struct Mae {
    config: MaeConfig,
    params: Params,
    patch_embed: PatchEmbed,
    cls_token: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    decoder: Decoder,
    decoder_blocks: Vec<Block>,
    decoder_positions: Tensor,
    pred: Linear,
}

impl Mae {
    /// A fresh model: a function of `config` and `seed`.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] for an impossible geometry.
    pub fn new(config: MaeConfig, seed: u64, device: &Device) -> Result<Self> {
        Self::with_amp(config, seed, device, Amp::None)
    }

    /// As [`Mae::new`], its products and the insides of its residual branches as `amp` says.
    ///
    /// # Errors
    /// As [`Mae::new`].
    pub fn with_amp(config: MaeConfig, seed: u64, device: &Device, amp: Amp) -> Result<Self> {
        config.validate()?;
        let (encoder, decoder) = (&config.encoder, &config.decoder);
        let dim = encoder.dim;
        let mut fresh = FreshParams::new(seed, device, amp);
        let positions = fresh.positions("pos_embed", dim, encoder.grid())?;
        let decoder_positions = fresh.positions("decoder_pos_embed", decoder.dim, encoder.grid())?;

        let mut scope = Scope::root(&mut fresh);
        let cls_token = scope.take("cls_token", &[1, 1, dim], Init::Token)?;
        let patch_embed = PatchEmbed::new(scope.child("patch_embed"), encoder.channels, encoder.patch_size, dim)?;
        let blocks = Block::stack(
            scope.child("blocks"),
            encoder.depth,
            dim,
            encoder.heads,
            encoder.hidden(),
        )?;
        let norm = LayerNorm::new(scope.child("norm"), dim, NORM_EPS)?;
        let decoder_parts = Decoder::new(&mut scope, dim, decoder.dim)?;
        let decoder_blocks = Block::stack(
            scope.child("decoder_blocks"),
            decoder.depth,
            decoder.dim,
            decoder.heads,
            decoder.dim * encoder.mlp_ratio,
        )?;
        let pred = Linear::new(scope.child("decoder_pred"), decoder.dim, encoder.patch_values())?;
        Ok(Self {
            params: fresh.finish(),
            config,
            patch_embed,
            cls_token,
            positions,
            blocks,
            norm,
            decoder: decoder_parts,
            decoder_blocks,
            decoder_positions,
            pred,
        })
    }

    /// The geometry.
    pub fn config(&self) -> &MaeConfig {
        &self.config
    }

    /// Whether gradients compute again what the blocks computed, instead of keeping it (activation checkpointing; Chen et al.,
    /// 2016): less memory, more time, the same numbers to the bit. Off at first.
    pub fn set_grad_checkpointing(&mut self, on: bool) {
        for block in self.blocks.iter_mut().chain(&mut self.decoder_blocks) {
            block.set_grad_checkpointing(on);
        }
    }

    /// The trainable parameters and the fixed tables.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// What the model predicts of the removed patches of images `[B, C, S, S]` from the visible ones: `[B, L-keep, p·p·C]`,
    /// channels last within a patch, normalized within each patch if it was trained so.
    ///
    /// # Errors
    /// [`crate::Error::Data`] for images of another shape, [`crate::Error::Candle`] for masks of another.
    pub fn predict(&self, images: &Tensor, masks: &Masks) -> Result<Tensor> {
        let patches = image_patches(images, &self.config.encoder)?;
        let mut x = embed_visible(&patches, &self.patch_embed, &self.positions, masks)?;
        let cls = (&self.cls_token + self.positions.narrow(1, 0, 1)?)?;
        x = with_class_token(&cls, &x, x.dim(0)?)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let visible = self.norm.forward(&x)?;
        let removed = token_numbers(&masks.removed_patches)?;
        let decoded = self.decoder.forward(
            &visible,
            masks,
            &self.decoder_positions,
            &self.decoder_blocks,
            Some(&removed),
        )?;
        self.pred.forward(&decoded)
    }

    /// The loss of a batch: squared error of the pixels, mean over a patch's values, averaged over removed patches.
    ///
    /// # Errors
    /// As [`Mae::predict`], and [`crate::Error::Data`] for masks that remove nothing.
    pub fn loss(&self, images: &Tensor, masks: &Masks) -> Result<Tensor> {
        masks.require_removed()?;
        let predicted = self.predict(images, masks)?;
        let pixels = ops::patchify(images, self.config.encoder.patch_size, ops::PatchOrder::ChannelsLast)?;
        let mut pixels = ops::gather_tokens(&pixels, &masks.removed_patches)?;
        if self.config.norm_pix {
            // The rule of the feature targets, over the values of a patch instead of over patches.
            let by_value = pixels.transpose(1, 2)?.contiguous()?;
            pixels = ops::normalize_features(&by_value)?.transpose(1, 2)?.contiguous()?;
        }
        ops::feature_loss(&predicted, &pixels, &masks.every_removed()?)
    }

    /// The encoder alone, its weights copied.
    ///
    /// # Errors
    /// [`crate::Error::File`] naming a weight that is no longer finite.
    pub fn encoder(&self) -> Result<Vit> {
        self.encoder_with_amp(Amp::None)
    }

    /// As [`Mae::encoder`], its products and the insides of its residual branches as `amp` says: a base for training with it.
    ///
    /// # Errors
    /// As [`Mae::encoder`].
    pub fn encoder_with_amp(&self, amp: Amp) -> Result<Vit> {
        Vit::from_state_with_amp(self.params.state(), &self.config.encoder, self.cls_token.device(), amp)
    }
}

impl std::fmt::Debug for Mae {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mae({:?})", self.config)
    }
}
