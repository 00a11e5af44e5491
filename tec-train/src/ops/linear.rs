//! The linear layer.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, backend::BackendStorage, bail,
};
use rayon::prelude::*;

use super::cpu::{factor, floats, round, rows_per_piece, tensor, tensor_of, values};
use super::gemm::{Matrix, product};
#[cfg(feature = "cuda")]
use super::gpu::{self, Operand, Product};
use super::{Amp, simd};
#[cfg(feature = "cuda")]
use crate::cuda::{Float, norm};

/// `x weight^T + bias`: `x` [.., K], f32 `weight` `[M, K]` and `bias` `[M]` give [.., M] in the type of `x`, f32 or bf16.
/// Differentiable in all three.
///
/// With mixed precision, and where `x` is bf16, the factors are rounded to bf16 and summed in f32; likewise in the gradients.
///
/// # Errors
/// Shapes that do not fit each other.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, amp: Amp) -> crate::Result<Tensor> {
    let (x, weight, op) = (x.contiguous()?, weight.contiguous()?, Linear { amp });
    Ok(match bias {
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, op)?,
        None => x.apply_op2(&weight, op)?,
    })
}

/// The gradient of `x` in [`linear`], of its type `dtype`, from that of its result, which is contiguous.
pub fn input_gradient(grad: &Tensor, weight: &Tensor, dtype: DType, amp: Amp) -> Result<Tensor> {
    grad.apply_op2_no_bwd(weight, &InputGradient { dtype, amp })
}

/// The f32 gradients of weight and bias in [`linear`], from that of its result, which is contiguous: the weight's from `grad`,
/// the bias' from `exact`, the same before it was rounded.
pub fn weight_gradients(grad: &Tensor, exact: &Tensor, x: &Tensor, amp: Amp) -> Result<[Tensor; 2]> {
    Ok([
        grad.apply_op2_no_bwd(x, &WeightGradient { amp })?,
        exact.apply_op1_no_bwd(&ColumnSums)?,
    ])
}

struct Linear {
    amp: Amp,
}

impl Linear {
    fn forward(
        &self,
        x: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let ([rows, inputs, outputs], shape) = Self::sizes(x.1, weight.1)?;
        let dtype = x.0.dtype();
        let amp = self.amp.of(dtype);
        let (x, weight) = (
            factor("linear", x.0, x.1, amp)?,
            factor("linear", weight.0, weight.1, amp)?,
        );
        let (a, b) = (
            Matrix::new(&x, rows, inputs, inputs)?,
            Matrix::new(&weight, outputs, inputs, inputs)?.t(),
        );
        // The GPU's product adds a bias of its result's type.
        let rounded = bias.filter(|_| dtype == DType::BF16).map(|bias| {
            let mut bias = bias.to_vec();
            round(&mut bias);
            bias
        });
        tensor_of(dtype, product(rounded.as_deref().or(bias), a, b)?, shape)
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
        &self,
        x: (&CudaStorage, &Layout),
        weight: (&CudaStorage, &Layout),
        bias: Option<u64>,
    ) -> Result<(CudaStorage, Shape)> {
        let ([rows, inputs, outputs], shape) = Self::sizes(x.1, weight.1)?;
        let device = x.0.device();
        let factors = self.amp.of(x.0.dtype()).float();
        let (float, x) = gpu::values("linear", x.0, x.1)?;
        let x = gpu::factor(device, (float, x), rows * inputs, factors)?;
        let weight = gpu::floats("linear", weight.0, weight.1)?;
        let weight = gpu::converted(device, weight, outputs * inputs, factors)?;
        let bias = bias
            .map(|bias| gpu::converted(device, bias, outputs, float))
            .transpose()?;
        let out = gpu::Output::new(device, float, rows * outputs)?;
        let product = Product {
            rows,
            columns: outputs,
            inner: inputs,
            a: Operand::new((factors, x.address())),
            b: Operand::new((factors, weight.address())).t(),
            out: (float, out.address(device)),
            bias: bias.as_ref().map(gpu::Converted::address),
            add: None,
        };
        gpu::product(device, &product)?;
        out.tensor(device, shape)
    }

    /// The gradients that somebody asks for.
    fn backward(&self, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let amp = self.amp;
        let grad_x = x
            .track_op()
            .then(|| input_gradient(grad, weight, x.dtype(), amp))
            .transpose()?;
        let grad_weight = weight
            .track_op()
            .then(|| grad.apply_op2_no_bwd(x, &WeightGradient { amp }))
            .transpose()?;
        Ok((grad_x, grad_weight))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((s1, l1), (s2, l2), None)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        self.forward_gpu((s1, l1), (s2, l2), None)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, weight, &grad.contiguous()?)
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
        self.forward((s1, l1), (s2, l2), Some(floats("linear", s3, l3)?))
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
        self.forward_gpu((s1, l1), (s2, l2), Some(gpu::floats("linear", s3, l3)?))
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
        let (grad_x, grad_weight) = self.backward(x, weight, &grad)?;
        let grad_bias = bias
            .track_op()
            .then(|| grad.apply_op1_no_bwd(&ColumnSums))
            .transpose()?;
        Ok((grad_x, grad_weight, grad_bias))
    }
}

/// `grad weight`: the gradient [.., K] of the input from `grad` [.., M] and `weight` `[M, K]`.
struct InputGradient {
    /// Of the result.
    dtype: DType,
    amp: Amp,
}

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
        let amp = self.amp.of(s1.dtype());
        let (grad, weight) = (factor(self.name(), s1, l1, amp)?, factor(self.name(), s2, l2, amp)?);
        let (a, b) = (
            Matrix::new(&grad, rows, outputs, outputs)?,
            Matrix::new(&weight, outputs, inputs, inputs)?,
        );
        tensor_of(self.dtype, product(None, a, b)?, shape)
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
        let (factors, float) = (self.amp.of(s1.dtype()).float(), gpu::float(self.dtype)?);
        let grad = gpu::factor(device, gpu::values(self.name(), s1, l1)?, rows * outputs, factors)?;
        let weight = gpu::converted(device, gpu::floats(self.name(), s2, l2)?, outputs * inputs, factors)?;
        let out = gpu::Output::new(device, float, rows * inputs)?;
        let product = Product {
            rows,
            columns: inputs,
            inner: outputs,
            a: Operand::new((factors, grad.address())),
            b: Operand::new((factors, weight.address())),
            out: (float, out.address(device)),
            bias: None,
            add: None,
        };
        gpu::product(device, &product)?;
        out.tensor(device, shape)
    }
}

/// `grad^T x`: the f32 gradient `[M, K]` of the weight from `grad` [.., M] and `x` [.., K].
struct WeightGradient {
    amp: Amp,
}

impl WeightGradient {
    /// The arithmetic for a gradient and inputs of these types.
    fn factors(&self, grad: DType, x: DType) -> Amp {
        self.amp.of(grad).of(x)
    }
}

impl CustomOp2 for WeightGradient {
    fn name(&self) -> &'static str {
        "linear weight gradient"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let amp = self.factors(s1.dtype(), s2.dtype());
        let (grad, x) = (factor(self.name(), s1, l1, amp)?, factor(self.name(), s2, l2, amp)?);
        let last = |layout: &Layout| layout.dims().last().copied().unwrap_or(0);
        let (outputs, inputs) = (last(l1), last(l2));
        let rows: usize = l1.dims().iter().rev().skip(1).product();
        let (a, b) = (
            Matrix::new(&grad, rows, outputs, outputs)?.t(),
            Matrix::new(&x, rows, inputs, inputs)?,
        );
        tensor(product(None, a, b)?, (outputs, inputs))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let last = |layout: &Layout| layout.dims().last().copied().unwrap_or(0);
        let (outputs, inputs) = (last(l1), last(l2));
        let rows = l1.shape().elem_count() / outputs.max(1);
        if rows * inputs != l2.shape().elem_count() {
            bail!("{}: {:?} and {:?} do not fit", self.name(), l1.dims(), l2.dims());
        }
        let (device, factors) = (s1.device(), self.factors(s1.dtype(), s2.dtype()).float());
        let grad = gpu::factor(device, gpu::values(self.name(), s1, l1)?, rows * outputs, factors)?;
        let x = gpu::factor(device, gpu::values(self.name(), s2, l2)?, rows * inputs, factors)?;
        let out = gpu::Output::floats(device, outputs * inputs)?;
        let product = Product {
            rows: outputs,
            columns: inputs,
            inner: rows,
            a: Operand::new((factors, grad.address())).t(),
            b: Operand::new((factors, x.address())),
            out: (Float::F32, out.address(device)),
            bias: None,
            add: None,
        };
        gpu::product(device, &product)?;
        out.tensor(device, (outputs, inputs))
    }
}

/// The f32 sums `[M]` of the columns of [.., M]: by pieces of rows, then over the pieces in their order.
struct ColumnSums;

impl CustomOp1 for ColumnSums {
    fn name(&self) -> &'static str {
        "column sums"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = values(self.name(), storage, layout)?;
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
