//! What an encoder's activations look like: statistics of every channel, and a sample of tokens.

use std::collections::HashMap;

use candle_core::Tensor;

use crate::model::{Observer, Site, Vit};
use crate::{Error, Result};

/// Tokens that are kept of each image: the class token, and others evenly spaced.
const SAMPLED_TOKENS: usize = 8;
/// Images whose tokens are kept.
const SAMPLED_IMAGES: usize = 128;

/// Statistics of the channels at one site of one block.
#[derive(Debug, Clone, Default)]
pub(super) struct Channels {
    pub(super) min: Vec<f32>,
    pub(super) max: Vec<f32>,
    sum: Vec<f64>,
    count: usize,
    /// A sample of rows, one token after the other.
    pub(super) rows: Vec<f32>,
    images: usize,
}

impl Channels {
    pub(super) fn width(&self) -> usize {
        self.min.len()
    }

    pub(super) fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.count.max(1) as f64).collect()
    }

    /// The largest absolute value of all channels.
    pub(super) fn largest(&self) -> f64 {
        let ends = self.min.iter().chain(&self.max);
        ends.fold(0.0, |max, x| max.max(f64::from(x.abs())))
    }

    fn add(&mut self, values: &Tensor, keep_rows: bool) -> Result<()> {
        let (batch, tokens, width) = values.dims3()?;
        let data = values.flatten_all()?.to_vec1::<f32>()?;
        if !data.iter().all(|x| x.is_finite()) {
            return Err(Error::Data(
                "an activation is not finite: the encoder's weights overflow on the calibration images".into(),
            ));
        }
        if self.min.is_empty() {
            self.min = vec![f32::INFINITY; width];
            self.max = vec![f32::NEG_INFINITY; width];
            self.sum = vec![0.0; width];
        }
        for row in data.chunks_exact(width) {
            for (((min, max), sum), &x) in self.min.iter_mut().zip(&mut self.max).zip(&mut self.sum).zip(row) {
                *min = min.min(x);
                *max = max.max(x);
                *sum += f64::from(x);
            }
        }
        self.count += batch * tokens;
        if keep_rows {
            let taken = tokens.min(SAMPLED_TOKENS);
            for image in data
                .chunks_exact(tokens * width)
                .take(SAMPLED_IMAGES.saturating_sub(self.images))
            {
                for i in 0..taken {
                    let token = i * tokens / taken;
                    self.rows.extend_from_slice(&image[token * width..(token + 1) * width]);
                }
            }
        }
        self.images += batch;
        Ok(())
    }
}

/// What was seen of an encoder on calibration images.
#[derive(Debug, Clone)]
pub struct Calibration {
    sites: HashMap<(Site, usize), Channels>,
    /// Largest absolute class token, mean and patch token after the final norm.
    pub(super) largest_class: f64,
    pub(super) largest_mean: f64,
    pub(super) largest_patch: f64,
    images: usize,
}

impl Calibration {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self {
            sites: HashMap::new(),
            largest_class: 0.0,
            largest_mean: 0.0,
            largest_patch: 0.0,
            images: 0,
        }
    }

    /// Encodes a batch of normalized images `[B, C, S, S]` and looks at everything on the way.
    ///
    /// # Errors
    /// Those of [`Vit::observe`]; [`Error::Data`] when an activation is not finite.
    pub fn add(&mut self, vit: &Vit, images: &Tensor) -> Result<()> {
        let tokens = vit.observe(images, self)?;
        let patches = tokens.dim(1)? - 1;
        let largest = |t: &Tensor| -> Result<f64> { Ok(f64::from(t.abs()?.max_all()?.to_scalar::<f32>()?)) };
        let of_patches = tokens.narrow(1, 1, patches)?;
        self.largest_class = self.largest_class.max(largest(&tokens.narrow(1, 0, 1)?)?);
        self.largest_patch = self.largest_patch.max(largest(&of_patches)?);
        self.largest_mean = self.largest_mean.max(largest(&of_patches.mean(1)?)?);
        self.images += images.dim(0)?;
        Ok(())
    }

    /// Images seen.
    pub fn images(&self) -> usize {
        self.images
    }

    pub(super) fn channels(&self, site: Site, block: usize) -> Result<&Channels> {
        self.sites.get(&(site, block)).ok_or_else(|| {
            Error::Data("the encoder was not calibrated: no images were seen, or those of another encoder".into())
        })
    }
}

impl Default for Calibration {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for Calibration {
    fn observe(&mut self, site: Site, block: usize, values: &Tensor) -> Result<()> {
        let keep_rows = match site {
            // What follows from others, or needs its extent only.
            Site::Hidden | Site::FinalNorm => return Ok(()),
            Site::PatchEmbed | Site::Residual => false,
            Site::Norm1 | Site::Qkv | Site::Attention | Site::Norm2 | Site::Fc1 => true,
        };
        self.sites.entry((site, block)).or_default().add(values, keep_rows)
    }
}
