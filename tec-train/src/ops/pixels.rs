//! Pixels on the GPU: they go there as bytes and become normalized images there.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor, backend::BackendStorage, bail};

use super::gpu;
use crate::{cuda::tokens, data::Normalization};

/// Pixels u8 `[B, H, W, C]` on a GPU as f32 `[B, C, H, W]` of `(value / 255 - mean) / std`: to the bit what
/// [`crate::data::to_tensor`] makes on the CPU. No gradient.
///
/// # Errors
/// More than three channels, a tensor on the CPU.
pub fn images_from_pixels(pixels: &Tensor, normalization: &Normalization) -> crate::Result<Tensor> {
    Ok(pixels.apply_op1_no_bwd(&ImagesFromPixels { normalization })?)
}

struct ImagesFromPixels<'a> {
    normalization: &'a Normalization,
}

impl CustomOp1 for ImagesFromPixels<'_> {
    fn name(&self) -> &'static str {
        "images_from_pixels"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!(
            "{}: pixels on the CPU become images in `data`; please report it",
            self.name()
        )
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (batch, height, width, channels) = layout.shape().dims4()?;
        if channels > 3 || channels != self.normalization.mean.len() {
            bail!(
                "{}: {channels} channels are more than there are kernels for",
                self.name()
            );
        }
        let pixels = gpu::bytes(self.name(), storage, layout)?;
        let device = storage.device();
        let images = gpu::Output::floats(device, layout.shape().elem_count())?;
        let plan = tokens::images_from_pixels(
            pixels,
            images.address(device),
            batch,
            height * width,
            self.normalization,
        );
        gpu::launch(device, &plan)?;
        images.tensor(device, (batch, channels, height, width))
    }
}
