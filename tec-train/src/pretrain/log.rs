//! What a run writes as it goes: `metrics.jsonl`, TensorBoard events, the list of skipped images.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::Write,
};

use crate::{
    Error, Result,
    data::Skipped,
    report::EventWriter,
    run_dir::{MetricsLog, RunDir, StepMetrics},
};

/// The files of a run that grow with its steps.
pub struct Log {
    metrics: MetricsLog,
    events: EventWriter,
    skipped: HashSet<String>,
    run: RunDir,
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
        let listed = fs::read_to_string(run.skipped_path()).unwrap_or_default();
        let skipped = listed
            .lines()
            .filter_map(|l| l.split('\t').next())
            .map(str::to_string)
            .collect();
        Ok(Self {
            metrics,
            events,
            skipped,
            run: run.clone(),
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

    /// Lists images that could not be read, each once.
    ///
    /// # Errors
    /// A full disk, say.
    pub fn skipped(&mut self, skipped: &[Skipped]) -> Result<()> {
        for image in skipped {
            if !self.skipped.insert(image.name.clone()) {
                continue;
            }
            let path = self.run.skipped_path();
            let line = format!("{}\t{}\n", image.name, image.reason.replace(['\n', '\t'], " "));
            let file = OpenOptions::new().create(true).append(true).open(&path);
            file.and_then(|mut f| f.write_all(line.as_bytes()))
                .map_err(|e| Error::File {
                    path,
                    reason: format!("cannot be written: {e}"),
                })?;
        }
        Ok(())
    }

    /// How many different images could not be read.
    pub fn skipped_count(&self) -> usize {
        self.skipped.len()
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
