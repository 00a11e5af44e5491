//! Moving tokens: images to patches, visible patches out of all, and back.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};
use rayon::prelude::*;

use super::PatchOrder;
use super::cpu::{floats, indices, tensor};
#[cfg(feature = "cuda")]
use super::gpu;
use super::simd;
#[cfg(feature = "cuda")]
use crate::cuda::tokens;

/// Cuts images `[B, C, H, W]` into flattened patches `[B, L, patch * patch * C]`, row by row. No gradient.
///
/// # Errors
/// A height or width that `patch` does not divide.
pub fn patchify(images: &Tensor, patch: usize, order: PatchOrder) -> crate::Result<Tensor> {
    Ok(images.contiguous()?.apply_op1_no_bwd(&Patchify { patch, order })?)
}

/// The tokens `index` (u32 `[B, n]`) of `x` `[B, L, D]`, as `[B, n, D]`. Differentiable in `x`.
///
/// # Errors
/// Shapes that do not fit each other, an index not below L.
pub fn gather_tokens(x: &Tensor, index: &Tensor) -> crate::Result<Tensor> {
    Ok(x.contiguous()?.apply_op2(&index.contiguous()?, Gather)?)
}

/// Puts visible patches back in place and mask tokens everywhere else: `x` `[B, 1 + keep, d]` (class token first),
/// `mask_tokens` `[L, d]` (what stands for each removed patch, in every image), `restore` u32 `[B, L]`, gives
/// `[B, 1 + L, d]`. Differentiable in `x` and `mask_tokens`.
///
/// # Errors
/// Shapes that do not fit each other, a place in `restore` not below L.
pub fn unmask(x: &Tensor, mask_tokens: &Tensor, restore: &Tensor) -> crate::Result<Tensor> {
    Ok(x.contiguous()?
        .apply_op3(&mask_tokens.contiguous()?, &restore.contiguous()?, Unmask)?)
}

struct Patchify {
    patch: usize,
    order: PatchOrder,
}

impl CustomOp1 for Patchify {
    fn name(&self) -> &'static str {
        "patchify"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let [batch, channels, height, width] = self.sizes(layout)?;
        let p = self.patch;
        let images = floats(self.name(), storage, layout)?;
        let (columns, patches, len) = (width / p, (height / p) * (width / p), p * p * channels);
        let mut out = vec![0.0; images.len()];
        out.par_chunks_mut(len).enumerate().for_each(|(n, out)| {
            let (image, place) = (n / patches, n % patches);
            let corner = (place / columns) * p * width + (place % columns) * p;
            for (at, value) in out.iter_mut().enumerate() {
                let (channel, y, x) = match self.order {
                    PatchOrder::ChannelsFirst => (at / (p * p), at / p % p, at % p),
                    PatchOrder::ChannelsLast => (at % channels, at / (p * channels), at / channels % p),
                };
                *value = images[(image * channels + channel) * height * width + corner + y * width + x];
            }
        });
        tensor(out, (batch, patches, len))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let sizes = self.sizes(layout)?;
        let [batch, channels, height, width] = sizes;
        let (device, p) = (storage.device(), self.patch);
        let images = gpu::floats(self.name(), storage, layout)?;
        let out = gpu::Output::floats(device, layout.shape().elem_count())?;
        let plan = tokens::patchify(images, out.address(device), sizes, p, self.order);
        gpu::launch(device, &plan)?;
        out.tensor(device, (batch, (height / p) * (width / p), p * p * channels))
    }
}

impl Patchify {
    /// Images, channels, height and width.
    fn sizes(&self, layout: &Layout) -> Result<[usize; 4]> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let p = self.patch;
        if p == 0 || height * width * channels == 0 || height % p != 0 || width % p != 0 {
            bail!("patchify: images [{batch}, {channels}, {height}, {width}] cannot be cut into patches of {p} by {p}");
        }
        Ok([batch, channels, height, width])
    }
}

struct Gather;

/// (B, L, D, n) of `x` `[B, L, D]` and `index` `[B, n]`.
fn gather_sizes(x: &Layout, index: &Layout) -> Result<(usize, usize, usize, usize)> {
    let ((batch, tokens, width), (batches, n)) = (x.shape().dims3()?, index.shape().dims2()?);
    if batch != batches || width == 0 {
        bail!(
            "gather_tokens: {:?} cannot be gathered by an index {:?}",
            x.dims(),
            index.dims()
        );
    }
    Ok((batch, tokens, width, n))
}

impl CustomOp2 for Gather {
    fn name(&self) -> &'static str {
        "gather_tokens"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, tokens, width, n) = gather_sizes(l1, l2)?;
        let (x, index) = (floats(self.name(), s1, l1)?, indices(self.name(), s2, l2)?);
        let mut out = vec![0.0; batch * n * width];
        if n > 0 {
            let images = x.par_chunks(tokens.max(1) * width).zip(index.par_chunks(n));
            out.par_chunks_mut(n * width)
                .zip(images)
                .try_for_each(|(out, (x, index))| {
                    for (out, &token) in out.chunks_exact_mut(width).zip(index) {
                        out.copy_from_slice(row(self.name(), x, width, token)?);
                    }
                    Ok::<_, candle_core::Error>(())
                })?;
        }
        tensor(out, (batch, n, width))
    }

    /// That every index is below L is the caller's promise here: to look would be to wait for the GPU. The kernel reads
    /// nothing outside in any case.
    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let (batch, tokens, width, n) = gather_sizes(l1, l2)?;
        let (x, index) = (gpu::floats(self.name(), s1, l1)?, gpu::indices(self.name(), s2, l2)?);
        let device = s1.device();
        let out = gpu::Output::floats(device, batch * n * width)?;
        let plan = tokens::gather_tokens(x, index, out.address(device), [batch, tokens, n, width]);
        gpu::launch(device, &plan)?;
        out.tensor(device, (batch, n, width))
    }

    fn bwd(&self, x: &Tensor, index: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = GatherGradient { tokens: x.dim(1)? };
        Ok((Some(grad.contiguous()?.apply_op2_no_bwd(index, &gradient)?), None))
    }
}

/// The row `token` of [.., width].
fn row<'a>(op: &str, x: &'a [f32], width: usize, token: u32) -> Result<&'a [f32]> {
    match x.chunks_exact(width).nth(token as usize) {
        Some(row) => Ok(row),
        None => bail!("{op}: there is no token {token}, only {}", x.len() / width),
    }
}

/// Adds the rows of `grad` `[B, n, D]` to the tokens they came from.
struct GatherGradient {
    tokens: usize,
}

impl CustomOp2 for GatherGradient {
    fn name(&self) -> &'static str {
        "gather_tokens gradient"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, n, width, _) = gather_sizes(l1, l2)?;
        let (grad, index) = (floats(self.name(), s1, l1)?, indices(self.name(), s2, l2)?);
        let mut grad_x = vec![0.0; batch * self.tokens * width];
        if n > 0 && self.tokens > 0 {
            let images = grad.par_chunks(n * width).zip(index.par_chunks(n));
            grad_x
                .par_chunks_mut(self.tokens * width)
                .zip(images)
                .for_each(|(grad_x, (grad, index))| {
                    for (grad, &token) in grad.chunks_exact(width).zip(index) {
                        // The forward pass has refused tokens that do not exist.
                        if let Some(grad_x) = grad_x.chunks_exact_mut(width).nth(token as usize) {
                            grad_x.iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad);
                        }
                    }
                });
        }
        tensor(grad_x, (batch, self.tokens, width))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let (batch, n, width, _) = gather_sizes(l1, l2)?;
        let (grad, index) = (gpu::floats(self.name(), s1, l1)?, gpu::indices(self.name(), s2, l2)?);
        let (device, tokens) = (s1.device(), self.tokens);
        let grad_x = gpu::Output::floats(device, batch * tokens * width)?;
        let plan = tokens::gather_tokens_gradient(grad, index, grad_x.address(device), [batch, tokens, n, width]);
        gpu::launch(device, &plan)?;
        grad_x.tensor(device, (batch, tokens, width))
    }
}

struct Unmask;

impl CustomOp3 for Unmask {
    fn name(&self) -> &'static str {
        "unmask"
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
        let (batch, visible, patches, width) = unmask_sizes(l1, l2, l3)?;
        let (x, tokens) = (floats(self.name(), s1, l1)?, floats(self.name(), s2, l2)?);
        let restore = indices(self.name(), s3, l3)?;
        if let Some(place) = restore.iter().find(|&&place| place as usize >= patches) {
            bail!("unmask: place {place} in restore is not below {patches}");
        }
        let image = (1 + patches) * width;
        let mut out = vec![0.0; batch * image];
        out.par_chunks_mut(image)
            .zip(x.par_chunks(visible * width))
            .enumerate()
            .for_each(|(n, (out, x))| {
                let (class, out) = out.split_at_mut(width);
                class.copy_from_slice(&x[..width]);
                let places = restore[n * patches..].iter().zip(tokens.chunks_exact(width));
                for (out, (&place, token)) in out.chunks_exact_mut(width).zip(places) {
                    out.copy_from_slice(x.chunks_exact(width).nth(1 + place as usize).unwrap_or(token));
                }
            });
        tensor(out, (batch, 1 + patches, width))
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
        let (batch, visible, patches, width) = unmask_sizes(l1, l2, l3)?;
        let (x, masked) = (gpu::floats(self.name(), s1, l1)?, gpu::floats(self.name(), s2, l2)?);
        let restore = gpu::indices(self.name(), s3, l3)?;
        let device = s1.device();
        let out = gpu::Output::floats(device, batch * (1 + patches) * width)?;
        let sizes = tokens::UnmaskSizes {
            batch,
            visible,
            patches,
            width,
        };
        gpu::launch(device, &tokens::unmask(x, masked, restore, out.address(device), sizes))?;
        out.tensor(device, (batch, 1 + patches, width))
    }

    fn bwd(
        &self,
        x: &Tensor,
        mask_tokens: &Tensor,
        restore: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let visible = UnmaskVisibleGradient { visible: x.dim(1)? };
        let masked = UnmaskMaskedGradient { visible: x.dim(1)? };
        let grad_x = x
            .track_op()
            .then(|| grad.apply_op2_no_bwd(restore, &visible))
            .transpose()?;
        let grad_tokens = mask_tokens
            .track_op()
            .then(|| grad.apply_op2_no_bwd(restore, &masked))
            .transpose()?;
        Ok((grad_x, grad_tokens, None))
    }
}

/// (B, tokens of x, L, d) of [`unmask`]'s arguments.
fn unmask_sizes(x: &Layout, mask_tokens: &Layout, restore: &Layout) -> Result<(usize, usize, usize, usize)> {
    let ((batch, visible, width), (batches, patches)) = (x.shape().dims3()?, restore.shape().dims2()?);
    let fits = batch == batches && mask_tokens.dims() == [patches, width];
    if !fits || visible == 0 || visible > patches + 1 || width == 0 {
        bail!(
            "unmask: {:?} with mask tokens {:?} does not fit restore {:?}",
            x.dims(),
            mask_tokens.dims(),
            restore.dims()
        );
    }
    Ok((batch, visible, patches, width))
}

/// The sizes of a gradient of [`unmask`]'s result `[B, 1 + L, d]`.
#[cfg(feature = "cuda")]
fn gradient_sizes(visible: usize, grad: &Layout) -> Result<tokens::UnmaskSizes> {
    let (batch, tokens, width) = grad.shape().dims3()?;
    Ok(tokens::UnmaskSizes {
        batch,
        visible,
        patches: tokens.saturating_sub(1),
        width,
    })
}

/// The gradient of the visible tokens from (gradient of the result, restore).
struct UnmaskVisibleGradient {
    /// Tokens of `x`, the class token included.
    visible: usize,
}

impl CustomOp2 for UnmaskVisibleGradient {
    fn name(&self) -> &'static str {
        "unmask gradient of visible tokens"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((batch, tokens, width), (_, patches)) = (l1.shape().dims3()?, l2.shape().dims2()?);
        let (grad, restore) = (floats(self.name(), s1, l1)?, indices(self.name(), s2, l2)?);
        let mut grad_x = vec![0.0; batch * self.visible * width];
        grad_x
            .par_chunks_mut(self.visible * width)
            .zip(grad.par_chunks(tokens * width).zip(restore.par_chunks(patches.max(1))))
            .for_each(|(grad_x, (grad, restore))| {
                let places = restore.iter().map(|&place| 1 + place as usize);
                for (grad, place) in grad.chunks_exact(width).zip(std::iter::once(0).chain(places)) {
                    if let Some(grad_x) = grad_x.chunks_exact_mut(width).nth(place) {
                        grad_x.copy_from_slice(grad);
                    }
                }
            });
        tensor(grad_x, (batch, self.visible, width))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let sizes = gradient_sizes(self.visible, l1)?;
        let (grad, restore) = (gpu::floats(self.name(), s1, l1)?, gpu::indices(self.name(), s2, l2)?);
        let device = s1.device();
        let grad_x = gpu::Output::floats(device, sizes.batch * self.visible * sizes.width)?;
        let plan = tokens::unmask_gradient_visible(grad, restore, grad_x.address(device), sizes);
        gpu::launch(device, &plan)?;
        grad_x.tensor(device, (sizes.batch, self.visible, sizes.width))
    }
}

/// The gradient `[L, d]` of the mask tokens from (gradient of the result, restore): for each patch the sum over the images
/// that lack it, in their order.
struct UnmaskMaskedGradient {
    /// Tokens of `x`, the class token included.
    visible: usize,
}

impl CustomOp2 for UnmaskMaskedGradient {
    fn name(&self) -> &'static str {
        "unmask gradient of mask tokens"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((batch, tokens, width), (_, patches)) = (l1.shape().dims3()?, l2.shape().dims2()?);
        let (grad, restore) = (floats(self.name(), s1, l1)?, indices(self.name(), s2, l2)?);
        let mut sums = vec![0.0; patches * width];
        sums.par_chunks_mut(width).enumerate().for_each(|(patch, sum)| {
            for image in 0..batch {
                if 1 + restore[image * patches + patch] as usize >= self.visible {
                    let start = (image * tokens + 1 + patch) * width;
                    simd::add_rows(&grad[start..start + width], sum);
                }
            }
        });
        tensor(sums, (patches, width))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let sizes = gradient_sizes(self.visible, l1)?;
        let (grad, restore) = (gpu::floats(self.name(), s1, l1)?, gpu::indices(self.name(), s2, l2)?);
        let device = s1.device();
        let sums = gpu::Output::floats(device, sizes.patches * sizes.width)?;
        let plan = tokens::unmask_gradient_masked(grad, restore, sums.address(device), sizes);
        gpu::launch(device, &plan)?;
        sums.tensor(device, (sizes.patches, sizes.width))
    }
}
