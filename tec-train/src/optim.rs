//! AdamW and the learning-rate schedule.

#[cfg(feature = "cuda")]
mod gpu;

use std::borrow::Cow;
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
    /// The moments, where they are on a GPU: since the first step there.
    #[cfg(feature = "cuda")]
    gpu: Option<gpu::GpuMoments>,
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
#[derive(Debug, Clone, PartialEq)]
pub struct Moments<'a> {
    /// The parameter's name.
    pub name: &'a str,
    /// The parameter's shape, which both moments have.
    pub shape: &'a [usize],
    /// The mean of gradients.
    pub first: Cow<'a, [f32]>,
    /// The mean of squared gradients.
    pub second: Cow<'a, [f32]>,
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
            #[cfg(feature = "cuda")]
            gpu: None,
        }
    }

    /// Updates every parameter and returns the norm of all gradients before the update. Where the norm is above `clip`, the
    /// gradients are scaled down to it first.
    ///
    /// When the norm is not finite nothing is updated and the step is not counted: the caller decides how to stop.
    ///
    /// # Errors
    /// [`Error::Data`] naming a parameter without a gradient: it is not part of the loss, or an operation detached it.
    pub fn step(&mut self, grads: &GradStore, lr: f64, clip: Option<f64>) -> Result<f64> {
        self.step_for(grads, None, lr, clip)
    }

    /// [`AdamW::step`] with the losses that the gradients are of, f32 `[n]` on the parameters' device: where one is not finite the
    /// norm is NaN, and nothing is updated. A GPU decides that itself, so that it need not wait for the host before the update.
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn step_for(&mut self, grads: &GradStore, losses: Option<&Tensor>, lr: f64, clip: Option<f64>) -> Result<f64> {
        let grads: Vec<&Tensor> = self
            .parameters
            .iter()
            .map(|p| p.gradient(grads))
            .collect::<Result<_>>()?;
        let update = Update::new(&self.config, self.step + 1, lr);
        #[cfg(feature = "cuda")]
        {
            if self.gpu.is_none() {
                self.gpu = gpu::GpuMoments::new(&self.parameters)?;
            }
            if let Some(gpu) = &mut self.gpu {
                let norm = gpu.step(&self.parameters, &grads, losses, &update, clip)?;
                self.step += u64::from(norm.is_finite());
                return Ok(norm);
            }
        }
        let losses = losses.map(Tensor::to_vec1::<f32>).transpose()?.unwrap_or_default();
        if !losses.iter().all(|loss| loss.is_finite()) {
            return Ok(f64::NAN);
        }
        let norm = step_on_cpu(&mut self.parameters, &grads, update, clip)?;
        self.step += u64::from(norm.is_finite());
        Ok(norm)
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The moments of every parameter, in the order given to [`AdamW::new`].
    ///
    /// # Errors
    /// A GPU that does not give them back.
    pub fn moments(&self) -> Result<Vec<Moments<'_>>> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            let fetched = gpu.fetch(&self.parameters)?.into_iter();
            let all = self.parameters.iter().zip(fetched);
            return Ok(all
                .map(|(p, [first, second])| p.moments(first.into(), second.into()))
                .collect());
        }
        Ok(self
            .parameters
            .iter()
            .map(|p| p.moments(Cow::Borrowed(&p.first), Cow::Borrowed(&p.second)))
            .collect())
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
        #[cfg(feature = "cuda")]
        {
            self.gpu = None;
        }
        for (parameter, found) in self.parameters.iter_mut().zip(found) {
            if let Some((first, second)) = found {
                (parameter.first, parameter.second) = (first, second);
            }
        }
        Ok(())
    }
}

/// The norm of all gradients, and, if it is finite, the step of `update`, whose scale follows from norm and `clip`.
fn step_on_cpu(parameters: &mut [Parameter], grads: &[&Tensor], update: Update, clip: Option<f64>) -> Result<f64> {
    let values = |grad: &&Tensor| Ok(grad.flatten_all()?.to_vec1()?);
    let grads: Vec<Vec<f32>> = grads.par_iter().map(values).collect::<Result<_>>()?;
    let norm = grads.iter().map(|grad| sum_of_squares(grad)).sum::<f64>().sqrt();
    if norm.is_finite() {
        let update = Update {
            scale: clip.map_or(1.0, |clip| (clip / norm).min(1.0)) as f32,
            ..update
        };
        parameters
            .par_iter_mut()
            .zip(&grads)
            .try_for_each(|(parameter, grad)| parameter.update(grad, &update))?;
    }
    Ok(norm)
}

impl Parameter {
    fn moments<'a>(&'a self, first: Cow<'a, [f32]>, second: Cow<'a, [f32]>) -> Moments<'a> {
        Moments {
            name: &self.name,
            shape: self.var.dims(),
            first,
            second,
        }
    }

    fn gradient<'a>(&self, grads: &'a GradStore) -> Result<&'a Tensor> {
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
        Ok(grad)
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
    /// What gradients are multiplied by.
    scale: f32,
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
            scale: 1.0,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            decay: (1.0 - lr * config.weight_decay) as f32,
            step_size: (lr / correction(config.beta1)) as f32,
            correction: correction(config.beta2).sqrt() as f32,
            eps: config.eps as f32,
        }
    }

    fn apply(&self, decay: f32, p: &mut [f32], grad: &[f32], first: &mut [f32], second: &mut [f32]) {
        for (((p, &g), m), v) in p.iter_mut().zip(grad).zip(first).zip(second) {
            let g = g * self.scale;
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
            .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)))
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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    const CONFIG: AdamWConfig = AdamWConfig {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.05,
    };

    fn var(values: &[f32], shape: &[usize]) -> Var {
        Var::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn values(var: &Tensor) -> Vec<f32> {
        var.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The gradients of sum(x * factor * x) / 2 over the variables: factor * x.
    fn gradients(vars: &[&Var], factor: f64) -> GradStore {
        let terms = vars
            .iter()
            .map(|x| ((x.sqr().unwrap() * (factor / 2.0)).unwrap()).sum_all().unwrap());
        terms.reduce(|a, b| (a + b).unwrap()).unwrap().backward().unwrap()
    }

    #[test]
    fn schedule_warms_up_and_falls() {
        let schedule = Schedule {
            base_lr: 1e-3,
            min_lr: 0.0,
            warmup_steps: 4,
            total_steps: 10,
        };
        for step in 0..10 {
            let expected = match step {
                0..4 => 1e-3 * step as f64 / 4.0,
                _ => 1e-3 * 0.5 * (1.0 + (PI * (step as f64 - 4.0) / 6.0).cos()),
            };
            assert!((schedule.lr(step) - expected).abs() < 1e-18, "{step}");
        }
        assert_eq!((schedule.lr(4), schedule.lr(10), schedule.lr(99)), (1e-3, 0.0, 0.0));
        let raised = Schedule {
            min_lr: 1e-4,
            ..schedule
        };
        assert!((raised.lr(7) - 5.5e-4).abs() < 1e-12);
        assert_eq!((raised.lr(2), raised.lr(10)), (5e-4, 1e-4));
        let degenerate = Schedule {
            warmup_steps: 0,
            total_steps: 0,
            ..raised
        };
        assert_eq!(degenerate.lr(0), 1e-4);
    }

    #[test]
    fn steps_follow_the_formula() {
        let start = [0.5f32, -2.0, 0.25, 1.0];
        let vars =
            [("w", vec![2, 2]), ("b", vec![4]), ("odd.bias", vec![2, 2])].map(|(n, s)| (n.into(), var(&start, &s)));
        let mut optimizer = AdamW::new(&vars, CONFIG);
        let mut expected = [true, false, false].map(|decays| (decays, start.map(|p| (f64::from(p), 0.0, 0.0))));
        for step in 1..=5 {
            let factor = 0.3 * step as f64;
            let grads = gradients(&[&vars[0].1, &vars[1].1, &vars[2].1], factor);
            let lr = 0.01 * step as f64;
            let norm = optimizer.step(&grads, lr, None).unwrap();
            let mut squares = 0.0;
            for (decays, state) in &mut expected {
                for (p, m, v) in state {
                    let g = factor * *p;
                    squares += g * g;
                    *m = 0.9 * *m + 0.1 * g;
                    *v = 0.95 * *v + 0.05 * g * g;
                    *p *= if *decays { 1.0 - lr * 0.05 } else { 1.0 };
                    let (m, v) = (*m / (1.0 - 0.9f64.powi(step)), *v / (1.0 - 0.95f64.powi(step)));
                    *p -= lr * m / (v.sqrt() + 1e-8);
                }
            }
            assert!((norm - squares.sqrt()).abs() < 1e-5 * norm);
        }
        for ((name, var), (_, state)) in vars.iter().zip(&expected) {
            for (actual, (p, ..)) in values(var).iter().zip(state) {
                assert!((f64::from(*actual) - p).abs() < 1e-6, "{name}: {actual} and {p}");
            }
        }
        assert_eq!(optimizer.steps(), 5);
    }

    #[test]
    fn missing_gradients_are_named_and_bad_ones_not_applied() {
        let (a, b) = (var(&[1.0, 2.0], &[2]), var(&[3.0], &[1]));
        let mut optimizer = AdamW::new(&[("a".into(), a.clone()), ("mlp.b".into(), b.clone())], CONFIG);
        let error = optimizer
            .step(&gradients(&[&a], 1.0), 0.1, None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("mlp.b"), "{error}");
        let norm = optimizer.step(&gradients(&[&a, &b], f64::INFINITY), 0.1, None).unwrap();
        assert!(!norm.is_finite());
        assert_eq!(
            (values(&a), values(&b), optimizer.steps()),
            (vec![1.0, 2.0], vec![3.0], 0)
        );
        assert!(
            optimizer
                .moments()
                .unwrap()
                .iter()
                .all(|m| m.first.iter().chain(&*m.second).all(|&v| v == 0.0))
        );
    }

    #[test]
    fn a_restored_optimizer_continues_bit_for_bit() {
        let start: Vec<f32> = (0..40_000).map(|i| (i % 97) as f32 / 50.0 - 1.0).collect();
        let x = var(&start, &[200, 200]);
        let mut whole = AdamW::new(&[("x".into(), x.clone())], CONFIG);
        let step = |optimizer: &mut AdamW, x: &Var| optimizer.step(&gradients(&[x], 0.7), 0.01, None).unwrap();
        step(&mut whole, &x);
        step(&mut whole, &x);
        let copy = Var::from_tensor(&x.copy().unwrap()).unwrap();
        let state: Vec<_> = whole
            .moments()
            .unwrap()
            .iter()
            .map(|m| (m.name.to_owned(), m.first.to_vec(), m.second.to_vec()))
            .collect();
        let mut resumed = AdamW::new(&[("x".into(), copy.clone())], CONFIG);
        resumed.restore(whole.steps(), state.clone()).unwrap();
        let threads = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let norms = (step(&mut whole, &x), threads.install(|| step(&mut resumed, &copy)));
        assert_eq!(norms.0.to_bits(), norms.1.to_bits());
        assert!(values(&x) == values(&copy) && values(&x) != start);

        for (state, word) in [
            (vec![], "missing"),
            (vec![state[0].clone(), state[0].clone()], "twice"),
            (vec![state[0].clone(), ("y".into(), vec![], vec![])], "y is unexpected"),
            (vec![("x".into(), vec![0.0], vec![0.0])], "40000"),
        ] {
            let error = resumed.restore(9, state).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(resumed.steps(), 3);
    }

    #[test]
    fn a_loss_that_is_not_finite_changes_nothing() {
        let x = var(&[1.0, 2.0], &[2]);
        let mut optimizer = AdamW::new(&[("x".into(), x.clone())], CONFIG);
        let mut step = |losses: &[f32]| {
            let losses = Tensor::new(losses, &Device::Cpu).unwrap();
            optimizer
                .step_for(&gradients(&[&x], 1.0), Some(&losses), 0.1, None)
                .unwrap()
        };
        assert!(step(&[0.5, f32::INFINITY]).is_nan() && step(&[f32::NAN]).is_nan());
        assert_eq!(values(&x), [1.0, 2.0]);
        assert!((step(&[0.5, 3.0]) - 5f64.sqrt()).abs() < 1e-6);
        assert_ne!(values(&x), [1.0, 2.0]);
        assert_eq!(optimizer.steps(), 1);
    }

    /// Gradients twice as long as the limit move the weights like gradients of half their length; shorter ones are left alone.
    #[test]
    fn long_gradients_are_scaled_to_the_limit() {
        let start = [3.0f32, -4.0, 12.0];
        let run = |factor: f64, clip: Option<f64>| {
            let x = var(&start, &[3]);
            let mut optimizer = AdamW::new(&[("x".into(), x.clone())], CONFIG);
            let norm = optimizer.step(&gradients(&[&x], factor), 0.1, clip).unwrap();
            let moments = optimizer.moments().unwrap()[0].first.to_vec();
            (norm, moments)
        };
        // The norm of the start is 13.
        let (norm, clipped) = run(2.0, Some(13.0));
        assert!((norm - 26.0).abs() < 1e-5, "the norm is that before the limit: {norm}");
        assert_eq!(clipped, run(1.0, None).1);
        assert_eq!(run(2.0, Some(26.5)).1, run(2.0, None).1);
    }
}
