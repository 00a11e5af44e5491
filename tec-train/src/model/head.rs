//! The classification head of a fine-tuned model.

use std::path::Path;

use candle_core::DType;

use super::weights_file::WeightsFile;
use crate::{Error, Result};

/// A linear layer from an embedding to class logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// `[classes, dim]`.
    pub weight: Vec<f32>,
    /// `[classes]`.
    pub bias: Vec<f32>,
}

/// What its two parameters are called: by timm and the published checkpoints, also where a wrapper or training state holds the model; by
/// Hugging Face.
const NAMES: [&str; 5] = ["head", "module.head", "model.head", "model_ema.head", "classifier"];

impl Head {
    /// The head in a file of weights for embeddings of width `dim`; `None` if the file has none.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read, or its head belongs to embeddings of another width or has values that are not
    /// finite.
    pub fn load(path: &Path, dim: usize) -> Result<Option<Self>> {
        let mut file = WeightsFile::open(path)?;
        let name = |parameter: &str| NAMES.map(|name| format!("{name}.{parameter}"));
        let found = name("weight").into_iter().zip(name("bias"));
        let Some((weight, bias)) = found.into_iter().find(|(weight, _)| file.tensors.contains_key(weight)) else {
            return Ok(None);
        };
        let wrong = |reason: String| Error::File {
            path: path.into(),
            reason,
        };
        let shape = file
            .tensors
            .get(&weight)
            .map(|stored| stored.shape.clone())
            .unwrap_or_default();
        let &[classes, width] = shape.as_slice() else {
            return Err(wrong(format!("{weight} has shape {shape:?}, not [classes, {dim}]")));
        };
        // The head of a classifier that was taken off, and of a model that joins class token and mean.
        if classes == 0 {
            return Ok(None);
        }
        if width != dim {
            return Err(wrong(format!(
                "{weight} takes embeddings of width {width}, and the encoder's have {dim}; leave the head out with --no-head"
            )));
        }
        let has_bias = file.tensors.contains_key(&bias);
        let mut read = |name: &str| -> Result<Vec<f32>> {
            let values = file.read(name)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            match values.iter().all(|x| x.is_finite()) {
                true => Ok(values),
                false => Err(wrong(format!("{name} has values that are not finite"))),
            }
        };
        let weight = read(&weight)?;
        let bias = match has_bias {
            true => read(&bias)?,
            false => vec![0.0; classes],
        };
        if bias.len() != classes {
            return Err(wrong(format!(
                "its head has {classes} classes and {} biases",
                bias.len()
            )));
        }
        Ok(Some(Self { weight, bias }))
    }

    /// Logits.
    pub fn classes(&self) -> usize {
        self.bias.len()
    }

    /// Logits of an embedding, `[classes]`.
    pub fn logits(&self, embedding: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(embedding.len().max(1)).zip(&self.bias);
        rows.map(|(row, &b)| b + row.iter().zip(embedding).map(|(w, x)| w * x).sum::<f32>())
            .collect()
    }
}
