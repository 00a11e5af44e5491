//! Batches of images in a reproducible order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tec_core::mask;
use tec_core::philox::{Noise, Stream};

use super::worker::{Job, Outcome, Workers};
use super::{Augment, Source};
use crate::{Error, Result, ranks};
use tec_image::check_channels;

/// In which order a loader goes through its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Training: every epoch in another order, a function of (seed, epoch, number of images).
    Shuffled {
        /// Whether an epoch's last batch is left out when it is not full.
        drop_last: bool,
    },
    /// Evaluation: as the source has them; the last batch may be smaller.
    Sequential,
}

/// What a loader makes of a source.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderConfig {
    /// Images a batch.
    pub batch_size: usize,
    /// Side of the squares in [`Batch::pixels`].
    pub image_size: usize,
    /// Side of a second copy of the same squares in [`Batch::pixels2`], for a base of another patch size.
    pub second_size: Option<usize>,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// How images become squares.
    pub augment: Augment,
    /// Batches that make one step of training together: an epoch has a whole number of such groups.
    pub group: usize,
    /// This rank and how many ranks there are: each takes its share of every batch, see [`ranks::share`].
    pub share: (usize, usize),
    /// In which order they come.
    pub order: Order,
    /// The run's seed.
    pub seed: u64,
    /// Threads that decode; the batches are the same for any number.
    pub threads: usize,
    /// Batches prepared ahead of the one in use. Memory for 1 + `prefetch` batches is needed.
    pub prefetch: usize,
}

impl LoaderConfig {
    /// Shuffled, the last batch dropped, crops of 0.2 to 1 of the area, mirrored; one thread for each core.
    pub fn train(image_size: usize, channels: usize, batch_size: usize, seed: u64) -> Self {
        Self {
            batch_size,
            image_size,
            second_size: None,
            channels,
            augment: Augment::Train {
                scale: (0.2, 1.0),
                flip: true,
            },
            group: 1,
            share: (0, 1),
            order: Order::Shuffled { drop_last: true },
            seed,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            prefetch: 2,
        }
    }

    /// In order, nothing dropped, evaluation's crop; one thread for each core.
    pub fn eval(image_size: usize, channels: usize, batch_size: usize) -> Self {
        Self {
            augment: Augment::Eval,
            order: Order::Sequential,
            ..Self::train(image_size, channels, batch_size, 0)
        }
    }

    fn validate(&self, images: usize) -> Result<()> {
        check_channels(self.channels).map_err(Error::Usage)?;
        self.augment.validate()?;
        let counts = [
            ("the batch size", self.batch_size),
            ("the image size", self.image_size),
            ("the second image size", self.second_size.unwrap_or(1)),
            ("the number of loader threads", self.threads),
        ];
        if let Some((what, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(Error::Usage(format!("{what} is 0; give at least 1")));
        }
        if images == 0 {
            return Err(Error::Data("there are no images to load".into()));
        }
        if u32::try_from(images).is_err() {
            return Err(Error::Data(format!(
                "{images} images are more than the {} that can be numbered",
                u32::MAX
            )));
        }
        if self.order == (Order::Shuffled { drop_last: true }) && images < self.batch_size {
            return Err(Error::Usage(format!(
                "a batch size of {} with {images} images: no batch is ever full; give at most {images}",
                self.batch_size
            )));
        }
        Ok(())
    }
}

/// An image that was left out of its batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its number in the source.
    pub sample: u32,
    /// Its name, see [`Source::name`].
    pub name: String,
    /// Why it cannot be used.
    pub reason: String,
}

/// Images ready for a model. B is `samples.len()`: the batch size, or the rank's share of it, less the skipped images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The epoch it belongs to.
    pub epoch: u32,
    /// Its number within the epoch.
    pub step: usize,
    /// `[B, image_size, image_size, channels]`.
    pub pixels: Vec<u8>,
    /// `[B, second_size, second_size, channels]`: the same crops, mirrored alike; empty without a second size.
    pub pixels2: Vec<u8>,
    /// The images' numbers in the source, which also decide on their masks.
    pub samples: Vec<u32>,
    /// Their classes.
    pub labels: Vec<Option<u32>>,
    /// The images that cannot be used.
    pub skipped: Vec<Skipped>,
    /// Those of `samples` whose coded data are damaged where the crop needed them: they are used as far as they decode.
    pub damaged: Vec<u32>,
    /// How long the caller waited for this batch.
    pub wait: Duration,
}

impl Batch {
    /// The number of images.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether every image was skipped.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

/// Makes batches of a source.
pub struct Loader {
    source: Arc<dyn Source>,
    config: Arc<LoaderConfig>,
}

impl Loader {
    /// A loader; threads start with [`Loader::batches`].
    ///
    /// # Errors
    /// [`Error::Usage`] for a zero size or count, channels other than 1 or 3, impossible crops, or a batch larger than the
    /// data where the last one is dropped; [`Error::Data`] without images.
    pub fn new(source: Arc<dyn Source>, config: LoaderConfig) -> Result<Self> {
        config.validate(source.len())?;
        Ok(Self {
            source,
            config: Arc::new(config),
        })
    }

    /// Batches an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        match self.config.order {
            Order::Shuffled { drop_last: true } => {
                let group = self.config.group.max(1);
                self.source.len() / (self.config.batch_size * group) * group
            }
            _ => self.source.len().div_ceil(self.config.batch_size),
        }
    }

    /// The batches from `step` of `epoch` to the end of epoch `epochs - 1`, prepared across epochs without a pause. They are
    /// those that a loader started at the beginning yields from there on.
    ///
    /// # Errors
    /// [`Error::Usage`] when an epoch has fewer than `step` steps, [`Error::Data`] when no thread can be started.
    pub fn batches(&self, epoch: u32, step: usize, epochs: u32) -> Result<Batches> {
        let steps = self.steps_per_epoch();
        if step > steps {
            return Err(Error::Usage(format!(
                "cannot start at step {step} of an epoch of {steps} steps; the data or the batch size have changed"
            )));
        }
        Ok(Batches {
            source: Arc::clone(&self.source),
            config: Arc::clone(&self.config),
            workers: Workers::spawn(&self.source, &self.config)?,
            steps,
            epochs,
            next: (epoch, step),
            order: None,
            pending: VecDeque::new(),
            submitted: 0,
            // An epoch entered midway has shown readable images before, or may have.
            readable: usize::from(step > 0),
            waited: Duration::ZERO,
            failed: false,
        })
    }
}

/// The samples of one epoch in their shuffled order: the stable argsort of one noise value a sample.
fn shuffled(seed: u64, epoch: u32, images: usize) -> Result<Vec<u32>> {
    let mut keys = vec![0.0; images];
    Noise {
        seed,
        epoch,
        sample: 0,
        stream: Stream::Order,
    }
    .fill(&mut keys);
    let mut order = vec![0; images];
    mask::argsort(&keys, &mut order)?;
    Ok(order)
}

/// A batch whose images are under way.
struct Pending {
    epoch: u32,
    step: usize,
    samples: Vec<u32>,
    outcomes: Vec<Option<Outcome>>,
    missing: usize,
}

/// Iterator over batches, see [`Loader::batches`]. Dropping it stops its threads. After an error it ends.
pub struct Batches {
    source: Arc<dyn Source>,
    config: Arc<LoaderConfig>,
    workers: Workers,
    steps: usize,
    epochs: u32,
    /// Epoch and step of the next batch to submit.
    next: (u32, usize),
    /// The epoch that was shuffled last and its order.
    order: Option<(u32, Vec<u32>)>,
    /// Batches under way, the next one to yield first.
    pending: VecDeque<Pending>,
    /// Batches submitted so far.
    submitted: u64,
    /// Images yielded from the current epoch.
    readable: usize,
    waited: Duration,
    failed: bool,
}

impl Batches {
    /// How long [`Iterator::next`] has waited for data in all.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    fn advance(&mut self) -> Result<Option<Batch>> {
        self.submit()?;
        let start = Instant::now();
        while self.pending.front().is_some_and(|batch| batch.missing > 0) {
            self.receive()?;
        }
        let wait = start.elapsed();
        self.waited += wait;
        let Some(done) = self.pending.pop_front() else {
            return Ok(None);
        };
        // The threads get on with the next batches while the caller works on this one.
        self.submit()?;
        let batch = self.assemble(done, wait)?;
        self.check_readable(&batch)?;
        Ok(Some(batch))
    }

    /// Keeps `1 + prefetch` batches under way.
    fn submit(&mut self) -> Result<()> {
        while self.pending.len() <= self.config.prefetch {
            if self.next.1 >= self.steps {
                self.next = (self.next.0.saturating_add(1), 0);
            }
            let (epoch, step) = self.next;
            if epoch >= self.epochs {
                return Ok(());
            }
            let samples = self.samples(epoch, step)?;
            let batch = self.submitted;
            for (position, &sample) in samples.iter().enumerate() {
                self.workers.submit(Job {
                    batch,
                    position,
                    epoch,
                    sample,
                })?;
            }
            let missing = samples.len();
            let outcomes = (0..missing).map(|_| None).collect();
            self.pending.push_back(Pending {
                epoch,
                step,
                samples,
                outcomes,
                missing,
            });
            self.submitted += 1;
            self.next.1 += 1;
        }
        Ok(())
    }

    fn samples(&mut self, epoch: u32, step: usize) -> Result<Vec<u32>> {
        let images = self.source.len();
        let batch_start = (step * self.config.batch_size).min(images);
        let batch_end = (batch_start + self.config.batch_size).min(images);
        let (rank, size) = self.config.share;
        let share = ranks::share(batch_end - batch_start, rank, size);
        let (start, end) = (batch_start + share.start, batch_start + share.end);
        if self.config.order == Order::Sequential {
            // `LoaderConfig::validate` made sure that the numbers fit.
            return Ok((start as u32..end as u32).collect());
        }
        let order = match self.order.take() {
            Some((shuffled, order)) if shuffled == epoch => order,
            _ => shuffled(self.config.seed, epoch, images)?,
        };
        let samples = order.get(start..end).unwrap_or_default().to_vec();
        self.order = Some((epoch, order));
        Ok(samples)
    }

    fn receive(&mut self) -> Result<()> {
        let done = self.workers.receive()?;
        let first = self.submitted - self.pending.len() as u64;
        let pending = done
            .batch
            .checked_sub(first)
            .and_then(|at| self.pending.get_mut(at as usize));
        let slot = pending.and_then(|batch| {
            batch.missing = batch.missing.saturating_sub(1);
            batch.outcomes.get_mut(done.position)
        });
        if let Some(slot) = slot {
            *slot = Some(done.outcome);
        }
        Ok(())
    }

    fn assemble(&self, done: Pending, wait: Duration) -> Result<Batch> {
        let Pending {
            epoch,
            step,
            samples,
            outcomes,
            ..
        } = done;
        let bytes = |size: usize| size * size * self.config.channels * samples.len();
        let mut batch = Batch {
            epoch,
            step,
            pixels: Vec::with_capacity(bytes(self.config.image_size)),
            pixels2: Vec::with_capacity(self.config.second_size.map_or(0, bytes)),
            wait,
            ..Batch::default()
        };
        for (sample, outcome) in samples.into_iter().zip(outcomes) {
            let index = sample as usize;
            match outcome {
                Some(Outcome::Ready(image)) => {
                    batch.pixels.extend_from_slice(&image.pixels);
                    batch.pixels2.extend_from_slice(&image.pixels2);
                    batch.samples.push(sample);
                    if image.damaged {
                        batch.damaged.push(sample);
                    }
                    batch.labels.push(self.source.label(index));
                }
                Some(Outcome::Skipped(reason)) => {
                    batch.skipped.push(Skipped {
                        sample,
                        name: self.source.name(index),
                        reason,
                    });
                }
                Some(Outcome::Panicked) | None => {
                    let name = self.source.name(index);
                    return Err(Error::Data(format!(
                        "a thread failed while preparing {name}; this is a fault of the program, please report it"
                    )));
                }
            }
        }
        Ok(batch)
    }

    /// Skipping is for the odd file: an epoch without a single usable image is an error. A share alone does not tell.
    fn check_readable(&mut self, batch: &Batch) -> Result<()> {
        if self.config.share.1 > 1 {
            return Ok(());
        }
        self.readable += batch.len();
        if batch.step + 1 < self.steps {
            return Ok(());
        }
        match (std::mem::take(&mut self.readable), batch.skipped.first()) {
            (0, Some(first)) => Err(Error::Data(format!(
                "none of the images of an epoch could be used; the last ones failed with: {}: {}",
                first.name, first.reason
            ))),
            _ => Ok(()),
        }
    }
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let batch = self.advance();
        self.failed = batch.is_err();
        batch.transpose()
    }
}

#[cfg(test)]
mod tests;
