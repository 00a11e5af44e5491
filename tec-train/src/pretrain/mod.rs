//! The training loop: data → targets → losses → gradients → AdamW → metrics and checkpoints.

mod ema;
mod gradients;
mod learner;
mod log;
mod pictures;
mod probe;
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
    data::{Loader, Source},
    device::DeviceName,
    model::{EncoderMetadata, Vit},
    recipe::Recipe,
    run_dir::{Existing, RunDir, RunLock, StepMetrics},
};

pub use gradients::{Gradients, MeanLoss};
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

/// What a run left behind.
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
    /// What it trained on, as the report shows it (nothing where the run has not finished).
    pub pictures: Pictures,
}

/// Does a run: everything is checked first, then the run directory is written, then steps are taken.
///
/// A run stopped at any moment and resumed computes the same weights as one never stopped: masks, crops and order are
/// functions of (seed, epoch, sample), and weights, moments and the step come from the newest checkpoint; or from the beginning,
/// if it was stopped before the first one.
///
/// # Errors
/// Settings that do not fit together, unreadable data or base (nothing is written then); a non-finite loss, naming the
/// step, the samples and the last checkpoint; too many images that cannot be read, naming them; a disk that is full; a
/// directory that another process trains in.
pub fn run(job: Job, progress: &mut dyn Progress) -> Result<Summary> {
    RunDir::check(&job.out, job.existing)?;
    if job.max_steps == Some(0) {
        return Err(Error::Usage("--max-steps 0: give at least 1".into()));
    }
    let device = job.device.open()?;
    // Before anything slow, so that a run under way is known at once.
    let resumed = match job.existing {
        Existing::Resume => Some((RunDir::open(&job.out)?, RunLock::acquire(&job.out)?)),
        Existing::Overwrite if job.out.exists() => {
            drop(RunLock::acquire(&job.out)?);
            None
        }
        _ => None,
    };
    let setup = Setup::new(job.recipe, job.source, &device, progress)?;
    let found = match &resumed {
        Some((run, _)) => state_of(run, &setup, progress)?,
        None => None,
    };
    let (learner, step) = setup.learner(found.as_ref(), progress)?;
    // The learner has it now; a week is a long time to keep it twice.
    drop(found);
    let loader = Loader::new(setup.source.clone(), setup.loader_config())?;
    // From here on there is something to keep.
    let is_new = resumed.is_none();
    // Held until the end.
    let (run, lock) = match resumed {
        Some(locked) => locked,
        None => RunDir::create(&job.out, &setup.recipe, job.existing)?,
    };
    if let Some(doubt) = lock.doubt() {
        progress.note(doubt);
    }
    run.sweep()?;
    let result = train::train(&setup, &run, learner, step, &loader, job.max_steps, progress);
    progress.end();
    if result.is_err() && is_new {
        // What went wrong first is what the user should read.
        let _ = run.discard_unless_begun();
    }
    result
}

/// Where a run to be resumed stands: its newest checkpoint that is whole. `None` where it was stopped before the first one.
fn state_of(run: &RunDir, setup: &Setup, progress: &mut dyn Progress) -> Result<Option<Checkpoint>> {
    run.complete()?;
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
