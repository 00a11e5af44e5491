//! The new model: encoder, input adapter, encoder adapter, and the two heads that predict what the base says.

use candle_core::{Device, Tensor};

use super::adapters::EncoderAdapter;
use super::config::TecConfig;
use super::decoder::{Decoder, patches_of, token_numbers, with_class};
use super::layers::{Block, Init, LayerNorm, Linear, Mlp, NORM_EPS, PatchEmbed, Scope};
use super::masks::Masks;
use super::params::{FreshParams, Params};
use super::vit::{Targets, Vit, image_patches, with_class_token};
use crate::{
    Error, Result,
    ops::{self, Amp},
};

/// The losses of a batch; each a scalar with its gradient graph.
#[derive(Debug, Clone)]
pub struct Losses {
    /// Squared error of the normalized features, mean over channels, averaged over removed patches.
    pub feature: Tensor,
    /// Cross-entropy against the tempered attention of the base, mean over images, rows and heads.
    pub relation: Tensor,
    /// Their sum: what training minimizes.
    pub total: Tensor,
}

/// What the heads predict about whole images from their visible patches.
#[derive(Debug, Clone)]
pub struct Predictions {
    /// The base's normalized features of the removed patches `[B, L-keep, T]`.
    pub features: Tensor,
    /// Logits of the attention of class token and query patches over patches `[B, 1+K, H, L]`.
    pub logits: Tensor,
}

/// The new model in training (Gao et al., 2022). Parameter names are those of the published checkpoints.
pub struct Tec {
    config: TecConfig,
    params: Params,
    patch_embed: PatchEmbed,
    cls_token: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    input_adapter: Mlp,
    encoder_adapter: EncoderAdapter,
    feature_decoder: Decoder,
    feature_pred: Linear,
    relation_decoder: Decoder,
    relation_qk: Linear,
    decoder_blocks: Vec<Block>,
    decoder_positions: Tensor,
}

impl Tec {
    /// A fresh model: a function of `config` and `seed`.
    ///
    /// # Errors
    /// [`Error::Usage`] for an impossible geometry.
    pub fn new(config: TecConfig, seed: u64, device: &Device) -> Result<Self> {
        Self::with_amp(config, seed, device, Amp::None)
    }

    /// As [`Tec::new`], its products and the insides of its residual branches as `amp` says.
    ///
    /// # Errors
    /// As [`Tec::new`].
    pub fn with_amp(config: TecConfig, seed: u64, device: &Device, amp: Amp) -> Result<Self> {
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
        let input_adapter = Mlp::new(scope.child("cls_token_mlp"), dim, encoder.hidden())?;
        // Four times the decoder's width whatever the encoder's ratio, as published.
        let hidden = 4 * decoder.dim;
        let encoder_adapter = EncoderAdapter::new(
            scope.child("encoder_adaptor"),
            dim,
            encoder.depth,
            config.groups(),
            hidden,
        )?;
        let mut features = scope.child("forward_fea_decoder");
        let feature_decoder = Decoder::new(&mut features, dim, decoder.dim)?;
        let feature_pred = Linear::new(features.child("decoder_pred"), decoder.dim, config.base.dim)?;
        let mut relations = scope.child("forward_att_decoder");
        let relation_decoder = Decoder::new(&mut relations, dim, decoder.dim)?;
        let relation_qk = Linear::new(relations.child("decoder_qk"), decoder.dim, 2 * config.base.dim)?;
        let decoder_blocks = Block::stack(
            scope.child("decoder_blocks"),
            decoder.depth,
            decoder.dim,
            decoder.heads,
            decoder.dim * encoder.mlp_ratio,
        )?;
        Ok(Self {
            params: fresh.finish(),
            config,
            patch_embed,
            cls_token,
            positions,
            blocks,
            norm,
            input_adapter,
            encoder_adapter,
            feature_decoder,
            feature_pred,
            relation_decoder,
            relation_qk,
            decoder_blocks,
            decoder_positions,
        })
    }

    /// The geometry.
    pub fn config(&self) -> &TecConfig {
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

    /// The visible patches of images `[B, C, S, S]` → every block's output, the last one normalized, joined on channels:
    /// `[B, 1+keep, D·depth]`.
    ///
    /// # Errors
    /// [`Error::Data`] for images of another shape, [`Error::Candle`] for masks of another.
    pub fn encode(&self, images: &Tensor, masks: &Masks) -> Result<Tensor> {
        let patches = image_patches(images, &self.config.encoder)?;
        let mut x = embed_visible(&patches, &self.patch_embed, &self.positions, masks)?;
        let cls = (self.input_adapter.forward(&self.cls_token)? + self.positions.narrow(1, 0, 1)?)?;
        x = with_class_token(&cls, &x, x.dim(0)?)?;
        let mut levels = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            x = block.forward(&x)?;
            levels.push(x.clone());
        }
        levels.pop();
        levels.push(self.norm.forward(&x)?);
        Ok(Tensor::cat(&levels, 2)?)
    }

    /// What the model predicts from the visible patches; `index` names the query patches, u32 `[B, K]`.
    ///
    /// # Errors
    /// As [`Tec::encode`].
    pub fn predict(&self, images: &Tensor, index: &Tensor, masks: &Masks) -> Result<Predictions> {
        let adapted = self.encoder_adapter.forward(&self.encode(images, masks)?)?;
        let decode = |decoder: &Decoder, wanted| {
            decoder.forward(&adapted, masks, &self.decoder_positions, &self.decoder_blocks, wanted)
        };
        // Only removed patches enter the feature loss, only the queries' rows the relation loss.
        let removed = token_numbers(&masks.removed_patches)?;
        let features = self
            .feature_pred
            .forward(&decode(&self.feature_decoder, Some(&removed))?)?;
        let base = &self.config.base;
        let decoded = decode(&self.relation_decoder, None)?;
        let queries = ops::gather_tokens(&decoded, &with_class(index)?)?;
        let q = self.relation_qk.some_outputs(&queries, 0, base.dim)?;
        let k = self.relation_qk.some_outputs(&decoded, base.dim, base.dim)?;
        // The published scale: the whole width of the base, not that of one head.
        let scale = (1.0 / (base.dim as f64).sqrt()) as f32;
        let logits = ops::relation_logits(&q, &k, base.heads, scale)?;
        Ok(Predictions { features, logits })
    }

    /// The losses of a batch: images `[B, C, S, S]`, what the base says about them whole, and their masks.
    ///
    /// # Errors
    /// [`Error::Data`] for images or targets of another shape or masks that remove nothing, [`Error::Candle`] for masks of
    /// another shape.
    pub fn losses(&self, images: &Tensor, targets: &Targets, masks: &Masks) -> Result<Losses> {
        self.check(targets)?;
        masks.require_removed()?;
        let predicted = self.predict(images, &targets.index, masks)?;
        let features = ops::gather_tokens(&ops::normalize_features(&targets.features)?, &masks.removed_patches)?;
        let feature = ops::feature_loss(&predicted.features, &features, &masks.every_removed()?)?;
        let attention = ops::tempered_target(&targets.logits, self.config.temperature as f32)?;
        let relation = ops::relation_loss(&predicted.logits, &attention)?;
        let total = (&feature + &relation)?;
        Ok(Losses {
            feature,
            relation,
            total,
        })
    }

    /// The encoder alone, its input adapter folded into the class token, its weights copied.
    ///
    /// # Errors
    /// [`Error::File`] naming a weight that is no longer finite.
    pub fn encoder(&self) -> Result<Vit> {
        Vit::from_state(self.params.state(), &self.config.encoder, self.cls_token.device())
    }

    fn check(&self, targets: &Targets) -> Result<()> {
        let (patches, base) = (self.config.encoder.patches(), &self.config.base);
        let features_fit = matches!(targets.features.dims(), &[_, l, t] if l == patches && t == base.dim);
        let logits_fit = matches!(targets.logits.dims(), &[_, _, h, l] if h == base.heads && l == patches);
        if features_fit && logits_fit {
            return Ok(());
        }
        Err(Error::Data(format!(
            "the base's targets have shapes {:?} and {:?}, but the new model predicts {patches} patches, width {} and {} \
             heads: resize the base to the new model's grid, and give its width and heads",
            targets.features.dims(),
            targets.logits.dims(),
            base.dim,
            base.heads
        )))
    }
}

impl std::fmt::Debug for Tec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tec({:?})", self.config)
    }
}

/// Patches `[B, L, C·p·p]` → tokens of the visible ones with their positions `[B, keep, D]`. Removed patches are dropped
/// before the projection: they would only be projected to be thrown away.
pub(crate) fn embed_visible(patches: &Tensor, embed: &PatchEmbed, positions: &Tensor, masks: &Masks) -> Result<Tensor> {
    let (batch, keep) = masks.keep.dims2()?;
    let dim = positions.dim(2)?;
    let tokens = embed.forward(&ops::gather_tokens(patches, &masks.keep)?)?;
    let of_patches = patches_of(positions)?.squeeze(0)?;
    let positions = of_patches
        .index_select(&masks.keep.flatten_all()?, 0)?
        .reshape((batch, keep, dim))?;
    Ok((tokens + positions)?)
}
