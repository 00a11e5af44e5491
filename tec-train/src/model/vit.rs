//! The frozen encoder: a base model, or what training exports.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use tec_core::position::{Resample, resize_bicubic};

use super::checkpoint::Checkpoint;
use super::config::{EncoderMetadata, Pool, VitConfig};
use super::decoder::patches_of;
use super::layers::{Block, Init, LayerNorm, PatchEmbed, Scope};
use super::load::{LoadOptions, LoadReport, PlannedWeights};
use super::observer::{Capture, Observer, Site, Unobserved};
use super::plan::{Origin, Plan};
use super::variant::Variant;
use super::weights_file::WeightsFile;
use crate::data::Normalization;
use crate::{
    Error, Result,
    ops::{self, Amp},
};

/// What the base says about a batch of whole images. Nothing here carries gradients.
#[derive(Debug, Clone)]
pub struct Targets {
    /// The mean of the last blocks' patch outputs, before the final norm, not yet normalized: `[B, L, T]`.
    pub features: Tensor,
    /// The last block's attention logits of the class token and of the query patches, over patches: `[B, 1+K, H, L]`.
    pub logits: Tensor,
    /// The query patches' numbers in rank order: u32 `[B, K]`.
    pub index: Tensor,
}

/// A vision transformer with class token, position table and pre-norm blocks, whose weights do not change and record no
/// gradients: what training makes is plain (eps 1e-6, exact GELU), a base may be another [`Variant`].
///
/// Parameter names are timm's. Values are copied on loading: training a model afterwards does not change its exports.
#[derive(Clone)]
pub struct Vit {
    config: VitConfig,
    variant: Variant,
    patch_embed: PatchEmbed,
    cls_token: Tensor,
    registers: Option<Tensor>,
    pos_embed: Tensor,
    norm_pre: Option<LayerNorm>,
    blocks: Vec<Block>,
    /// The final norm, or that of the pooled embedding.
    norm: LayerNorm,
    weights: Vec<(String, Tensor)>,
    metadata: Option<EncoderMetadata>,
    origin: Origin,
    report: LoadReport,
}

const POS_EMBED: &str = "pos_embed";

impl Vit {
    /// Reads a vision transformer from a safetensors or PyTorch file, or from a folder of Hugging Face.
    ///
    /// The families that are recognized, what each may hold besides, and what is assumed where a file does not say are
    /// `docs/bases.md`'s table. This project's own encoders and checkpoints are among them; the input adapter of a TEC model is
    /// folded into its class token. Everything but heads, epsilon, activation and normalization is inferred from names and
    /// shapes. Only the encoder's own tensors are read.
    ///
    /// # Errors
    /// [`Error::File`] naming the file and what is wrong with it; [`Error::Usage`] for impossible `options`.
    pub fn load(path: &Path, options: &LoadOptions, device: &Device) -> Result<Self> {
        let mut file = WeightsFile::open(path)?;
        Self::from_file(&mut file, options, device)
    }

    /// An encoder of tensors that were read already; `path` says in messages where they come from.
    ///
    /// # Errors
    /// As [`Vit::load`].
    pub fn from_tensors(
        tensors: HashMap<String, Tensor>,
        options: &LoadOptions,
        path: &Path,
        device: &Device,
    ) -> Result<Self> {
        Self::from_file(&mut WeightsFile::in_memory(tensors, path), options, device)
    }

    /// The encoder of a model in training, its weights copied; it computes in f32.
    pub(crate) fn from_state(state: Vec<(String, Tensor)>, config: &VitConfig, device: &Device) -> Result<Self> {
        Self::from_state_with_amp(state, config, device, Amp::None)
    }

    /// As [`Vit::from_state`], its products and the insides of its residual branches as `amp` says.
    pub(crate) fn from_state_with_amp(
        state: Vec<(String, Tensor)>,
        config: &VitConfig,
        device: &Device,
        amp: Amp,
    ) -> Result<Self> {
        let tensors = state
            .into_iter()
            .map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?)))
            .collect::<Result<HashMap<_, _>>>()?;
        let options = LoadOptions {
            heads: Some(config.heads),
            prefix: Some(String::new()),
            amp,
            ..LoadOptions::default()
        };
        // Reading copies.
        Self::from_tensors(tensors, &options, Path::new("the model in training"), device)
    }

    fn from_file(file: &mut WeightsFile, options: &LoadOptions, device: &Device) -> Result<Self> {
        let plan = Plan::new(file, options)?;
        plan.report.require_match(&file.path)?;
        let Plan {
            config,
            variant,
            origin,
            metadata,
            report,
            assembly,
        } = plan;
        let dim = config.dim;
        let mut weights = PlannedWeights::new(&assembly, file, device, options.amp);
        let mut scope = Scope::root(&mut weights);
        let cls_token = scope.take("cls_token", &[1, 1, dim], Init::Token)?;
        let registers = match variant.registers {
            0 => None,
            count => Some(scope.take("reg_token", &[1, count, dim], Init::Token)?),
        };
        let pos_embed = scope.take(POS_EMBED, &[1, 1 + config.patches(), dim], Init::Token)?;
        let patch_embed = PatchEmbed::new(scope.child("patch_embed"), config.channels, config.patch_size, dim)?;
        let norm_pre = match variant.pre_norm {
            false => None,
            true => Some(LayerNorm::new(scope.child("norm_pre"), dim, variant.eps)?),
        };
        let blocks = Block::stack_of(scope.child("blocks"), config.depth, dim, config.heads, &variant)?;
        let norm = match variant.pooled_norm {
            false => "norm",
            true => "fc_norm",
        };
        let norm = LayerNorm::new(scope.child(norm), dim, variant.eps)?;
        Ok(Self {
            weights: weights.finish(),
            config,
            variant,
            patch_embed,
            cls_token,
            registers,
            pos_embed,
            norm_pre,
            blocks,
            norm,
            metadata,
            origin,
            report,
        })
    }

    /// The geometry, at the grid the position table has now.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// What sets it apart from a plain vision transformer.
    pub fn variant(&self) -> &Variant {
        &self.variant
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Normalization of its input: what the file or what lies beside it says, else its family's; unknown for images that are
    /// not RGB.
    pub fn normalization(&self) -> Option<&Normalization> {
        self.origin.normalization.as_ref()
    }

    /// What an encoder exported by this project says about itself: normalization and pooling.
    pub fn metadata(&self) -> Option<&EncoderMetadata> {
        self.metadata.as_ref()
    }

    /// Which parameters of the file matched and which tensors were ignored.
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// Every weight by its timm name: class token (input adapter folded), registers, positions, patch projection, blocks
    /// (LayerScale folded), norm.
    pub fn weights(&self) -> &[(String, Tensor)] {
        &self.weights
    }

    /// The same encoder for images of `grid · patch_size` pixels: its position table resized by bicubic interpolation,
    /// widened when the grid shrinks, as timm does.
    ///
    /// This is how a base gets the new model's grid: the caller gives it the same crop, resized to that many pixels.
    ///
    /// # Errors
    /// [`Error::Usage`] if the new image size is impossible.
    pub fn resize(mut self, grid: usize) -> Result<Self> {
        let from = self.config.grid();
        if grid == from {
            return Ok(self);
        }
        let config = VitConfig {
            image_size: grid.saturating_mul(self.config.patch_size),
            ..self.config.clone()
        };
        config.validate()?;
        let dim = config.dim;
        let table = patches_of(&self.pos_embed)?.flatten_all()?.to_vec1::<f32>()?;
        let mut resized = vec![0.0; grid * grid * dim];
        resize_bicubic(&table, from, grid, dim, Resample::Antialias, &mut resized)?;
        let device = self.pos_embed.device();
        let patches = Tensor::from_vec(resized, (1, grid * grid, dim), device)?;
        self.pos_embed = Tensor::cat(&[self.pos_embed.narrow(1, 0, 1)?.contiguous()?, patches], 1)?;
        for (name, tensor) in &mut self.weights {
            if name == POS_EMBED {
                *tensor = self.pos_embed.clone();
            }
        }
        if let Some(metadata) = &mut self.metadata {
            metadata.config = config.clone();
        }
        self.config = config;
        Ok(self)
    }

    /// Images `[B, C, S, S]` of the model's own size → tokens after the final norm `[B, 1+L, D]`, the class token first;
    /// registers are left out. Where the final norm belongs to the pooled embedding, tokens are those before it.
    ///
    /// # Errors
    /// [`Error::Data`] for images of another shape.
    pub fn tokens(&self, images: &Tensor) -> Result<Tensor> {
        self.observe(images, &mut Unobserved)
    }

    /// One embedding `[B, D]` of each image's [`Vit::tokens`].
    ///
    /// # Errors
    /// Tokens of another model.
    pub fn pool(&self, tokens: &Tensor, pool: Pool) -> Result<Tensor> {
        match pool {
            Pool::Cls => Ok(tokens.narrow(1, 0, 1)?.squeeze(1)?),
            Pool::Mean => {
                let mean = tokens.narrow(1, 1, tokens.dim(1)? - 1)?.mean(1)?;
                match self.variant.pooled_norm {
                    true => self.norm.forward(&mean),
                    false => Ok(mean),
                }
            }
        }
    }

    /// As [`Vit::tokens`], showing `observer` the values at every site on the way, those of registers among them.
    ///
    /// # Errors
    /// [`Error::Data`] for images of another shape, and the observer's errors.
    pub fn observe(&self, images: &Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
        let mut x = self.embed(images, observer)?;
        for (number, block) in self.blocks.iter().enumerate() {
            x = block.observed(&x, number, observer)?;
        }
        if let Some(registers) = &self.registers {
            let (class, count) = (x.narrow(1, 0, 1)?, registers.dim(1)?);
            x = Tensor::cat(&[class, x.narrow(1, 1 + count, x.dim(1)? - 1 - count)?], 1)?;
        }
        if self.variant.pooled_norm {
            return Ok(x);
        }
        let tokens = self.norm.forward(&x)?;
        observer.observe(Site::FinalNorm, 0, &tokens)?;
        Ok(tokens)
    }

    /// What a new model is to predict about whole images `[B, C, S, S]` of this model's own size: the mean of the last
    /// `last_layers` blocks' patch outputs, and the last block's attention logits of the class token and of the `top_k`
    /// patches it attends to most.
    ///
    /// # Errors
    /// [`Error::Usage`] if the model has fewer blocks or patches than asked for, [`Error::Data`] for images of another
    /// shape.
    pub fn targets(&self, images: &Tensor, last_layers: usize, top_k: usize) -> Result<Targets> {
        let (depth, patches) = (self.config.depth, self.config.patches());
        if !(1..=depth).contains(&last_layers) {
            return Err(Error::Usage(format!(
                "`last_layers` {last_layers} must be between 1 and the base's {depth} blocks"
            )));
        }
        if !(1..=patches).contains(&top_k) {
            return Err(Error::Usage(format!(
                "`top_k` {top_k} must be between 1 and the {patches} patches of an image"
            )));
        }
        let prefix = self.variant.prefix();
        let mut x = self.embed(images, &mut Unobserved)?;
        let mut sum: Option<Tensor> = None;
        let mut last_qkv = Capture {
            site: Site::Qkv,
            values: None,
        };
        for (number, block) in self.blocks.iter().enumerate() {
            x = match number + 1 == depth {
                true => block.observed(&x, number, &mut last_qkv)?,
                false => block.forward(&x)?,
            };
            if number + last_layers >= depth {
                let output = x.narrow(1, prefix, patches)?.contiguous()?;
                sum = Some(match sum {
                    Some(sum) => (sum + output)?,
                    None => output,
                });
            }
        }
        let (Some(sum), Some(qkv)) = (sum, last_qkv.values) else {
            return Err(Error::Usage("the base has no blocks".into()));
        };
        let (logits, index) = ops::base_relation(&qkv, self.config.heads, prefix, top_k)?;
        Ok(Targets {
            features: (sum / last_layers as f64)?,
            logits,
            index,
        })
    }

    /// Writes the encoder as a safetensors file with timm's names and `metadata` under the key `tec`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Usage`] if `metadata` is not about this encoder or the encoder is not plain, [`Error::File`] if the file cannot
    /// be written.
    pub fn save(&self, path: &Path, metadata: &EncoderMetadata) -> Result<()> {
        metadata.validate()?;
        self.require_plain("an encoder file")?;
        if metadata.config != self.config {
            return Err(Error::Usage(format!(
                "the metadata of {} describes {:?}, but the encoder is {:?}",
                path.display(),
                metadata.config,
                self.config
            )));
        }
        let json = serde_json::to_string(metadata).map_err(|error| Error::File {
            path: path.into(),
            reason: format!("metadata cannot be written: {error}"),
        })?;
        let metadata = HashMap::from([(EncoderMetadata::KEY.to_string(), json)]);
        Checkpoint {
            tensors: self.weights.iter().cloned().collect(),
            metadata,
        }
        .write(path)
    }

    /// Passes when the encoder is a plain vision transformer, which is what `target` can hold.
    pub(crate) fn require_plain(&self, target: &str) -> Result<()> {
        match self.variant.beyond_plain(self.config.dim) {
            None => Ok(()),
            Some(what) => Err(Error::Usage(format!(
                "{target} holds plain vision transformers, but this one ({}) has {what}: use it as a base, and train a plain model \
                 from it",
                self.origin.title
            ))),
        }
    }

    /// Passes what `target`, an encoder for devices, can hold: a plain vision transformer, or one whose final norm is the mean's.
    pub(crate) fn require_quantizable(&self, target: &str) -> Result<()> {
        let every_token = Self {
            variant: Variant {
                pooled_norm: false,
                ..self.variant.clone()
            },
            ..self.clone()
        };
        every_token.require_plain(target)
    }

    /// Class token and patch tokens with their positions, registers between them `[B, 1+R+L, D]`.
    fn embed(&self, images: &Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
        let patches = image_patches(images, &self.config)?;
        let (batch, count, _) = patches.dims3()?;
        let x = self.patch_embed.forward(&patches)?;
        observer.observe(Site::PatchEmbed, 0, &x)?;
        let x = x.broadcast_add(&self.pos_embed.narrow(1, 1, count)?)?;
        let cls = (&self.cls_token + self.pos_embed.narrow(1, 0, 1)?)?;
        let prefix = match &self.registers {
            None => cls,
            Some(registers) => Tensor::cat(&[&cls, registers], 1)?,
        };
        let mut x = with_class_token(&prefix, &x, batch)?;
        if let Some(norm) = &self.norm_pre {
            x = norm.forward(&x)?;
        }
        observer.observe(Site::Residual, 0, &x)?;
        Ok(x)
    }
}

impl std::fmt::Debug for Vit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vit({:?})", self.config)
    }
}

/// Images `[B, C, S, S]` → patches in the order of the projection's weights `[B, L, C·p·p]`.
pub(crate) fn image_patches(images: &Tensor, config: &VitConfig) -> Result<Tensor> {
    let size = config.image_size;
    match images.dims() {
        &[batch, channels, height, width]
            if batch > 0 && channels == config.channels && height == size && width == size =>
        {
            ops::patchify(images, config.patch_size, ops::PatchOrder::ChannelsFirst)
        }
        other => Err(Error::Data(format!(
            "images have the shape {other:?}, but the model takes [batch, {}, {size}, {size}]: resize them to \
             `image_size` and use `channels` channels",
            config.channels
        ))),
    }
}

/// `cls` `[1, 1, D]`, or it and registers `[1, 1+R, D]`, before every image's tokens `[B, n, D]`.
pub(crate) fn with_class_token(cls: &Tensor, tokens: &Tensor, batch: usize) -> Result<Tensor> {
    let cls = cls.broadcast_as((batch, cls.dim(1)?, cls.dim(2)?))?.contiguous()?;
    Ok(Tensor::cat(&[&cls, tokens], 1)?)
}
