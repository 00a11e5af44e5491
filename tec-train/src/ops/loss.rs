//! The two losses.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};
use rayon::prelude::*;
use tec_core::loss;

use super::cpu::{floats, refused, rows_per_piece, tensor};
#[cfg(feature = "cuda")]
use super::gpu;
#[cfg(feature = "cuda")]
use crate::cuda::loss as plans;

/// Squared error, mean over channels, averaged over the removed patches of the batch: `pred` and `target_normalized`
/// `[B, L, T]`, `removed` `[B, L]` (1 where a patch was removed). A scalar, differentiable in `pred`.
///
/// # Errors
/// Shapes that do not fit each other, a mask that removes nothing.
pub fn feature_loss(pred: &Tensor, target_normalized: &Tensor, removed: &Tensor) -> crate::Result<Tensor> {
    let (target, removed) = (target_normalized.detach().contiguous()?, removed.detach().contiguous()?);
    Ok(pred.contiguous()?.apply_op3(&target, &removed, FeatureLoss)?)
}

/// Cross-entropy of `pred_logits` against the distribution `target_prob`, both `[B, 1 + K, H, L]`, mean over images, rows and
/// heads. A scalar, differentiable in `pred_logits`.
///
/// # Errors
/// Different shapes, nothing to average.
pub fn relation_loss(pred_logits: &Tensor, target_prob: &Tensor) -> crate::Result<Tensor> {
    Ok(pred_logits
        .contiguous()?
        .apply_op2(&target_prob.detach().contiguous()?, RelationLoss)?)
}

struct FeatureLoss;

/// (L, T) of `pred` and `target` `[B, L, T]` and `removed` `[B, L]`, none of which is empty.
fn feature_sizes(pred: &Layout, target: &Layout, removed: &Layout) -> Result<(usize, usize)> {
    let (batch, patches, width) = pred.shape().dims3()?;
    if pred.shape() != target.shape() || removed.dims() != [batch, patches] || batch * patches * width == 0 {
        let (pred, target, removed) = (pred.dims(), target.dims(), removed.dims());
        bail!("feature_loss: prediction {pred:?}, target {target:?} and mask {removed:?} do not fit each other");
    }
    Ok((patches, width))
}

impl CustomOp3 for FeatureLoss {
    fn name(&self) -> &'static str {
        "feature_loss"
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
        let (patches, width) = feature_sizes(l1, l2, l3)?;
        let (pred, target) = (floats(self.name(), s1, l1)?, floats(self.name(), s2, l2)?);
        let removed = floats(self.name(), s3, l3)?;
        let images = pred.par_chunks(patches * width).zip(target.par_chunks(patches * width));
        let sums: Vec<(f32, f32)> = images
            .zip(removed.par_chunks(patches))
            .map(|((pred, target), removed)| loss::feature_loss(pred, target, removed, width).map_err(refused))
            .collect::<Result<_>>()?;
        let sum: f64 = sums.iter().map(|&(sum, _)| f64::from(sum)).sum();
        let count: f32 = sums.iter().map(|&(_, count)| count).sum();
        let scale = loss::feature_scale(count).map_err(refused)?;
        tensor(vec![(sum * f64::from(scale)) as f32], ())
    }

    /// What removes nothing gives NaN here instead of an error: to look would be to wait for the GPU.
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
        let width = feature_sizes(l1, l2, l3)?.1;
        let (device, rows) = (s1.device(), l1.shape().elem_count() / width);
        let inputs = [
            gpu::floats(self.name(), s1, l1)?,
            gpu::floats(self.name(), s2, l2)?,
            gpu::floats(self.name(), s3, l3)?,
        ];
        let (value, scratch) = gpu::loss(device, plans::scratch(rows))?;
        let to = value.address(device);
        let plans = plans::feature_loss(inputs, to, scratch.address(device), rows, width);
        plans.iter().try_for_each(|plan| gpu::launch(device, plan))?;
        value.tensor(device, ())
    }

    fn bwd(
        &self,
        pred: &Tensor,
        target: &Tensor,
        removed: &Tensor,
        loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = FeatureLossGradient {
            grad: grad.contiguous()?,
            loss: loss.detach(),
        };
        Ok((Some(pred.apply_op3_no_bwd(target, removed, &gradient)?), None, None))
    }
}

struct FeatureLossGradient {
    /// The gradient of the loss.
    grad: Tensor,
    /// The loss itself: on a GPU the number of removed patches lies behind it.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    loss: Tensor,
}

impl CustomOp3 for FeatureLossGradient {
    fn name(&self) -> &'static str {
        "feature_loss gradient"
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
        let (patches, width) = feature_sizes(l1, l2, l3)?;
        let (pred, target) = (floats(self.name(), s1, l1)?, floats(self.name(), s2, l2)?);
        let removed = floats(self.name(), s3, l3)?;
        let scale = self.grad.to_scalar::<f32>()? * loss::feature_scale(removed.iter().sum()).map_err(refused)?;
        let image = patches * width;
        let mut grad = vec![0.0; pred.len()];
        let inputs = pred
            .par_chunks(image)
            .zip(target.par_chunks(image))
            .zip(removed.par_chunks(patches));
        grad.par_chunks_mut(image)
            .zip(inputs)
            .try_for_each(|(grad, ((pred, target), removed))| {
                loss::feature_loss_backward(pred, target, removed, width, scale, grad)
            })
            .map_err(refused)?;
        tensor(grad, l1.shape())
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
        let width = feature_sizes(l1, l2, l3)?.1;
        let (device, rows) = (s1.device(), l1.shape().elem_count() / width);
        let inputs = [
            gpu::floats(self.name(), s1, l1)?,
            gpu::floats(self.name(), s2, l2)?,
            gpu::floats(self.name(), s3, l3)?,
        ];
        let out = gpu::Output::floats(device, rows * width)?;
        gpu::with_floats(self.name(), &self.grad, |upstream| {
            gpu::with_floats(self.name(), &self.loss, |loss| {
                let to = out.address(device);
                gpu::launch(
                    device,
                    &plans::feature_loss_gradient(inputs, upstream, loss, to, rows, width),
                )
            })
        })?;
        out.tensor(device, l1.shape())
    }
}

struct RelationLoss;

/// L of `pred` and `target` [.., L], which are not empty.
fn relation_width(pred: &Layout, target: &Layout) -> Result<usize> {
    match pred.dims().last() {
        Some(&patches) if pred.shape() == target.shape() && pred.shape().elem_count() > 0 => Ok(patches),
        _ => bail!(
            "relation_loss: logits {:?} and target {:?} do not fit each other",
            pred.dims(),
            target.dims()
        ),
    }
}

impl CustomOp2 for RelationLoss {
    fn name(&self) -> &'static str {
        "relation_loss"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let patches = relation_width(l1, l2)?;
        let (pred, target) = (floats(self.name(), s1, l1)?, floats(self.name(), s2, l2)?);
        let piece = rows_per_piece(patches) * patches;
        let sums: Vec<f64> = pred
            .par_chunks(piece)
            .zip(target.par_chunks(piece))
            .map(|(pred, target)| {
                let rows = pred.chunks_exact(patches).zip(target.chunks_exact(patches));
                rows.map(|(pred, target)| loss::relation_loss(pred, target).map(f64::from).map_err(refused))
                    .sum()
            })
            .collect::<Result<_>>()?;
        let rows = pred.len() / patches;
        tensor(vec![(sums.iter().sum::<f64>() / rows as f64) as f32], ())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let patches = relation_width(l1, l2)?;
        let (device, rows) = (s1.device(), l1.shape().elem_count() / patches);
        let (pred, target) = (gpu::floats(self.name(), s1, l1)?, gpu::floats(self.name(), s2, l2)?);
        let (value, scratch) = gpu::loss(device, plans::scratch(rows))?;
        let to = value.address(device);
        let plans = plans::relation_loss(pred, target, to, scratch.address(device), rows, patches);
        plans.iter().try_for_each(|plan| gpu::launch(device, plan))?;
        value.tensor(device, ())
    }

    fn bwd(
        &self,
        pred: &Tensor,
        target: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = RelationLossGradient {
            grad: grad.contiguous()?,
        };
        Ok((Some(pred.apply_op2_no_bwd(target, &gradient)?), None))
    }
}

struct RelationLossGradient {
    /// The gradient of the loss.
    grad: Tensor,
}

impl CustomOp2 for RelationLossGradient {
    fn name(&self) -> &'static str {
        "relation_loss gradient"
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let patches = relation_width(l1, l2)?;
        let (device, rows) = (s1.device(), l1.shape().elem_count() / patches);
        let (pred, target) = (gpu::floats(self.name(), s1, l1)?, gpu::floats(self.name(), s2, l2)?);
        let out = gpu::Output::floats(device, rows * patches)?;
        gpu::with_floats(self.name(), &self.grad, |upstream| {
            let to = out.address(device);
            gpu::launch(
                device,
                &plans::relation_loss_gradient(pred, target, upstream, to, rows, patches),
            )
        })?;
        out.tensor(device, l1.shape())
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let patches = relation_width(l1, l2)?;
        let (pred, target) = (floats(self.name(), s1, l1)?, floats(self.name(), s2, l2)?);
        let scale = self.grad.to_scalar::<f32>()? / (pred.len() / patches) as f32;
        let piece = rows_per_piece(patches) * patches;
        let mut grad = vec![0.0; pred.len()];
        grad.par_chunks_mut(piece)
            .zip(pred.par_chunks(piece).zip(target.par_chunks(piece)))
            .try_for_each(|(grad, (pred, target))| {
                let rows = pred.chunks_exact(patches).zip(target.chunks_exact(patches));
                grad.chunks_exact_mut(patches)
                    .zip(rows)
                    .try_for_each(|(grad, (pred, target))| loss::relation_loss_backward(pred, target, scale, grad))
            })
            .map_err(refused)?;
        tensor(grad, l1.shape())
    }
}
