//! Images to embeddings, by the f32 encoder or by the device's int8 one, from the same 8-bit pixels.

use std::{path::Path, sync::Arc};

use candle_core::Device;

use crate::{
    Error, Result,
    data::{self, Loader, LoaderConfig, Normalization, Skipped, Source},
    eval::Features,
    model::{LoadOptions, Pool, Vit},
    quantize::EdgeEncoder,
};

/// Images embedded at once by the f32 encoder.
const BATCH: usize = 64;

/// An encoder of either kind.
pub enum Encoder {
    /// f32, from safetensors.
    Float {
        /// The model.
        vit: Box<Vit>,
        /// Normalization of its input.
        normalization: Normalization,
    },
    /// int8, the device's own code.
    Device(EdgeEncoder),
}

impl Encoder {
    /// Opens `encoder.tec` (by its first bytes), a safetensors or PyTorch checkpoint, or a folder of Hugging Face; `options` say
    /// what such a checkpoint does not.
    ///
    /// # Errors
    /// A file that is neither, with the reason; options for `encoder.tec`, which leaves nothing open.
    pub fn open(path: &Path, options: &LoadOptions) -> Result<Self> {
        let fail = |reason: String| Error::File {
            path: path.to_path_buf(),
            reason,
        };
        if path.is_dir() {
            return Self::float(Vit::load(path, options, &Device::Cpu)?);
        }
        let mut start = [0; tec_edge::format::MAGIC.len()];
        let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read(&mut f, &mut start));
        read.map_err(|e| fail(format!("cannot be read: {e}")))?;
        if start == tec_edge::format::MAGIC {
            if *options != LoadOptions::default() {
                return Err(Error::Usage(format!(
                    "{}: an int8 encoder says everything itself; leave --heads, --prefix and --activation out",
                    path.display()
                )));
            }
            return Ok(Self::Device(EdgeEncoder::open(path)?));
        }
        Self::float(Vit::load(path, options, &Device::Cpu)?)
    }

    /// An f32 encoder; where nothing says how its input is normalized, as ImageNet's.
    ///
    /// # Errors
    /// Channels other than 1 or 3.
    pub fn float(vit: Vit) -> Result<Self> {
        let normalization = match vit.normalization() {
            Some(known) => known.clone(),
            None => Normalization::imagenet(vit.config().channels)?,
        };
        Ok(Self::Float {
            vit: Box::new(vit),
            normalization,
        })
    }

    /// Side of the images in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Float { vit, .. } => vit.config().image_size,
            Self::Device(edge) => edge.geometry().image_size,
        }
    }

    /// Channels of the images.
    pub fn channels(&self) -> usize {
        match self {
            Self::Float { vit, .. } => vit.config().channels,
            Self::Device(edge) => edge.geometry().channels,
        }
    }

    /// Width of an embedding.
    pub fn dim(&self) -> usize {
        match self {
            Self::Float { vit, .. } => vit.config().dim,
            Self::Device(edge) => edge.geometry().dim,
        }
    }

    /// Embeds `[count, H, W, C]` pixels into `[count, D]`.
    ///
    /// # Errors
    /// Pixels of another size than `count` images have.
    pub fn embed(&self, pixels: &[u8], count: usize, pool: Pool) -> Result<Vec<f32>> {
        match self {
            Self::Float { vit, normalization } => {
                let images = data::to_tensor(
                    pixels,
                    count,
                    self.image_size(),
                    self.channels(),
                    normalization,
                    &Device::Cpu,
                )?;
                let pooled = vit.pool(&vit.tokens(&images)?, pool)?;
                Ok(pooled.flatten_all()?.to_vec1()?)
            }
            Self::Device(edge) => edge.embed(pixels, count, pool),
        }
    }
}

/// Embeddings of a whole source, in its order; images that cannot be read are left out and listed.
pub struct Embedded {
    /// Embeddings and labels.
    pub features: Features,
    /// The sample number of each embedding.
    pub samples: Vec<u32>,
    /// What could not be read.
    pub skipped: Vec<Skipped>,
}

/// Embeds every image of a source. `progress` hears how many are done.
///
/// # Errors
/// No image that can be read, or an encoder that fails.
pub fn embed_source(
    encoder: &Encoder,
    source: Arc<dyn Source>,
    pool: Pool,
    threads: usize,
    mut progress: impl FnMut(usize),
) -> Result<Embedded> {
    let config = LoaderConfig {
        threads,
        ..LoaderConfig::eval(encoder.image_size(), encoder.channels(), BATCH)
    };
    let classes = source.classes().to_vec();
    let batches = Loader::new(source, config)?.batches(0, 0, 1)?;
    let (mut data, mut labels, mut samples, mut skipped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for batch in batches {
        let batch = batch?;
        if !batch.is_empty() {
            data.extend(encoder.embed(&batch.pixels, batch.len(), pool)?);
        }
        labels.extend(batch.labels);
        samples.extend(batch.samples);
        skipped.extend(batch.skipped);
        progress(labels.len());
    }
    if labels.is_empty() {
        let first = skipped
            .first()
            .map_or_else(String::new, |s| format!(" (the first: {}: {})", s.name, s.reason));
        return Err(Error::Data(format!(
            "none of the {} images could be read{first}",
            skipped.len()
        )));
    }
    Ok(Embedded {
        features: Features {
            dim: encoder.dim(),
            data,
            labels,
            classes,
        },
        samples,
        skipped,
    })
}
