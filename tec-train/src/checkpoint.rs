//! Training state on disk: weights, moments and the step, in one safetensors file a checkpoint.
//!
//! Tensors are `model.NAME`, `optimizer.m.NAME`, `optimizer.v.NAME` and, where the recipe asks for an average of the weights,
//! `ema.NAME`; the metadata key `tec_state` holds the rest as JSON. Masks, augmentation and sample order are functions of
//! (seed, epoch, sample), so no random state needs keeping. The metadata key `tec_checksum` is the CRC-32 of the whole file,
//! its own eight digits taken as zeros.

mod file;
mod seal;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor, safetensors::Load};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, atomic, model::EncoderMetadata};

/// Version of the state's layout; a file of another version is refused.
const VERSION: u32 = 2;
const METADATA_KEY: &str = "tec_state";

/// What is known besides the tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Layout version.
    pub version: u32,
    /// Steps done.
    pub step: usize,
    /// Updates of the weights among them: a step of which no image could be read has none.
    pub updates: u64,
    /// Steps of one epoch when it was written: another data set or batch size cannot continue it.
    pub steps_per_epoch: usize,
    /// Images in the data set when it was written.
    pub images: usize,
    /// CRC-32 of the sample numbers and visible patches of every step so far, in their order: two runs that saw the same have
    /// the same, however they were split, stopped or resumed.
    pub seen: u32,
    /// Mean loss of the last epoch's worth of steps.
    pub mean_loss: Option<f64>,
    /// Accuracy of the k-NN probe at this step, if there was one.
    pub knn_top1: Option<f64>,
}

impl State {
    /// A state of the current layout version; the rest is the caller's to fill.
    pub fn new(step: usize, steps_per_epoch: usize, images: usize) -> Self {
        Self {
            version: VERSION,
            step,
            steps_per_epoch,
            images,
            ..Self::default()
        }
    }

    /// Whether this is a better encoder than `other`'s: by the probe where there was one, which counts more than none, else by the
    /// mean loss; of equals the later one.
    fn is_better_than(&self, other: &Self) -> bool {
        let by_loss = || {
            let loss = |s: &Self| s.mean_loss.unwrap_or(f64::INFINITY);
            loss(self) < loss(other) || (loss(self) == loss(other) && self.step > other.step)
        };
        match (self.knn_top1, other.knn_top1) {
            (Some(a), Some(b)) => a > b || (a == b && self.step > other.step),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => by_loss(),
        }
    }
}

/// One checkpoint.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Every tensor by its name in the file.
    pub tensors: HashMap<String, Tensor>,
    /// Where the run stood.
    pub state: State,
    /// What the encoder in it says about itself, so that a checkpoint can be a base.
    pub encoder: EncoderMetadata,
    /// The file it came from, for messages.
    pub origin: PathBuf,
}

impl Checkpoint {
    /// Writes `FOLDER/step-NNNNNNNN.safetensors` atomically, then removes all but the newest `keep` and the best.
    ///
    /// # Errors
    /// A folder that cannot be written; older checkpoints are then untouched.
    pub fn write(self, folder: &Path, keep: usize) -> Result<PathBuf> {
        let path = folder.join(format!("step-{:08}.safetensors", self.state.step));
        let fail = |reason: String| Error::File {
            path: path.clone(),
            reason: format!("cannot be written: {reason}"),
        };
        let json = |e: serde_json::Error| fail(e.to_string());
        let metadata = BTreeMap::from([
            (METADATA_KEY, serde_json::to_string(&self.state).map_err(json)?),
            (
                EncoderMetadata::KEY,
                serde_json::to_string(&self.encoder).map_err(json)?,
            ),
        ]);
        atomic::write_with(&path, |file| file::write(file, &self.tensors, &metadata))?;
        let mut old = list(folder)?;
        old.truncate(old.len().saturating_sub(keep));
        let best = best(folder)?;
        for old in old
            .into_iter()
            .filter(|old| best.as_ref().is_none_or(|(b, _)| b != old))
        {
            // A leftover costs disk space only.
            let _ = fs::remove_file(old);
        }
        Ok(path)
    }

    /// Reads one checkpoint and verifies its checksum.
    ///
    /// # Errors
    /// A file that is no checkpoint of this version, or whose content has changed since it was written.
    pub fn read(path: &Path) -> Result<Self> {
        let fail = |reason: String| Error::File {
            path: path.to_path_buf(),
            reason,
        };
        let bytes = fs::read(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
        let broken = |e: safetensors::SafeTensorError| {
            fail(format!(
                "is no safetensors file ({e}): the checkpoint is damaged or cut short"
            ))
        };
        let file = SafeTensors::deserialize(&bytes).map_err(broken)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry = |key: &str| {
            metadata.get(key).ok_or_else(|| {
                fail(format!(
                    "no training checkpoint of this program (metadata key {key} is missing)"
                ))
            })
        };
        let state = parse_state(entry(METADATA_KEY)?).map_err(fail)?;
        seal::verify(&bytes, entry(seal::KEY)?).map_err(fail)?;
        let key = EncoderMetadata::KEY;
        let encoder = serde_json::from_str(entry(key)?).map_err(|e| fail(format!("metadata {key}: {e}")))?;
        let mut tensors = HashMap::new();
        for (name, view) in file.tensors() {
            let tensor = view
                .load(&Device::Cpu)
                .map_err(|e| fail(format!("tensor `{name}`: {e}")))?;
            tensors.insert(name, tensor);
        }
        Ok(Self {
            tensors,
            state,
            encoder,
            origin: path.to_path_buf(),
        })
    }

    /// The tensors whose names start with `prefix`, the prefix removed.
    pub fn with_prefix(&self, prefix: &str) -> HashMap<String, Tensor> {
        let named = self.tensors.iter();
        named
            .filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_string(), t.clone())))
            .collect()
    }

    /// The weights that are exported and measured: the average's where the run keeps one, else the model's.
    pub fn exported(&self) -> HashMap<String, Tensor> {
        let mut weights = self.with_prefix("model.");
        weights.extend(self.with_prefix("ema."));
        weights
    }
}

/// Checkpoints in a folder, oldest first; none where there is no such folder.
///
/// # Errors
/// A folder that cannot be read.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e: std::io::Error| Error::File {
        path: folder.to_path_buf(),
        reason: e.to_string(),
    };
    let mut found = Vec::new();
    if !folder.exists() {
        return Ok(Vec::new());
    }
    for entry in fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let step = name.strip_prefix("step-").and_then(|n| n.strip_suffix(".safetensors"));
        if let Some(step) = step.and_then(|s| s.parse::<usize>().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The newest checkpoint that can be read, with a message for each newer one that cannot. `None` where none was ever written.
///
/// # Errors
/// Checkpoints of which none can be read.
pub fn newest(folder: &Path) -> Result<Option<(Checkpoint, Vec<String>)>> {
    let mut warnings = Vec::new();
    for path in list(folder)?.into_iter().rev() {
        match Checkpoint::read(&path) {
            Ok(checkpoint) => return Ok(Some((checkpoint, warnings))),
            Err(e) => warnings.push(format!("{e}; trying the checkpoint before it")),
        }
    }
    if warnings.is_empty() {
        return Ok(None);
    }
    let mut reason = "no checkpoint to resume from; start the run anew with --overwrite".to_string();
    for warning in warnings {
        reason = format!("{reason}\n{warning}");
    }
    Err(Error::File {
        path: folder.to_path_buf(),
        reason,
    })
}

/// The best checkpoint of a folder and its state: of those with a k-NN accuracy the most accurate, without any the one of the least
/// mean loss. Headers alone are read; what cannot be read is passed over.
///
/// # Errors
/// A folder that cannot be read.
pub fn best(folder: &Path) -> Result<Option<(PathBuf, State)>> {
    let mut best: Option<(PathBuf, State)> = None;
    for path in list(folder)? {
        let Some(state) = header_state(&path) else { continue };
        if best.as_ref().is_none_or(|(_, b)| state.is_better_than(b)) {
            best = Some((path, state));
        }
    }
    Ok(best)
}

fn parse_state(text: &str) -> Result<State, String> {
    /// The one key that every version has.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let fail = |e: serde_json::Error| format!("metadata {METADATA_KEY}: {e}");
    let found: Versioned = serde_json::from_str(text).map_err(fail)?;
    if found.version != VERSION {
        return Err(format!(
            "checkpoint version {}, this program reads {VERSION}; finish that run with the program that began it",
            found.version
        ));
    }
    serde_json::from_str(text).map_err(fail)
}

/// The state in a file's header, without reading its tensors.
fn header_state(path: &Path) -> Option<State> {
    use std::io::Read;
    let mut file = fs::File::open(path).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    // A damaged length must not ask for all memory there is.
    if length > file.metadata().ok()?.len() {
        return None;
    }
    let mut header = vec![0; usize::try_from(length).ok()?];
    file.read_exact(&mut header).ok()?;
    let header: serde_json::Value = serde_json::from_slice(&header).ok()?;
    parse_state(header.get("__metadata__")?.get(METADATA_KEY)?.as_str()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Pool, VitConfig};

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    const VALUES: [f32; 4] = [1.0, -0.0, f32::MIN_POSITIVE, 3.5];

    fn sample(step: usize) -> Checkpoint {
        let tensor = Tensor::from_slice(&VALUES, (2, 2), &Device::Cpu).unwrap();
        let config = VitConfig {
            image_size: 8,
            patch_size: 4,
            channels: 1,
            dim: 8,
            depth: 1,
            heads: 2,
            mlp_ratio: 4,
        };
        Checkpoint {
            tensors: [("model.w".to_string(), tensor)].into(),
            state: State::new(step, 7, 100),
            encoder: EncoderMetadata {
                config,
                mean: vec![0.5],
                std: vec![0.25],
                pool: Pool::Mean,
            },
            origin: PathBuf::new(),
        }
    }

    #[test]
    fn reads_back_every_bit_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        for step in [3, 20, 100] {
            sample(step).write(dir.path(), 2).unwrap();
        }
        assert_eq!(list(dir.path()).unwrap().len(), 2);
        let (found, warnings) = newest(dir.path()).unwrap().unwrap();
        let path = found.origin.clone();
        assert_eq!(
            (&found.state, &found.encoder, warnings.len()),
            (&State::new(100, 7, 100), &sample(1).encoder, 0)
        );
        let values: Vec<f32> = found.tensors["model.w"].flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(bits(&values), bits(&VALUES));
        assert!(path.ends_with("step-00000100.safetensors"));
    }

    #[test]
    fn a_damaged_newest_is_reported_and_the_one_before_used() {
        let dir = tempfile::tempdir().unwrap();
        sample(1).write(dir.path(), 2).unwrap();
        let last = sample(2).write(dir.path(), 2).unwrap();
        let bytes = fs::read(&last).unwrap();
        fs::write(&last, &bytes[..bytes.len() - 5]).unwrap();
        let (found, warnings) = newest(dir.path()).unwrap().unwrap();
        assert_eq!(found.state.step, 1);
        assert!(warnings[0].contains("step-00000002"), "{warnings:?}");
    }

    #[test]
    fn other_files_are_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step-00000001.safetensors");
        fs::write(&path, b"not a checkpoint").unwrap();
        assert!(
            Checkpoint::read(&path)
                .unwrap_err()
                .to_string()
                .contains("no safetensors file")
        );
        assert!(newest(dir.path()).unwrap_err().to_string().contains("--overwrite"));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = sample(1).write(dir.path(), 2).unwrap();
        let whole = fs::read(&path).unwrap();
        Checkpoint::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            let error = Checkpoint::read(&path).unwrap_err().to_string();
            assert!(error.contains("step-00000001.safetensors: "), "byte {at}: {error}");
        }
        // And any length but its own.
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Checkpoint::read(&path).is_err(), "{length}");
        }
        fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
        assert!(Checkpoint::read(&path).is_err());
    }

    #[test]
    fn the_best_is_kept_besides_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let write = |step: usize, mean_loss: f64, knn_top1: Option<f64>| {
            let mut made = sample(step);
            (made.state.mean_loss, made.state.knn_top1) = (Some(mean_loss), knn_top1);
            made.write(dir.path(), 2).unwrap();
            let step_of = |path: &Path| Checkpoint::read(path).unwrap().state.step;
            let kept: Vec<usize> = list(dir.path()).unwrap().iter().map(|p| step_of(p)).collect();
            (kept, best(dir.path()).unwrap().unwrap().1.step)
        };
        assert_eq!(write(1, 3.0, None), (vec![1], 1));
        assert_eq!(write(2, 2.0, None), (vec![1, 2], 2));
        assert_eq!(write(3, 2.5, None), (vec![2, 3], 2));
        assert_eq!(write(4, 2.4, None), (vec![2, 3, 4], 2));
        // An accuracy counts more than a loss, and the most accurate stays.
        assert_eq!(write(5, 2.6, Some(0.5)), (vec![4, 5], 5));
        assert_eq!(write(6, 1.0, None), (vec![5, 6], 5));
        assert_eq!(write(7, 1.0, Some(0.4)), (vec![5, 6, 7], 5));
        // Of equals the later.
        assert_eq!(write(8, 0.9, Some(0.5)), (vec![7, 8], 8));
    }

    #[test]
    fn a_folder_without_checkpoints_has_no_newest() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest(dir.path()).unwrap().is_none());
        assert!(best(dir.path()).unwrap().is_none());
    }
}
