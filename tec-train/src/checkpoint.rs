//! Training state on disk: weights, moments and the step, in one safetensors file a checkpoint.
//!
//! Tensors are `model.NAME`, `optimizer.m.NAME` and `optimizer.v.NAME`; the metadata key `tec_state` holds the rest as JSON.
//! Masks, augmentation and sample order are functions of (seed, epoch, sample), so no random state needs keeping.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    model::{self, EncoderMetadata},
};

/// Version of the state's layout; a file of another version is refused.
const VERSION: u32 = 1;
const METADATA_KEY: &str = "tec_state";

/// What is known besides the tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Layout version.
    pub version: u32,
    /// Optimizer steps done.
    pub step: usize,
    /// Steps of one epoch when it was written: another data set or batch size cannot continue it.
    pub steps_per_epoch: usize,
    /// Images in the data set when it was written.
    pub images: usize,
}

impl State {
    /// A state of the current layout version.
    pub fn new(step: usize, steps_per_epoch: usize, images: usize) -> Self {
        Self {
            version: VERSION,
            step,
            steps_per_epoch,
            images,
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
    /// Writes `FOLDER/step-NNNNNNNN.safetensors` atomically, then removes all but the newest `keep`.
    ///
    /// # Errors
    /// A folder that cannot be written; older checkpoints are then untouched.
    pub fn write(self, folder: &Path, keep: usize) -> Result<PathBuf> {
        let path = folder.join(format!("step-{:08}.safetensors", self.state.step));
        let fail = |e: serde_json::Error| Error::File {
            path: path.clone(),
            reason: e.to_string(),
        };
        let metadata = HashMap::from([
            (
                METADATA_KEY.to_string(),
                serde_json::to_string(&self.state).map_err(fail)?,
            ),
            (
                EncoderMetadata::KEY.to_string(),
                serde_json::to_string(&self.encoder).map_err(fail)?,
            ),
        ]);
        model::Checkpoint {
            tensors: self.tensors,
            metadata,
        }
        .write(&path)?;
        let mut all = list(folder)?;
        all.truncate(all.len().saturating_sub(keep));
        for old in all {
            // A leftover costs disk space only.
            let _ = fs::remove_file(old);
        }
        Ok(path)
    }

    /// Reads one checkpoint.
    ///
    /// # Errors
    /// A file that is no checkpoint of this version.
    pub fn read(path: &Path) -> Result<Self> {
        let fail = |reason: String| Error::File {
            path: path.to_path_buf(),
            reason,
        };
        let model::Checkpoint { tensors, metadata } = model::Checkpoint::read(path, &Device::Cpu)?;
        let entry = |key: &str| {
            metadata.get(key).ok_or_else(|| {
                fail(format!(
                    "no training checkpoint of this program (metadata key {key} is missing)"
                ))
            })
        };
        let state: State =
            serde_json::from_str(entry(METADATA_KEY)?).map_err(|e| fail(format!("metadata {METADATA_KEY}: {e}")))?;
        if state.version != VERSION {
            return Err(fail(format!(
                "checkpoint version {}, this program reads {VERSION}",
                state.version
            )));
        }
        let key = EncoderMetadata::KEY;
        let encoder = serde_json::from_str(entry(key)?).map_err(|e| fail(format!("metadata {key}: {e}")))?;
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
}

/// Checkpoints in a folder, oldest first.
///
/// # Errors
/// A folder that cannot be read.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e: std::io::Error| Error::File {
        path: folder.to_path_buf(),
        reason: e.to_string(),
    };
    let mut found = Vec::new();
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

/// The newest checkpoint that can be read, with a message for each newer one that cannot.
///
/// # Errors
/// No readable checkpoint at all.
pub fn newest(folder: &Path) -> Result<(Checkpoint, PathBuf, Vec<String>)> {
    let mut warnings = Vec::new();
    for path in list(folder)?.into_iter().rev() {
        match Checkpoint::read(&path) {
            Ok(checkpoint) => return Ok((checkpoint, path, warnings)),
            Err(e) => warnings.push(format!("{e}; trying the checkpoint before it")),
        }
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
        let (found, path, warnings) = newest(dir.path()).unwrap();
        assert_eq!(
            (found.state, found.encoder, warnings.len()),
            (State::new(100, 7, 100), sample(1).encoder, 0)
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
        let (found, _, warnings) = newest(dir.path()).unwrap();
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
}
