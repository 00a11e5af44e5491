//! Strict loading: which parameters matched, and which did not, by name.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::layers::{Init, Weights};
use super::params::finite;
use crate::{Error, Result};

/// How to read a checkpoint that does not say everything itself.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Attention heads, which weights do not show. `None`: what the file's metadata says, or else one head for every 64 of
    /// width, as timm's plain models have.
    pub heads: Option<usize>,
    /// What the names of the model's parameters begin with, such as `model.`; others are then left alone. `None`: nothing,
    /// or `model.` if only that fits.
    pub prefix: Option<String>,
}

/// A parameter whose stored shape is not the model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MisShaped {
    /// Its name.
    pub name: String,
    /// The model's shape.
    pub expected: Vec<usize>,
    /// The file's shape.
    pub found: Vec<usize>,
}

/// What became of every parameter of a model and of every tensor of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Parameters that were set.
    pub matched: Vec<String>,
    /// Tensors of the file that the model is known to have no use for, such as a classifier's head or a decoder.
    pub ignored: Vec<String>,
    /// Parameters that the file does not hold.
    pub missing: Vec<String>,
    /// Tensors of the file that the model does not have.
    pub unexpected: Vec<String>,
    /// Parameters that the file holds in another shape.
    pub mis_shaped: Vec<MisShaped>,
}

impl LoadReport {
    /// Passes when nothing is missing, unexpected or mis-shaped.
    pub(crate) fn require_match(&self, path: &Path) -> Result<()> {
        if self.missing.is_empty() && self.unexpected.is_empty() && self.mis_shaped.is_empty() {
            return Ok(());
        }
        Err(Error::File {
            path: path.into(),
            reason: format!("does not fit the model: {self}{}", hint(self.unexpected.iter())),
        })
    }
}

/// What foreign names tell about a model that is not supported, as a sentence to append; or nothing.
pub(crate) fn hint<'a>(names: impl Iterator<Item = &'a String> + Clone) -> &'static str {
    let any = |parts: &[&str]| names.clone().any(|name| parts.iter().any(|part| name.contains(part)));
    let begins = |prefix: &str| names.clone().any(|name| name.starts_with(prefix));
    if any(&["embeddings."]) {
        ". It is named as Hugging Face's transformers name it; names as timm's are supported"
    } else if any(&["reg_token"]) {
        ". It has register tokens, which are not supported"
    } else if any(&[".ls1.", ".gamma_1"]) {
        ". Its blocks have LayerScale, which is not supported: fold it into attn.proj and mlp.fc2"
    } else if any(&["norm_pre.", "q_norm.", "dist_token", "rope", "attn_pool."]) {
        ". It is no plain vision transformer, and only those are supported"
    } else if begins("module.") || begins("backbone.") || begins("teacher.") || begins("encoder.") {
        ". Its names have a prefix: give it as the option `prefix`"
    } else {
        ""
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} matched", self.matched.len())?;
        list(f, "missing", &self.missing)?;
        list(f, "unexpected", &self.unexpected)?;
        let shapes = self
            .mis_shaped
            .iter()
            .map(|m| format!("{} (expected {:?}, found {:?})", m.name, m.expected, m.found));
        list(f, "of another shape", &shapes.collect::<Vec<_>>())?;
        list(f, "ignored", &self.ignored)
    }
}

/// A checkpoint that does not fit at all would otherwise print hundreds of names.
const LISTED: usize = 8;

fn list(f: &mut fmt::Formatter<'_>, what: &str, names: &[String]) -> fmt::Result {
    if names.is_empty() {
        return Ok(());
    }
    let shown = names
        .iter()
        .take(LISTED)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    write!(f, "; {} {what}: {shown}", names.len())?;
    match names.len().saturating_sub(LISTED) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

/// The weights of a checkpoint, handed to layers by name while what does not fit is written down.
pub(crate) struct StoredWeights<'a> {
    tensors: HashMap<String, Tensor>,
    source: &'a Path,
    device: &'a Device,
    taken: Vec<(String, Tensor)>,
    report: LoadReport,
}

impl<'a> StoredWeights<'a> {
    /// The tensors of `source`, those not to be loaded already taken away and listed in `ignored`.
    pub(crate) fn new(
        tensors: HashMap<String, Tensor>,
        mut ignored: Vec<String>,
        source: &'a Path,
        device: &'a Device,
    ) -> Self {
        ignored.sort();
        Self {
            tensors,
            source,
            device,
            taken: Vec::new(),
            report: LoadReport {
                ignored,
                ..LoadReport::default()
            },
        }
    }

    /// Every weight that was taken, in order, and the report; an error if anything did not fit.
    pub(crate) fn finish(mut self) -> Result<(Vec<(String, Tensor)>, LoadReport)> {
        self.report.unexpected = self.tensors.into_keys().collect();
        self.report.unexpected.sort();
        self.report.require_match(self.source)?;
        Ok((self.taken, self.report))
    }
}

impl Weights for StoredWeights<'_> {
    fn take(&mut self, name: String, shape: &[usize], _: Init) -> Result<Tensor> {
        match self.tensors.remove(&name) {
            None => self.report.missing.push(name),
            Some(tensor) if tensor.dims() != shape => {
                self.report.mis_shaped.push(MisShaped {
                    name,
                    expected: shape.to_vec(),
                    found: tensor.dims().to_vec(),
                });
            }
            Some(tensor) => {
                let tensor = finite(&tensor, &name, self.source)?.to_device(self.device)?;
                self.report.matched.push(name.clone());
                self.taken.push((name, tensor.clone()));
                return Ok(tensor);
            }
        }
        // Only reached when `finish` fails: a stand-in, so that every other misfit is listed as well.
        Ok(Tensor::zeros(shape, DType::F32, self.device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_and_counted() {
        let report = LoadReport {
            missing: (0..300).map(|n| format!("blocks.{n}")).collect(),
            ..LoadReport::default()
        };
        let text = report.to_string();
        assert!(
            text.contains("300 missing: blocks.0, ") && text.contains("and 292 more"),
            "{text}"
        );
        assert!(text.len() < 200, "{text}");
    }

    #[test]
    fn unsupported_models_are_named() {
        for (name, words) in [
            ("blocks.0.ls1.gamma", "LayerScale"),
            ("reg_token", "register tokens"),
            ("norm_pre.weight", "no plain vision transformer"),
            ("embeddings.cls_token", "Hugging Face"),
            ("module.backbone.cls_token", "prefix"),
        ] {
            let report = LoadReport {
                unexpected: vec![name.into()],
                ..LoadReport::default()
            };
            let error = report
                .require_match(Path::new("base.safetensors"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(name) && error.contains(words), "{error}");
        }
    }
}
