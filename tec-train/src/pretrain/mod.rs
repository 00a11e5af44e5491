//! The training loop: data → targets → losses → gradients → AdamW → metrics and checkpoints.

mod learner;
mod log;
mod pictures;
mod setup;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use candle_core::Device;

use crate::{
    Error, Result,
    checkpoint::{self, Checkpoint},
    data::{Loader, Source},
    model::{EncoderMetadata, Vit},
    recipe::Recipe,
    run_dir::{Existing, RunDir, StepMetrics, peak_bytes},
};

use learner::Learner;
use log::Log;
pub use pictures::{Pictures, loss_plot};
use setup::Setup;

/// A run to do.
pub struct Job {
    /// What to compute.
    pub recipe: Recipe,
    /// The run directory.
    pub out: PathBuf,
    /// What to do where it exists.
    pub existing: Existing,
    /// Images; absent: `recipe.data.path` is opened.
    pub source: Option<Arc<dyn Source>>,
    /// Stop, with a checkpoint, after this many steps in all.
    pub max_steps: Option<usize>,
}

/// What is going to be done, for progress displays.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Images in the data set.
    pub images: usize,
    /// Images a step.
    pub batch: usize,
    /// Epochs of the whole run.
    pub epochs: usize,
    /// Steps of one epoch.
    pub steps_per_epoch: usize,
    /// Steps of the whole run, or as many as were asked for.
    pub total_steps: usize,
    /// Steps already done.
    pub first_step: usize,
    /// Peak learning rate.
    pub peak_lr: f64,
    /// Parameters of the encoder that is left in the end.
    pub encoder_parameters: usize,
    /// Parameters trained, decoder and adapters included.
    pub trained_parameters: usize,
}

/// Hears how a run goes.
pub trait Progress {
    /// The run begins, or goes on after `plan.first_step`.
    fn begin(&mut self, plan: &Plan);
    /// A step is done.
    fn step(&mut self, metrics: &StepMetrics, plan: &Plan);
    /// Something the user should know.
    fn note(&mut self, text: &str);
    /// The run ends, well or not.
    fn end(&mut self);
}

/// What a run left behind.
#[derive(Debug)]
pub struct Summary {
    /// Its directory.
    pub run: RunDir,
    /// Steps done in all.
    pub step: usize,
    /// Whether those were all.
    pub finished: bool,
    /// The last step's loss (NaN if there was no step).
    pub loss: f64,
    /// Different images that could not be read.
    pub skipped: usize,
    /// Seconds this process trained.
    pub seconds: f64,
    /// What it trained on, as the report shows it (nothing where the run has not finished).
    pub pictures: Pictures,
}

/// Does a run: everything is checked first, then the run directory is written, then steps are taken.
///
/// A run stopped at any moment and resumed computes the same weights as one never stopped: masks, crops and order are
/// functions of (seed, epoch, sample), and weights, moments and the step come from the newest checkpoint.
///
/// # Errors
/// Settings that do not fit together, unreadable data or base (nothing is written then); a non-finite loss, naming the
/// step, the samples and the last checkpoint; a disk that is full.
pub fn run(job: Job, progress: &mut dyn Progress) -> Result<Summary> {
    RunDir::check(&job.out, job.existing)?;
    if job.max_steps == Some(0) {
        return Err(Error::Usage("--max-steps 0: give at least 1".into()));
    }
    let setup = Setup::new(job.recipe, job.source, progress)?;
    let resumed = match job.existing {
        Existing::Resume => {
            let run = RunDir::open(&job.out)?;
            let (found, path, warnings) = checkpoint::newest(&run.checkpoints())?;
            warnings.iter().for_each(|w| progress.note(w));
            setup.check_resume(&found, &path)?;
            Some((run, found))
        }
        _ => None,
    };
    let checkpoint = resumed.as_ref().map(|(_, checkpoint)| checkpoint);
    let (learner, step) = setup.learner(checkpoint, progress)?;
    let loader = Loader::new(setup.source.clone(), setup.loader_config())?;
    // From here on there is something to keep.
    let run = match &resumed {
        Some((run, _)) => run.clone(),
        None => RunDir::create(&job.out, &setup.recipe, job.existing)?,
    };
    run.sweep()?;
    let result = train(&setup, &run, learner, step, &loader, job.max_steps, progress);
    progress.end();
    if result.is_err() && resumed.is_none() {
        // What went wrong first is what the user should read.
        let _ = run.discard_unless_begun();
    }
    result
}

fn train(
    setup: &Setup,
    run: &RunDir,
    mut learner: Learner,
    mut step: usize,
    loader: &Loader,
    max_steps: Option<usize>,
    progress: &mut dyn Progress,
) -> Result<Summary> {
    let all_steps = setup.steps_per_epoch * setup.recipe.optimizer.epochs;
    let plan = Plan {
        images: setup.source.len(),
        batch: setup.recipe.optimizer.batch,
        epochs: setup.recipe.optimizer.epochs,
        steps_per_epoch: setup.steps_per_epoch,
        total_steps: max_steps.map_or(all_steps, |m| m.min(all_steps)),
        first_step: step,
        peak_lr: setup.recipe.optimizer.peak_lr(),
        encoder_parameters: learner.encoder_parameters(),
        trained_parameters: learner.trained_parameters(),
    };
    let mut log = Log::open(run, step)?;
    let every = match setup.recipe.checkpoint.every_steps {
        0 => setup.steps_per_epoch,
        n => n,
    };
    let started = Instant::now();
    let mut loss = run.metrics()?.last().map_or(f64::NAN, |m| m.loss);
    let mut last_saved = (step > 0).then_some(step);
    progress.begin(&plan);
    let (first_epoch, first_step) = (step / setup.steps_per_epoch, step % setup.steps_per_epoch);
    let epochs = plan.epochs as u32;
    let mut batches = loader.batches(first_epoch as u32, first_step, epochs)?;
    let mut clock = Instant::now();
    while step < plan.total_steps {
        let Some(batch) = batches.next().transpose()? else {
            break;
        };
        log.skipped(&batch.skipped)?;
        // A batch of which nothing could be read is a step without a lesson; the loader ends a run that has only such.
        if batch.is_empty() {
            progress.note(&format!(
                "no image of step {} could be read; see {}",
                step + 1,
                run.skipped_path().display()
            ));
            step += 1;
        } else {
            let lr = setup.schedule.lr(step);
            let outcome = learner.step(setup, &batch, lr)?;
            loss = outcome.total();
            if !outcome.is_finite() {
                return Err(non_finite(step + 1, &batch.samples, last_saved, &outcome));
            }
            step += 1;
            let seconds = std::mem::replace(&mut clock, Instant::now()).elapsed().as_secs_f64();
            let metrics = StepMetrics {
                step,
                epoch: step as f64 / setup.steps_per_epoch as f64,
                loss,
                loss_feature: outcome.feature,
                loss_relation: outcome.relation,
                lr,
                grad_norm: outcome.grad_norm,
                images_per_s: batch.samples.len() as f64 / seconds,
                data_wait: batch.wait.as_secs_f64() / seconds,
                peak_bytes: peak_bytes(),
            };
            log.step(&metrics)?;
            progress.step(&metrics, &plan);
        }
        if step.is_multiple_of(every) || step == plan.total_steps {
            log.flush()?;
            learner
                .checkpoint(setup, step)?
                .write(&run.checkpoints(), setup.recipe.checkpoint.keep)?;
            last_saved = Some(step);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let skipped = log.skipped_count();
    let mut summary = Summary {
        run: run.clone(),
        step,
        finished: step == all_steps,
        loss,
        skipped,
        seconds,
        pictures: Pictures::default(),
    };
    if summary.finished {
        learner.encoder()?.save(&run.encoder_path(), &setup.metadata())?;
        summary.pictures = Pictures::take(setup, &learner)?;
        pictures::write_report(setup, &summary)?;
    }
    Ok(summary)
}

/// The encoder in a run's checkpoint (absent: its newest), with what it says about itself and the step it is of.
///
/// # Errors
/// A run without a readable checkpoint.
pub fn export(run: &RunDir, checkpoint: Option<&Path>) -> Result<(Vit, EncoderMetadata, usize)> {
    let found = match checkpoint {
        Some(path) => Checkpoint::read(path)?,
        None => checkpoint::newest(&run.checkpoints())?.0,
    };
    let vit = Vit::from_state(
        found.with_prefix("model.").into_iter().collect(),
        &found.encoder.config,
        &Device::Cpu,
    )?;
    Ok((vit, found.encoder, found.state.step))
}

fn non_finite(step: usize, samples: &[u32], last_saved: Option<usize>, outcome: &learner::Outcome) -> Error {
    let samples: Vec<String> = samples.iter().take(16).map(u32::to_string).collect();
    let saved = match last_saved {
        Some(step) => format!("the last good checkpoint is of step {step}"),
        None => "there is no checkpoint yet".into(),
    };
    Error::Data(format!(
        "step {step}: loss {} (feature {}, relation {:?}), gradient norm {}: not finite; samples {}…; {saved}; \
         lower optimizer.lr or lengthen optimizer.warmup_epochs",
        outcome.total(),
        outcome.feature,
        outcome.relation,
        outcome.grad_norm,
        samples.join(", ")
    ))
}
