//! The gradients of one step, summed over the pieces that its images are computed in.

use std::ops::Range;

use candle_core::{Tensor, Var, backprop::GradStore};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    losses::{Losses, MeanLoss, Sums},
    workers::Workers,
};
use crate::{Error, Result, model::Masks, ops, ranks::Ranks};

/// Losses and gradients of a step as if all its images had been computed at once: means over the images, whatever the pieces.
///
/// Every image has equally many removed patches and relation rows, so that the mean over images is the mean over all of them.
pub struct Gradients {
    vars: Vec<Var>,
    /// Images of the step when none is left out.
    batch: usize,
    /// Images so far, and their losses.
    images: usize,
    losses: Losses,
    sum: Option<GradStore>,
    /// CRC-32 before the step, and of what each part has seen.
    seen_before: u32,
    seen: Vec<Seen>,
}

/// CRC-32 of some samples and visible patches, and of how many bytes it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    crc: u32,
    bytes: u64,
}

/// What a rank's images of a step came to, for the other ranks. Losses are kept as bits: JSON has no NaN.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    images: usize,
    /// Sums over the images.
    feature: u64,
    relation: Option<u64>,
    /// Whether losses and gradients are numbers.
    pub finite: bool,
    /// By part.
    seen: Vec<Seen>,
}

impl Share {
    /// Mean feature and relation loss over the rank's images.
    pub fn losses(&self) -> (f64, Option<f64>) {
        let mean = |sum: u64| f64::from_bits(sum) / self.images as f64;
        (mean(self.feature), self.relation.map(mean))
    }
}

/// What a piece adds.
struct Piece {
    images: usize,
    losses: MeanLoss,
    /// Of its share in the step's loss.
    grads: GradStore,
}

impl Gradients {
    /// Nothing yet of a step of `batch` images; `seen` as in [`crate::checkpoint::State`].
    pub fn new(params: &[(String, Var)], batch: usize, seen: u32) -> Self {
        Self {
            vars: params.iter().map(|(_, var)| var.clone()).collect(),
            batch,
            images: 0,
            losses: Losses::default(),
            sum: None,
            seen_before: seen,
            seen: Vec::new(),
        }
    }

    /// Notes which samples a part of the step has seen, and which of their patches: image by image, so that the sum is the same
    /// whatever the pieces.
    ///
    /// # Errors
    /// Masks that cannot be read.
    pub fn note(&mut self, samples: &[u32], masks: &Masks) -> Result<()> {
        let mut crc = crc32fast::Hasher::new();
        let mut bytes = 0;
        for (sample, visible) in samples.iter().zip(masks.keep.to_vec2::<u32>()?) {
            for number in std::iter::once(sample).chain(&visible) {
                crc.update(&number.to_le_bytes());
                bytes += size_of::<u32>() as u64;
            }
        }
        let crc = crc.finalize();
        self.seen.push(Seen { crc, bytes });
        Ok(())
    }

    /// Notes a part of which no image could be read here; another rank may have seen some of it.
    pub fn note_empty(&mut self) {
        self.seen.push(Seen::default());
    }

    /// Adds losses and gradients of `images` images with `tokens` tokens each, in the pieces of [`Workers::pieces`]; `loss` computes
    /// those of a range of them.
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
        self.images += piece.images;
        self.losses.add(piece.images, &piece.losses);
        let mut new = piece.grads;
        match &mut self.sum {
            Some(sum) => add_to(sum, &mut new, &self.vars),
            none => {
                *none = Some(new);
                Ok(())
            }
        }
    }

    /// Images in the sum.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Their losses.
    pub fn losses(&self) -> Losses {
        self.losses.clone()
    }

    /// CRC-32 of the samples and visible patches up to this step.
    pub fn seen(&self) -> u32 {
        let mut crc = crc32fast::Hasher::new_with_initial(self.seen_before);
        for seen in &self.seen {
            crc.combine(&crc32fast::Hasher::new_with_initial_len(seen.crc, seen.bytes));
        }
        crc.finalize()
    }

    /// What this rank has to say about its images.
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub(super) fn share(&self) -> Result<Share> {
        let losses = self.losses.sums()?;
        let finite = match &self.sum {
            Some(sum) => losses.is_finite() && is_finite(sum, &self.vars)?,
            None => self.images == 0,
        };
        Ok(Share {
            images: self.images,
            feature: losses.feature.to_bits(),
            relation: losses.relation.map(f64::to_bits),
            finite,
            seen: self.seen.clone(),
        })
    }

    /// Makes this the whole job's: `shares` are all ranks', by rank, this one's among them, all finite. Gradients are added in the
    /// ranks' order.
    ///
    /// # Errors
    /// As [`crate::ranks::Collective::sum`]; a parameter without a gradient (a bug).
    pub(super) fn reduce(&mut self, shares: &[Share], ranks: &Ranks) -> Result<()> {
        let total = |sum: fn(&Share) -> Option<u64>| {
            let sums = shares.iter().filter_map(sum).map(f64::from_bits);
            sums.reduce(|a, b| a + b)
        };
        self.images = shares.iter().map(|share| share.images).sum();
        let sums = Sums {
            feature: total(|share| Some(share.feature)).unwrap_or(0.0),
            relation: total(|share| share.relation),
        };
        self.losses = Losses::reduced(self.images, sums);
        // Part by part, and within a part rank by rank: the order of one process.
        self.seen = (0..self.seen.len())
            .flat_map(|part| shares.iter().filter_map(move |share| share.seen.get(part)))
            .copied()
            .collect();
        if self.images == 0 {
            return Ok(());
        }
        let mut mine = self.sum.take();
        let gradient = |var: &Var| match &mut mine {
            None => Ok(var.zeros_like()?),
            Some(sum) => sum.remove(var).ok_or_else(|| {
                let text = format!(
                    "a parameter of shape {:?} got no gradient; please report it",
                    var.dims()
                );
                Error::Data(text)
            }),
        };
        let gradients = self.vars.iter().map(gradient).collect::<Result<Vec<_>>>()?;
        let mut sum = GradStore::default();
        for (var, gradient) in self.vars.iter().zip(ranks.sum(gradients)?) {
            sum.insert(var, gradient);
        }
        self.sum = Some(sum);
        Ok(())
    }

    /// The gradients of the mean loss; `None` if there was no image. Who uses them looks whether the losses are finite.
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
    let total = match images == batch {
        true => loss.total.clone(),
        false => (&loss.total * (images as f64 / batch as f64))?,
    };
    let mut all = ops::backward(&total)?;
    let mut grads = GradStore::default();
    for var in vars {
        if let Some(grad) = all.remove(var) {
            grads.insert(var, grad);
        }
    }
    Ok(Piece {
        images,
        losses: loss,
        grads,
    })
}

/// Whether all gradients are numbers. Times zero they add to zero, or to NaN; and there is one number a parameter to bring to the CPU.
fn is_finite(grads: &GradStore, vars: &[Var]) -> Result<bool> {
    let zeros = vars
        .par_iter()
        .filter_map(|var| grads.get(var))
        .map(|grad| (grad * 0.0)?.sum_all())
        .collect::<candle_core::Result<Vec<_>>>()?;
    if zeros.is_empty() {
        return Ok(true);
    }
    Ok(Tensor::stack(&zeros, 0)?
        .to_vec1::<f32>()?
        .iter()
        .all(|zero| *zero == 0.0))
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
