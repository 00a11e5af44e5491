//! The run directory, the same for every run: `recipe.toml`, `checkpoints/`, `encoder.safetensors`, `metrics.jsonl`,
//! TensorBoard events, `report/`.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, atomic, recipe::Recipe};

/// What to do with an output directory that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Refuse.
    #[default]
    Refuse,
    /// Go on with the run in it.
    Resume,
    /// Remove the run in it and start anew.
    Overwrite,
}

/// A run's directory.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
}

/// One line of `metrics.jsonl`: a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Step number, from 1.
    pub step: usize,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// Total loss.
    pub loss: f64,
    /// Feature loss (MAE: the pixel loss).
    pub loss_feature: f64,
    /// Relation loss (MAE: null).
    pub loss_relation: Option<f64>,
    /// Learning rate of the step.
    pub lr: f64,
    /// L2 norm of all gradients.
    pub grad_norm: f64,
    /// Images a second since the previous line.
    pub images_per_s: f64,
    /// Share of the time spent waiting for data.
    pub data_wait: f64,
    /// Largest resident memory of the process so far, in bytes (null where the system does not tell).
    pub peak_bytes: Option<u64>,
}

impl RunDir {
    /// The next free `runs/NAME-N`.
    ///
    /// # Errors
    /// None today; the signature leaves room for an unreadable `runs/`.
    pub fn next_free(name: &str) -> Result<PathBuf> {
        let mut n = 1usize;
        loop {
            let path = Path::new("runs").join(format!("{name}-{n}"));
            if !path.exists() {
                return Ok(path);
            }
            n += 1;
        }
    }

    /// Checks that a run may be written to `root`, touching nothing.
    ///
    /// # Errors
    /// A path that exists and may not be used as `existing` says.
    pub fn check(root: &Path, existing: Existing) -> Result<()> {
        let usage = |text: &str| Err(Error::Usage(format!("--out {}: {text}", root.display())));
        let is_run = root.join("recipe.toml").is_file();
        match existing {
            Existing::Resume if !root.exists() => usage("there is no run to resume; leave --resume out to start one"),
            Existing::Resume if !is_run => usage("no run (it has no recipe.toml); nothing to resume"),
            Existing::Resume => Ok(()),
            _ if !root.exists() => Ok(()),
            Existing::Overwrite if is_run => Ok(()),
            Existing::Overwrite => {
                usage("exists and is no run (it has no recipe.toml), so it is not removed; choose another --out")
            }
            Existing::Refuse if root.is_dir() && fs::read_dir(root).is_ok_and(|mut d| d.next().is_none()) => Ok(()),
            Existing::Refuse => usage("exists; choose another --out, or --resume the run in it, or --overwrite it"),
        }
    }

    /// Creates the directory with its recipe. With [`Existing::Overwrite`] a run that is there is removed first.
    ///
    /// # Errors
    /// As [`Self::check`], and a directory that cannot be written.
    pub fn create(root: &Path, recipe: &Recipe, existing: Existing) -> Result<Self> {
        Self::check(root, existing)?;
        let fail = |e: std::io::Error| Error::File {
            path: root.to_path_buf(),
            reason: format!("cannot be written: {e}"),
        };
        if existing == Existing::Overwrite && root.exists() {
            fs::remove_dir_all(root).map_err(fail)?;
        }
        fs::create_dir_all(root.join("checkpoints")).map_err(fail)?;
        let dir = Self {
            root: root.to_path_buf(),
        };
        atomic::write(&dir.recipe_path(), recipe.to_toml()?.as_bytes())?;
        Ok(dir)
    }

    /// An existing run.
    ///
    /// # Errors
    /// A directory without `recipe.toml`.
    pub fn open(root: &Path) -> Result<Self> {
        if !root.join("recipe.toml").is_file() {
            return Err(Error::File {
                path: root.to_path_buf(),
                reason: "no run directory (it has no recipe.toml); give a directory that `tec pretrain` wrote".into(),
            });
        }
        Ok(Self {
            root: root.to_path_buf(),
        })
    }

    /// Removes the temporary files that a killed process left behind.
    ///
    /// # Errors
    /// A directory that cannot be read or written.
    pub fn sweep(&self) -> Result<()> {
        [self.root.clone(), self.checkpoints()]
            .iter()
            .try_for_each(|folder| atomic::sweep(folder))
    }

    /// Removes the directory if no step was logged in it: nothing half-written stays behind.
    ///
    /// # Errors
    /// A directory that cannot be removed.
    pub fn discard_unless_begun(&self) -> Result<()> {
        if !self.metrics()?.is_empty() {
            return Ok(());
        }
        fs::remove_dir_all(&self.root).map_err(|e| Error::File {
            path: self.root.clone(),
            reason: format!("no step was done in it, but it cannot be removed: {e}"),
        })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `recipe.toml`, every value spelled out.
    pub fn recipe_path(&self) -> PathBuf {
        self.root.join("recipe.toml")
    }

    /// `checkpoints/`.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// `encoder.safetensors`, the encoder under timm's names.
    pub fn encoder_path(&self) -> PathBuf {
        self.root.join("encoder.safetensors")
    }

    /// `encoder.tec`, the quantized encoder, where one was made.
    pub fn device_encoder_path(&self) -> PathBuf {
        self.root.join("encoder.tec")
    }

    /// `report/`.
    pub fn report(&self) -> PathBuf {
        self.root.join("report")
    }

    /// `metrics.jsonl`.
    pub fn metrics_path(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// `skipped.txt`: images that could not be read, one a line with the reason.
    pub fn skipped_path(&self) -> PathBuf {
        self.root.join("skipped.txt")
    }

    /// Images that could not be read, with the reason.
    ///
    /// # Errors
    /// A file that exists but cannot be read.
    pub fn skipped(&self) -> Result<Vec<(String, String)>> {
        let path = self.skipped_path();
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&path).map_err(|e| Error::File {
            path,
            reason: e.to_string(),
        })?;
        Ok(text
            .lines()
            .filter_map(|l| l.split_once('\t'))
            .map(|(n, r)| (n.into(), r.into()))
            .collect())
    }

    /// Every step logged so far. A last line cut off by a kill is left out.
    ///
    /// # Errors
    /// A file that exists but cannot be read.
    pub fn metrics(&self) -> Result<Vec<StepMetrics>> {
        let path = self.metrics_path();
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&path).map_err(|e| Error::File {
            path,
            reason: e.to_string(),
        })?;
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }

    /// Opens `metrics.jsonl` for appending, first dropping the steps after `step`: a resumed run logs them again.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn metrics_from(&self, step: usize) -> Result<MetricsLog> {
        let kept = self.metrics()?.into_iter().filter(|m| m.step <= step);
        let mut text = String::new();
        for line in kept {
            text.push_str(&to_json(&line)?);
        }
        let path = self.metrics_path();
        atomic::write(&path, text.as_bytes())?;
        let file = fs::OpenOptions::new().append(true).open(&path);
        Ok(MetricsLog {
            file: file.map_err(|e| Error::File {
                path: path.clone(),
                reason: e.to_string(),
            })?,
            path,
        })
    }
}

fn to_json(metrics: &StepMetrics) -> Result<String> {
    let line = serde_json::to_string(metrics).map_err(|e| Error::Data(format!("metrics: {e}")))?;
    Ok(line + "\n")
}

/// `metrics.jsonl`, open for appending.
#[derive(Debug)]
pub struct MetricsLog {
    file: fs::File,
    path: PathBuf,
}

impl MetricsLog {
    /// Appends one line.
    ///
    /// # Errors
    /// A full disk, say.
    pub fn write(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.file
            .write_all(to_json(metrics)?.as_bytes())
            .map_err(|e| Error::File {
                path: self.path.clone(),
                reason: format!("cannot be written: {e}"),
            })
    }
}

/// Largest resident memory of this process so far, in bytes, where the system tells.
pub fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}
