//! The gradients of one step, summed over the parts that its images are computed in.

use candle_core::{Tensor, Var, backprop::GradStore};

use crate::{Error, Result, data::Batch, model::Masks};

/// The losses of one part of a step, each the mean over its images.
pub struct PartLoss {
    /// What is minimized: a scalar with its gradient graph.
    pub total: Tensor,
    /// Feature loss (MAE: pixel loss).
    pub feature: f64,
    /// Relation loss (TEC).
    pub relation: Option<f64>,
}

/// Losses and gradients of a step as if all its images had been computed at once: means over the images, whatever the parts.
///
/// Every image has equally many removed patches and relation rows, so that the mean over images is the mean over all of them.
pub struct Gradients {
    /// Parts of a step, and images of it when none is left out.
    parts: usize,
    batch: usize,
    /// Images so far, and the losses summed over them.
    images: usize,
    feature: f64,
    relation: Option<f64>,
    sum: Option<GradStore>,
    seen: crc32fast::Hasher,
}

impl Gradients {
    /// Nothing yet of a step of `batch` images in `parts` parts; `seen` as in [`crate::checkpoint::State`].
    pub fn new(batch: usize, parts: usize, seen: u32) -> Self {
        Self {
            parts,
            batch,
            images: 0,
            feature: 0.0,
            relation: None,
            sum: None,
            seen: crc32fast::Hasher::new_with_initial(seen),
        }
    }

    /// Adds a part's losses and gradients. Once a loss is not finite only losses are added.
    ///
    /// # Errors
    /// An operation without a gradient (a bug).
    pub fn add(&mut self, part: PartLoss, batch: &Batch, masks: &Masks, params: &[(String, Var)]) -> Result<()> {
        let count = batch.len();
        // Image by image, so that the sum is the same whatever the parts.
        for (sample, visible) in batch.samples.iter().zip(masks.keep.to_vec2::<u32>()?) {
            self.seen.update(&sample.to_le_bytes());
            visible.iter().for_each(|patch| self.seen.update(&patch.to_le_bytes()));
        }
        let begun = self.images > 0;
        self.images += count;
        self.feature += part.feature * count as f64;
        if let Some(relation) = part.relation {
            *self.relation.get_or_insert(0.0) += relation * count as f64;
        }
        if !self.is_finite() {
            self.sum = None;
            return Ok(());
        }
        // In one part the mean over its images is the mean over the step's.
        let total = match self.parts {
            1 => part.total,
            _ => (part.total * (count as f64 / self.batch as f64))?,
        };
        let mut new = total.backward()?;
        match &mut self.sum {
            Some(sum) => add_to(sum, &mut new, params)?,
            None if begun => {
                return Err(Error::Data(
                    "gradients of a step were lost on the way; please report it".into(),
                ));
            }
            none => *none = Some(new),
        }
        Ok(())
    }

    /// Images in the sum.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Mean feature loss (MAE: pixel loss).
    pub fn feature(&self) -> f64 {
        self.feature / self.images as f64
    }

    /// Mean relation loss (TEC).
    pub fn relation(&self) -> Option<f64> {
        self.relation.map(|sum| sum / self.images as f64)
    }

    /// CRC-32 of the samples and visible patches up to this step.
    pub fn seen(&self) -> u32 {
        self.seen.clone().finalize()
    }

    fn is_finite(&self) -> bool {
        (self.feature + self.relation.unwrap_or(0.0)).is_finite()
    }

    /// The gradients of the mean loss; `None` if a loss was not finite or there was no image.
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn finish(self, params: &[(String, Var)]) -> Result<Option<GradStore>> {
        let Some(mut sum) = self.sum else { return Ok(None) };
        // Images that could not be read made the mean one over fewer.
        if self.parts > 1 && self.images != self.batch {
            for (_, var) in params {
                if let Some(grad) = sum.remove(var) {
                    sum.insert(var, (grad * (self.batch as f64 / self.images as f64))?);
                }
            }
        }
        Ok(Some(sum))
    }
}

fn add_to(sum: &mut GradStore, new: &mut GradStore, params: &[(String, Var)]) -> Result<()> {
    for (_, var) in params {
        match (sum.remove(var), new.remove(var)) {
            (Some(a), Some(b)) => drop(sum.insert(var, (a + b)?)),
            (Some(one), None) | (None, Some(one)) => drop(sum.insert(var, one)),
            (None, None) => {}
        }
    }
    Ok(())
}
