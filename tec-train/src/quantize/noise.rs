//! Signal-to-noise ratios along the residual stream: where an int8 encoder loses how much.

use candle_core::Tensor;
use tec_edge::format::{Section, sections};
use tec_edge::{Image, Options, Output, Outputs, Stage, Trace, TraceValues};

use super::samples::Samples;
use super::{AlignedBytes, EdgeEncoder};
use crate::data::Normalization;
use crate::model::{Observer, Site, Vit};
use crate::{Error, Result};

/// Images that are looked at.
const IMAGES: usize = 8;

/// The residual stream at one place.
#[derive(Debug, Clone, PartialEq)]
pub struct Noise {
    /// After what: `embedding`, `blocks.B.attn`, `blocks.B.mlp`.
    pub layer: String,
    /// Ten times the decimal logarithm of f32's power over the power of the difference to it, all tokens and channels together.
    pub decibels: f64,
}

/// Compares the tokens of both encoders after every residual branch, on some of the images to compare on. Errors of earlier layers are
/// in those of later ones.
///
/// # Errors
/// Those of the encoders.
pub fn noise(vit: &Vit, normalization: &Normalization, edge: &EdgeEncoder, samples: &Samples) -> Result<Vec<Noise>> {
    let depth = edge.geometry().depth;
    let mut powers = vec![(0.0f64, 0.0f64); 1 + 2 * depth];
    let images = samples.to_compare();
    let image_len = edge.geometry().image_len();
    let pixels = images.pixels.chunks_exact(image_len);
    let batches = samples.batches(images, normalization).flat_map(|batch| {
        let split =
            |batch: Tensor| -> Result<Vec<Tensor>> { (0..batch.dim(0)?).map(|i| Ok(batch.narrow(0, i, 1)?)).collect() };
        batch
            .and_then(split)
            .map_or_else(|e| vec![Err(e)], |all| all.into_iter().map(Ok).collect())
    });
    for (pixels, image) in pixels.zip(batches).take(IMAGES) {
        let mut stream = Stream::default();
        vit.observe(&image?, &mut stream)?;
        let device = tokens(edge, pixels)?;
        for ((power, exact), got) in powers.iter_mut().zip(&stream.0).zip(&device) {
            for (&x, &y) in exact.iter().zip(got) {
                power.0 += f64::from(x).powi(2);
                power.1 += (f64::from(x) - y).powi(2);
            }
        }
    }
    let names = std::iter::once("embedding".to_string());
    let names = names.chain((0..depth).flat_map(|b| [format!("blocks.{b}.attn"), format!("blocks.{b}.mlp")]));
    Ok(names
        .zip(powers)
        .map(|(layer, (signal, noise))| Noise {
            layer,
            decibels: 10.0 * (signal / noise.max(1e-30)).log10(),
        })
        .collect())
}

/// The residual stream of one image, at every place.
#[derive(Default)]
struct Stream(Vec<Vec<f32>>);

impl Observer for Stream {
    fn observe(&mut self, site: Site, _: usize, values: &Tensor) -> Result<()> {
        if site == Site::Residual {
            self.0.push(values.flatten_all()?.to_vec1()?);
        }
        Ok(())
    }
}

/// The same of the device, in real numbers.
fn tokens(edge: &EdgeEncoder, pixels: &[u8]) -> Result<Vec<Vec<f64>>> {
    let encoder = edge.encoder()?;
    let (geometry, header) = (*encoder.geometry(), *encoder.header());
    // Each block may drop bits.
    let mut bits = i32::from(header.residual_bits);
    let mut steps = vec![2f64.powi(-bits)];
    for placed in sections(&header).filter(|placed| placed.section == Section::Scales) {
        bits -= i32::from(edge.bytes().get(placed.offset as usize + 8).copied().unwrap_or(0));
        steps.extend([2f64.powi(-bits); 2]);
    }
    let mut trace = Tokens {
        values: vec![vec![0; geometry.tokens() * geometry.dim]; 1 + 2 * geometry.depth],
    };
    let mut scratch = AlignedBytes::zeroed(encoder.fast_scratch_len(&Options::default(), Outputs::CLASS));
    let image = Image::Pixels(pixels);
    let done = encoder.encode_traced(image, scratch.get_mut(), Output::default(), &mut trace);
    done.map_err(|e| Error::Data(e.to_string()))?;
    let real = |(values, step): (Vec<i16>, f64)| values.into_iter().map(|x| f64::from(x) * step).collect();
    Ok(trace.values.into_iter().zip(steps).map(real).collect())
}

struct Tokens {
    values: Vec<Vec<i16>>,
}

impl Trace for Tokens {
    fn record(&mut self, stage: Stage, block: usize, offset: usize, values: TraceValues<'_>) {
        let place = match stage {
            Stage::Embedding => 0,
            Stage::Attended => 1 + 2 * block,
            Stage::Tokens => 2 + 2 * block,
            _ => return,
        };
        if let (Some(all), TraceValues::I16(values)) = (self.values.get_mut(place), values) {
            let slots = all.iter_mut().skip(offset);
            slots.zip(values).for_each(|(slot, &value)| *slot = value);
        }
    }
}
