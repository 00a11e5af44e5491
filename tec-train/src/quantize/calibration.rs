//! What an encoder's activations look like: statistics of every channel, a sample of tokens, how channels go together.

use std::collections::HashMap;

use candle_core::Tensor;

use crate::model::{Observer, Pool, Site, Vit};
use crate::{Error, Result};

/// Tokens that are kept of each image: the class token, and others evenly spaced.
const SAMPLED_TOKENS: usize = 8;
/// Images whose tokens are kept.
const SAMPLED_IMAGES: usize = 128;
/// Tokens of each image that say how channels go together.
const JOINT_TOKENS: usize = 32;

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
    pub(super) covariance: Covariance,
}

/// How the channels at a site go together.
#[derive(Debug, Clone, Default)]
pub(super) struct Covariance {
    /// Of the first images: values are seen as their distance from it.
    reference: Option<Tensor>,
    /// Sums of products `[width, width]`, and of values `[width]`.
    products: Option<Tensor>,
    sum: Option<Tensor>,
    count: usize,
}

impl Covariance {
    /// Adds some tokens of `[batch, tokens, width]`.
    fn add(&mut self, values: &Tensor) -> Result<()> {
        let (batch, tokens, width) = values.dims3()?;
        let step = tokens.div_ceil(JOINT_TOKENS);
        let numbers: Vec<u32> = (0..tokens as u32).step_by(step).collect();
        let count = batch * numbers.len();
        let numbers = Tensor::new(numbers, values.device())?;
        let rows = values
            .contiguous()?
            .index_select(&numbers, 1)?
            .reshape((count, width))?;
        let reference = match &self.reference {
            Some(reference) => reference.clone(),
            None => self.reference.insert(rows.mean(0)?).clone(),
        };
        let rows = rows.broadcast_sub(&reference)?;
        let products = rows.t()?.contiguous()?.matmul(&rows)?;
        let add = |all: &Option<Tensor>, more: Tensor| -> Result<Tensor> {
            Ok(match all {
                Some(all) => (all + more)?,
                None => more,
            })
        };
        self.products = Some(add(&self.products, products)?);
        self.sum = Some(add(&self.sum, rows.sum(0)?)?);
        self.count += count;
        Ok(())
    }

    /// `[width, width]`; `None` if nothing was seen.
    pub(super) fn values(&self) -> Option<Vec<f64>> {
        let products = self.products.as_ref()?.flatten_all().ok()?.to_vec1::<f32>().ok()?;
        let sum = self.sum.as_ref()?.to_vec1::<f32>().ok()?;
        let count = self.count.max(1) as f64;
        let means: Vec<f64> = sum.iter().map(|&x| f64::from(x) / count).collect();
        let rows = products.chunks_exact(means.len().max(1)).zip(&means);
        Some(
            rows.flat_map(|(row, a)| row.iter().zip(&means).map(move |(&x, b)| f64::from(x) / count - a * b))
                .collect(),
        )
    }
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
    /// Class tokens and means, as they are put out, of every image.
    class: Channels,
    mean: Channels,
    /// Largest absolute patch token that is put out.
    pub(super) largest_patch: f64,
    images: usize,
}

impl Calibration {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self {
            sites: HashMap::new(),
            class: Channels::default(),
            mean: Channels::default(),
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
        let largest = tokens.narrow(1, 1, patches)?.abs()?.max_all()?.to_scalar::<f32>()?;
        self.largest_patch = self.largest_patch.max(f64::from(largest));
        for (pool, channels) in [(Pool::Cls, &mut self.class), (Pool::Mean, &mut self.mean)] {
            let pooled = vit.pool(&tokens, pool)?.unsqueeze(1)?;
            channels.add(&pooled, true)?;
            channels.covariance.add(&pooled)?;
        }
        self.images += images.dim(0)?;
        Ok(())
    }

    /// Images seen.
    pub fn images(&self) -> usize {
        self.images
    }

    /// The embeddings.
    pub(super) fn pooled(&self, pool: Pool) -> &Channels {
        match pool {
            Pool::Cls => &self.class,
            Pool::Mean => &self.mean,
        }
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
        let channels = self.sites.entry((site, block)).or_default();
        match site {
            Site::FinalNorm => return Ok(()),
            // Its values follow from those before.
            Site::Hidden => return channels.covariance.add(values),
            Site::PatchEmbed | Site::Residual => return channels.add(values, false),
            Site::Qkv | Site::Fc1 => {}
            Site::Norm1 | Site::Attention | Site::Norm2 => channels.covariance.add(values)?,
        }
        channels.add(values, true)
    }
}
