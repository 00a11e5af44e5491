//! Reads golden vectors: named tensors with their shapes, and metadata whose values are JSON.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tec_device::tensors::Kind;

use crate::error::{Error, Result};
use crate::tensor::{Data, Tensor};

/// A golden file, read whole.
#[derive(Debug, Clone)]
pub struct Goldens {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    metadata: HashMap<String, Value>,
}

/// The directory of the golden vectors that come with the project's sources.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens")
}

/// Reads any safetensors file; metadata that is not JSON is kept as a string.
///
/// # Errors
/// [`Error::File`] when it cannot be read, or holds a type that vectors do not have.
pub fn read(path: &Path) -> Result<Goldens> {
    let fail = |reason: String| Error::File {
        path: path.to_path_buf(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| fail(format!("is no safetensors file: {e}")))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| fail(format!("is no safetensors file: {e}")))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let kind = match view.dtype() {
            Dtype::U8 => Kind::U8,
            Dtype::I8 => Kind::I8,
            Dtype::I16 => Kind::I16,
            Dtype::I32 => Kind::I32,
            Dtype::U32 => Kind::U32,
            Dtype::I64 => Kind::I64,
            Dtype::U64 => Kind::U64,
            Dtype::F32 => Kind::F32,
            Dtype::F64 => Kind::F64,
            other => return Err(fail(format!("{name} is {other:?}, a type that vectors do not have"))),
        };
        let tensor = Tensor {
            shape: view.shape().to_vec(),
            data: Data::from_bytes(kind, view.data()),
        };
        tensors.insert(name.to_owned(), tensor);
    }
    let metadata = header.metadata().iter().flatten().map(|(key, text)| {
        let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()));
        (key.clone(), value)
    });
    Ok(Goldens {
        path: path.to_path_buf(),
        tensors,
        metadata: metadata.collect(),
    })
}

macro_rules! typed {
    ($($name:ident: $variant:ident($type:ty)),*) => {
        $(
            #[doc = concat!("The elements of a tensor of ", stringify!($type), ".")]
            ///
            /// # Errors
            /// [`Error::Vectors`] when there is none of this name, or it has another type.
            pub fn $name(&self, name: &str) -> Result<&[$type]> {
                match &self.tensor(name)?.data {
                    Data::$variant(data) => Ok(data),
                    other => Err(self.error(format!("{name} is {:?}, expected {:?}", other.kind(), Kind::$variant))),
                }
            }
        )*
    };
}

impl Goldens {
    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's name without its extension, which says what it holds.
    pub fn name(&self) -> &str {
        self.path.file_stem().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// How many cases `PREFIX.0.…`, `PREFIX.1.…` there are; with an empty prefix `0.…`, `1.…`.
    pub fn cases(&self, prefix: &str) -> usize {
        let start = if prefix.is_empty() {
            String::new()
        } else {
            format!("{prefix}.")
        };
        let numbers = self
            .names()
            .filter_map(|name| name.strip_prefix(&start)?.split('.').next()?.parse::<usize>().ok());
        numbers.max().map_or(0, |last| last + 1)
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// [`Error::Vectors`] when there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| self.error(format!("there is no tensor {name}")))
    }

    /// The elements of a tensor.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn data(&self, name: &str) -> Result<&Data> {
        Ok(&self.tensor(name)?.data)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.tensor(name)?.shape)
    }

    /// The shape of a tensor of `N` axes.
    ///
    /// # Errors
    /// [`Error::Vectors`] when there is none of this name, or it has another number of axes.
    pub fn axes<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let shape = self.shape(name)?;
        shape
            .try_into()
            .map_err(|_| self.error(format!("{name} has shape {shape:?}, expected {N} axes")))
    }

    typed!(f32: F32(f32), i64: I64(i64));

    /// The elements of an i64 tensor as u32, the type of an index here.
    ///
    /// # Errors
    /// [`Error::Vectors`] when there is none of this name, or a value is not a u32.
    pub fn u32(&self, name: &str) -> Result<Vec<u32>> {
        let narrow =
            |&v: &i64| u32::try_from(v).map_err(|_| self.error(format!("{name} holds {v}, expected an index")));
        self.i64(name)?.iter().map(narrow).collect()
    }

    /// A metadata value.
    ///
    /// # Errors
    /// [`Error::Vectors`] when there is none of this key.
    pub fn metadata(&self, key: &str) -> Result<&Value> {
        self.metadata
            .get(key)
            .ok_or_else(|| self.error(format!("the metadata has no {key}")))
    }

    /// A number in the metadata, by the keys that lead to it.
    ///
    /// # Errors
    /// [`Error::Vectors`] when there is none.
    pub fn number(&self, keys: &[&str]) -> Result<f64> {
        let (first, rest) = keys
            .split_first()
            .ok_or_else(|| self.error("no key was given".into()))?;
        let value = rest
            .iter()
            .fold(self.metadata(first)?, |value, key| match key.parse::<usize>() {
                Ok(index) => &value[index],
                Err(_) => &value[*key],
            });
        value
            .as_f64()
            .ok_or_else(|| self.error(format!("the metadata's {} is no number", keys.join("."))))
    }

    /// A count in the metadata, by the keys that lead to it.
    ///
    /// # Errors
    /// [`Error::Vectors`] when there is none.
    pub fn count(&self, keys: &[&str]) -> Result<usize> {
        let number = self.number(keys)?;
        if number >= 0.0 && number.fract() == 0.0 && number < 1e9 {
            Ok(number as usize)
        } else {
            Err(self.error(format!(
                "the metadata's {} is {number}, expected a count",
                keys.join(".")
            )))
        }
    }

    /// An error that names this file.
    pub fn error(&self, reason: String) -> Error {
        Error::Vectors {
            file: self.path.display().to_string(),
            reason,
        }
    }
}

/// The error of a tensor as the goldens' README defines it: max|a − b| / max|b|, where b is the golden one.
///
/// Infinite when anything is not finite or the lengths differ, so that no comparison passes by accident; plain max|a − b|
/// where b is all zero.
pub fn max_error(actual: &[f32], golden: &[f32]) -> f64 {
    if actual.len() != golden.len() || actual.iter().chain(golden).any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let differences = actual
        .iter()
        .zip(golden)
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    let difference = differences.fold(0.0, f64::max);
    let largest = golden.iter().map(|&b| f64::from(b).abs()).fold(0.0, f64::max);
    if largest > 0.0 {
        difference / largest
    } else {
        difference
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_tensors_and_metadata() {
        let goldens = read(&directory().join("masking.safetensors")).unwrap();
        assert_eq!(goldens.name(), "masking");
        assert_eq!(goldens.cases(""), 6);
        assert_eq!(goldens.axes("1.ids_keep").unwrap(), [3, 12]);
        assert_eq!(goldens.u32("1.ids_keep").unwrap().len(), 36);
        assert_eq!(goldens.f32("1.noise").unwrap().len(), 3 * 49);
        assert_eq!(goldens.count(&["cases", "1", "keep"]).unwrap(), 12);
        let missing = goldens.f32("nothing").unwrap_err().to_string();
        assert!(
            missing.contains("masking.safetensors") && missing.contains("nothing"),
            "{missing}"
        );
        assert!(goldens.f32("1.ids_keep").is_err());
        assert!(goldens.count(&["cases", "1", "mask_ratio"]).is_err());
        assert!(read(Path::new("nowhere.safetensors")).is_err());
    }

    #[test]
    fn error_is_relative_to_the_largest_golden_value() {
        assert_eq!(max_error(&[1.0, 2.5], &[1.0, 2.0]), 0.25);
        assert_eq!(max_error(&[0.5], &[0.0]), 0.5);
        assert_eq!(max_error(&[f32::NAN], &[f32::NAN]), f64::INFINITY);
        assert_eq!(max_error(&[1.0], &[]), f64::INFINITY);
    }
}
