//! What a run writes and says as it goes: log, probe, checkpoints, the report in the end. Rank 0 does it, for all ranks.

use std::{collections::VecDeque, time::Instant};

use super::{
    Pictures, Plan, Progress, Summary,
    learner::{Learner, Outcome},
    log::Log,
    pictures,
    setup::Setup,
    unreadable::{Drawn, Unreadable},
};
use crate::{
    Error, Result,
    run_dir::{RunDir, StepMetrics, peak_bytes},
};

/// A run's books.
pub struct Record<'a> {
    setup: &'a Setup,
    run: &'a RunDir,
    plan: Plan,
    log: Log,
    unreadable: Unreadable,
    /// The newest step of which there is a checkpoint.
    saved: Option<usize>,
    /// Losses of the last epoch's worth of steps.
    losses: VecDeque<f64>,
    /// The probe's accuracy after the last step, if there was one.
    knn_top1: Option<f64>,
    probe_seconds: f64,
    /// Since the last line of the log.
    clock: Instant,
}

impl<'a> Record<'a> {
    /// Goes on with the books of a run after `step` steps.
    ///
    /// # Errors
    /// A run directory that cannot be read or written.
    pub fn open(setup: &'a Setup, run: &'a RunDir, plan: Plan, step: usize) -> Result<Self> {
        let log = Log::open(run, step)?;
        let losses: Vec<f64> = run.metrics()?.iter().map(|m| m.loss).collect();
        let window = losses.len().saturating_sub(setup.steps_per_epoch);
        Ok(Self {
            unreadable: Unreadable::open(run, setup.source.len(), setup.recipe.data.max_unreadable)?,
            setup,
            run,
            plan,
            log,
            saved: (step > 0).then_some(step),
            losses: losses.into_iter().skip(window).collect(),
            knn_top1: None,
            probe_seconds: 0.0,
            clock: Instant::now(),
        })
    }

    /// The last step's loss; NaN before the first.
    pub fn loss(&self) -> f64 {
        self.losses.back().copied().unwrap_or(f64::NAN)
    }

    /// The next step begins now.
    pub fn restart_clock(&mut self) {
        self.clock = Instant::now();
    }

    /// Lists images of a step that cannot be read or are damaged.
    ///
    /// # Errors
    /// A full disk, say.
    pub fn images(&mut self, drawn: &Drawn) -> Result<()> {
        let source = &*self.setup.source;
        self.unreadable.note(drawn, source);
        self.log.images(drawn, source).map_err(|e| self.unwritten(e))
    }

    /// Measures, probes and logs a step, the `step`th. `waited`: seconds of it that this rank waited for images.
    ///
    /// # Errors
    /// A full disk, say.
    pub fn step(
        &mut self,
        learner: &Learner,
        step: usize,
        outcome: &Outcome,
        lr: f64,
        waited: f64,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let seconds = self.clock.elapsed().as_secs_f64();
        self.losses.push_back(outcome.total());
        if self.losses.len() > self.setup.steps_per_epoch {
            self.losses.pop_front();
        }
        self.probe(learner, step, progress);
        let metrics = StepMetrics {
            step,
            epoch: step as f64 / self.setup.steps_per_epoch as f64,
            loss: outcome.total(),
            loss_feature: outcome.feature,
            loss_relation: outcome.relation,
            lr,
            grad_norm: outcome.grad_norm,
            images_per_s: outcome.images as f64 / seconds,
            data_wait: waited / seconds,
            peak_bytes: peak_bytes(),
            knn_top1: self.knn_top1,
        };
        self.log.step(&metrics).map_err(|e| self.unwritten(e))?;
        progress.step(&metrics, &self.plan);
        self.restart_clock();
        Ok(())
    }

    /// What to say about a step of which nothing could be read.
    pub fn nothing_read(&self, step: usize) -> String {
        let list = self.run.skipped_path();
        format!("no image of step {step} could be read; see {}", list.display())
    }

    /// Whether so few images are unreadable after `step` steps that the run may go on.
    ///
    /// # Errors
    /// As [`Unreadable::check`].
    pub fn check_readable(&self, step: usize) -> Result<()> {
        self.unreadable.check(step.saturating_mul(self.plan.batch))
    }

    /// Writes a checkpoint of `step`, after everything that is logged up to it.
    ///
    /// # Errors
    /// A full disk, say.
    pub fn save(&mut self, learner: &Learner, step: usize) -> Result<()> {
        self.log.flush().map_err(|e| self.unwritten(e))?;
        let mut checkpoint = learner.checkpoint(self.setup, step)?;
        checkpoint.state.knn_top1 = self.knn_top1;
        if !self.losses.is_empty() {
            checkpoint.state.mean_loss = Some(self.losses.iter().sum::<f64>() / self.losses.len() as f64);
        }
        let keep = self.setup.recipe.checkpoint.keep;
        checkpoint
            .write(&self.run.checkpoints(), keep)
            .map_err(|e| self.unwritten(e))?;
        self.saved = Some(step);
        Ok(())
    }

    /// What to say about data that stop the run after `step` steps, which are saved first.
    pub fn rescue(&mut self, learner: &Learner, step: usize, error: Error) -> Error {
        if learner.updates() > 0
            && self.saved != Some(step)
            && let Err(unsaved) = self.save(learner, step)
        {
            return with_more(error, &format!("the steps since could not be saved: {unsaved}"));
        }
        match self.saved {
            Some(step) => with_more(error, &format!("{} steps are kept; {}", step, self.how_to_resume())),
            None => error,
        }
    }

    /// Which checkpoint is left of a run that has gone wrong.
    pub fn last_good(&self) -> String {
        match self.saved {
            Some(step) => format!("the last good checkpoint is of step {step}"),
            None => "there is no checkpoint yet".into(),
        }
    }

    /// Fills `summary`, and writes what a finished run leaves.
    ///
    /// # Errors
    /// A full disk, say.
    pub fn finish(self, learner: &Learner, summary: &mut Summary) -> Result<()> {
        summary.skipped = self.log.skipped_count();
        summary.damaged = self.log.damaged_count();
        summary.probe_seconds = self.probe_seconds;
        if summary.finished {
            let encoder = learner.encoder(self.setup)?;
            let saved = encoder.save(&self.run.encoder_path(), &self.setup.metadata());
            saved.map_err(|e| self.unwritten(e))?;
            summary.pictures = Pictures::take(self.setup, learner)?;
            pictures::write_report(self.setup, summary).map_err(|e| self.unwritten(e))?;
        }
        Ok(())
    }

    /// Asks the probe where it is due. That it fails is no reason to stop a run.
    fn probe(&mut self, learner: &Learner, step: usize, progress: &mut dyn Progress) {
        self.knn_top1 = None;
        let (setup, per_epoch) = (self.setup, self.setup.steps_per_epoch);
        let all = per_epoch * setup.recipe.optimizer.epochs;
        let Some(probe) = setup.probe.as_ref().filter(|p| p.is_due(step, per_epoch, all)) else {
            return;
        };
        let clock = Instant::now();
        let measured = learner
            .encoder(setup)
            .and_then(|vit| probe.accuracy(vit, &setup.normalization));
        self.probe_seconds += clock.elapsed().as_secs_f64();
        match measured {
            Ok(accuracy) => self.knn_top1 = Some(accuracy),
            Err(error) => progress.note(&format!("the k-NN probe of step {step} failed: {error}")),
        }
    }

    /// What to say about a file that cannot be written.
    fn unwritten(&self, error: Error) -> Error {
        let kept = match self.saved {
            Some(step) => format!(
                "the checkpoint of step {step} is whole; free some space, then {}",
                self.how_to_resume()
            ),
            None => format!(
                "there is no checkpoint yet; free some space, then {}",
                self.how_to_resume()
            ),
        };
        with_more(error, &kept)
    }

    fn how_to_resume(&self) -> String {
        format!("go on with: {}", self.run.resume_command())
    }
}

/// The error with a second sentence.
fn with_more(error: Error, more: &str) -> Error {
    match error {
        Error::File { path, reason } => Error::File {
            path,
            reason: format!("{reason}; {more}"),
        },
        Error::Data(text) => Error::Data(format!("{text}; {more}")),
        Error::Rank { rank, usage, text } => Error::Rank {
            rank,
            usage,
            text: format!("{text}; {more}"),
        },
        other => other,
    }
}
