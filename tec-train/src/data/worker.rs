//! The threads that decode and augment.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use tec_core::philox::{Noise, Stream};

use super::{Decoder, LoaderConfig, Placement, Resizer, Source, Stored};
use crate::{Error, Result};

/// One image to prepare and where it belongs.
pub(super) struct Job {
    pub batch: u64,
    pub position: usize,
    pub epoch: u32,
    pub sample: u32,
}

/// A job's outcome.
pub(super) struct Done {
    pub batch: u64,
    pub position: usize,
    pub outcome: Outcome,
}

pub(super) enum Outcome {
    Ready(Prepared),
    /// This image cannot be used, for this reason.
    Skipped(String),
    /// The code failed, not the image.
    Panicked,
}

/// A square of an image, and the second copy where the configuration asks for one.
pub(super) struct Prepared {
    pub pixels: Vec<u8>,
    pub pixels2: Vec<u8>,
    /// Whether coded data of its file were damaged, as far as the crop needed them.
    pub damaged: bool,
}

/// Threads that take jobs until they are dropped. Dropping waits for the images under way, not for those still queued.
pub(super) struct Workers {
    /// `None` only while dropping.
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub(super) fn spawn(source: &Arc<dyn Source>, config: &Arc<LoaderConfig>) -> Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (results, done) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = Self {
            jobs: Some(jobs),
            done,
            stop,
            threads: Vec::new(),
        };
        for _ in 0..config.threads {
            let (source, config) = (Arc::clone(source), Arc::clone(config));
            let (queue, results, stop) = (Arc::clone(&queue), results.clone(), Arc::clone(&workers.stop));
            let thread = Builder::new()
                .name("images".into())
                .spawn(move || work(&*source, &config, &queue, &results, &stop))
                .map_err(|error| Error::Data(format!("cannot start a thread to decode images: {error}")))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    pub(super) fn submit(&self, job: Job) -> Result<()> {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        if matches!(sent, Some(Ok(()))) {
            Ok(())
        } else {
            Err(gone())
        }
    }

    /// Waits for the next outcome, in whatever order they come.
    pub(super) fn receive(&self) -> Result<Done> {
        self.done.recv().map_err(|_| gone())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic was reported as an outcome already.
            let _ = thread.join();
        }
    }
}

fn gone() -> Error {
    Error::Data("the threads that decode images have stopped".into())
}

fn work(
    source: &dyn Source,
    config: &LoaderConfig,
    queue: &Mutex<Receiver<Job>>,
    results: &Sender<Done>,
    stop: &AtomicBool,
) {
    let mut tools = Tools::default();
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let prepared = catch_unwind(AssertUnwindSafe(|| prepare(source, config, &job, &mut tools)));
        let outcome = match prepared {
            Ok(Ok(prepared)) => Outcome::Ready(prepared),
            Ok(Err(reason)) => Outcome::Skipped(reason),
            Err(_) => Outcome::Panicked,
        };
        if results
            .send(Done {
                batch: job.batch,
                position: job.position,
                outcome,
            })
            .is_err()
        {
            return;
        }
    }
}

/// What a thread keeps between images.
#[derive(Default)]
struct Tools {
    decoder: Decoder,
    resizer: Resizer,
}

fn prepare(source: &dyn Source, config: &LoaderConfig, job: &Job, tools: &mut Tools) -> Result<Prepared, String> {
    let noise = Noise {
        seed: config.seed,
        epoch: job.epoch,
        sample: job.sample,
        stream: Stream::Augment,
    };
    let place = |width, height| config.augment.place(width, height, config.image_size, &noise);
    let (image, placement, damaged) = match source.read(job.sample as usize)? {
        Stored::Pixels(image) => {
            let placement = place(image.width, image.height);
            (image, placement, false)
        }
        Stored::File(bytes) => {
            let smallest = config
                .second_size
                .map_or(config.image_size, |size| size.min(config.image_size));
            let mut flip = false;
            let (image, region) = tools.decoder.part(&bytes, smallest, |width, height| {
                let placement = place(width, height);
                flip = placement.flip;
                placement.region
            })?;
            (image, Placement { region, flip }, tools.decoder.damaged())
        }
    };
    // Grey is repeated last, which gives the same values; RGB becomes grey first, as PIL's users do it.
    let image = if config.channels < image.channels {
        image.into_channels(config.channels)?
    } else {
        image
    };
    let mut take = |size| {
        let square = placement.take(&image, size, &mut tools.resizer)?;
        Ok::<_, String>(match image.channels < config.channels {
            true => square.into_iter().flat_map(|grey| [grey; 3]).collect(),
            false => square,
        })
    };
    let pixels = take(config.image_size)?;
    let pixels2 = config.second_size.map_or(Ok(Vec::new()), take)?;
    Ok(Prepared {
        pixels,
        pixels2,
        damaged,
    })
}
