//! Reads golden vectors: named tensors with their shapes, and metadata whose values are JSON.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// One tensor of a golden file.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Sizes of the axes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub data: Data,
}

/// The elements of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Single precision.
    F32(Vec<f32>),
    /// Integers.
    I64(Vec<i64>),
}

/// A golden file, read whole.
#[derive(Debug, Clone)]
pub struct Goldens {
    name: String,
    tensors: BTreeMap<String, Tensor>,
    metadata: HashMap<String, Value>,
}

/// The directory of the golden vectors that come with the project.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens")
}

/// Reads `tests/goldens/NAME.safetensors`.
///
/// # Panics
/// When the file is missing or malformed: it is part of the project, so a test cannot go on without it.
pub fn load(name: &str) -> Goldens {
    load_file(&directory().join(format!("{name}.safetensors")))
}

/// Reads any safetensors file of f32 and i64 tensors; metadata that is not JSON is kept as a string.
///
/// # Panics
/// When the file cannot be read or holds another type.
pub fn load_file(path: &Path) -> Goldens {
    let shown = path.display();
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{shown}: {e}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap_or_else(|e| panic!("{shown}: {e}"));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{shown}: {e}"));
    let tensors = file
        .iter()
        .map(|(name, view)| {
            let data = match view.dtype() {
                Dtype::F32 => Data::F32(words(view.data()).map(f32::from_le_bytes).collect()),
                Dtype::I64 => Data::I64(words(view.data()).map(i64::from_le_bytes).collect()),
                other => panic!("{shown}: {name} is {other:?}, expected F32 or I64"),
            };
            (
                name.to_owned(),
                Tensor {
                    shape: view.shape().to_vec(),
                    data,
                },
            )
        })
        .collect();
    let metadata = header
        .metadata()
        .iter()
        .flatten()
        .map(|(key, text)| {
            let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()));
            (key.clone(), value)
        })
        .collect();
    Goldens {
        name: shown.to_string(),
        tensors,
        metadata,
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

impl Goldens {
    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor by name.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("{}: no tensor {name}", self.name))
    }

    /// The shape of a tensor.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn shape(&self, name: &str) -> &[usize] {
        &self.tensor(name).shape
    }

    /// The elements of an f32 tensor.
    ///
    /// # Panics
    /// When there is none of this name, or it holds integers.
    pub fn f32(&self, name: &str) -> &[f32] {
        match &self.tensor(name).data {
            Data::F32(data) => data,
            Data::I64(_) => panic!("{}: {name} holds integers", self.name),
        }
    }

    /// The elements of an i64 tensor.
    ///
    /// # Panics
    /// When there is none of this name, or it holds floats.
    pub fn i64(&self, name: &str) -> &[i64] {
        match &self.tensor(name).data {
            Data::I64(data) => data,
            Data::F32(_) => panic!("{}: {name} holds floats", self.name),
        }
    }

    /// The elements of an integer tensor as u32, the type of an index here.
    ///
    /// # Panics
    /// When there is none of this name, or a value is not a u32.
    pub fn u32(&self, name: &str) -> Vec<u32> {
        let narrow = |&v| u32::try_from(v).unwrap_or_else(|_| panic!("{}: {name} holds {v}", self.name));
        self.i64(name).iter().map(narrow).collect()
    }

    /// The single element of a scalar f32 tensor.
    ///
    /// # Panics
    /// When there is none of this name, or it has another number of elements.
    pub fn scalar(&self, name: &str) -> f32 {
        match self.f32(name) {
            [value] => *value,
            more => panic!("{}: {name} has {} elements, expected one", self.name, more.len()),
        }
    }

    /// A metadata value.
    ///
    /// # Panics
    /// When there is none of this key.
    pub fn metadata(&self, key: &str) -> &Value {
        self.metadata
            .get(key)
            .unwrap_or_else(|| panic!("{}: no metadata {key}", self.name))
    }
}

/// The error of a tensor as the goldens' README defines it: max|a − b| / max|b|, where b is the golden one.
///
/// Infinite when anything is not finite, so that no comparison passes by accident; plain max|a − b| where b is all zero.
///
/// # Panics
/// When the lengths differ.
pub fn max_error(actual: &[f32], golden: &[f32]) -> f64 {
    assert_eq!(actual.len(), golden.len(), "lengths differ");
    if actual.iter().chain(golden).any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let difference = actual
        .iter()
        .zip(golden)
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs())
        .fold(0.0, f64::max);
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
        let goldens = load("masking");
        assert_eq!(goldens.shape("1.ids_keep"), [3, 12]);
        assert_eq!(goldens.u32("1.ids_keep").len(), 36);
        assert_eq!(goldens.f32("1.noise").len(), 3 * 49);
        assert_eq!(goldens.metadata("cases")[1]["keep"], 12);
        assert_eq!(load("relation").metadata("att_tau").as_f64(), Some(1.8));
    }

    #[test]
    fn error_is_relative_to_the_largest_golden_value() {
        assert_eq!(max_error(&[1.0, 2.5], &[1.0, 2.0]), 0.25);
        assert_eq!(max_error(&[0.5], &[0.0]), 0.5);
        assert_eq!(max_error(&[f32::NAN], &[f32::NAN]), f64::INFINITY);
    }
}
