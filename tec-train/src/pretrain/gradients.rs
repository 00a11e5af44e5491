//! The gradients of one step, summed over the pieces that its images are computed in.

use std::ops::Range;

use candle_core::{Tensor, Var, backprop::GradStore};

use super::workers::Workers;
use crate::{Error, Result, model::Masks, ops};

/// The losses of some images, each the mean over them.
#[derive(Debug, Clone)]
pub struct MeanLoss {
    /// What is minimized: a scalar with its gradient graph.
    pub total: Tensor,
    /// Feature loss (MAE: pixel loss).
    pub feature: f64,
    /// Relation loss (TEC).
    pub relation: Option<f64>,
}

/// Losses and gradients of a step as if all its images had been computed at once: means over the images, whatever the pieces.
///
/// Every image has equally many removed patches and relation rows, so that the mean over images is the mean over all of them.
pub struct Gradients {
    vars: Vec<Var>,
    /// Images of the step when none is left out.
    batch: usize,
    /// Images so far, and the losses summed over them.
    images: usize,
    feature: f64,
    relation: Option<f64>,
    sum: Option<GradStore>,
    seen: crc32fast::Hasher,
}

/// What a piece adds.
struct Piece {
    images: usize,
    feature: f64,
    relation: Option<f64>,
    /// Of its share in the step's loss; absent where the loss is not finite.
    grads: Option<GradStore>,
}

impl Gradients {
    /// Nothing yet of a step of `batch` images; `seen` as in [`crate::checkpoint::State`].
    pub fn new(params: &[(String, Var)], batch: usize, seen: u32) -> Self {
        Self {
            vars: params.iter().map(|(_, var)| var.clone()).collect(),
            batch,
            images: 0,
            feature: 0.0,
            relation: None,
            sum: None,
            seen: crc32fast::Hasher::new_with_initial(seen),
        }
    }

    /// Notes which samples the step has seen, and which of their patches: image by image, so that the sum is the same
    /// whatever the pieces.
    ///
    /// # Errors
    /// Masks that cannot be read.
    pub fn note(&mut self, samples: &[u32], masks: &Masks) -> Result<()> {
        for (sample, visible) in samples.iter().zip(masks.keep.to_vec2::<u32>()?) {
            self.seen.update(&sample.to_le_bytes());
            visible.iter().for_each(|patch| self.seen.update(&patch.to_le_bytes()));
        }
        Ok(())
    }

    /// Adds losses and gradients of `images` images with `tokens` tokens each, in the pieces of [`Workers::pieces`]; `loss` computes
    /// those of a range of them. Once a loss is not finite only losses are added.
    ///
    /// # Errors
    /// Those of `loss`; an operation without a gradient (a bug).
    pub fn add(
        &mut self,
        workers: &Workers,
        images: usize,
        tokens: usize,
        loss: impl Fn(Range<usize>) -> Result<MeanLoss> + Sync,
    ) -> Result<()> {
        let (pieces, batch, vars) = (workers.pieces(images, tokens), self.batch, self.vars.clone());
        let work = |number: usize| {
            let range = pieces[number].clone();
            let images = range.len();
            piece(images, batch, loss(range)?, &vars)
        };
        workers.in_order(pieces.len(), work, |piece| self.take(piece))
    }

    fn take(&mut self, piece: Piece) -> Result<()> {
        let begun = self.images > 0;
        self.images += piece.images;
        self.feature += piece.feature * piece.images as f64;
        if let Some(relation) = piece.relation {
            *self.relation.get_or_insert(0.0) += relation * piece.images as f64;
        }
        let finite = (self.feature + self.relation.unwrap_or(0.0)).is_finite();
        match (&mut self.sum, piece.grads) {
            (Some(sum), Some(mut new)) if finite => add_to(sum, &mut new, &self.vars)?,
            (none @ None, new) if finite && !begun => *none = new,
            _ if finite => {
                return Err(Error::Data(
                    "gradients of a step were lost on the way; please report it".into(),
                ));
            }
            _ => self.sum = None,
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

    /// The gradients of the mean loss; `None` if a loss was not finite or there was no image.
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn finish(self) -> Result<Option<GradStore>> {
        let Some(mut sum) = self.sum else { return Ok(None) };
        // Images that could not be read made the mean one over fewer.
        if self.images != self.batch {
            for var in &self.vars {
                if let Some(grad) = sum.remove(var) {
                    sum.insert(var, (grad * (self.batch as f64 / self.images as f64))?);
                }
            }
        }
        Ok(Some(sum))
    }
}

/// The gradients of the share that `images` images have in the mean loss of `batch`.
fn piece(images: usize, batch: usize, loss: MeanLoss, vars: &[Var]) -> Result<Piece> {
    let finite = (loss.feature + loss.relation.unwrap_or(0.0)).is_finite();
    let grads = finite.then(|| {
        let total = match images == batch {
            true => loss.total,
            false => (loss.total * (images as f64 / batch as f64))?,
        };
        let mut all = ops::backward(&total)?;
        let mut grads = GradStore::default();
        for var in vars {
            if let Some(grad) = all.remove(var) {
                grads.insert(var, grad);
            }
        }
        Ok::<_, Error>(grads)
    });
    Ok(Piece {
        images,
        feature: loss.feature,
        relation: loss.relation,
        grads: grads.transpose()?,
    })
}

fn add_to(sum: &mut GradStore, new: &mut GradStore, vars: &[Var]) -> Result<()> {
    for var in vars {
        match (sum.remove(var), new.remove(var)) {
            (Some(a), Some(b)) => drop(sum.insert(var, ops::add(&a, &b)?)),
            (Some(one), None) | (None, Some(one)) => drop(sum.insert(var, one)),
            (None, None) => {}
        }
    }
    Ok(())
}
