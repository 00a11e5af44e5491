//! The loop itself, as every rank goes through it. What is written and said is rank 0's, in [`Record`].

use std::{ops::Range, time::Instant};

use serde::{Deserialize, Serialize};

use super::{
    Pictures, Plan, Progress, Summary,
    feed::Feed,
    gradients::{Gradients, Share},
    learner::{Learner, Outcome},
    record::Record,
    same_start,
    setup::Setup,
    unreadable::Drawn,
};
use crate::{Error, Result, data::Loader, device, ranks::Ranks, run_dir::RunDir};

/// Samples named when a loss is not finite.
const NAMED: usize = 16;

/// A run under way.
struct Training<'a> {
    setup: &'a Setup,
    ranks: &'a Ranks<'a>,
    learner: Learner,
    /// Steps done, and how many there are to be.
    step: usize,
    total_steps: usize,
    /// The last step's loss.
    loss: f64,
    /// Seconds this rank has waited for images.
    waited: f64,
    /// Images that any rank could read in this epoch so far.
    readable: usize,
    /// On rank 0.
    record: Option<Record<'a>>,
}

/// What a rank tells the others of its part in a step.
#[derive(Serialize, Deserialize)]
struct Contribution {
    drawn: Drawn,
    /// Absent in a job of one process, which has nobody to tell.
    share: Option<Share>,
}

/// Takes the steps that are left after `steps.start`, up to `steps.end` in all.
///
/// # Errors
/// As [`super::run`]; whatever it is, the run can be resumed from what is on disk.
pub fn train(
    setup: &Setup,
    ranks: &Ranks,
    run: &RunDir,
    learner: Learner,
    steps: Range<usize>,
    loader: &Loader,
    progress: &mut dyn Progress,
) -> Result<Summary> {
    let (o, step) = (&setup.recipe.optimizer, steps.start);
    let all_steps = setup.steps_per_epoch * o.epochs;
    let plan = Plan {
        images: setup.source.len(),
        batch: o.batch,
        accumulate: o.accumulate,
        ranks: ranks.size(),
        epochs: o.epochs,
        steps_per_epoch: setup.steps_per_epoch,
        total_steps: steps.end.min(all_steps),
        first_step: step,
        peak_lr: o.peak_lr(),
        probe: setup.probe.as_ref().map(|p| p.summary()),
        encoder_parameters: learner.encoder_parameters(),
        trained_parameters: learner.trained_parameters(),
    };
    let total_steps = plan.total_steps;
    let record = ranks.is_first().then(|| Record::open(setup, run, plan.clone(), step));
    let record = record.transpose()?;
    let (epoch, first) = (step / setup.steps_per_epoch, step % setup.steps_per_epoch);
    let mut training = Training {
        setup,
        ranks,
        learner,
        step,
        total_steps,
        loss: record.as_ref().map_or(f64::NAN, Record::loss),
        waited: 0.0,
        // An epoch entered midway has shown readable images before, or may have.
        readable: usize::from(first > 0),
        record,
    };
    let started = Instant::now();
    progress.begin(&plan);
    let batches = loader.batches(epoch as u32, first * o.accumulate, o.epochs as u32)?;
    let mut batches = Feed::new(batches, &setup.device)?;
    training.record.iter_mut().for_each(Record::restart_clock);
    let mut interrupted = false;
    while !interrupted && training.step < total_steps && training.take_step(&mut batches, progress)? {
        // Any rank's user may have had enough; all stop after the same step.
        interrupted = ranks.exchange(progress.stop_requested())?.contains(&true);
        if interrupted || training.is_checkpoint_due() {
            training.save()?;
        }
    }
    drop(batches);
    training.finish(run, all_steps, interrupted, started)
}

impl Training<'_> {
    /// One step; false when there are no more images.
    fn take_step(&mut self, batches: &mut Feed, progress: &mut dyn Progress) -> Result<bool> {
        let mut sum = self.learner.gradients(self.setup);
        let mut waited = 0.0;
        let Some(mine) = self.compute(batches, &mut sum, &mut waited)? else {
            return Ok(false);
        };
        self.waited += waited;
        batches.note().iter().for_each(|note| progress.note(note));
        // What is wrong with the data is no reason to lose the steps before it, on whichever rank it is.
        let all = self.ranks.exchange(mine).map_err(|e| self.rescue(e))?;
        if let Some(record) = &mut self.record {
            all.iter().try_for_each(|rank| record.images(&rank.drawn))?;
        }
        self.reduce(&all, &mut sum)?;
        self.readable += sum.images();
        // A step of which nothing could be read is one without a lesson; a run that has only such ends.
        if sum.images() == 0 {
            if let Some(record) = &self.record {
                progress.note(&record.nothing_read(self.step + 1));
            }
            self.step += 1;
        } else {
            let lr = self.setup.schedule.lr(self.step);
            let outcome = self.learner.update(sum, lr)?;
            if !outcome.is_finite() {
                let samples: Vec<u32> = all.into_iter().flat_map(|rank| rank.drawn.samples).collect();
                return Err(self.non_finite(&outcome, &samples, None));
            }
            self.step += 1;
            self.loss = outcome.total();
            if let Some(record) = &mut self.record {
                record.step(&self.learner, self.step, &outcome, lr, waited, progress)?;
            }
        }
        if let Some(record) = &self.record {
            record.check_readable(self.step).map_err(|e| self.rescue(e))?;
        }
        self.check_epoch()?;
        Ok(true)
    }

    /// This rank's losses and gradients of a step; `None` when there are no more images.
    fn compute(&mut self, batches: &mut Feed, sum: &mut Gradients, waited: &mut f64) -> Result<Option<Contribution>> {
        let mut drawn = Drawn::default();
        for _ in 0..self.setup.recipe.optimizer.accumulate {
            let Some(fed) = batches.next().transpose().map_err(|e| self.rescue(e))? else {
                return Ok(None);
            };
            *waited += fed.batch.wait.as_secs_f64();
            let images = fed.batch.len();
            self.learner
                .add(self.setup, &fed, sum)
                .map_err(|e| self.too_large(e, images))?;
            drawn.add(fed.batch);
        }
        let share = (self.ranks.size() > 1).then(|| sum.share()).transpose()?;
        Ok(Some(Contribution { drawn, share }))
    }

    /// Makes the sum of this rank's images that of all ranks'.
    fn reduce(&self, all: &[Contribution], sum: &mut Gradients) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        let mut shares = Vec::with_capacity(all.len());
        for (rank, contribution) in all.iter().enumerate() {
            let share = contribution
                .share
                .clone()
                .ok_or_else(|| Error::Data(format!("rank {rank} left out its share of a step; please report it")))?;
            if !share.finite {
                let (feature, relation) = share.losses();
                let outcome = Outcome {
                    images: contribution.drawn.samples.len(),
                    feature,
                    relation,
                    grad_norm: f64::NAN,
                };
                return Err(self.non_finite(&outcome, &contribution.drawn.samples, Some(rank)));
            }
            shares.push(share);
        }
        sum.reduce(&shares, self.ranks)
    }

    /// The loader judges by what it reads, which is a share of the images where there are more ranks.
    fn check_epoch(&mut self) -> Result<()> {
        if !self.step.is_multiple_of(self.setup.steps_per_epoch) {
            return Ok(());
        }
        match (std::mem::take(&mut self.readable), self.ranks.size()) {
            (0, 2..) => Err(Error::Data(
                "none of the images of an epoch could be used; skipped.txt in the run directory lists them".into(),
            )),
            _ => Ok(()),
        }
    }

    fn is_checkpoint_due(&self) -> bool {
        let every = match self.setup.recipe.checkpoint.every_steps {
            0 => self.setup.steps_per_epoch,
            n => n,
        };
        self.step.is_multiple_of(every) || self.step == self.total_steps
    }

    fn save(&mut self) -> Result<()> {
        same_start::check_weights(self.ranks, &self.learner, self.step)?;
        match &mut self.record {
            Some(record) => record.save(&self.learner, self.step),
            None => Ok(()),
        }
    }

    /// What to say about data that stop the run: the steps done are saved first, on the rank that writes.
    fn rescue(&mut self, error: Error) -> Error {
        match &mut self.record {
            Some(record) => record.rescue(&self.learner, self.step, error),
            None => error,
        }
    }

    /// What to say about a part of a step that the device has no room for; other errors stay as they are.
    fn too_large(&mut self, error: Error, images: usize) -> Error {
        let Some(reason) = device::out_of_memory(&error) else {
            return error;
        };
        let parts = self.setup.recipe.optimizer.accumulate;
        self.rescue(Error::Data(format!(
            "{reason} for a part of a step with {images} images; use --accumulate {} or more, --grad-checkpointing or a \
             smaller --batch",
            parts * 2
        )))
    }

    /// What to say about a loss or gradient that is no number, of all ranks together or of one of them.
    fn non_finite(&self, outcome: &Outcome, samples: &[u32], rank: Option<usize>) -> Error {
        let samples: Vec<String> = samples.iter().take(NAMED).map(u32::to_string).collect();
        Error::Data(format!(
            "step {}: {}loss {} (feature {}, relation {:?}), gradient norm {}: not finite; samples {}…; {}; \
             lower optimizer.lr, lengthen optimizer.warmup_epochs or set optimizer.clip_grad",
            self.step + 1,
            rank.map_or_else(String::new, |rank| format!("on rank {rank} of {}, ", self.ranks.size())),
            outcome.total(),
            outcome.feature,
            outcome.relation,
            outcome.grad_norm,
            samples.join(", "),
            self.record.as_ref().map_or_else(String::new, Record::last_good)
        ))
    }

    fn finish(self, run: &RunDir, all_steps: usize, interrupted: bool, started: Instant) -> Result<Summary> {
        let mut summary = Summary {
            run: run.clone(),
            step: self.step,
            finished: self.step == all_steps,
            interrupted: interrupted && self.step < all_steps,
            loss: self.loss,
            skipped: 0,
            damaged: 0,
            seconds: started.elapsed().as_secs_f64(),
            probe_seconds: 0.0,
            waited: self.waited,
            pictures: Pictures::default(),
        };
        if let Some(record) = self.record {
            record.finish(&self.learner, &mut summary)?;
        }
        Ok(summary)
    }
}
