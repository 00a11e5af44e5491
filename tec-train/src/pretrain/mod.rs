//! The training loop: data → targets → losses → gradients → AdamW → metrics and checkpoints.

mod ema;
mod feed;
mod gradients;
mod learner;
mod log;
mod losses;
mod pictures;
mod probe;
mod record;
mod same_start;
mod setup;
#[cfg(test)]
mod tests;
mod train;
mod unreadable;
mod workers;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::Device;

use crate::{
    Error, Result,
    checkpoint::{self, Checkpoint},
    data::{Loader, LoaderConfig, Source},
    device::DeviceName,
    model::{EncoderMetadata, Vit},
    ranks::{self, Collective, Ranks},
    recipe::Recipe,
    run_dir::{Existing, RunDir, RunLock, StepMetrics},
};

pub use gradients::Gradients;
pub use losses::{Losses, MeanLoss};
pub use pictures::{Pictures, loss_plot};
use setup::Setup;
pub use workers::{Workers, pieces};

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
    /// Where to compute.
    pub device: DeviceName,
}

/// What is going to be done, for progress displays.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Images in the data set.
    pub images: usize,
    /// Images a step.
    pub batch: usize,
    /// Parts that they are computed in.
    pub accumulate: usize,
    /// Processes that share each part.
    pub ranks: usize,
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
    /// What the k-NN probe does, where there is one.
    pub probe: Option<String>,
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
    /// Whether the run is to end after the step it is in, with a checkpoint; asked after each step.
    fn stop_requested(&self) -> bool {
        false
    }
}

/// What a run left behind. Counts of images and the seconds of the probe are rank 0's alone to know; the others have zeros.
#[derive(Debug)]
pub struct Summary {
    /// Its directory.
    pub run: RunDir,
    /// Steps done in all.
    pub step: usize,
    /// Whether those were all.
    pub finished: bool,
    /// Whether it ended because [`Progress::stop_requested`] said so.
    pub interrupted: bool,
    /// The last step's loss (NaN if there was no step).
    pub loss: f64,
    /// Different images that could not be read.
    pub skipped: usize,
    /// Different images whose coded data are damaged; they were used as far as they decode.
    pub damaged: usize,
    /// Seconds this process trained.
    pub seconds: f64,
    /// Seconds of them that the k-NN probe took.
    pub probe_seconds: f64,
    /// Seconds of them that this process waited for images, with nothing else to do.
    pub waited: f64,
    /// What it trained on, as the report shows it (nothing where the run has not finished).
    pub pictures: Pictures,
}

impl Summary {
    /// The share of the time that steps took in which this process waited for images.
    pub fn data_wait(&self) -> f64 {
        let steps = self.seconds - self.probe_seconds;
        if steps > 0.0 { self.waited / steps } else { 0.0 }
    }
}

/// Does a run: everything is checked first, then the run directory is written, then steps are taken.
///
/// The recipe's batch is the whole job's. Every rank of `collective` calls this with the same job; each takes its share of each
/// part of each step ([`ranks::share`]), and all compute the same weights. Rank 0 alone writes and speaks to `progress`; the
/// others' are asked only whether to stop, which stops all.
///
/// A run stopped at any moment and resumed computes the same weights as one never stopped: masks, crops and order are
/// functions of (seed, epoch, sample), and weights, moments and the step come from the newest checkpoint; or from the beginning,
/// if it was stopped before the first one.
///
/// # Errors
/// Settings that do not fit together, unreadable data or base (nothing is written then); a non-finite loss, naming the
/// step, the samples and the last checkpoint; too many images that cannot be read, naming them; a disk that is full; a
/// directory that another process trains in. With several ranks an error of one ends all: rank 0 gets its own, or
/// [`Error::Rank`] that says which rank failed and why; the others get [`Error::Rank`].
pub fn run(job: Job, collective: &dyn Collective, progress: &mut dyn Progress) -> Result<Summary> {
    let ranks = Ranks::new(collective);
    let mut silent = Silent(&*progress);
    let result = match ranks.is_first() {
        true => run_rank(job, &ranks, progress),
        false => run_rank(job, &ranks, &mut silent),
    };
    result
        // The others are not done before rank 0 has written everything.
        .and_then(|summary| ranks.exchange(()).map(|_| summary))
        .map_err(|e| ranks.fail(e))
}

/// What a rank other than the first hears: nothing but the wish to stop.
struct Silent<'a>(&'a dyn Progress);

impl Progress for Silent<'_> {
    fn begin(&mut self, _: &Plan) {}
    fn step(&mut self, _: &StepMetrics, _: &Plan) {}
    fn note(&mut self, _: &str) {}
    fn end(&mut self) {}
    fn stop_requested(&self) -> bool {
        self.0.stop_requested()
    }
}

/// What every rank does of a run.
fn run_rank(job: Job, ranks: &Ranks, progress: &mut dyn Progress) -> Result<Summary> {
    if ranks.is_first() || job.existing == Existing::Resume {
        RunDir::check(&job.out, job.existing)?;
    }
    if job.max_steps == Some(0) {
        return Err(Error::Usage("--max-steps 0: give at least 1".into()));
    }
    let device = job.device.open()?;
    // Before anything slow, so that a run under way is known at once.
    let resumed = match job.existing {
        Existing::Resume => {
            let run = RunDir::open(&job.out)?;
            let lock = ranks.is_first().then(|| RunLock::acquire(&job.out)).transpose()?;
            if lock.is_some() {
                run.complete()?;
            }
            Some((run, lock))
        }
        Existing::Overwrite if ranks.is_first() && job.out.exists() => {
            drop(RunLock::acquire(&job.out)?);
            None
        }
        _ => None,
    };
    ranks.connect(&device)?;
    let setup = Setup::new(job.recipe, job.source, &device, progress)?;
    let found = match &resumed {
        Some((run, _)) => state_of(run, &setup, progress)?,
        None => None,
    };
    let (mut learner, step) = setup.learner(found.as_ref(), progress)?;
    // The learner has it now; a week is a long time to keep it twice.
    drop(found);
    let loader = Loader::new(setup.source.clone(), loader_config(&setup, &mut learner, ranks)?)?;
    same_start::check(ranks, &setup, &learner, step, job.max_steps)?;
    // From here on there is something to keep.
    let is_new = resumed.is_none();
    // Held until the end.
    let (run, lock) = match resumed {
        Some(locked) => locked,
        None if ranks.is_first() => {
            let (run, lock) = RunDir::create(&job.out, &setup.recipe, job.existing)?;
            (run, Some(lock))
        }
        None => (RunDir::of_rank_0(&job.out), None),
    };
    if let Some(lock) = &lock {
        if let Some(doubt) = lock.doubt() {
            progress.note(doubt);
        }
        run.sweep()?;
    }
    // No rank sets out before there is a directory.
    let steps = step..job.max_steps.unwrap_or(usize::MAX);
    let result = ranks
        .exchange(())
        .and_then(|_| train::train(&setup, ranks, &run, learner, steps, &loader, progress));
    progress.end();
    if result.is_err() && is_new && ranks.is_first() {
        // What went wrong first is what the user should read.
        let _ = run.discard_unless_begun();
    }
    result
}

/// How this rank's batches are made, and `learner` made ready for them.
fn loader_config(setup: &Setup, learner: &mut learner::Learner, ranks: &Ranks) -> Result<LoaderConfig> {
    let config = setup.loader_config();
    if ranks.size() == 1 {
        return Ok(config);
    }
    let (part, o) = (config.batch_size, &setup.recipe.optimizer);
    if part < ranks.size() {
        return Err(Error::Usage(format!(
            "optimizer.batch = {} in {} part(s) are {part} images a part, fewer than the {} processes; use a larger --batch, \
             a smaller --accumulate or fewer processes",
            o.batch,
            o.accumulate,
            ranks.size()
        )));
    }
    learner.expect_parts(ranks::share(part, ranks.rank(), ranks.size()).len())?;
    Ok(LoaderConfig {
        share: (ranks.rank(), ranks.size()),
        ..config
    })
}

/// Where a run to be resumed stands: its newest checkpoint that is whole. `None` where it was stopped before the first one.
fn state_of(run: &RunDir, setup: &Setup, progress: &mut dyn Progress) -> Result<Option<Checkpoint>> {
    let Some((found, warnings)) = checkpoint::newest(&run.checkpoints())? else {
        progress.note("there is no checkpoint yet; the run begins anew");
        return Ok(None);
    };
    warnings.iter().for_each(|w| progress.note(w));
    setup.check_resume(&found)?;
    progress.note(&format!(
        "goes on after step {}, from {}",
        found.state.step,
        found.origin.display()
    ));
    Ok(Some(found))
}

/// The encoder in a run's checkpoint (absent: its newest), of the averaged weights where it has any, with what it says about itself and the step it is of.
///
/// # Errors
/// A run without a readable checkpoint.
pub fn export(run: &RunDir, checkpoint: Option<&Path>) -> Result<(Vit, EncoderMetadata, usize)> {
    let found = match checkpoint {
        Some(path) => Checkpoint::read(path)?,
        None => {
            let folder = run.checkpoints();
            let newest = checkpoint::newest(&folder)?.ok_or_else(|| Error::File {
                path: folder,
                reason: "no checkpoint yet; go on with the run until it has written one".into(),
            });
            newest?.0
        }
    };
    let weights = found.exported().into_iter().collect();
    let vit = Vit::from_state(weights, &found.encoder.config, &Device::Cpu)?;
    Ok((vit, found.encoder, found.state.step))
}
