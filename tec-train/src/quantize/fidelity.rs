//! How near the int8 encoder comes to the f32 one, on the same pixels.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{Calibration, EdgeEncoder, quantize};
use crate::data::{Loader, LoaderConfig, Normalization, Skipped, Source, Subset, to_tensor};
use crate::eval::Features;
use crate::model::{Pool, Vit};
use crate::{Error, Result};

/// Images that are encoded at once.
const BATCH: usize = 16;

/// Cosines between f32 and int8 embeddings of the same images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fidelity {
    /// The mean over the images.
    pub mean: f32,
    /// The least of them.
    pub worst: f32,
}

impl Fidelity {
    /// Cosines of the rows of `a` and `b`, each `[images, dim]`.
    ///
    /// # Errors
    /// [`Error::Data`] if there are no rows or not equally many.
    pub fn of(a: &[f32], b: &[f32], dim: usize) -> Result<Self> {
        if a.len() != b.len() || dim == 0 || a.is_empty() || !a.len().is_multiple_of(dim) {
            return Err(Error::Data(format!(
                "{} and {} values of embeddings of width {dim} cannot be compared",
                a.len(),
                b.len()
            )));
        }
        let cosines: Vec<f64> = a
            .chunks_exact(dim)
            .zip(b.chunks_exact(dim))
            .map(|(a, b)| cosine(a, b))
            .collect();
        Ok(Self {
            mean: (cosines.iter().sum::<f64>() / cosines.len() as f64) as f32,
            worst: cosines.iter().copied().fold(f64::INFINITY, f64::min) as f32,
        })
    }
}

/// Cosines of the embeddings that two encoders gave the same images.
///
/// # Errors
/// [`Error::Data`] if there are none or not equally many.
pub fn cosines(a: &Features, b: &Features) -> Result<Fidelity> {
    Fidelity::of(&a.data, &b.data, a.dim)
}

/// Cosine of two vectors; 1 if both are zero, 0 if one is.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 {
        dot(a, b) / norms
    } else if a == b {
        1.0
    } else {
        0.0
    }
}

/// Class token and mean of patches by both encoders, compared on `[count, height, width, channels]` pixels: the class
/// token's cosines, then the mean's.
///
/// # Errors
/// Those of the two encoders.
pub fn compare(
    vit: &Vit,
    normalization: &Normalization,
    edge: &EdgeEncoder,
    pixels: &[u8],
    count: usize,
) -> Result<(Fidelity, Fidelity)> {
    let (size, channels, dim) = (vit.config().image_size, vit.config().channels, vit.config().dim);
    let (mut class, mut mean) = (Vec::new(), Vec::new());
    for pixels in pixels.chunks(BATCH * size * size * channels) {
        let batch = pixels.len() / (size * size * channels);
        let tokens = vit.tokens(&to_tensor(pixels, batch, size, channels, normalization, &Device::Cpu)?)?;
        let values = |t: Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
        class.extend(values(tokens.narrow(1, 0, 1)?)?);
        mean.extend(values(tokens.narrow(1, 1, tokens.dim(1)? - 1)?.mean(1)?)?);
    }
    let (edge_class, edge_mean) = edge.embed_both(pixels, count)?;
    Ok((
        Fidelity::of(&class, &edge_class, dim)?,
        Fidelity::of(&mean, &edge_mean, dim)?,
    ))
}

/// A quantized encoder and how near it comes to the f32 one.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// The bytes of `encoder.tec`.
    pub bytes: Vec<u8>,
    /// Bytes of scratch memory that a device needs.
    pub scratch_bytes: usize,
    /// Images it was calibrated on.
    pub calibrated: usize,
    /// Images the two encoders were compared on.
    pub compared: usize,
    /// Whether those were other images than it was calibrated on.
    pub fresh: bool,
    /// Images that could not be read.
    pub skipped: Vec<Skipped>,
    /// Cosines of the means of patches.
    pub mean: Fidelity,
    /// Cosines of the class tokens.
    pub cls: Fidelity,
}

/// Calibrates on up to `images` images of `source`, quantizes, and compares on as many others; on the same ones, if there are
/// no others. The images are spread evenly over the source, and the same for the same source. `threads` decode.
///
/// # Errors
/// [`Error::Usage`] for 0 images, [`Error::Data`] if none can be read; those of [`quantize`](fn@quantize).
pub fn from_source(
    vit: &Vit,
    normalization: &Normalization,
    source: Arc<dyn Source>,
    images: usize,
    threads: usize,
) -> Result<Quantized> {
    if images == 0 || source.is_empty() {
        return Err(Error::Usage(
            "quantizing needs images to calibrate on: give a folder with at least one".into(),
        ));
    }
    // Before the work, not after it.
    vit.require_plain("encoder.tec")?;
    let pool = vit.metadata().map_or(Pool::Mean, |m| m.pool);
    let total = source.len();
    let taken = (2 * images).min(total);
    let spread = |i: usize| (i * total / taken) as u32;
    let (first, second): (Vec<u32>, Vec<u32>) = if taken < 2 {
        (vec![0], Vec::new())
    } else {
        (
            (0..taken).step_by(2).map(spread).collect(),
            (1..taken).step_by(2).map(spread).collect(),
        )
    };
    let (size, channels) = (vit.config().image_size, vit.config().channels);
    let mut skipped = Vec::new();
    let mut read = |numbers: Vec<u32>, each: &mut dyn FnMut(&[u8], usize) -> Result<()>| -> Result<usize> {
        if numbers.is_empty() {
            return Ok(0);
        }
        let mut count = 0;
        let config = LoaderConfig {
            threads,
            ..LoaderConfig::eval(size, channels, BATCH)
        };
        for batch in Loader::new(Arc::new(Subset::new(source.clone(), numbers)?), config)?.batches(0, 0, 1)? {
            let batch = batch?;
            if !batch.is_empty() {
                each(&batch.pixels, batch.len())?;
            }
            count += batch.len();
            skipped.extend(batch.skipped);
        }
        Ok(count)
    };
    let mut calibration = Calibration::new();
    let mut pixels = Vec::new();
    let calibrated = read(first, &mut |batch, count| {
        pixels.extend_from_slice(batch);
        calibration.add(
            vit,
            &to_tensor(batch, count, size, channels, normalization, &Device::Cpu)?,
        )
    })?;
    let mut others = Vec::new();
    let compared = read(second, &mut |batch, _| {
        others.extend_from_slice(batch);
        Ok(())
    })?;
    if calibrated == 0 {
        return Err(Error::Data("none of the images to calibrate on could be read".into()));
    }
    let bytes = quantize(vit, normalization, pool, "", &calibration)?;
    let edge = EdgeEncoder::from_bytes(&bytes)?;
    let fresh = compared > 0;
    let (pixels, compared) = if fresh {
        (others, compared)
    } else {
        (pixels, calibrated)
    };
    let (cls, mean) = compare(vit, normalization, &edge, &pixels, compared)?;
    Ok(Quantized {
        bytes,
        scratch_bytes: edge.scratch_bytes(),
        calibrated,
        compared,
        fresh,
        skipped,
        mean,
        cls,
    })
}
