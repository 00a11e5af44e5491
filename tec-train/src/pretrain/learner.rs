//! The model being trained with its optimizer: one step, its state, and the encoder it leaves.

use std::{collections::HashMap, ops::Range};

use candle_core::{Device, Tensor};

use super::{
    Progress,
    ema::Ema,
    feed::Fed,
    gradients::Gradients,
    losses::MeanLoss,
    setup::Setup,
    workers::{Workers, pieces},
};
use crate::{
    Error, Result,
    checkpoint::{Checkpoint, State},
    model::{Mae, Masks, Params, Targets, Tec, Vit},
    ops,
    optim::{AdamW, AdamWConfig},
    recipe::OptimizerSection,
};

/// Where the weights come from.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Drawn from the seed.
    Fresh,
    /// Another run's, where name and shape agree; the encoder's must all agree.
    From(&'a Checkpoint),
    /// This run's own, with the optimizer's moments.
    Resume(&'a Checkpoint),
}

/// A model and its optimizer.
pub struct Learner {
    model: Model,
    optimizer: AdamW,
    clip: Option<f64>,
    ema: Option<Ema>,
    /// As in [`State`].
    seen: u32,
    workers: Workers,
}

enum Model {
    Tec(Box<Tec>),
    Mae(Box<Mae>),
}

/// What a step came to.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Images the step was computed on.
    pub images: usize,
    /// Feature loss (MAE: pixel loss).
    pub feature: f64,
    /// Relation loss (TEC).
    pub relation: Option<f64>,
    /// L2 norm of all gradients.
    pub grad_norm: f64,
}

impl Outcome {
    /// The sum of the losses.
    pub fn total(&self) -> f64 {
        self.feature + self.relation.unwrap_or(0.0)
    }

    /// Whether loss and gradients are numbers.
    pub fn is_finite(&self) -> bool {
        self.total().is_finite() && self.grad_norm.is_finite()
    }
}

/// Logits `[B, 1+K, H, L]` of the class token and the query patches, the base's tempered as in the loss.
pub struct Attention {
    /// The base's.
    pub base: Tensor,
    /// The new model's prediction.
    pub new_model: Tensor,
    /// The query patches, u32 `[B, K]`.
    pub index: Tensor,
}

/// The new model's input `[B, C, S, S]`: some images of a batch.
fn images(setup: &Setup, fed: &Fed, range: Range<usize>) -> Result<Tensor> {
    fed.images(
        false,
        range,
        setup.encoder.image_size,
        &setup.normalization,
        &setup.device,
    )
}

/// What the base says about the same crops, at its own size and normalization.
fn targets(setup: &Setup, fed: &Fed, range: Range<usize>) -> Result<Targets> {
    let Some(base) = &setup.base else {
        return Err(Error::Usage("base.path: TEC trains from a base; give one".into()));
    };
    let size = base.vit.config().image_size;
    let seen = fed.images(true, range, size, &base.normalization, &setup.device)?;
    base.vit
        .targets(&seen, setup.recipe.objective.last_layers, setup.recipe.objective.top_k)
}

/// Parameters named in a message about weights that do not fit.
const LISTED: usize = 4;

/// Parameters of the encoder proper, which every starting checkpoint must have.
const ENCODER: [&str; 4] = ["patch_embed.", "cls_token", "blocks.", "norm."];

/// Whether a parameter is one that an encoder is made of, its input adapter included.
fn of_encoder(name: &str) -> bool {
    ENCODER.iter().any(|prefix| name.starts_with(prefix))
}

impl Learner {
    /// A TEC learner.
    ///
    /// # Errors
    /// As [`crate::pretrain::setup::Setup::learner`].
    pub fn tec(model: Tec, o: &OptimizerSection, start: Start, progress: &mut dyn Progress) -> Result<(Self, usize)> {
        Self::new(Model::Tec(Box::new(model)), o, start, progress)
    }

    /// A masked-autoencoder learner.
    ///
    /// # Errors
    /// As [`crate::pretrain::setup::Setup::learner`].
    pub fn mae(model: Mae, o: &OptimizerSection, start: Start, progress: &mut dyn Progress) -> Result<(Self, usize)> {
        Self::new(Model::Mae(Box::new(model)), o, start, progress)
    }

    fn new(model: Model, o: &OptimizerSection, start: Start, progress: &mut dyn Progress) -> Result<(Self, usize)> {
        let config = AdamWConfig {
            beta1: o.betas[0],
            beta2: o.betas[1],
            eps: o.eps,
            weight_decay: o.weight_decay,
        };
        let mut learner = Self {
            optimizer: AdamW::new(model.params().trainable(), config),
            clip: o.clip_grad,
            ema: None,
            seen: 0,
            workers: match model.params().is_on_cpu() {
                true => Workers::new(pieces(o.batch / o.accumulate.max(1), model.tokens()).len())?,
                false => Workers::whole(),
            },
            model,
        };
        if let Start::From(checkpoint) = start {
            learner.start_from(checkpoint, progress)?;
        }
        if let Some(decay) = o.ema {
            let of_encoder = learner.params().trainable().iter().filter(|(name, _)| of_encoder(name));
            learner.ema = Some(Ema::new(decay, of_encoder)?);
        }
        let step = match start {
            Start::Fresh | Start::From(_) => 0,
            Start::Resume(checkpoint) => {
                learner.resume(checkpoint)?;
                checkpoint.state.step
            }
        };
        Ok((learner, step))
    }

    /// Divides the threads for parts of `images` images, where ranks share what a step's parts would be.
    ///
    /// # Errors
    /// As [`Workers::new`].
    pub fn expect_parts(&mut self, images: usize) -> Result<()> {
        if self.params().is_on_cpu() {
            self.workers = Workers::new(pieces(images, self.model.tokens()).len())?;
        }
        Ok(())
    }

    /// The model's parameters.
    pub fn params(&self) -> &Params {
        self.model.params()
    }

    /// Parameters of the encoder that is exported.
    pub fn encoder_parameters(&self) -> usize {
        self.params()
            .trainable()
            .iter()
            .filter(|(n, _)| of_encoder(n) && !n.starts_with("cls_token_mlp"))
            .map(|(_, v)| v.elem_count())
            .sum()
    }

    /// Parameters trained, decoder and adapters included.
    pub fn trained_parameters(&self) -> usize {
        self.params().count()
    }

    /// The start of a step: no gradients yet.
    pub fn gradients(&self, setup: &Setup) -> Gradients {
        Gradients::new(self.params().trainable(), setup.recipe.optimizer.batch, self.seen)
    }

    /// Adds a part of a step: targets, losses, gradients.
    ///
    /// # Errors
    /// Shapes that do not fit (a bug).
    pub fn add(&self, setup: &Setup, fed: &Fed, sum: &mut Gradients) -> Result<()> {
        let batch = &fed.batch;
        if batch.is_empty() {
            sum.note_empty();
            return Ok(());
        }
        let (seed, ratio) = (setup.recipe.seed, setup.recipe.objective.mask_ratio);
        let patches = setup.encoder.patches();
        let masks = |samples: &[u32], device| Masks::draw(seed, batch.epoch, samples, patches, ratio, device);
        // On the CPU, where they are looked at.
        sum.note(&batch.samples, &masks(&batch.samples, &Device::Cpu)?)?;
        sum.add(&self.workers, batch.len(), self.model.tokens(), |range| {
            let images = images(setup, fed, range.clone())?;
            let masks = masks(&batch.samples[range.clone()], &setup.device)?;
            Ok(match &self.model {
                Model::Mae(mae) => {
                    let total = mae.loss(&images, &masks)?;
                    MeanLoss {
                        feature: total.clone(),
                        relation: None,
                        total,
                    }
                }
                Model::Tec(tec) => {
                    let losses = tec.losses(&images, &targets(setup, fed, range)?, &masks)?;
                    MeanLoss {
                        feature: losses.feature,
                        relation: Some(losses.relation),
                        total: losses.total,
                    }
                }
            })
        })
    }

    /// The end of a step: AdamW and the average. Nothing is changed if the outcome is not finite.
    ///
    /// # Errors
    /// A parameter without a gradient (a bug).
    pub fn update(&mut self, sum: Gradients, lr: f64) -> Result<Outcome> {
        let (images, seen, losses) = (sum.images(), sum.seen(), sum.losses());
        let mut grad_norm = f64::NAN;
        if let Some(grads) = sum.finish()? {
            let losses = losses.values()?;
            grad_norm = self.optimizer.step_for(&grads, losses.as_ref(), lr, self.clip)?;
        }
        // A GPU has been waited for by now: once a step.
        let (feature, relation) = losses.means()?;
        let outcome = Outcome {
            images,
            feature,
            relation,
            grad_norm,
        };
        if outcome.is_finite() {
            self.seen = seen;
            if let Some(ema) = &mut self.ema {
                ema.update(self.optimizer.steps())?;
            }
        }
        Ok(outcome)
    }

    /// Updates of the weights so far.
    pub fn updates(&self) -> u64 {
        self.optimizer.steps()
    }

    /// The whole training state after `step` steps.
    ///
    /// # Errors
    /// A tensor that cannot be brought to the CPU.
    pub fn checkpoint(&self, setup: &Setup, step: usize) -> Result<Checkpoint> {
        let mut tensors = HashMap::new();
        for (name, tensor) in self.params().state() {
            tensors.insert(format!("model.{name}"), tensor.to_device(&Device::Cpu)?);
        }
        for moment in self.optimizer.moments()? {
            let tensor = |values: &[f32]| Tensor::from_slice(values, moment.shape, &Device::Cpu);
            tensors.insert(format!("optimizer.m.{}", moment.name), tensor(&moment.first)?);
            tensors.insert(format!("optimizer.v.{}", moment.name), tensor(&moment.second)?);
        }
        if let Some(ema) = &self.ema {
            tensors.extend(ema.tensors()?.into_iter().map(|(name, t)| (format!("ema.{name}"), t)));
        }
        let state = State {
            updates: self.updates(),
            seen: self.seen,
            ..State::new(step, setup.steps_per_epoch, setup.source.len())
        };
        Ok(Checkpoint {
            tensors,
            state,
            encoder: setup.metadata(),
            origin: Default::default(),
        })
    }

    /// The encoder alone, of the averaged weights where there are any: adapters merged, decoder dropped.
    ///
    /// # Errors
    /// A weight that is no longer finite.
    pub fn encoder(&self, setup: &Setup) -> Result<Vit> {
        if let Some(ema) = &self.ema {
            let mut weights: HashMap<String, Tensor> = self.params().state().into_iter().collect();
            weights.extend(ema.tensors()?);
            return Vit::from_state(weights.into_iter().collect(), &setup.encoder, &setup.device);
        }
        match &self.model {
            Model::Tec(tec) => tec.encoder(),
            Model::Mae(mae) => mae.encoder(),
        }
    }

    /// The base's relations on whole images beside what the new model predicts from masked ones (TEC only).
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn attention(&self, setup: &Setup, fed: &Fed, masks: &Masks) -> Result<Option<Attention>> {
        let Model::Tec(tec) = &self.model else { return Ok(None) };
        let all = 0..fed.batch.len();
        let targets = targets(setup, fed, all.clone())?;
        let predicted = tec.predict(&images(setup, fed, all)?, &targets.index, masks)?;
        let tau = f64::from(setup.recipe.objective.att_tau);
        Ok(Some(Attention {
            base: (targets.logits / tau)?,
            new_model: predicted.logits.detach(),
            index: targets.index,
        }))
    }

    fn resume(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.params()
            .load_state(checkpoint.with_prefix("model."), &checkpoint.origin)?;
        let mut moments = Vec::new();
        let mut second = checkpoint.with_prefix("optimizer.v.");
        for (name, m) in checkpoint.with_prefix("optimizer.m.") {
            let v = second.remove(&name).ok_or_else(|| Error::File {
                path: checkpoint.origin.clone(),
                reason: format!("`optimizer.v.{name}` is missing; the checkpoint is damaged"),
            })?;
            let values = |t: Tensor| t.flatten_all()?.to_vec1::<f32>();
            moments.push((name, values(m)?, values(v)?));
        }
        self.optimizer.restore(checkpoint.state.updates, moments)?;
        self.seen = checkpoint.state.seen;
        match &mut self.ema {
            Some(ema) => ema.restore(checkpoint),
            None => Ok(()),
        }
    }

    /// Takes what agrees in name and shape; all of the encoder must.
    fn start_from(&mut self, checkpoint: &Checkpoint, progress: &mut dyn Progress) -> Result<()> {
        let mut given = checkpoint.with_prefix("model.");
        let (mut taken, mut fresh, mut wrong) = (0, Vec::new(), Vec::new());
        for (name, var) in self.params().trainable() {
            let of_encoder = of_encoder(name) && !name.starts_with("cls_token_mlp");
            match given.remove(name) {
                Some(tensor) if tensor.dims() == var.dims() => {
                    ops::replace(var, &tensor.to_device(var.device())?)?;
                    taken += 1;
                }
                Some(tensor) if of_encoder => {
                    wrong.push(format!("{name} is {:?}, expected {:?}", tensor.dims(), var.dims()))
                }
                None if of_encoder => wrong.push(format!("{name} is missing")),
                _ => fresh.push(name.clone()),
            }
        }
        if !wrong.is_empty() {
            let more = wrong.len().saturating_sub(LISTED);
            wrong.truncate(LISTED);
            if more > 0 {
                wrong.push(format!("and {more} more"));
            }
            let reason = format!(
                "init.path: these weights are of another encoder: {}; give weights of the same model.* and data.* sizes",
                wrong.join("; ")
            );
            return Err(Error::File {
                path: checkpoint.origin.clone(),
                reason,
            });
        }
        progress.note(&format!(
            "{taken} parameters start from {}",
            checkpoint.origin.display()
        ));
        if !fresh.is_empty() {
            progress.note(&format!(
                "drawn anew, since they are not in it in the same shape: {}",
                fresh.join(", ")
            ));
        }
        Ok(())
    }
}

impl Model {
    fn params(&self) -> &Params {
        match self {
            Self::Tec(tec) => tec.params(),
            Self::Mae(mae) => mae.params(),
        }
    }

    /// Tokens of a whole image, the class token among them.
    fn tokens(&self) -> usize {
        let encoder = match self {
            Self::Tec(tec) => &tec.config().encoder,
            Self::Mae(mae) => &mae.config().encoder,
        };
        1 + encoder.patches()
    }
}
