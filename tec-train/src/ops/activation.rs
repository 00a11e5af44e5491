//! GELU and the residual addition.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, backend::BackendStorage, bail};
use rayon::prelude::*;

use super::cpu::{floats, refused, rows_per_piece, tensor, tensor_of, values};
#[cfg(feature = "cuda")]
use super::gpu;
use super::simd;
#[cfg(feature = "cuda")]
use crate::cuda::{Float, elementwise};

/// GELU with the exact error function, `x (1 + erf(x / sqrt 2)) / 2`, element by element, in the type of `x`: f32 or bf16.
pub fn gelu(x: &Tensor) -> crate::Result<Tensor> {
    Ok(x.contiguous()?.apply_op1(Gelu)?)
}

/// `x + y`, both of the same shape: a residual connection, on all threads.
///
/// # Errors
/// Different shapes.
pub fn add(x: &Tensor, y: &Tensor) -> crate::Result<Tensor> {
    Ok(x.contiguous()?.apply_op2(&y.contiguous()?, Add)?)
}

/// The gradient of `x` in [`gelu`], from that of its result, both of one type.
pub fn gelu_gradient(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    x.apply_op2_no_bwd(grad, &GeluGradient)
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(self.name(), storage, layout)?;
        let (mut y, piece) = (vec![0.0; x.len()], rows_per_piece(1));
        y.par_chunks_mut(piece)
            .zip(x.par_chunks(piece))
            .try_for_each(|(y, x)| simd::gelu(x, y))
            .map_err(refused)?;
        tensor_of(storage.dtype(), y, layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (float, x) = gpu::values(self.name(), storage, layout)?;
        let (device, n) = (storage.device(), layout.shape().elem_count());
        let y = gpu::Output::new(device, float, n)?;
        gpu::launch(device, &elementwise::gelu(float, x, y.address(device), n))?;
        y.tensor(device, layout.shape())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        gelu_gradient(x, &grad.contiguous()?).map(Some)
    }
}

struct GeluGradient;

impl CustomOp2 for GeluGradient {
    fn name(&self) -> &'static str {
        "gelu gradient"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, grad) = (values(self.name(), s1, l1)?, values(self.name(), s2, l2)?);
        let (mut grad_x, piece) = (vec![0.0; x.len()], rows_per_piece(1));
        grad_x
            .par_chunks_mut(piece)
            .zip(x.par_chunks(piece).zip(grad.par_chunks(piece)))
            .try_for_each(|(grad_x, (x, grad))| simd::gelu_backward(x, grad, grad_x))
            .map_err(refused)?;
        tensor_of(s1.dtype(), grad_x, l1.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let ((float, x), (of_grad, grad)) = (gpu::values(self.name(), s1, l1)?, gpu::values(self.name(), s2, l2)?);
        if l1.shape() != l2.shape() || float != of_grad {
            bail!(
                "gelu gradient: {:?} {float:?} and {:?} {of_grad:?} differ",
                l1.dims(),
                l2.dims()
            );
        }
        let (device, n) = (s1.device(), l1.shape().elem_count());
        let grad_x = gpu::Output::new(device, float, n)?;
        let plan = elementwise::gelu_gradient(float, x, grad, grad_x.address(device), n);
        gpu::launch(device, &plan)?;
        grad_x.tensor(device, l1.shape())
    }
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        if l1.shape() != l2.shape() {
            bail!("add: {:?} and {:?} have different shapes", l1.dims(), l2.dims());
        }
        let (x, y) = (floats(self.name(), s1, l1)?, floats(self.name(), s2, l2)?);
        let (mut sum, piece) = (vec![0.0; x.len()], rows_per_piece(1));
        sum.par_chunks_mut(piece)
            .zip(x.par_chunks(piece).zip(y.par_chunks(piece)))
            .for_each(|(sum, (x, y))| simd::add(x, y, sum));
        tensor(sum, l1.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        if l1.shape() != l2.shape() {
            bail!("add: {:?} and {:?} have different shapes", l1.dims(), l2.dims());
        }
        let (x, y) = (gpu::floats(self.name(), s1, l1)?, gpu::floats(self.name(), s2, l2)?);
        let (device, n) = (s1.device(), l1.shape().elem_count());
        let sum = gpu::Output::floats(device, n)?;
        gpu::launch(device, &elementwise::add(Float::F32, x, y, sum.address(device), n))?;
        sum.tensor(device, l1.shape())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), Some(grad.clone())))
    }
}
