//! Which patches the new model sees.

use candle_core::{DType, Device, Tensor};
use tec_core::philox::{Noise, Stream};

use crate::{Error, Result};

/// The masks of a batch.
#[derive(Debug, Clone)]
pub struct Masks {
    /// Numbers of the visible patches, in the order of their noise: u32 `[B, keep]`.
    pub keep: Tensor,
    /// Where each patch stands in that order, visible ones first: u32 `[B, L]`.
    pub restore: Tensor,
    /// 1 where a patch was removed, else 0: f32 `[B, L]`.
    pub removed: Tensor,
    /// Numbers of the removed patches, rising: u32 `[B, L - keep]`.
    pub removed_patches: Tensor,
}

impl Masks {
    /// Masks from `batch` rows of one noise value a patch: the patches with the lowest noise stay visible.
    ///
    /// # Errors
    /// A ratio that keeps no patch or is no ratio, NaN noise, or noise of another length than `batch · patches`.
    pub fn from_noise(noise: &[f32], batch: usize, patches: usize, mask_ratio: f64, device: &Device) -> Result<Self> {
        if noise.len() != batch * patches || noise.is_empty() {
            return Err(Error::Data(format!(
                "masks need one noise value a patch: {batch} images of {patches} patches, {} values",
                noise.len()
            )));
        }
        let keep = tec_core::mask::kept(patches, mask_ratio)?;
        let mut kept: Vec<u32> = Vec::with_capacity(batch * keep);
        let mut order = vec![0; patches];
        let mut restore = vec![0; batch * patches];
        let mut removed = vec![0.0; batch * patches];
        let mut removed_patches: Vec<u32> = Vec::with_capacity(batch * (patches - keep));
        let rows = noise
            .chunks(patches)
            .zip(restore.chunks_mut(patches))
            .zip(removed.chunks_mut(patches));
        for ((noise, restore), removed) in rows {
            tec_core::mask::mask(noise, keep, &mut order, restore, removed)?;
            kept.extend(order.iter().take(keep));
            removed_patches.extend((0..).zip(&*removed).filter(|(_, m)| **m != 0.0).map(|(patch, _)| patch));
        }
        Ok(Self {
            keep: Tensor::from_vec(kept, (batch, keep), device)?,
            restore: Tensor::from_vec(restore, (batch, patches), device)?,
            removed: Tensor::from_vec(removed, (batch, patches), device)?,
            removed_patches: match removed_patches.is_empty() {
                // A GPU has no memory of no size, and no loss is about no patch.
                true => Tensor::zeros((batch, 0), DType::U32, &Device::Cpu)?,
                false => Tensor::from_vec(removed_patches, (batch, patches - keep), device)?,
            },
        })
    }

    /// The masks of the given samples in an epoch: a function of seed, epoch and sample number alone.
    ///
    /// # Errors
    /// A ratio that keeps no patch or is no ratio, or no samples.
    pub fn draw(
        seed: u64,
        epoch: u32,
        samples: &[u32],
        patches: usize,
        mask_ratio: f64,
        device: &Device,
    ) -> Result<Self> {
        let mut noise = vec![0.0; samples.len() * patches];
        for (&sample, row) in samples.iter().zip(noise.chunks_mut(patches.max(1))) {
            Noise {
                seed,
                epoch,
                sample,
                stream: Stream::Mask,
            }
            .fill(row);
        }
        Self::from_noise(&noise, samples.len(), patches, mask_ratio, device)
    }

    /// 1 for each of the removed patches `[B, L - keep]`: the mask of a loss that is given those alone.
    pub(crate) fn every_removed(&self) -> Result<Tensor> {
        Ok(Tensor::ones(
            self.removed_patches.shape(),
            DType::F32,
            self.removed.device(),
        )?)
    }

    /// Passes when a loss over removed patches has something to be about.
    pub(crate) fn require_removed(&self) -> Result<()> {
        let (visible, patches) = (self.keep.dim(1)?, self.restore.dim(1)?);
        if visible < patches {
            return Ok(());
        }
        Err(Error::Data(format!(
            "no patch of {patches} was removed, and the loss is about removed ones: raise `mask_ratio`"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_mask_in_any_batch() {
        let device = Device::Cpu;
        let both = Masks::draw(7, 3, &[11, 5], 49, 0.75, &device).unwrap();
        let alone = Masks::draw(7, 3, &[5], 49, 0.75, &device).unwrap();
        let rows = |t: &Tensor| t.to_vec2::<u32>().unwrap();
        assert_eq!(rows(&both.keep)[1], rows(&alone.keep)[0]);
        assert_eq!(rows(&both.restore)[1], rows(&alone.restore)[0]);
        assert_ne!(rows(&both.keep)[0], rows(&both.keep)[1]);
        let later = Masks::draw(7, 4, &[5], 49, 0.75, &device).unwrap();
        assert_ne!(rows(&later.keep), rows(&alone.keep));
    }

    #[test]
    fn kept_and_removed_agree() {
        let masks = Masks::draw(1, 0, &[0, 1, 2], 64, 0.75, &Device::Cpu).unwrap();
        assert_eq!(masks.keep.dims(), [3, 16]);
        let keep = masks.keep.to_vec2::<u32>().unwrap();
        let restore = masks.restore.to_vec2::<u32>().unwrap();
        let removed = masks.removed.to_vec2::<f32>().unwrap();
        let numbers = masks.removed_patches.to_vec2::<u32>().unwrap();
        for (((keep, restore), removed), numbers) in keep.iter().zip(&restore).zip(&removed).zip(&numbers) {
            assert_eq!(removed.iter().sum::<f32>(), 48.0);
            assert!(numbers.len() == 48 && numbers.is_sorted_by(|a, b| a < b));
            assert!(numbers.iter().all(|&patch| removed[patch as usize] == 1.0));
            for (place, &patch) in keep.iter().enumerate() {
                assert_eq!(removed[patch as usize], 0.0);
                assert_eq!(restore[patch as usize] as usize, place);
            }
        }
    }

    #[test]
    fn impossible_masks_are_errors() {
        let device = Device::Cpu;
        assert!(Masks::draw(1, 0, &[0], 64, 1.0, &device).is_err(), "nothing kept");
        assert!(Masks::draw(1, 0, &[], 64, 0.5, &device).is_err(), "no samples");
        assert!(Masks::from_noise(&[0.0, f32::NAN], 1, 2, 0.5, &device).is_err(), "NaN");
        assert!(Masks::from_noise(&[0.0; 3], 1, 2, 0.5, &device).is_err(), "length");
    }
}
