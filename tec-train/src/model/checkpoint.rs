//! Safetensors files, read with clear errors and written whole or not at all.

use std::collections::HashMap;
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

use crate::{Error, Result, atomic};

/// The content of a safetensors file.
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    /// Tensors by name, as the file stores them.
    pub tensors: HashMap<String, Tensor>,
    /// The file's metadata.
    pub metadata: HashMap<String, String>,
}

impl Checkpoint {
    /// Reads a whole file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read or is no safetensors file, saying what it looks like instead.
    pub fn read(path: &Path, device: &Device) -> Result<Self> {
        let refused = |reason: String| Error::File {
            path: path.into(),
            reason,
        };
        if path.is_dir() {
            return Err(refused("is a folder; name a .safetensors file".into()));
        }
        let bytes = std::fs::read(path).map_err(|error| refused(format!("cannot be read: {error}")))?;
        let file =
            SafeTensors::deserialize(&bytes).map_err(|error| refused(not_safetensors(&bytes, &error.to_string())))?;
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|error| refused(not_safetensors(&bytes, &error.to_string())))?;
        let mut tensors = HashMap::new();
        for (name, view) in file.tensors() {
            let tensor = view
                .load(device)
                .map_err(|error| refused(format!("tensor `{name}`: {error}")))?;
            tensors.insert(name, tensor);
        }
        Ok(Self {
            tensors,
            metadata: header.metadata().clone().unwrap_or_default(),
        })
    }

    /// Writes the file whole, or leaves what was there.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let contiguous: Vec<(&str, Tensor)> = self
            .tensors
            .iter()
            .map(|(name, tensor)| Ok((name.as_str(), tensor.to_device(&Device::Cpu)?.contiguous()?)))
            .collect::<Result<_>>()?;
        let metadata = (!self.metadata.is_empty()).then(|| self.metadata.clone());
        let bytes = safetensors::serialize(contiguous, metadata).map_err(|error| Error::File {
            path: path.into(),
            reason: format!("cannot be written: {error}"),
        })?;
        atomic::write(path, &bytes)
    }
}

/// What to say about a file that does not parse: people bring PyTorch files, pointers of Git LFS and halves of downloads.
pub(crate) fn not_safetensors(bytes: &[u8], error: &str) -> String {
    let seems = if bytes.is_empty() {
        "it is empty"
    } else if bytes.starts_with(b"PK") || bytes.starts_with(&[0x80, 0x02]) {
        "it looks like a PyTorch file, which can be a base, but is no checkpoint of this program"
    } else if bytes.starts_with(b"version https://git-lfs") {
        "it is a pointer of Git LFS, not the file itself; run `git lfs pull`"
    } else if bytes.get(8) == Some(&b'{') {
        "it begins like one: the file may be damaged or only part of it was downloaded"
    } else {
        "its first bytes are not those of such a file"
    };
    format!("is no safetensors file ({error}): {seems}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let message = Checkpoint::read(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("weights.safetensors"), "{message}");
        message
    }

    #[test]
    fn files_that_are_no_checkpoint_are_told_apart() {
        assert!(reason(b"").contains("empty"));
        assert!(reason(b"PK\x03\x04 and so on").contains("PyTorch"));
        assert!(reason(b"version https://git-lfs.github.com/spec/v1").contains("Git LFS"));
        assert!(reason(b"a text file of some length").contains("first bytes"));
        assert!(reason(&u64::MAX.to_le_bytes()).contains("no safetensors file"));
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("whole.safetensors");
        let tensors = HashMap::from([(
            "a".to_string(),
            Tensor::ones((3, 4), candle_core::DType::F32, &Device::Cpu).unwrap(),
        )]);
        Checkpoint {
            tensors,
            metadata: HashMap::from([("key".into(), "value".into())]),
        }
        .write(&path)
        .unwrap();
        let read = Checkpoint::read(&path, &Device::Cpu).unwrap();
        assert_eq!(read.metadata["key"], "value");
        assert_eq!(read.tensors["a"].dims(), [3, 4]);
        let whole = std::fs::read(&path).unwrap();
        for length in [7, 20, whole.len() - 1] {
            let message = reason(&whole[..length]);
            assert!(message.contains("no safetensors file"), "{message}");
        }
    }

    #[test]
    fn missing_files_and_folders_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let gone = Checkpoint::read(&folder.path().join("gone"), &Device::Cpu)
            .unwrap_err()
            .to_string();
        assert!(gone.contains("cannot be read"), "{gone}");
        let is_folder = Checkpoint::read(folder.path(), &Device::Cpu).unwrap_err().to_string();
        assert!(is_folder.contains("is a folder"), "{is_folder}");
        let nowhere = Checkpoint::default()
            .write(&folder.path().join("no/such/folder.safetensors"))
            .unwrap_err();
        assert!(nowhere.to_string().contains("cannot be written"), "{nowhere}");
    }
}
