//! The run directory, the same for every run: `recipe.toml`, `checkpoints/`, `encoder.safetensors`, `metrics.jsonl`,
//! TensorBoard events, `report/`, `lock`.

mod lock;

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::lock::RunLock;
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
    /// Accuracy of the k-NN probe, 0 to 1; only in the lines of steps that had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub knn_top1: Option<f64>,
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
            Existing::Overwrite if is_run || root.is_dir() && is_unbegun(root) => Ok(()),
            Existing::Overwrite => {
                usage("exists and is no run (it has no recipe.toml), so it is not removed; choose another --out")
            }
            Existing::Refuse if root.is_dir() && is_unbegun(root) => Ok(()),
            Existing::Refuse => usage("exists; choose another --out, or --resume the run in it, or --overwrite it"),
        }
    }

    /// Creates the directory with its recipe and locks it. With [`Existing::Overwrite`] a run that is there is removed first.
    ///
    /// # Errors
    /// As [`Self::check`], a directory that another process trains in, and one that cannot be written.
    pub fn create(root: &Path, recipe: &Recipe, existing: Existing) -> Result<(Self, RunLock)> {
        Self::check(root, existing)?;
        let fail = |e: std::io::Error| Error::File {
            path: root.to_path_buf(),
            reason: format!("cannot be written: {e}"),
        };
        fs::create_dir_all(root).map_err(fail)?;
        let lock = RunLock::acquire(root)?;
        // Another process may have made a run here since, and ended.
        Self::check(root, existing)?;
        if existing == Existing::Overwrite {
            remove_contents(root).map_err(fail)?;
        }
        let dir = Self {
            root: root.to_path_buf(),
        };
        // A directory with a recipe is a run, whatever else it lacks.
        atomic::write(&dir.recipe_path(), recipe.to_toml()?.as_bytes())?;
        dir.complete()?;
        Ok((dir, lock))
    }

    /// Makes the folders of a run whose process was killed before it could.
    ///
    /// # Errors
    /// A directory that cannot be written.
    pub fn complete(&self) -> Result<()> {
        let folder = self.checkpoints();
        fs::create_dir_all(&folder).map_err(|e| Error::File {
            path: folder,
            reason: format!("cannot be made: {e}"),
        })
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

    /// The directory that rank 0 of a job writes, on another rank, whose machine may not even have it.
    pub(crate) fn of_rank_0(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
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

    /// The command that goes on with this run.
    pub fn resume_command(&self) -> String {
        let path = self.root.display().to_string();
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
        let quoted = match path.chars().all(plain) {
            true => path,
            false => format!("'{}'", path.replace('\'', "'\\''")),
        };
        format!("tec pretrain --out {quoted} --resume")
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

    /// `damaged.txt`: images that were used although their coded data are damaged, as [`Self::skipped_path`].
    pub fn damaged_path(&self) -> PathBuf {
        self.root.join("damaged.txt")
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

/// Whether nothing is in a directory but what a process killed while it made a run there may have left.
fn is_unbegun(root: &Path) -> bool {
    let leftover = |name: &OsStr| name == lock::NAME || atomic::is_leftover(name);
    let of_no_matter = |entry: std::io::Result<fs::DirEntry>| entry.is_ok_and(|e| leftover(&e.file_name()));
    fs::read_dir(root).is_ok_and(|mut entries| entries.all(of_no_matter))
}

/// Removes what is in a run's directory but for its lock; the recipe last, so that until then it is known as a run.
fn remove_contents(root: &Path) -> std::io::Result<()> {
    let mut recipe = None;
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        match (entry.file_name(), entry.file_type()?.is_dir()) {
            (name, _) if name == lock::NAME => {}
            (name, _) if name == "recipe.toml" => recipe = Some(entry.path()),
            (_, true) => fs::remove_dir_all(entry.path())?,
            (_, false) => fs::remove_file(entry.path())?,
        }
    }
    recipe.map_or(Ok(()), fs::remove_file)
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
        let written = self.file.write_all(to_json(metrics)?.as_bytes());
        written.map_err(|e| self.unwritten(&e))
    }

    /// Brings every line to the disk.
    ///
    /// # Errors
    /// A disk that fails.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|e| self.unwritten(&e))
    }

    fn unwritten(&self, error: &std::io::Error) -> Error {
        Error::File {
            path: self.path.clone(),
            reason: format!("cannot be written: {error}"),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: usize, value: f64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: value,
            loss: value,
            loss_feature: value / 3.0,
            loss_relation: step.is_multiple_of(2).then_some(value * 0.7),
            lr: value * 1e-9,
            grad_norm: value.sqrt(),
            images_per_s: 1e12 / (1.0 + value),
            data_wait: value.sin(),
            peak_bytes: Some(u64::MAX - step as u64),
            knn_top1: step.is_multiple_of(3).then_some(1.0 / (1.0 + value)),
        }
    }

    fn run() -> (tempfile::TempDir, RunDir) {
        let folder = tempfile::tempdir().unwrap();
        let recipe = crate::recipe::RecipeBuilder::new().build().unwrap();
        let (run, _) = RunDir::create(&folder.path().join("run"), &recipe, Existing::Refuse).unwrap();
        (folder, run)
    }

    /// Numbers whose last digit is lost by readers that round twice, and others from a wide range.
    #[test]
    fn metrics_come_back_to_the_last_bit() {
        let (_folder, run) = run();
        let mut values = vec![
            0.1 + 0.2,
            5e-324,
            f64::MAX,
            2.0f64.powi(53) + 2.0,
            122.416_294_033_786_58,
            1.0 / 3.0,
        ];
        let mut state = 1u64;
        values.extend((0..2000).map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let mantissa = (state >> 11) as f64;
            mantissa * 2.0f64.powi((state % 120) as i32 - 100)
        }));
        let lines: Vec<StepMetrics> = values.iter().enumerate().map(|(n, v)| line(n + 1, *v)).collect();
        let mut log = run.metrics_from(0).unwrap();
        lines.iter().for_each(|l| log.write(l).unwrap());
        log.sync().unwrap();
        assert_eq!(run.metrics().unwrap(), lines);
        // A resumed run writes them once more.
        let before = fs::read(run.metrics_path()).unwrap();
        run.metrics_from(lines.len()).unwrap();
        assert_eq!(fs::read(run.metrics_path()).unwrap(), before);
    }

    #[test]
    fn lines_after_the_step_and_half_lines_are_dropped() {
        let (_folder, run) = run();
        let mut log = run.metrics_from(0).unwrap();
        (1..=5).for_each(|n| log.write(&line(n, n as f64)).unwrap());
        let whole = fs::read(run.metrics_path()).unwrap();
        fs::write(run.metrics_path(), &whole[..whole.len() - 9]).unwrap();
        assert_eq!(run.metrics().unwrap().len(), 4);
        let mut log = run.metrics_from(3).unwrap();
        log.write(&line(4, 40.0)).unwrap();
        let losses: Vec<f64> = run.metrics().unwrap().iter().map(|m| m.loss).collect();
        assert_eq!(losses, [1.0, 2.0, 3.0, 40.0]);
    }

    #[test]
    fn what_a_killed_start_leaves_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("run");
        fs::create_dir(&root).unwrap();
        fs::write(root.join(".writing-abc"), "half").unwrap();
        fs::write(root.join("lock"), "").unwrap();
        RunDir::check(&root, Existing::Refuse).unwrap();
        RunDir::check(&root, Existing::Overwrite).unwrap();
        fs::write(root.join("notes.txt"), "mine").unwrap();
        assert!(RunDir::check(&root, Existing::Refuse).is_err());
        // Killed right after the recipe.
        let (_folder, run) = self::run();
        fs::remove_dir(run.checkpoints()).unwrap();
        RunDir::check(run.root(), Existing::Resume).unwrap();
        run.complete().unwrap();
        assert!(run.checkpoints().is_dir());
    }

    #[test]
    fn the_command_to_resume_can_be_pasted() {
        let command = |path: &str| RunDir { root: path.into() }.resume_command();
        assert_eq!(command("runs/tec-1"), "tec pretrain --out runs/tec-1 --resume");
        assert_eq!(command("my runs/a"), "tec pretrain --out 'my runs/a' --resume");
        assert_eq!(command("it's"), "tec pretrain --out 'it'\\''s' --resume");
    }
}
