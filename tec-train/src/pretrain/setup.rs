//! A recipe turned into everything a run needs, each part checked before anything is written.

use std::{path::Path, sync::Arc};

use candle_core::Device;

use super::{
    Progress,
    learner::{Learner, Start},
    probe::{self, Probe},
};
use crate::{
    Error, Result,
    checkpoint::{self, Checkpoint},
    data::{self, Augment, LoaderConfig, Normalization, Source},
    model::{
        BaseConfig, DecoderConfig, EncoderMetadata, LoadOptions, Mae, MaeConfig, Pool, Tec, TecConfig, Vit, VitConfig,
    },
    optim::Schedule,
    recipe::{Method, Recipe},
    run_dir::RunDir,
};

/// Images whose pixels tell the mean and deviation of a grey data set.
const MEASURED_IMAGES: usize = 1_000;

/// A run's parts that no step changes.
pub struct Setup {
    /// The recipe with every value spelled out.
    pub recipe: Recipe,
    /// The images.
    pub source: Arc<dyn Source>,
    /// The new model's encoder.
    pub encoder: VitConfig,
    /// Normalization of the new model's input.
    pub normalization: Normalization,
    /// The frozen base on the new model's grid (method `tec`).
    pub base: Option<Base>,
    /// The k-NN probe, where it is on.
    pub probe: Option<Probe>,
    /// Learning rate of each step.
    pub schedule: Schedule,
    /// Steps of one epoch.
    pub steps_per_epoch: usize,
    /// Where tensors live.
    pub device: Device,
}

/// The frozen base, its position table resized to the new model's grid.
pub struct Base {
    /// The model.
    pub vit: Vit,
    /// Normalization of its input.
    pub normalization: Normalization,
}

impl Setup {
    /// Opens data and base, fills the recipe's absent keys from them and checks that all fit together.
    ///
    /// # Errors
    /// What the user can mend, by key or file.
    pub fn new(
        mut recipe: Recipe,
        source: Option<Arc<dyn Source>>,
        device: &Device,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let source = match (source, &recipe.data.path) {
            (Some(source), _) => source,
            (None, Some(path)) => Arc::from(data::open(path)?),
            (None, None) => return Err(Error::Usage("data.path: give a folder of images".into())),
        };
        let base = match (recipe.method, &recipe.base.path) {
            (Method::Mae, _) => None,
            (Method::Tec, Some(path)) => Some(Vit::load(
                path,
                &LoadOptions {
                    heads: recipe.base.heads,
                    prefix: recipe.base.prefix.clone(),
                    activation: recipe.base.activation,
                    amp: recipe.optimizer.amp,
                },
                device,
            )?),
            (Method::Tec, None) => return Err(Error::Usage("base.path: TEC trains from a base; give one".into())),
        };
        let encoder = recipe.resolve(base.as_ref().map(|b| b.config()))?;
        let batch = recipe.optimizer.batch;
        if source.len() < batch {
            return Err(Error::Usage(format!(
                "data.path: found {}, but optimizer.batch = {batch} needs as many images at least; add images or use --batch {}",
                source.summary(),
                source.len()
            )));
        }
        let known = base.as_ref().and_then(Vit::normalization).cloned();
        for note in base.iter().flat_map(|base| &base.origin().notes) {
            progress.note(&format!("base: {note}"));
        }
        check_masks(recipe.objective.mask_ratio, &encoder)?;
        let normalization = normalization(&mut recipe, known.as_ref(), &*source, encoder.channels)?;
        let base = base
            .map(|vit| fit_base(vit, known, &encoder, &recipe, progress))
            .transpose()?;
        let steps_per_epoch = source.len() / batch;
        let o = &recipe.optimizer;
        let schedule = Schedule {
            base_lr: o.peak_lr(),
            min_lr: o.min_lr,
            warmup_steps: (o.warmup() * steps_per_epoch as f64).round() as usize,
            total_steps: o.epochs * steps_per_epoch,
        };
        let run = probe::Run {
            source: &source,
            epoch_images: steps_per_epoch * batch,
            seed: recipe.seed,
            threads: recipe.data.threads,
        };
        let probe = Probe::new(&mut recipe.probe, &run, progress)?;
        let setup = Self {
            probe,
            source,
            encoder,
            normalization,
            base,
            schedule,
            steps_per_epoch,
            device: device.clone(),
            recipe,
        };
        match setup.recipe.method {
            Method::Tec => setup.tec_config()?.validate()?,
            Method::Mae => setup.mae_config().validate()?,
        }
        Ok(setup)
    }

    /// How batches are made.
    pub fn loader_config(&self) -> LoaderConfig {
        let d = &self.recipe.data;
        let base_size = self.base.as_ref().map(|b| b.vit.config().image_size);
        let o = &self.recipe.optimizer;
        let part = o.batch / o.accumulate;
        LoaderConfig {
            group: o.accumulate,
            second_size: base_size.filter(|s| *s != self.encoder.image_size),
            threads: d.threads,
            augment: Augment::Train {
                scale: (d.scale[0], d.scale[1]),
                flip: d.flip,
            },
            ..LoaderConfig::train(self.encoder.image_size, self.encoder.channels, part, self.recipe.seed)
        }
    }

    /// The learner, at the start, from given weights, or where a checkpoint left it; and the steps it has done.
    ///
    /// # Errors
    /// A checkpoint or starting weights of another shape, parameters listed by name.
    pub fn learner(&self, resumed: Option<&Checkpoint>, progress: &mut dyn Progress) -> Result<(Learner, usize)> {
        let start = match (resumed, &self.recipe.init.path) {
            (Some(_), _) | (None, None) => None,
            (None, Some(path)) => Some(starting_weights(path, progress)?),
        };
        let start = match (resumed, &start) {
            (Some(checkpoint), _) => Start::Resume(checkpoint),
            (None, Some(checkpoint)) => Start::From(checkpoint),
            (None, None) => Start::Fresh,
        };
        let (o, seed) = (&self.recipe.optimizer, self.recipe.seed);
        match self.recipe.method {
            Method::Tec => {
                let mut model = Tec::with_amp(self.tec_config()?, seed, &self.device, o.amp)?;
                model.set_grad_checkpointing(o.grad_checkpointing);
                Learner::tec(model, o, start, progress)
            }
            Method::Mae => {
                let mut model = Mae::with_amp(self.mae_config(), seed, &self.device, o.amp)?;
                model.set_grad_checkpointing(o.grad_checkpointing);
                Learner::mae(model, o, start, progress)
            }
        }
    }

    /// What an encoder of this run says about itself.
    pub fn metadata(&self) -> EncoderMetadata {
        EncoderMetadata {
            config: self.encoder.clone(),
            mean: self.normalization.mean.clone(),
            std: self.normalization.std.clone(),
            pool: Pool::Mean,
        }
    }

    /// Checks that a checkpoint continues this very run.
    ///
    /// # Errors
    /// Another number of images or steps an epoch.
    pub fn check_resume(&self, found: &Checkpoint) -> Result<()> {
        let p = &found.state;
        if (p.images, p.steps_per_epoch) == (self.source.len(), self.steps_per_epoch) {
            return Ok(());
        }
        Err(Error::File {
            path: found.origin.clone(),
            reason: format!(
                "was trained on {} images in {} steps an epoch, but the data has {} images in {} steps; \
                 give the same data, or start a new run with init.path",
                p.images,
                p.steps_per_epoch,
                self.source.len(),
                self.steps_per_epoch
            ),
        })
    }

    fn decoder_config(&self) -> DecoderConfig {
        let d = &self.recipe.decoder;
        DecoderConfig {
            dim: d.dim,
            depth: d.depth.unwrap_or_default(),
            heads: d.heads,
        }
    }

    fn tec_config(&self) -> Result<TecConfig> {
        let Some(base) = &self.base else {
            return Err(Error::Usage("base.path: TEC trains from a base; give one".into()));
        };
        Ok(TecConfig {
            encoder: self.encoder.clone(),
            base: BaseConfig {
                dim: base.vit.config().dim,
                heads: base.vit.config().heads,
            },
            decoder: self.decoder_config(),
            adapters: self.recipe.objective.adapters,
            temperature: f64::from(self.recipe.objective.att_tau),
        })
    }

    fn mae_config(&self) -> MaeConfig {
        MaeConfig {
            encoder: self.encoder.clone(),
            decoder: self.decoder_config(),
            norm_pix: self.recipe.objective.norm_pix_loss,
        }
    }
}

/// A ratio that leaves no patch, or removes none, would only show at the first step.
fn check_masks(ratio: f64, encoder: &VitConfig) -> Result<()> {
    let patches = encoder.patches();
    match tec_core::mask::kept(patches, ratio) {
        Ok(kept) if kept < patches => Ok(()),
        outcome => Err(Error::Usage(format!(
            "objective.mask_ratio = {ratio}: of the {patches} patches of an image {} would be left; use a {} ratio",
            if outcome.is_ok() { "all" } else { "none" },
            if outcome.is_ok() { "larger" } else { "smaller" }
        ))),
    }
}

/// Mean and deviation: the recipe's, else the base's, else ImageNet's for colour and the data's own for grey images.
fn normalization(
    recipe: &mut Recipe,
    base: Option<&Normalization>,
    source: &dyn Source,
    channels: usize,
) -> Result<Normalization> {
    let d = &mut recipe.data;
    let chosen = match (d.mean.take(), d.std.take(), base) {
        (Some(mean), Some(std), _) => Normalization { mean, std },
        (_, _, Some(base)) => base.clone(),
        _ if channels == 3 => Normalization::imagenet(channels)?,
        _ => Normalization::measure(source, channels, MEASURED_IMAGES)?,
    };
    d.mean = Some(chosen.mean.clone());
    d.std = Some(chosen.std.clone());
    Ok(chosen)
}

/// Puts the base on the new model's grid.
fn fit_base(
    vit: Vit,
    known: Option<Normalization>,
    encoder: &VitConfig,
    recipe: &Recipe,
    progress: &mut dyn Progress,
) -> Result<Base> {
    let config = vit.config().clone();
    if config.channels != encoder.channels {
        return Err(Error::Usage(format!(
            "data.channels = {}, but the base has {}; use --set data.channels={}",
            encoder.channels, config.channels, config.channels
        )));
    }
    let grid = encoder.grid();
    let (top_k, last) = (recipe.objective.top_k, recipe.objective.last_layers);
    if top_k > encoder.patches() {
        return Err(Error::Usage(format!(
            "objective.top_k = {top_k}, but images have {} patches; use --set objective.top_k={} or less",
            encoder.patches(),
            encoder.patches()
        )));
    }
    if last > config.depth {
        return Err(Error::Usage(format!(
            "objective.last_layers = {last}, but the base has {} blocks",
            config.depth
        )));
    }
    let vit = if config.grid() == grid {
        vit
    } else {
        progress.note(&format!(
            "the base's position table is resized from {0}×{0} to {grid}×{grid} patches",
            config.grid()
        ));
        vit.resize(grid)?
    };
    let normalization = match known {
        Some(known) => known,
        None if config.channels == 3 => Normalization::imagenet(3)?,
        None => Normalization {
            mean: recipe.data.mean.clone().unwrap_or_default(),
            std: recipe.data.std.clone().unwrap_or_default(),
        },
    };
    if recipe.data.mean.as_ref() != Some(&normalization.mean) || recipe.data.std.as_ref() != Some(&normalization.std) {
        progress.note("the new model's input is normalized in another way than the base's (data.mean, data.std); each sees its own");
    }
    Ok(Base { vit, normalization })
}

/// The weights `init.path` names: a checkpoint file, or the newest checkpoint of a run.
fn starting_weights(path: &Path, progress: &mut dyn Progress) -> Result<Checkpoint> {
    if !path.is_dir() {
        return Checkpoint::read(path);
    }
    let folder = RunDir::open(path)?.checkpoints();
    let (found, warnings) = checkpoint::newest(&folder)?.ok_or_else(|| Error::File {
        path: folder,
        reason: "init.path: this run has no checkpoint yet".into(),
    })?;
    warnings.iter().for_each(|w| progress.note(w));
    Ok(found)
}
