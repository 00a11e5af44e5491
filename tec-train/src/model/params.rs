//! The trainable parameters of a model, by name and in a fixed order.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use tec_core::philox::{Noise, Stream};

use super::checkpoint::Checkpoint;
use super::layers::{Init, Weights};
use super::load::{LoadReport, MisShaped};
use crate::{
    Error, Result,
    ops::{self, Amp},
};

/// A model's state: trainable parameters in a fixed order, and the fixed tables that published checkpoints carry too.
///
/// A fresh parameter is a function of seed, its place in the order and its shape: the same on every machine.
#[derive(Clone)]
pub struct Params {
    trainable: Vec<(String, Var)>,
    fixed: Vec<(String, Tensor)>,
}

/// A fixed table of a checkpoint may differ from ours by this much: it was computed elsewhere.
const TABLE_TOLERANCE: f32 = 1e-4;

impl Params {
    /// The trainable parameters, in their order; fixed position tables are not among them.
    pub fn trainable(&self) -> &[(String, Var)] {
        &self.trainable
    }

    /// Whether the parameters are in the CPU's memory.
    pub fn is_on_cpu(&self) -> bool {
        self.trainable.iter().all(|(_, var)| var.device().is_cpu())
    }

    /// The trainable parameter of that name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.trainable.iter().find(|(n, _)| n == name).map(|(_, var)| var)
    }

    /// Number of trainable values.
    pub fn count(&self) -> usize {
        self.trainable.iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// Everything a checkpoint holds: trainable parameters, then fixed tables. The tensors share the variables' memory.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let trainable = self
            .trainable
            .iter()
            .map(|(name, var)| (name.clone(), var.as_detached_tensor()));
        trainable.chain(self.fixed.iter().cloned()).collect()
    }

    /// Sets every parameter from `state`, which must hold exactly the names and shapes of [`Params::state`] and finite
    /// values. Nothing is changed unless everything fits. `source` is the file that errors name.
    ///
    /// # Errors
    /// [`Error::File`] listing missing, unexpected and mis-shaped parameters, or naming one with another fixed table or a
    /// value that is not finite.
    pub fn load_state(&self, mut state: HashMap<String, Tensor>, source: &Path) -> Result<LoadReport> {
        let mut report = LoadReport::default();
        let mut found = Vec::with_capacity(self.trainable.len());
        let wanted = self.trainable.iter().map(|(name, var)| (name, var.as_tensor()));
        for (name, own) in wanted.chain(self.fixed.iter().map(|(name, table)| (name, table))) {
            match state.remove(name) {
                None => report.missing.push(name.clone()),
                Some(tensor) if tensor.dims() != own.dims() => report.mis_shaped.push(MisShaped {
                    name: name.clone(),
                    expected: own.dims().to_vec(),
                    found: tensor.dims().to_vec(),
                }),
                Some(tensor) => {
                    report.matched.push(name.clone());
                    found.push(finite(&tensor, name, source)?.to_device(own.device())?);
                }
            }
        }
        report.unexpected = state.into_keys().collect();
        report.unexpected.sort();
        report.require_match(source)?;
        for ((name, table), stored) in self.fixed.iter().zip(found.iter().skip(self.trainable.len())) {
            let on_cpu = |table: &Tensor| table.to_device(&Device::Cpu);
            let difference = (on_cpu(table)? - on_cpu(stored)?)?.abs()?;
            let difference = difference.flatten_all()?.max(0)?.to_scalar::<f32>()?;
            if difference > TABLE_TOLERANCE {
                return Err(Error::File {
                    path: source.into(),
                    reason: format!(
                        "`{name}` is not the fixed sin-cos table (largest difference {difference}): a model with learned \
                         positions can be a base, but not be trained on"
                    ),
                });
            }
        }
        for ((_, var), tensor) in self.trainable.iter().zip(&found) {
            ops::replace(var, tensor)?;
        }
        Ok(report)
    }

    /// Sets every parameter from a safetensors file; as strict as [`Params::load_state`].
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read, is no safetensors file, or does not fit.
    pub fn load(&self, path: &Path) -> Result<LoadReport> {
        self.load_state(Checkpoint::read(path, &Device::Cpu)?.tensors, path)
    }

    /// Writes [`Params::state`] as a safetensors file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be written.
    pub fn save(&self, path: &Path, metadata: HashMap<String, String>) -> Result<()> {
        Checkpoint {
            tensors: self.state().into_iter().collect(),
            metadata,
        }
        .write(path)
    }
}

impl std::fmt::Debug for Params {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Params({} tensors, {} values)", self.trainable.len(), self.count())
    }
}

/// `tensor` as f32 on its device, or an error naming it.
pub(crate) fn finite(tensor: &Tensor, name: &str, source: &Path) -> Result<Tensor> {
    let refused = |reason: String| Error::File {
        path: source.into(),
        reason,
    };
    if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16 | DType::F64) {
        return Err(refused(format!(
            "`{name}` holds {:?}, but weights are f32, f16, bf16 or f64",
            tensor.dtype()
        )));
    }
    let tensor = tensor.to_dtype(DType::F32)?.contiguous()?;
    if tensor
        .flatten_all()?
        .to_vec1::<f32>()?
        .iter()
        .any(|value| !value.is_finite())
    {
        return Err(refused(format!(
            "`{name}` holds values that are not finite: the checkpoint is damaged or diverged"
        )));
    }
    Ok(tensor)
}

/// Makes fresh parameters as layers ask for them.
pub(crate) struct FreshParams<'a> {
    seed: u64,
    device: &'a Device,
    amp: Amp,
    params: Params,
}

impl<'a> FreshParams<'a> {
    /// `amp` is for the layers, parameters are f32.
    pub(crate) fn new(seed: u64, device: &'a Device, amp: Amp) -> Self {
        Self {
            seed,
            device,
            amp,
            params: Params {
                trainable: Vec::new(),
                fixed: Vec::new(),
            },
        }
    }

    /// Registers the fixed sin-cos table of a grid, `[1, 1+grid², dim]`, and returns it.
    pub(crate) fn positions(&mut self, name: &str, dim: usize, grid: usize) -> Result<Tensor> {
        let mut table = vec![0.0; (1 + grid * grid) * dim];
        tec_core::position::sincos_2d(dim, grid, &mut table)?;
        let table = Tensor::from_vec(table, (1, 1 + grid * grid, dim), self.device)?;
        self.params.fixed.push((name.into(), table.clone()));
        Ok(table)
    }

    pub(crate) fn finish(self) -> Params {
        self.params
    }
}

impl Weights for FreshParams<'_> {
    fn amp(&self) -> Amp {
        self.amp
    }

    fn take(&mut self, name: String, shape: &[usize], init: Init) -> Result<Tensor> {
        let noise = Noise {
            seed: self.seed,
            epoch: 0,
            sample: self.params.trainable.len() as u32,
            stream: Stream::Init,
        };
        let mut values = vec![0.0; shape.iter().product()];
        match init {
            Init::Zeros => {}
            Init::Ones => values.fill(1.0),
            Init::Xavier => {
                let outputs = shape.first().copied().unwrap_or(1).max(1);
                let inputs = values.len() / outputs;
                let bound = libm::sqrt(6.0 / (inputs + outputs) as f64) as f32;
                noise.fill(&mut values);
                values
                    .iter_mut()
                    .for_each(|value| *value = (2.0 * *value - 1.0) * bound);
            }
            Init::Token => {
                for (value, pair) in values.iter_mut().zip(0..) {
                    *value = 0.02 * normal(noise.uniform(2 * pair), noise.uniform(2 * pair + 1));
                }
            }
        }
        let var = Var::from_vec(values, shape, self.device)?;
        let tensor = var.as_tensor().clone();
        self.params.trainable.push((name, var));
        Ok(tensor)
    }
}

/// A standard normal value from two uniform ones of [0, 1) (Box and Muller, 1958).
fn normal(a: f32, b: f32) -> f32 {
    let radius = libm::sqrt(-2.0 * libm::log(1.0 - f64::from(a)));
    (radius * libm::cos(std::f64::consts::TAU * f64::from(b))) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(seed: u64) -> Params {
        let device = Device::Cpu;
        let mut fresh = FreshParams::new(seed, &device, Amp::None);
        fresh.take("first.weight".into(), &[64, 96], Init::Xavier).unwrap();
        fresh.take("second.weight".into(), &[64, 96], Init::Xavier).unwrap();
        fresh.take("token".into(), &[1, 1, 4096], Init::Token).unwrap();
        fresh.take("norm.weight".into(), &[8], Init::Ones).unwrap();
        fresh.positions("pos_embed", 8, 3).unwrap();
        fresh.finish()
    }

    fn values(params: &Params, name: &str) -> Vec<f32> {
        params.get(name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn initialization_is_deterministic_and_distributed_as_stated() {
        let params = fresh(3);
        assert_eq!(values(&params, "first.weight"), values(&fresh(3), "first.weight"));
        assert_ne!(values(&params, "first.weight"), values(&fresh(4), "first.weight"));
        assert_ne!(values(&params, "first.weight"), values(&params, "second.weight"));
        let bound = (6.0f32 / 160.0).sqrt();
        let matrix = values(&params, "first.weight");
        assert!(matrix.iter().all(|v| v.abs() <= bound) && matrix.iter().any(|v| v.abs() > 0.99 * bound));
        let token = values(&params, "token");
        let mean = token.iter().sum::<f32>() / 4096.0;
        let deviation = (token.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 4096.0).sqrt();
        assert!(
            mean.abs() < 0.001 && (deviation - 0.02).abs() < 0.001,
            "{mean} {deviation}"
        );
        assert_eq!(params.count(), 2 * 64 * 96 + 4096 + 8, "fixed tables are not trainable");
    }

    #[test]
    fn saving_and_loading_keeps_every_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("params.safetensors");
        fresh(3).save(&path, HashMap::new()).unwrap();
        let params = fresh(4);
        let report = params.load(&path).unwrap();
        assert_eq!(report.matched.len(), 5);
        for name in ["first.weight", "second.weight", "token", "norm.weight"] {
            assert_eq!(values(&params, name), values(&fresh(3), name));
        }
    }

    #[test]
    fn a_state_that_does_not_fit_is_listed_and_changes_nothing() {
        let params = fresh(3);
        let mut state: HashMap<_, _> = fresh(4).state().into_iter().collect();
        state.remove("token");
        state.insert("norm.weight".into(), Tensor::ones(9, DType::F32, &Device::Cpu).unwrap());
        state.insert("extra".into(), Tensor::ones(1, DType::F32, &Device::Cpu).unwrap());
        let error = params
            .load_state(state, Path::new("here.safetensors"))
            .unwrap_err()
            .to_string();
        for words in [
            "here.safetensors",
            "missing",
            "token",
            "unexpected",
            "extra",
            "norm.weight",
            "[8]",
            "[9]",
        ] {
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(values(&params, "first.weight"), values(&fresh(3), "first.weight"));
    }

    #[test]
    fn values_that_are_not_finite_and_other_tables_are_refused() {
        let params = fresh(3);
        let mut state: HashMap<_, _> = fresh(4).state().into_iter().collect();
        state.insert(
            "token".into(),
            Tensor::full(f32::NAN, (1, 1, 4096), &Device::Cpu).unwrap(),
        );
        let error = params
            .load_state(state.clone(), Path::new("x"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("`token`") && error.contains("not finite"), "{error}");
        state.insert("token".into(), Tensor::full(0f32, (1, 1, 4096), &Device::Cpu).unwrap());
        state.insert(
            "pos_embed".into(),
            Tensor::full(0.5f32, (1, 10, 8), &Device::Cpu).unwrap(),
        );
        let error = params.load_state(state, Path::new("x")).unwrap_err().to_string();
        assert!(error.contains("`pos_embed`"), "{error}");
        assert_eq!(values(&params, "token"), values(&fresh(3), "token"));
    }
}
