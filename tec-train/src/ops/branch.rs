//! The residual branches of a transformer block, each one operation.
//!
//! Candle's backward pass makes a tensor of zeros and an addition for every node of its graph. A branch is one node, so that
//! this happens once for it, and it decides itself what it keeps for its gradient: everything, or nothing (activation
//! checkpointing; Chen et al., 2016), when the gradient computes it again.

use std::cell::RefCell;
use std::sync::Mutex;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};

use super::cpu::{floats, tensor, with_factor, with_floats};
use super::gemm::{Matrix, product_onto};
#[cfg(feature = "cuda")]
use super::gpu::{self, Operand, Product};
use super::{Amp, activation, attention, linear, norm};
use crate::Error;
#[cfg(feature = "cuda")]
use crate::cuda::Float;

/// What a branch does between its two linear layers.
#[derive(Debug, Clone, Copy)]
pub enum Middle {
    /// Self-attention of `heads` heads: the first layer makes queries, keys and values.
    Attention {
        /// Its heads.
        heads: usize,
    },
    /// The exact GELU.
    Gelu,
}

/// The weights of a branch. D width, H the first layer's outputs, M what [`Middle`] leaves of them.
#[derive(Debug, Clone)]
pub struct BranchWeights {
    /// Weight and bias `[D]` of the layer norm.
    pub norm: [Tensor; 2],
    /// Added to its variance.
    pub eps: f32,
    /// Weight `[H, D]` and bias `[H]` of the first linear layer.
    pub first: [Tensor; 2],
    /// Weight `[D, M]` and bias `[D]` of the second.
    pub second: [Tensor; 2],
    /// Whether what is inside, and its gradients, are bf16; tokens, result and gradients of weights are f32 either way.
    pub amp: Amp,
}

/// `x + second(middle(first(norm(x))))`: tokens `x` `[B, N, D]` → `[B, N, D]`. Differentiable in `x` and all weights, by
/// [`backward`] alone; where `checkpoint` is set nothing in between is kept, and the gradient computes it again.
///
/// # Errors
/// Shapes that do not fit each other; weights of a linear layer that were computed from others and carry gradients.
pub fn branch(x: &Tensor, weights: &BranchWeights, middle: Middle, checkpoint: bool) -> crate::Result<Tensor> {
    let x = x.contiguous()?;
    let mut linear = weights.first.iter().chain(&weights.second);
    if linear.clone().any(|w| w.track_op() && !w.is_variable()) {
        return Err(Error::Usage(
            "branch: weights of its linear layers are variables or constants, nothing computed".into(),
        ));
    }
    let seen = x.track_op() || weights.norm.iter().any(Tensor::track_op);
    if linear.any(Tensor::track_op) && !seen {
        return Err(Error::Usage(
            "branch: tokens or norm must carry gradients where linear layers do: make the norm's weight a variable"
                .into(),
        ));
    }
    let detached = weights.detached();
    let inside = detached.inside(&x.detach(), middle)?;
    let op = Branch {
        weights: weights.clone(),
        middle,
        keep: seen && !checkpoint,
        inside: Mutex::new(Some(inside)),
    };
    let [weight, bias] = &weights.norm;
    Ok(x.apply_op3(weight, bias, op)?)
}

/// The gradients of a scalar, as [`Tensor::backward`] gives them, and those of the weights of every [`branch`] on the way.
///
/// # Errors
/// An operation without a gradient.
pub fn backward(loss: &Tensor) -> crate::Result<GradStore> {
    // A backward pass within another's gradient would be a bug: there is none in any operation.
    GATHERED.set(Some(Vec::new()));
    let grads = loss.backward();
    let gathered = GATHERED.take().unwrap_or_default();
    let mut grads = grads?;
    for (weight, grad) in gathered {
        let sum = match grads.remove(&weight) {
            Some(before) => activation::add(&before, &grad)?,
            None => grad,
        };
        grads.insert(&weight, sum);
    }
    Ok(grads)
}

thread_local! {
    /// Gradients of branches' weights, which candle's three arguments of an operation leave no room for; while a backward pass
    /// of this thread is under way.
    static GATHERED: RefCell<Option<Vec<(Tensor, Tensor)>>> = const { RefCell::new(None) };
}

/// What a branch computes before its second layer.
struct Inside {
    normed: Tensor,
    first: Tensor,
    middle: Tensor,
}

impl BranchWeights {
    /// The same weights as values alone: what is computed with them records no gradient.
    fn detached(&self) -> Self {
        let detached = |pair: &[Tensor; 2]| [pair[0].detach(), pair[1].detach()];
        Self {
            norm: detached(&self.norm),
            eps: self.eps,
            first: detached(&self.first),
            second: detached(&self.second),
            amp: self.amp,
        }
    }

    fn inside(&self, x: &Tensor, middle: Middle) -> crate::Result<Inside> {
        let amp = self.amp;
        let normed = norm::layer_norm_as(amp.dtype(), x, &self.norm[0], &self.norm[1], self.eps)?;
        let first = linear::linear(&normed, &self.first[0], Some(&self.first[1]), amp)?;
        let middle = match middle {
            Middle::Attention { heads } => attention::attention(&first, heads, amp)?,
            Middle::Gelu => activation::gelu(&first)?,
        };
        Ok(Inside { normed, first, middle })
    }
}

struct Branch {
    weights: BranchWeights,
    middle: Middle,
    /// Whether what is inside is kept for the gradient.
    keep: bool,
    /// Handed over beside the arguments, which candle would keep.
    inside: Mutex<Option<Inside>>,
}

impl Branch {
    fn take(&self) -> Option<Inside> {
        self.inside.lock().ok().and_then(|mut inside| inside.take())
    }

    /// What is inside, which is handed over for one forward pass.
    fn take_once(&self) -> Result<Inside> {
        match self.take() {
            Some(inside) => Ok(inside),
            None => bail!("branch: computed twice; please report it"),
        }
    }

    /// Keeps what is inside for the gradient, where it is to be kept.
    fn keep(&self, inside: Inside) {
        if self.keep
            && let Ok(mut place) = self.inside.lock()
        {
            *place = Some(inside);
        }
    }

    /// Outputs and inputs of the second layer, whose outputs are added to `x`.
    fn second_sizes(&self, x: &Layout) -> Result<(usize, usize)> {
        let (outputs, inputs) = self.weights.second[0].dims2()?;
        if x.dims().last() != Some(&outputs) {
            bail!("branch: {:?} cannot be added to {outputs} outputs", x.dims());
        }
        Ok((outputs, inputs))
    }

    /// The gradients of x, norm weight and norm bias; those of the linear layers are gathered.
    fn gradients(&self, x: &Tensor, grad: &Tensor) -> crate::Result<[Tensor; 3]> {
        let w = self.weights.detached();
        let inside = match self.take() {
            Some(inside) => inside,
            None => w.inside(&x.detach(), self.middle)?,
        };
        let [first, second] = [&self.weights.first, &self.weights.second];
        let Inside {
            normed,
            first: h,
            middle,
        } = inside;

        let amp = w.amp;
        let rounded = amp.rounded(grad)?;
        let grad_middle = linear::input_gradient(&rounded, &w.second[0], amp.dtype(), amp)?;
        gather(second, || linear::weight_gradients(&rounded, grad, &middle, amp))?;
        drop((middle, rounded));
        let grad_h = match self.middle {
            Middle::Attention { heads } => attention::gradient(&h, &grad_middle, heads, amp)?,
            Middle::Gelu => activation::gelu_gradient(&h, &grad_middle)?,
        };
        drop((h, grad_middle));
        gather(first, || linear::weight_gradients(&grad_h, &grad_h, &normed, amp))?;
        drop(normed);
        let grad_normed = linear::input_gradient(&grad_h, &w.first[0], amp.dtype(), amp)?;
        drop(grad_h);
        Ok(norm::gradients(x, &w.norm[0], &grad_normed, w.eps, Some(grad))?)
    }
}

/// Keeps the gradients of a layer's weight and bias, where they are wanted, for the backward pass under way.
fn gather(layer: &[Tensor; 2], gradients: impl FnOnce() -> Result<[Tensor; 2]>) -> Result<()> {
    if !layer.iter().any(Tensor::track_op) {
        return Ok(());
    }
    let gradients = gradients()?;
    GATHERED.with_borrow_mut(|gathered| match gathered {
        Some(gathered) => {
            let pairs = layer.iter().cloned().zip(gradients);
            gathered.extend(pairs.filter(|(weight, _)| weight.track_op()));
            Ok(())
        }
        None => bail!("a model's gradients are those of `tec_train::ops::backward`, not of `Tensor::backward`"),
    })
}

impl CustomOp3 for Branch {
    fn name(&self) -> &'static str {
        "branch"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inside = self.take_once()?;
        let x = floats(self.name(), s1, l1)?;
        let [weight, bias] = &self.weights.second;
        let (outputs, inputs) = self.second_sizes(l1)?;
        let amp = self.weights.amp;
        let sum = with_factor(self.name(), &inside.middle, amp, |middle| {
            with_factor(self.name(), weight, amp, |weight| {
                with_floats(self.name(), bias, |bias| {
                    let rows = x.len() / outputs.max(1);
                    let (a, b) = (
                        Matrix::new(middle, rows, inputs, inputs)?,
                        Matrix::new(weight, outputs, inputs, inputs)?.t(),
                    );
                    product_onto(x, bias, a, b)
                })
            })
        })?;
        self.keep(inside);
        tensor(sum, l1.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let inside = self.take_once()?;
        let (outputs, inputs) = self.second_sizes(l1)?;
        let (device, rows) = (s1.device(), l1.shape().elem_count() / outputs.max(1));
        let x = gpu::floats(self.name(), s1, l1)?;
        let [weight, bias] = &self.weights.second;
        let sum = gpu::Output::floats(device, rows * outputs)?;
        gpu::with_values(self.name(), &inside.middle, |(float, middle)| {
            gpu::with_floats(self.name(), weight, |weight| {
                gpu::with_floats(self.name(), bias, |bias| {
                    let weight = gpu::converted(device, weight, outputs * inputs, float)?;
                    let product = Product {
                        rows,
                        columns: outputs,
                        inner: inputs,
                        a: Operand::new((float, middle)),
                        b: Operand::new((float, weight.address())).t(),
                        out: (Float::F32, sum.address(device)),
                        bias: Some(bias),
                        add: Some(x),
                    };
                    gpu::product(device, &product)
                })
            })
        })?;
        self.keep(inside);
        sum.tensor(device, l1.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [grad_x, grad_weight, grad_bias] = self
            .gradients(x, &grad.contiguous()?)
            .map_err(candle_core::Error::wrap)?;
        Ok((Some(grad_x), Some(grad_weight), Some(grad_bias)))
    }
}
