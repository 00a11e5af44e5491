//! The loop itself, and what it keeps when something goes wrong.

use std::{collections::VecDeque, time::Instant};

use super::{
    Pictures, Plan, Progress, Summary,
    learner::{Learner, Outcome},
    log::Log,
    pictures,
    setup::Setup,
    unreadable::Unreadable,
};
use crate::{
    Error, Result,
    data::{Batches, Loader},
    run_dir::{RunDir, StepMetrics, peak_bytes},
};

/// Samples named when a loss is not finite.
const NAMED: usize = 16;

/// A run under way.
struct Training<'a> {
    setup: &'a Setup,
    run: &'a RunDir,
    learner: Learner,
    plan: Plan,
    log: Log,
    unreadable: Unreadable,
    /// Steps done, and at which of them there is a checkpoint.
    step: usize,
    saved: Option<usize>,
    /// The last step's loss, and those of the last epoch's worth of steps.
    loss: f64,
    losses: VecDeque<f64>,
    /// The probe's accuracy after the last step, if there was one.
    knn_top1: Option<f64>,
    probe_seconds: f64,
    /// Since the last line of the log.
    clock: Instant,
}

/// Takes the steps that are left, up to `max_steps` in all.
///
/// # Errors
/// As [`super::run`]; whatever it is, the run can be resumed from what is on disk.
pub fn train(
    setup: &Setup,
    run: &RunDir,
    learner: Learner,
    step: usize,
    loader: &Loader,
    max_steps: Option<usize>,
    progress: &mut dyn Progress,
) -> Result<Summary> {
    let o = &setup.recipe.optimizer;
    let all_steps = setup.steps_per_epoch * o.epochs;
    let log = Log::open(run, step)?;
    let losses: Vec<f64> = run.metrics()?.iter().map(|m| m.loss).collect();
    let window = losses.len().saturating_sub(setup.steps_per_epoch);
    let mut training = Training {
        plan: Plan {
            images: setup.source.len(),
            batch: o.batch,
            accumulate: o.accumulate,
            epochs: o.epochs,
            steps_per_epoch: setup.steps_per_epoch,
            total_steps: max_steps.map_or(all_steps, |m| m.min(all_steps)),
            first_step: step,
            peak_lr: o.peak_lr(),
            probe: setup.probe.as_ref().map(|p| p.summary()),
            encoder_parameters: learner.encoder_parameters(),
            trained_parameters: learner.trained_parameters(),
        },
        unreadable: Unreadable::open(run, setup.source.len(), setup.recipe.data.max_unreadable)?,
        setup,
        run,
        learner,
        log,
        step,
        saved: (step > 0).then_some(step),
        loss: losses.last().copied().unwrap_or(f64::NAN),
        losses: losses.into_iter().skip(window).collect(),
        knn_top1: None,
        probe_seconds: 0.0,
        clock: Instant::now(),
    };
    let started = Instant::now();
    progress.begin(&training.plan);
    let (epoch, first) = (step / setup.steps_per_epoch, step % setup.steps_per_epoch);
    let mut batches = loader.batches(epoch as u32, first * o.accumulate, o.epochs as u32)?;
    training.clock = Instant::now();
    let mut interrupted = false;
    while !interrupted && training.step < training.plan.total_steps && training.take_step(&mut batches, progress)? {
        interrupted = progress.stop_requested();
        if interrupted || training.is_checkpoint_due() {
            training.save()?;
        }
    }
    drop(batches);
    training.finish(all_steps, interrupted, started)
}

impl Training<'_> {
    /// One step; false when there are no more images.
    fn take_step(&mut self, batches: &mut Batches, progress: &mut dyn Progress) -> Result<bool> {
        let setup = self.setup;
        let mut sum = self.learner.gradients(setup);
        let mut samples = Vec::new();
        let mut waited = 0.0;
        for _ in 0..setup.recipe.optimizer.accumulate {
            // What is wrong with the data is no reason to lose the steps before it.
            let Some(batch) = batches.next().transpose().map_err(|e| self.rescue(e))? else {
                return Ok(false);
            };
            waited += batch.wait.as_secs_f64();
            self.unreadable.note(&batch, &*setup.source);
            self.log.images(&batch, &*setup.source).map_err(|e| self.unwritten(e))?;
            if !batch.is_empty() {
                self.learner.add(setup, &batch, &mut sum)?;
                samples.extend(batch.samples);
            }
        }
        // A step of which nothing could be read is one without a lesson; the loader ends a run that has only such.
        if samples.is_empty() {
            let list = self.run.skipped_path();
            let text = format!(
                "no image of step {} could be read; see {}",
                self.step + 1,
                list.display()
            );
            progress.note(&text);
            self.step += 1;
        } else {
            let lr = setup.schedule.lr(self.step);
            let outcome = self.learner.update(sum, lr)?;
            if !outcome.is_finite() {
                return Err(self.non_finite(&samples, &outcome));
            }
            self.step += 1;
            self.record(&outcome, lr, waited, progress)?;
        }
        let seen = self.step.saturating_mul(self.plan.batch);
        self.unreadable.check(seen).map_err(|e| self.rescue(e))?;
        Ok(true)
    }

    /// Measures, probes and logs the step just done.
    fn record(&mut self, outcome: &Outcome, lr: f64, waited: f64, progress: &mut dyn Progress) -> Result<()> {
        let seconds = self.clock.elapsed().as_secs_f64();
        self.loss = outcome.total();
        self.losses.push_back(self.loss);
        if self.losses.len() > self.setup.steps_per_epoch {
            self.losses.pop_front();
        }
        self.probe(progress)?;
        let metrics = StepMetrics {
            step: self.step,
            epoch: self.step as f64 / self.setup.steps_per_epoch as f64,
            loss: self.loss,
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
        self.clock = Instant::now();
        Ok(())
    }

    /// Asks the probe where it is due. That it fails is no reason to stop a run.
    fn probe(&mut self, progress: &mut dyn Progress) -> Result<()> {
        self.knn_top1 = None;
        let (setup, per_epoch) = (self.setup, self.setup.steps_per_epoch);
        let all = per_epoch * setup.recipe.optimizer.epochs;
        let Some(probe) = setup.probe.as_ref().filter(|p| p.is_due(self.step, per_epoch, all)) else {
            return Ok(());
        };
        let clock = Instant::now();
        let measured = self
            .learner
            .encoder(setup)
            .and_then(|vit| probe.accuracy(vit, &setup.normalization));
        self.probe_seconds += clock.elapsed().as_secs_f64();
        match measured {
            Ok(accuracy) => self.knn_top1 = Some(accuracy),
            Err(error) => progress.note(&format!("the k-NN probe of step {} failed: {error}", self.step)),
        }
        Ok(())
    }

    fn is_checkpoint_due(&self) -> bool {
        let every = match self.setup.recipe.checkpoint.every_steps {
            0 => self.setup.steps_per_epoch,
            n => n,
        };
        self.step.is_multiple_of(every) || self.step == self.plan.total_steps
    }

    /// Writes a checkpoint of the last step, after everything that is logged up to it.
    fn save(&mut self) -> Result<()> {
        self.log.flush().map_err(|e| self.unwritten(e))?;
        let mut checkpoint = self.learner.checkpoint(self.setup, self.step)?;
        checkpoint.state.knn_top1 = self.knn_top1;
        if !self.losses.is_empty() {
            checkpoint.state.mean_loss = Some(self.losses.iter().sum::<f64>() / self.losses.len() as f64);
        }
        let keep = self.setup.recipe.checkpoint.keep;
        checkpoint
            .write(&self.run.checkpoints(), keep)
            .map_err(|e| self.unwritten(e))?;
        self.saved = Some(self.step);
        Ok(())
    }

    /// What to say about data that stop the run: the steps done are saved first.
    fn rescue(&mut self, error: Error) -> Error {
        if self.learner.updates() > 0
            && self.saved != Some(self.step)
            && let Err(unsaved) = self.save()
        {
            return with_more(error, &format!("the steps since could not be saved: {unsaved}"));
        }
        match self.saved {
            Some(step) => with_more(error, &format!("{} steps are kept; {}", step, self.how_to_resume())),
            None => error,
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

    fn non_finite(&self, samples: &[u32], outcome: &Outcome) -> Error {
        let samples: Vec<String> = samples.iter().take(NAMED).map(u32::to_string).collect();
        let saved = match self.saved {
            Some(step) => format!("the last good checkpoint is of step {step}"),
            None => "there is no checkpoint yet".into(),
        };
        Error::Data(format!(
            "step {}: loss {} (feature {}, relation {:?}), gradient norm {}: not finite; samples {}…; {saved}; \
             lower optimizer.lr, lengthen optimizer.warmup_epochs or set optimizer.clip_grad",
            self.step + 1,
            outcome.total(),
            outcome.feature,
            outcome.relation,
            outcome.grad_norm,
            samples.join(", ")
        ))
    }

    fn finish(self, all_steps: usize, interrupted: bool, started: Instant) -> Result<Summary> {
        let mut summary = Summary {
            run: self.run.clone(),
            step: self.step,
            finished: self.step == all_steps,
            interrupted: interrupted && self.step < all_steps,
            loss: self.loss,
            skipped: self.log.skipped_count(),
            damaged: self.log.damaged_count(),
            seconds: started.elapsed().as_secs_f64(),
            probe_seconds: self.probe_seconds,
            pictures: Pictures::default(),
        };
        if summary.finished {
            let encoder = self.learner.encoder(self.setup)?;
            let saved = encoder.save(&self.run.encoder_path(), &self.setup.metadata());
            saved.map_err(|e| self.unwritten(e))?;
            summary.pictures = Pictures::take(self.setup, &self.learner)?;
            pictures::write_report(self.setup, &summary).map_err(|e| self.unwritten(e))?;
        }
        Ok(summary)
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
        other => other,
    }
}
