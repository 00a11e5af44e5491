//! What a run writes as it goes: `metrics.jsonl`, TensorBoard events, the lists of skipped and of damaged images.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::Write,
    path::PathBuf,
};

use super::unreadable::Drawn;
use crate::{
    Error, Result,
    data::Source,
    report::EventWriter,
    run_dir::{MetricsLog, RunDir, StepMetrics},
};

/// The files of a run that grow with its steps.
pub struct Log {
    metrics: MetricsLog,
    events: EventWriter,
    skipped: Names,
    damaged: Names,
}

impl Log {
    /// Opens the files after `step` steps; what earlier processes logged beyond that is dropped.
    ///
    /// # Errors
    /// A run directory that cannot be written.
    pub fn open(run: &RunDir, step: usize) -> Result<Self> {
        let metrics = run.metrics_from(step)?;
        let events = match step {
            0 => EventWriter::create(run.root())?,
            _ => EventWriter::resume(run.root(), step as u64 + 1)?,
        };
        Ok(Self {
            metrics,
            events,
            skipped: Names::open(run.skipped_path()),
            damaged: Names::open(run.damaged_path()),
        })
    }

    /// Logs one step.
    ///
    /// # Errors
    /// A full disk, say.
    pub fn step(&mut self, m: &StepMetrics) -> Result<()> {
        self.metrics.write(m)?;
        let step = m.step as u64;
        let relation = m.loss_relation.map(|r| ("loss/relation", r));
        let memory = m.peak_bytes.map(|b| ("memory/peak_bytes", b as f64));
        let probe = m.knn_top1.map(|a| ("probe/knn_top1", a));
        let scalars = [
            ("loss/total", m.loss),
            ("loss/feature", m.loss_feature),
            ("optimizer/lr", m.lr),
            ("optimizer/grad_norm", m.grad_norm),
            ("speed/images_per_s", m.images_per_s),
            ("speed/data_wait", m.data_wait),
        ];
        for (tag, value) in scalars.into_iter().chain(relation).chain(memory).chain(probe) {
            self.events.scalar(tag, value, step)?;
        }
        Ok(())
    }

    /// Lists images that could not be read, and those that are damaged, each once.
    ///
    /// # Errors
    /// A full disk, say.
    pub fn images(&mut self, drawn: &Drawn, source: &dyn Source) -> Result<()> {
        for image in &drawn.skipped {
            self.skipped.add(image.name.clone(), &image.reason)?;
        }
        for &sample in &drawn.damaged {
            let reason = "damaged: some of its coded data make no sense; used as far as it decodes";
            self.damaged.add(source.name(sample as usize), reason)?;
        }
        Ok(())
    }

    /// How many different images could not be read.
    pub fn skipped_count(&self) -> usize {
        self.skipped.known.len()
    }

    /// How many different images were used although they are damaged.
    pub fn damaged_count(&self) -> usize {
        self.damaged.known.len()
    }

    /// Brings everything to the files, and the metrics to the disk: a checkpoint must not be ahead of them.
    ///
    /// # Errors
    /// A full disk, say.
    pub fn flush(&mut self) -> Result<()> {
        self.metrics.sync()?;
        self.events.flush()
    }
}

/// A file that lists images, one a line with a reason.
struct Names {
    path: PathBuf,
    known: HashSet<String>,
}

impl Names {
    /// Goes on with a list; there is no file as long as it is empty.
    fn open(path: PathBuf) -> Self {
        let listed = fs::read_to_string(&path).unwrap_or_default();
        let names = listed.lines().filter_map(|line| line.split('\t').next());
        Self {
            known: names.map(str::to_string).collect(),
            path,
        }
    }

    fn add(&mut self, name: String, reason: &str) -> Result<()> {
        if self.known.contains(&name) {
            return Ok(());
        }
        let line = format!("{name}\t{}\n", reason.replace(['\n', '\t'], " "));
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        file.and_then(|mut f| f.write_all(line.as_bytes()))
            .map_err(|e| Error::File {
                path: self.path.clone(),
                reason: format!("cannot be written: {e}"),
            })?;
        self.known.insert(name);
        Ok(())
    }
}
