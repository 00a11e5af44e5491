//! The linear layer.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::cpu::{floats, rows_per_piece, tensor};
use super::gemm::{Matrix, product};
use super::simd;

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
        let (outputs, inputs) = weight.1.shape().dims2()?;
        let mut shape = x.1.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == inputs => *last = outputs,
            _ => bail!(
                "linear: {:?} does not end with the {inputs} inputs of weight {:?}",
                x.1.dims(),
                weight.1.dims()
            ),
        }
        let (x, weight) = (floats("linear", x.0, x.1)?, floats("linear", weight.0, weight.1)?);
        let rows: usize = shape.iter().rev().skip(1).product();
        let (a, b) = (
            Matrix::new(x, rows, inputs, inputs)?,
            Matrix::new(weight, outputs, inputs, inputs)?.t(),
        );
        tensor(product(bias, a, b)?, shape)
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
}
