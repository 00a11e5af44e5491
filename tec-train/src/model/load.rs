//! Strict loading: which parameters matched, and which did not, by name.

use std::fmt;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::assembly::Assembly;
use super::layers::{Init, Weights};
use super::variant::Activation;
use super::weights_file::WeightsFile;
use crate::{Error, Result, ops::Amp};

/// How to read a checkpoint that does not say everything itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Attention heads, which weights do not show. `None`: what the file or its configuration says, or else what published
    /// models of that width have.
    pub heads: Option<usize>,
    /// What the names of the model's parameters begin with, such as `student.module.backbone`; others are then left alone.
    /// `None`: where a model is found; of several a teacher or averaged weights before others, a student last.
    pub prefix: Option<String>,
    /// The MLPs' nonlinearity, which weights do not show unless it is gated. `None`: what the configuration says, or else
    /// the family's.
    pub activation: Option<Activation>,
    /// The arithmetic of its products. Default: f32.
    pub amp: Amp,
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
            reason: format!("does not fit the model: {self}"),
        })
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

/// The weights of a file, made as its assembly says and handed to layers by name.
pub(crate) struct PlannedWeights<'a> {
    assembly: &'a Assembly,
    file: &'a mut WeightsFile,
    device: &'a Device,
    amp: Amp,
    taken: Vec<(String, Tensor)>,
}

impl<'a> PlannedWeights<'a> {
    /// `amp` is for the layers, weights are f32.
    pub(crate) fn new(assembly: &'a Assembly, file: &'a mut WeightsFile, device: &'a Device, amp: Amp) -> Self {
        Self {
            assembly,
            file,
            device,
            amp,
            taken: Vec::new(),
        }
    }

    /// Every weight that was taken, in order.
    pub(crate) fn finish(self) -> Vec<(String, Tensor)> {
        self.taken
    }
}

impl Weights for PlannedWeights<'_> {
    fn amp(&self) -> Amp {
        self.amp
    }

    fn take(&mut self, name: String, shape: &[usize], _: Init) -> Result<Tensor> {
        let tensor = self.assembly.make(&name, self.file)?.to_device(self.device)?;
        if tensor.dims() != shape {
            return Err(Error::Data(format!(
                "parameter `{name}` was planned as {:?}, not {shape:?}",
                tensor.dims()
            )));
        }
        self.taken.push((name, tensor.clone()));
        Ok(tensor)
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
}
