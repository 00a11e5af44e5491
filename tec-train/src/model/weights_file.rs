//! A file of weights, or a folder of them: names and shapes at once, values one tensor at a time.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata};
use tec_pth::TensorFile;

use super::checkpoint::not_safetensors;
use crate::{Error, Result};

/// Names of the file in a folder of Hugging Face, in the order they are looked for.
const IN_FOLDER: [&str; 8] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "encoder.safetensors",
];

/// A header of more bytes is no header.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor that is not read yet.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Its shape.
    pub(crate) shape: Vec<usize>,
    /// Whether its numbers are floats of 16, 32 or 64 bits.
    pub(crate) float: bool,
    /// The number of its file.
    part: usize,
}

/// Weights that can be read by name.
pub(crate) struct WeightsFile {
    /// The file that was named or found, for messages and for what lies beside it.
    pub(crate) path: PathBuf,
    /// Every tensor.
    pub(crate) tensors: BTreeMap<String, Stored>,
    /// A safetensors file's metadata.
    pub(crate) metadata: HashMap<String, String>,
    parts: Vec<Part>,
}

enum Part {
    Safetensors { file: File, header: Metadata, start: u64 },
    Pytorch(TensorFile),
    Memory(HashMap<String, Tensor>),
}

/// The file of weights that a folder of Hugging Face holds.
pub fn in_folder(folder: &Path) -> Option<PathBuf> {
    IN_FOLDER
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
}

impl WeightsFile {
    /// Opens a safetensors file, a PyTorch file, the index of a file in pieces, or the folder of one of them.
    ///
    /// # Errors
    /// [`Error::File`] naming what cannot be read and why.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let path = match path.is_dir() {
            true => in_folder(path).ok_or_else(|| Error::File {
                path: path.into(),
                reason: "is a folder without model.safetensors or pytorch_model.bin; name the file of weights".into(),
            })?,
            false => path.to_path_buf(),
        };
        let mut all = Self {
            path: path.clone(),
            tensors: BTreeMap::new(),
            metadata: HashMap::new(),
            parts: Vec::new(),
        };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(".index.json") {
            for piece in pieces(&path)? {
                all.add(&piece)?;
            }
        } else {
            all.add(&path)?;
        }
        Ok(all)
    }

    /// Tensors that are in memory already.
    pub(crate) fn in_memory(tensors: HashMap<String, Tensor>, source: &Path) -> Self {
        let stored = tensors.iter().map(|(name, tensor)| {
            let stored = Stored {
                shape: tensor.dims().to_vec(),
                float: matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16 | DType::F64),
                part: 0,
            };
            (name.clone(), stored)
        });
        Self {
            path: source.into(),
            tensors: stored.collect(),
            metadata: HashMap::new(),
            parts: vec![Part::Memory(tensors)],
        }
    }

    /// Whether two names mean the same values of the same storage.
    pub(crate) fn same(&self, a: &str, b: &str) -> bool {
        match self.tensors.get(a).and_then(|stored| self.parts.get(stored.part)) {
            Some(Part::Pytorch(file)) => match (file.tensors().get(a), file.tensors().get(b)) {
                (Some(a), Some(b)) => a.same_data(b),
                _ => false,
            },
            _ => false,
        }
    }

    /// A tensor of floats as f32, every value finite.
    ///
    /// # Errors
    /// [`Error::File`] naming the tensor and what is wrong with it.
    pub(crate) fn read(&mut self, name: &str) -> Result<Tensor> {
        let refused = |reason: String| Error::File {
            path: self.path.clone(),
            reason: format!("tensor `{name}`: {reason}"),
        };
        let stored = self.tensors.get(name).ok_or_else(|| refused("is not there".into()))?;
        let shape = stored.shape.as_slice();
        let values = match self.parts.get_mut(stored.part) {
            Some(Part::Memory(tensors)) => match tensors.get(name) {
                Some(tensor) => tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?,
                None => return Err(refused("is not there".into())),
            },
            Some(Part::Pytorch(file)) => file.read(name).map_err(|error| refused(error.to_string()))?,
            Some(Part::Safetensors { file, header, start }) => {
                let info = header.info(name).ok_or_else(|| refused("is not there".into()))?;
                let (from, to) = info.data_offsets;
                let mut bytes = vec![0; to.saturating_sub(from)];
                file.seek(SeekFrom::Start(*start + from as u64))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(|error| refused(format!("cannot be read: {error}")))?;
                floats(info.dtype, &bytes).ok_or_else(|| refused(format!("holds {:?}, no floats", info.dtype)))?
            }
            None => Vec::new(),
        };
        if values.iter().any(|value| !value.is_finite()) {
            return Err(refused(
                "holds values that are not finite: the checkpoint is damaged or diverged".into(),
            ));
        }
        if values.len() != shape.iter().product::<usize>() {
            return Err(refused(format!("has {} values for the shape {shape:?}", values.len())));
        }
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let refused = |reason: String| Error::File {
            path: path.into(),
            reason,
        };
        let unreadable = |error: std::io::Error| refused(format!("cannot be read: {error}"));
        let mut file = File::open(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let mut begin = Vec::new();
        file.by_ref().take(512).read_to_end(&mut begin).map_err(unreadable)?;
        let part = self.parts.len();
        if begin.get(8) != Some(&b'{') {
            // Whatever has not the beginning of a safetensors file is PyTorch's, or is told apart there.
            let file = TensorFile::open(path).map_err(|error| {
                refused(match error {
                    tec_pth::Error::Foreign(reason) => {
                        format!("is no safetensors file and no PyTorch checkpoint: {reason}")
                    }
                    other => other.advice(path),
                })
            })?;
            for (name, info) in file.tensors() {
                let stored = Stored {
                    shape: info.shape.clone(),
                    float: info.dtype.is_float(),
                    part,
                };
                self.insert(name, stored, path)?;
            }
            self.parts.push(Part::Pytorch(file));
            return Ok(());
        }
        let short = |reason: &str| refused(not_safetensors(&begin, reason));
        let size = begin.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if size > MAX_HEADER || size + 8 > length {
            return Err(short("its header is longer than the file"));
        }
        let mut header = Vec::new();
        file.seek(SeekFrom::Start(8)).map_err(unreadable)?;
        file.by_ref().take(size).read_to_end(&mut header).map_err(unreadable)?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| short(&error.to_string()))?;
        let start = 8 + size;
        for (name, info) in header.tensors() {
            let (from, to) = info.data_offsets;
            if from > to || start + to as u64 > length {
                return Err(short(&format!("tensor `{name}` lies beyond its end")));
            }
            let stored = Stored {
                shape: info.shape.clone(),
                float: matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64),
                part,
            };
            self.insert(&name, stored, path)?;
        }
        if let Some(metadata) = header.metadata() {
            self.metadata.extend(metadata.clone());
        }
        self.parts.push(Part::Safetensors { file, header, start });
        Ok(())
    }

    fn insert(&mut self, name: &str, stored: Stored, path: &Path) -> Result<()> {
        match self.tensors.insert(name.into(), stored) {
            None => Ok(()),
            Some(_) => Err(Error::File {
                path: path.into(),
                reason: format!("holds `{name}`, which another piece of the same model holds too"),
            }),
        }
    }
}

/// The files that an index names, each once.
fn pieces(index: &Path) -> Result<Vec<PathBuf>> {
    let refused = |reason: String| Error::File {
        path: index.into(),
        reason: format!("is no index of weights: {reason}"),
    };
    let text = std::fs::read_to_string(index).map_err(|error| refused(error.to_string()))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|error| refused(error.to_string()))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let files = map.ok_or_else(|| refused("it has no `weight_map`".into()))?.values();
    let mut names: Vec<&str> = files.filter_map(|name| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    // Pieces lie beside their index; a path elsewhere is none of them.
    if let Some(odd) = names
        .iter()
        .find(|name| Path::new(name).file_name() != Some(name.as_ref()))
    {
        return Err(refused(format!("`{odd}` is no file beside it")));
    }
    Ok(names.into_iter().map(|name| index.with_file_name(name)).collect())
}

/// Little-endian floats as f32; `None` for other numbers.
fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect()
    }
    Some(match dtype {
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        Dtype::F16 => each(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => each(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        _ => return None,
    })
}
