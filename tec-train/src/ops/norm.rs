//! Layer normalization.

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};
use rayon::prelude::*;

use super::cpu::{floats, refused, rows_per_piece, tensor, tensor_of, values, with_floats};
#[cfg(feature = "cuda")]
use super::gpu;
use super::simd;
#[cfg(feature = "cuda")]
use crate::cuda::norm;

/// Layer normalization over the last axis (biased variance): `x` [.., D], `weight` and `bias` `[D]`. Differentiable in all three.
///
/// # Errors
/// Shapes that do not fit each other, D = 0.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> crate::Result<Tensor> {
    layer_norm_as(DType::F32, x, weight, bias, eps)
}

/// As [`layer_norm`], with a result of type `dtype`: f32 or bf16.
pub fn layer_norm_as(dtype: DType, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> crate::Result<Tensor> {
    let op = LayerNorm { eps, dtype };
    Ok(x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?)
}

/// The f32 gradients of x, weight and bias in [`layer_norm_as`], from that of its result, which has its type; `residual` is added
/// to that of x.
pub fn gradients(
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
    eps: f32,
    residual: Option<&Tensor>,
) -> Result<[Tensor; 3]> {
    let (n, width) = (x.elem_count(), weight.elem_count());
    let residual = residual.cloned();
    let grads = x.apply_op3_no_bwd(weight, grad, &LayerNormGradient { eps, residual })?;
    Ok([
        grads.narrow(0, 0, n)?.reshape(x.shape())?,
        grads.narrow(0, n, width)?,
        grads.narrow(0, n + width, width)?,
    ])
}

struct LayerNorm {
    eps: f32,
    /// Of the result.
    dtype: DType,
}

/// D, where `x` is [.., D] and the weight `[D]`.
fn width(x: &Layout, weight: &Layout) -> Result<usize> {
    match (x.dims().last(), weight.dims()) {
        (Some(&width), &[weights]) if width == weights && width > 0 => Ok(width),
        _ => bail!(
            "layer_norm: {:?} cannot be normalized with a weight {:?}",
            x.dims(),
            weight.dims()
        ),
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = width(l1, l2)?;
        let x = floats(self.name(), s1, l1)?;
        let (weight, bias) = (floats(self.name(), s2, l2)?, floats(self.name(), s3, l3)?);
        let (mut y, piece) = (vec![0.0; x.len()], rows_per_piece(width) * width);
        y.par_chunks_mut(piece)
            .zip(x.par_chunks(piece))
            .try_for_each(|(y, x)| simd::layer_norm_rows(x, weight, bias, self.eps, y))
            .map_err(refused)?;
        tensor_of(self.dtype, y, l1.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let width = width(l1, l2)?;
        let x = gpu::floats(self.name(), s1, l1)?;
        let (weight, bias) = (gpu::floats(self.name(), s2, l2)?, gpu::floats(self.name(), s3, l3)?);
        let (device, n, float) = (s1.device(), l1.shape().elem_count(), gpu::float(self.dtype)?);
        let y = gpu::Output::new(device, float, n)?;
        let plan = norm::layer_norm(float, x, weight, bias, y.address(device), n / width, width, self.eps);
        gpu::launch(device, &plan)?;
        y.tensor(device, l1.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [grad_x, grad_weight, grad_bias] = gradients(x, weight, &grad.contiguous()?, self.eps, None)?;
        let wanted = |tensor: &Tensor, grad| tensor.track_op().then_some(grad);
        Ok((wanted(x, grad_x), wanted(weight, grad_weight), wanted(bias, grad_bias)))
    }
}

/// The gradients of `x`, weight and bias from (x, weight, gradient of the result), one after the other in one tensor.
struct LayerNormGradient {
    eps: f32,
    /// What the gradient of x is added to.
    residual: Option<Tensor>,
}

impl CustomOp3 for LayerNormGradient {
    fn name(&self) -> &'static str {
        "layer_norm gradient"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        width(l1, l2)?;
        let (x, weight) = (floats(self.name(), s1, l1)?, floats(self.name(), s2, l2)?);
        let grad = values(self.name(), s3, l3)?;
        let grads = match &self.residual {
            None => self.compute(x, weight, &grad, None)?,
            Some(residual) if residual.dims() != l1.dims() => bail!(
                "layer_norm gradient: {:?} is no residual of {:?}",
                residual.dims(),
                l1.dims()
            ),
            Some(residual) => with_floats(self.name(), residual, |residual| {
                self.compute(x, weight, &grad, Some(residual))
            })?,
        };
        let len = grads.len();
        tensor(grads, len)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let width = width(l1, l2)?;
        let (x, weight) = (gpu::floats(self.name(), s1, l1)?, gpu::floats(self.name(), s2, l2)?);
        let (float, grad) = gpu::values(self.name(), s3, l3)?;
        let (device, n) = (s1.device(), l1.shape().elem_count());
        let rows = n / width;
        let grads = gpu::Output::floats(device, n + 2 * width)?;
        let scratch = gpu::Output::floats(device, norm::layer_norm_gradient_scratch(rows, width))?;
        let address = grads.address(device);
        let run = |residual: u64| {
            let plans = norm::layer_norm_gradient(
                float,
                &norm::LayerNormGradient {
                    x,
                    weight,
                    grad,
                    residual,
                    grad_x: address,
                    grad_weight: address + 4 * n as u64,
                    grad_bias: address + 4 * (n + width) as u64,
                    scratch: scratch.address(device),
                    rows,
                    width,
                    eps: self.eps,
                },
            );
            plans.iter().try_for_each(|plan| gpu::launch(device, plan))
        };
        match &self.residual {
            Some(residual) => gpu::with_floats(self.name(), residual, run)?,
            None => run(0)?,
        }
        grads.tensor(device, n + 2 * width)
    }
}

impl LayerNormGradient {
    /// The three gradients, one after the other; `residual`, as long as `x`, is added to the first.
    fn compute(&self, x: &[f32], weight: &[f32], grad: &[f32], residual: Option<&[f32]>) -> Result<Vec<f32>> {
        let width = weight.len();
        let piece = rows_per_piece(width) * width;
        let mut grads = vec![0.0; x.len() + 2 * width];
        let (grad_x, grad_parameters) = grads.split_at_mut(x.len());
        // Sums over rows: by pieces first, then over the pieces in their order.
        let pieces: Vec<Vec<f32>> = grad_x
            .par_chunks_mut(piece)
            .zip(x.par_chunks(piece).zip(grad.par_chunks(piece)))
            .enumerate()
            .map(|(number, (grad_x, (x, grad)))| {
                let mut sums = vec![0.0; 2 * width];
                let (grad_weight, grad_bias) = sums.split_at_mut(width);
                simd::layer_norm_backward_rows(x, weight, self.eps, grad, grad_x, grad_weight, grad_bias)
                    .map_err(refused)?;
                if let Some(residual) = residual {
                    let start = number * piece;
                    simd::add_rows(&residual[start..start + grad_x.len()], grad_x);
                }
                Ok(sums)
            })
            .collect::<Result<_>>()?;
        pieces.iter().for_each(|sums| simd::add_rows(sums, grad_parameters));
        Ok(grads)
    }
}
