//! The linear layer.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};
use rayon::prelude::*;

use super::cpu::{floats, rows_per_piece, tensor};
use super::gemm::{Matrix, product};
#[cfg(feature = "cuda")]
use super::gpu::{self, Operand, Product};
use super::simd;
#[cfg(feature = "cuda")]
use crate::cuda::{Float, norm};

/// `x weight^T + bias`: `x` [.., K], `weight` `[M, K]`, `bias` `[M]` gives [.., M]. Differentiable in all three.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> crate::Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    Ok(match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Linear)?,
        None => x.apply_op2(&weight, Linear)?,
    })
}

/// The gradient of `x` in [`linear`], from that of its result, which is contiguous.
pub fn input_gradient(grad: &Tensor, weight: &Tensor) -> Result<Tensor> {
    grad.apply_op2_no_bwd(weight, &InputGradient)
}

/// The gradients of weight and bias in [`linear`], from that of its result, which is contiguous.
pub fn weight_gradients(grad: &Tensor, x: &Tensor) -> Result<[Tensor; 2]> {
    Ok([
        grad.apply_op2_no_bwd(x, &WeightGradient)?,
        grad.apply_op1_no_bwd(&ColumnSums)?,
    ])
}

struct Linear;

impl Linear {
    fn forward(
        x: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let ([rows, inputs, outputs], shape) = Self::sizes(x.1, weight.1)?;
        let (x, weight) = (floats("linear", x.0, x.1)?, floats("linear", weight.0, weight.1)?);
        let (a, b) = (
            Matrix::new(x, rows, inputs, inputs)?,
            Matrix::new(weight, outputs, inputs, inputs)?.t(),
        );
        tensor(product(bias, a, b)?, shape)
    }

    /// Rows, inputs, outputs and the result's shape.
    fn sizes(x: &Layout, weight: &Layout) -> Result<([usize; 3], Vec<usize>)> {
        let (outputs, inputs) = weight.shape().dims2()?;
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == inputs => *last = outputs,
            _ => bail!(
                "linear: {:?} does not end with the {inputs} inputs of weight {:?}",
                x.dims(),
                weight.dims()
            ),
        }
        let rows = shape.iter().rev().skip(1).product();
        Ok(([rows, inputs, outputs], shape))
    }

    #[cfg(feature = "cuda")]
    fn forward_gpu(
        x: (&CudaStorage, &Layout),
        weight: (&CudaStorage, &Layout),
        bias: Option<u64>,
    ) -> Result<(CudaStorage, Shape)> {
        let ([rows, inputs, outputs], shape) = Self::sizes(x.1, weight.1)?;
        let device = x.0.device();
        let (float, x) = gpu::values("linear", x.0, x.1)?;
        let weight = gpu::floats("linear", weight.0, weight.1)?;
        let weight = gpu::converted(device, weight, outputs * inputs, float)?;
        let bias = bias
            .map(|bias| gpu::converted(device, bias, outputs, float))
            .transpose()?;
        let out = gpu::Output::new(device, float, rows * outputs)?;
        let product = Product {
            rows,
            columns: outputs,
            inner: inputs,
            a: Operand::new((float, x)),
            b: Operand::new((float, weight.address())).t(),
            out: (float, out.address(device)),
            bias: bias.as_ref().map(gpu::Converted::address),
            add: None,
        };
        gpu::product(device, &product)?;
        out.tensor(device, shape)
    }

    /// The gradients that somebody asks for.
    fn backward(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad_x = x.track_op().then(|| input_gradient(grad, weight)).transpose()?;
        let grad_weight = weight
            .track_op()
            .then(|| grad.apply_op2_no_bwd(x, &WeightGradient))
            .transpose()?;
        Ok((grad_x, grad_weight))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::forward((s1, l1), (s2, l2), None)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        Self::forward_gpu((s1, l1), (s2, l2), None)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Self::backward(x, weight, &grad.contiguous()?)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        Self::forward((s1, l1), (s2, l2), Some(floats("linear", s3, l3)?))
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
        Self::forward_gpu((s1, l1), (s2, l2), Some(gpu::floats("linear", s3, l3)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (grad_x, grad_weight) = Self::backward(x, weight, &grad)?;
        let grad_bias = bias
            .track_op()
            .then(|| grad.apply_op1_no_bwd(&ColumnSums))
            .transpose()?;
        Ok((grad_x, grad_weight, grad_bias))
    }
}

/// `grad weight`: the gradient [.., K] of the input from `grad` [.., M] and `weight` `[M, K]`.
struct InputGradient;

impl CustomOp2 for InputGradient {
    fn name(&self) -> &'static str {
        "linear input gradient"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (outputs, inputs) = l2.shape().dims2()?;
        let mut shape = l1.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = inputs;
        }
        let rows: usize = shape.iter().rev().skip(1).product();
        let (grad, weight) = (floats(self.name(), s1, l1)?, floats(self.name(), s2, l2)?);
        let (a, b) = (
            Matrix::new(grad, rows, outputs, outputs)?,
            Matrix::new(weight, outputs, inputs, inputs)?,
        );
        tensor(product(None, a, b)?, shape)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let (outputs, inputs) = l2.shape().dims2()?;
        let (rows, mut shape) = (l1.shape().elem_count() / outputs.max(1), l1.dims().to_vec());
        if shape.last() != Some(&outputs) {
            bail!("{}: {shape:?} does not end with {outputs} outputs", self.name());
        }
        shape.splice(shape.len() - 1.., [inputs]);
        let device = s1.device();
        let (float, grad) = gpu::values(self.name(), s1, l1)?;
        let weight = gpu::converted(device, gpu::floats(self.name(), s2, l2)?, outputs * inputs, float)?;
        let out = gpu::Output::new(device, float, rows * inputs)?;
        let product = Product {
            rows,
            columns: inputs,
            inner: outputs,
            a: Operand::new((float, grad)),
            b: Operand::new((float, weight.address())),
            out: (float, out.address(device)),
            bias: None,
            add: None,
        };
        gpu::product(device, &product)?;
        out.tensor(device, shape)
    }
}

/// `grad^T x`: the gradient `[M, K]` of the weight from `grad` [.., M] and `x` [.., K].
struct WeightGradient;

impl CustomOp2 for WeightGradient {
    fn name(&self) -> &'static str {
        "linear weight gradient"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (grad, x) = (floats(self.name(), s1, l1)?, floats(self.name(), s2, l2)?);
        let last = |layout: &Layout| layout.dims().last().copied().unwrap_or(0);
        let (outputs, inputs) = (last(l1), last(l2));
        let rows: usize = l1.dims().iter().rev().skip(1).product();
        let (a, b) = (
            Matrix::new(grad, rows, outputs, outputs)?.t(),
            Matrix::new(x, rows, inputs, inputs)?,
        );
        tensor(product(None, a, b)?, (outputs, inputs))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let last = |layout: &Layout| layout.dims().last().copied().unwrap_or(0);
        let (outputs, inputs) = (last(l1), last(l2));
        let rows = l1.shape().elem_count() / outputs.max(1);
        let ((float, grad), (of_x, x)) = (gpu::values(self.name(), s1, l1)?, gpu::values(self.name(), s2, l2)?);
        if float != of_x || rows * inputs != l2.shape().elem_count() {
            bail!(
                "{}: {:?} {float:?} and {:?} {of_x:?} do not fit",
                self.name(),
                l1.dims(),
                l2.dims()
            );
        }
        let device = s1.device();
        let out = gpu::Output::floats(device, outputs * inputs)?;
        let product = Product {
            rows: outputs,
            columns: inputs,
            inner: rows,
            a: Operand::new((float, grad)).t(),
            b: Operand::new((float, x)),
            out: (Float::F32, out.address(device)),
            bias: None,
            add: None,
        };
        gpu::product(device, &product)?;
        out.tensor(device, (outputs, inputs))
    }
}

/// The sums `[M]` of the columns of [.., M]: by pieces of rows, then over the pieces in their order.
struct ColumnSums;

impl CustomOp1 for ColumnSums {
    fn name(&self) -> &'static str {
        "column sums"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = floats(self.name(), storage, layout)?;
        let columns = layout.dims().last().copied().unwrap_or(0);
        let mut sums = vec![0.0; columns];
        if columns > 0 {
            let pieces: Vec<Vec<f32>> = values
                .par_chunks(rows_per_piece(columns) * columns)
                .map(|piece| {
                    let mut sums = vec![0.0; columns];
                    simd::add_rows(piece, &mut sums);
                    sums
                })
                .collect();
            pieces.iter().for_each(|piece| simd::add_rows(piece, &mut sums));
        }
        tensor(sums, columns)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let columns = layout.dims().last().copied().unwrap_or(0);
        let rows = layout.shape().elem_count() / columns.max(1);
        let (float, x) = gpu::values(self.name(), storage, layout)?;
        let device = storage.device();
        let sums = gpu::Output::floats(device, columns)?;
        let scratch = gpu::Output::floats(device, norm::column_sums_scratch(rows, columns))?;
        let plans = norm::column_sums(float, x, sums.address(device), scratch.address(device), rows, columns);
        plans.iter().try_for_each(|plan| gpu::launch(device, plan))?;
        sums.tensor(device, columns)
    }
}
