//! The losses of a step. They stay where they were computed until somebody asks for them: to look is to wait for a GPU.

use candle_core::Tensor;

use crate::Result;

/// The losses of some images, each the mean over them: scalars.
#[derive(Debug, Clone)]
pub struct MeanLoss {
    /// What is minimized, with its gradient graph.
    pub total: Tensor,
    /// Feature loss (MAE: pixel loss).
    pub feature: Tensor,
    /// Relation loss (TEC).
    pub relation: Option<Tensor>,
}

/// The losses of a step's images, by the pieces they were computed in.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    images: usize,
    pieces: Vec<Piece>,
    /// Of all ranks together, which are known.
    reduced: Option<Sums>,
}

#[derive(Debug, Clone)]
struct Piece {
    images: usize,
    /// Without their graphs, which would keep everything that the piece computed.
    feature: Tensor,
    relation: Option<Tensor>,
}

/// Losses summed over images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sums {
    pub feature: f64,
    pub relation: Option<f64>,
}

impl Sums {
    pub fn is_finite(&self) -> bool {
        (self.feature + self.relation.unwrap_or(0.0)).is_finite()
    }
}

impl Losses {
    /// Those of a job's images on all its ranks.
    pub(super) fn reduced(images: usize, sums: Sums) -> Self {
        Self {
            images,
            pieces: Vec::new(),
            reduced: Some(sums),
        }
    }

    /// Adds those of a piece.
    pub(super) fn add(&mut self, images: usize, loss: &MeanLoss) {
        self.images += images;
        self.pieces.push(Piece {
            images,
            feature: loss.feature.detach(),
            relation: loss.relation.as_ref().map(Tensor::detach),
        });
    }

    /// Every piece's losses side by side, f32 `[n]`, where they were computed; `None` where that was on other ranks or there are none.
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn values(&self) -> Result<Option<Tensor>> {
        let all: Vec<&Tensor> = self
            .pieces
            .iter()
            .flat_map(|piece| [Some(&piece.feature), piece.relation.as_ref()])
            .flatten()
            .collect();
        Ok(match all.is_empty() {
            true => None,
            false => Some(Tensor::stack(&all, 0)?),
        })
    }

    /// Mean feature loss (MAE: pixel loss) and relation loss over the images, NaN without any.
    ///
    /// # Errors
    /// A device that does not give them back.
    pub fn means(&self) -> Result<(f64, Option<f64>)> {
        let sums = self.sums()?;
        let mean = |sum: f64| sum / self.images as f64;
        Ok((mean(sums.feature), sums.relation.map(mean)))
    }

    /// Sums over the images.
    pub(super) fn sums(&self) -> Result<Sums> {
        if let Some(sums) = self.reduced {
            return Ok(sums);
        }
        let values = match self.values()? {
            Some(values) => values.to_vec1::<f32>()?,
            None => Vec::new(),
        };
        let mut values = values.into_iter().map(f64::from);
        let mut sums = Sums {
            feature: 0.0,
            relation: None,
        };
        for piece in &self.pieces {
            let mut next = || values.next().unwrap_or(f64::NAN) * piece.images as f64;
            sums.feature += next();
            if piece.relation.is_some() {
                *sums.relation.get_or_insert(0.0) += next();
            }
        }
        Ok(sums)
    }
}
