//! AdamW and the learning-rate schedule.

use std::cell::RefCell;
use std::f64::consts::PI;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor, Var};
use rayon::prelude::*;

use crate::{Error, Result};

/// Elements summed or updated as one piece, whatever the number of threads.
const CHUNK: usize = 1 << 14;

/// The learning rate by step: a linear warm-up from zero, then half a cosine down to `min_lr`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest learning rate, reached when the warm-up ends.
    pub base_lr: f64,
    /// The learning rate that the cosine ends with.
    pub min_lr: f64,
    /// Steps of warm-up; 0 for none.
    pub warmup_steps: usize,
    /// Steps of the whole run, warm-up included.
    pub total_steps: usize,
}

impl Schedule {
    /// The learning rate of step `step`, counted from 0. From `total_steps` on it is `min_lr`.
    pub fn lr(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.base_lr * step as f64 / self.warmup_steps as f64;
        }
        let steps = self.total_steps.saturating_sub(self.warmup_steps);
        let done = step - self.warmup_steps;
        if done >= steps {
            return self.min_lr;
        }
        let falling = 0.5 * (1.0 + (PI * done as f64 / steps as f64).cos());
        self.min_lr + (self.base_lr - self.min_lr) * falling
    }
}

/// What [`AdamW`] is configured with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the square root of the corrected second moment.
    pub eps: f64,
    /// Decoupled weight decay, of parameters with more than one axis whose name does not end in `.bias`.
    pub weight_decay: f64,
}

/// Adam with decoupled weight decay (Loshchilov and Hutter, 2019), with PyTorch's formula.
///
/// Updates are elementwise and the gradient norm is summed in a fixed order, so the result does not depend on the number of threads.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    step: u64,
    parameters: Vec<Parameter>,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    var: Var,
    decays: bool,
    first: Vec<f32>,
    second: Vec<f32>,
}

/// The moments of one parameter, for a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments<'a> {
    /// The parameter's name.
    pub name: &'a str,
    /// The parameter's shape, which both moments have.
    pub shape: &'a [usize],
    /// The mean of gradients.
    pub first: &'a [f32],
    /// The mean of squared gradients.
    pub second: &'a [f32],
}

impl AdamW {
    /// An optimizer of `params`, with moments of zero.
    pub fn new(params: &[(String, Var)], config: AdamWConfig) -> Self {
        let parameters = params
            .iter()
            .map(|(name, var)| Parameter {
                name: name.clone(),
                var: var.clone(),
                decays: var.rank() > 1 && !name.ends_with(".bias"),
                first: vec![0.0; var.elem_count()],
                second: vec![0.0; var.elem_count()],
            })
            .collect();
        Self {
            config,
            step: 0,
            parameters,
        }
    }

    /// Updates every parameter and returns the norm of all gradients before the update.
    ///
    /// When the norm is not finite nothing is updated and the step is not counted: the caller decides how to stop.
    ///
    /// # Errors
    /// [`Error::Data`] naming a parameter without a gradient: it is not part of the loss, or an operation detached it.
    pub fn step(&mut self, grads: &GradStore, lr: f64) -> Result<f64> {
        let grads: Vec<Vec<f32>> = self
            .parameters
            .iter()
            .map(|p| p.gradient(grads))
            .collect::<Result<_>>()?;
        let norm = grads
            .iter()
            .map(|grad| sum_of_squares(grad))
            .sum::<f64>()
            .sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.step += 1;
        let update = Update::new(&self.config, self.step, lr);
        self.parameters
            .par_iter_mut()
            .zip(&grads)
            .try_for_each(|(parameter, grad)| parameter.update(grad, &update))?;
        Ok(norm)
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The moments of every parameter, in the order given to [`AdamW::new`].
    pub fn moments(&self) -> impl Iterator<Item = Moments<'_>> {
        self.parameters.iter().map(|p| Moments {
            name: &p.name,
            shape: p.var.dims(),
            first: &p.first,
            second: &p.second,
        })
    }

    /// Continues from a checkpoint: steps taken, and for every parameter its name and both moments.
    ///
    /// # Errors
    /// [`Error::Data`] listing every parameter that is missing, unexpected, given twice, or of another size; nothing changes then.
    pub fn restore(&mut self, step: u64, moments: Vec<(String, Vec<f32>, Vec<f32>)>) -> Result<()> {
        let mut problems = Vec::new();
        let mut found: Vec<Option<(Vec<f32>, Vec<f32>)>> = vec![None; self.parameters.len()];
        for (name, first, second) in moments {
            let Some(at) = self.parameters.iter().position(|p| p.name == name) else {
                problems.push(format!("{name} is unexpected"));
                continue;
            };
            let expected = self.parameters[at].first.len();
            if first.len() != expected || second.len() != expected {
                problems.push(format!(
                    "{name} has {} and {} values, expected {expected}",
                    first.len(),
                    second.len()
                ));
            }
            if found[at].replace((first, second)).is_some() {
                problems.push(format!("{name} is given twice"));
            }
        }
        for (parameter, found) in self.parameters.iter().zip(&found) {
            if found.is_none() {
                problems.push(format!("{} is missing", parameter.name));
            }
        }
        if !problems.is_empty() {
            return Err(Error::Data(format!(
                "the optimizer's state does not fit the model: {}; resume with the recipe the run was started with",
                problems.join(", ")
            )));
        }
        self.step = step;
        for (parameter, found) in self.parameters.iter_mut().zip(found) {
            if let Some((first, second)) = found {
                (parameter.first, parameter.second) = (first, second);
            }
        }
        Ok(())
    }
}

impl Parameter {
    fn gradient(&self, grads: &GradStore) -> Result<Vec<f32>> {
        let grad: &Tensor = grads.get(&self.var).ok_or_else(|| {
            Error::Data(format!(
                "parameter {} got no gradient: take it out of the trainable parameters or make it part of the loss",
                self.name
            ))
        })?;
        if grad.shape() != self.var.shape() {
            return Err(Error::Data(format!(
                "the gradient of {} has shape {:?}, expected {:?}",
                self.name,
                grad.dims(),
                self.var.dims()
            )));
        }
        Ok(grad.flatten_all()?.to_vec1()?)
    }

    fn update(&mut self, grad: &[f32], update: &Update) -> Result<()> {
        let moments = RefCell::new((&mut self.first[..], &mut self.second[..]));
        let decay = if self.decays { update.decay } else { 1.0 };
        Ok(self.var.inplace_op1(&UpdateOne {
            update,
            decay,
            grad,
            moments,
        })?)
    }
}

/// What is the same for every element of one step.
struct Update {
    beta1: f32,
    beta2: f32,
    /// 1 - lr * weight_decay.
    decay: f32,
    /// lr / (1 - beta1^t).
    step_size: f32,
    /// sqrt(1 - beta2^t).
    correction: f32,
    eps: f32,
}

impl Update {
    fn new(config: &AdamWConfig, step: u64, lr: f64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            decay: (1.0 - lr * config.weight_decay) as f32,
            step_size: (lr / correction(config.beta1)) as f32,
            correction: correction(config.beta2).sqrt() as f32,
            eps: config.eps as f32,
        }
    }

    fn apply(
        &self,
        decay: f32,
        p: &mut [f32],
        grad: &[f32],
        first: &mut [f32],
        second: &mut [f32],
    ) {
        for (((p, &g), m), v) in p.iter_mut().zip(grad).zip(first).zip(second) {
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * (g * g);
            *p = *p * decay - self.step_size * (*m / (v.sqrt() / self.correction + self.eps));
        }
    }
}

/// The update of one parameter, in place on its storage.
struct UpdateOne<'a> {
    update: &'a Update,
    decay: f32,
    grad: &'a [f32],
    moments: RefCell<(&'a mut [f32], &'a mut [f32])>,
}

impl InplaceOp1 for UpdateOne<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("adamw: parameters are f32")
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("adamw: parameters are contiguous")
        };
        let mut moments = self.moments.borrow_mut();
        let (first, second) = &mut *moments;
        let (update, decay) = (self.update, self.decay);
        values[start..end]
            .par_chunks_mut(CHUNK)
            .zip(self.grad.par_chunks(CHUNK))
            .zip(
                first
                    .par_chunks_mut(CHUNK)
                    .zip(second.par_chunks_mut(CHUNK)),
            )
            .for_each(|((p, g), (m, v))| update.apply(decay, p, g, m, v));
        Ok(())
    }
}

fn sum_of_squares(values: &[f32]) -> f64 {
    let square = |v: &f32| f64::from(*v) * f64::from(*v);
    let parts: Vec<f64> = values
        .par_chunks(CHUNK)
        .map(|chunk| chunk.iter().map(square).sum())
        .collect();
    parts.iter().sum()
}
