//! A moving average of the encoder's weights.

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;

use crate::{Error, Result, checkpoint::Checkpoint};

/// The exponential moving average of some parameters: after update t, `average += (1 − d)·(weight − average)` with
/// d = min(decay, (1 + t) / (10 + t)), so that the first weights, which are noise, are soon forgotten.
pub struct Ema {
    decay: f64,
    averages: Vec<(String, Var, Vec<f32>)>,
}

impl Ema {
    /// An average that begins at the parameters as they are.
    ///
    /// # Errors
    /// A parameter that cannot be read.
    pub fn new<'a>(decay: f64, params: impl Iterator<Item = &'a (String, Var)>) -> Result<Self> {
        let averages = params
            .map(|(name, var)| Ok((name.clone(), var.clone(), values(var)?)))
            .collect::<Result<_>>()?;
        Ok(Self { decay, averages })
    }

    /// Moves the average after the parameters were updated for the `updates`-th time.
    ///
    /// # Errors
    /// A parameter that cannot be read.
    pub fn update(&mut self, updates: u64) -> Result<()> {
        let early = (1.0 + updates as f64) / (10.0 + updates as f64);
        let share = (1.0 - self.decay.min(early)) as f32;
        self.averages.par_iter_mut().try_for_each(|(_, var, average)| {
            for (average, weight) in average.iter_mut().zip(values(var)?) {
                *average += share * (weight - *average);
            }
            Ok(())
        })
    }

    /// The averages by their parameters' names.
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn tensors(&self) -> Result<HashMap<String, Tensor>> {
        let tensor = |(name, var, average): &(String, Var, Vec<f32>)| {
            Ok((name.clone(), Tensor::from_slice(average, var.shape(), &Device::Cpu)?))
        };
        self.averages.iter().map(tensor).collect()
    }

    /// Goes on from a checkpoint.
    ///
    /// # Errors
    /// An average that is missing or of another size.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        for (name, var, average) in &mut self.averages {
            let stored = checkpoint.tensors.get(&format!("ema.{name}"));
            let stored = stored.filter(|stored| stored.dims() == var.dims());
            let stored = stored.ok_or_else(|| Error::File {
                path: checkpoint.origin.clone(),
                reason: format!("`ema.{name}` is missing or of another shape; the checkpoint is not of this recipe"),
            })?;
            *average = stored.flatten_all()?.to_vec1()?;
        }
        Ok(())
    }
}

fn values(var: &Var) -> Result<Vec<f32>> {
    Ok(var.as_detached_tensor().flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_average_follows_the_weights() {
        let var = Var::from_slice(&[10.0f32, -10.0], &[2], &Device::Cpu).unwrap();
        let params = [("w".to_string(), var.clone())];
        let mut ema = Ema::new(0.5, params.iter()).unwrap();
        let now = |ema: &Ema| ema.tensors().unwrap()["w"].to_vec1::<f32>().unwrap();
        var.set(&Tensor::new(&[0.0f32, 22.0], &Device::Cpu).unwrap()).unwrap();
        // d = 2/11: nine elevenths of the way.
        ema.update(1).unwrap();
        let first = now(&ema);
        assert!(
            (first[0] - 20.0 / 11.0).abs() < 1e-5 && (first[1] - 178.0 / 11.0).abs() < 1e-4,
            "{first:?}"
        );
        // Later on the decay itself: half of the way.
        ema.update(1000).unwrap();
        let second = now(&ema);
        assert!((second[0] - first[0] / 2.0).abs() < 1e-6 && (second[1] - (first[1] + 22.0) / 2.0).abs() < 1e-5);
    }
}
