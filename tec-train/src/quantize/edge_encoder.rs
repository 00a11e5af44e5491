//! The device's encoder on a host: the same code, the same bits, images in parallel.

use std::path::Path;

use rayon::prelude::*;
use tec_edge::{BackEnd, Encoder, Geometry, Image, Options, Output, OutputKind, Outputs};

use crate::model::Pool;
use crate::{Error, Result};

/// A line of most processors' caches, in bytes: encoder files and scratch memory need a 16-byte boundary, and are read fastest from here on.
const LINE: usize = 64;

/// Memory at a 64-byte boundary, for encoder files and scratch memory.
pub struct AlignedBytes {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl From<&[u8]> for AlignedBytes {
    /// A copy.
    fn from(bytes: &[u8]) -> Self {
        let mut copy = Self::zeroed(bytes.len());
        copy.get_mut().copy_from_slice(bytes);
        copy
    }
}

impl AlignedBytes {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + LINE];
        let start = memory.as_ptr().align_offset(LINE);
        Self { memory, start, len }
    }

    /// The bytes.
    pub fn get(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The bytes, to write.
    pub fn get_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// A quantized encoder with the memory it needs.
pub struct EdgeEncoder {
    file: AlignedBytes,
    geometry: Geometry,
    /// A device's.
    scratch_len: usize,
    /// This computer's, for an image.
    fast_scratch_len: usize,
}

impl EdgeEncoder {
    /// Copies and checks the bytes of an `encoder.tec`.
    ///
    /// # Errors
    /// [`Error::Data`] with the reason why these are no such bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let file = AlignedBytes::from(bytes);
        let encoder = Encoder::from_bytes(file.get()).map_err(|e| Error::Data(e.to_string()))?;
        let geometry = *encoder.geometry();
        let scratch_len = encoder.with_back_end(BackEnd::SCALAR).scratch_len(Outputs::ALL);
        let all = Outputs {
            logits: encoder.header().head.is_some(),
            ..Outputs::ALL
        };
        let fast_scratch_len = encoder.fast_scratch_len(&Options::default(), all);
        Ok(Self {
            file,
            geometry,
            scratch_len,
            fast_scratch_len,
        })
    }

    /// Reads and checks an `encoder.tec`.
    ///
    /// # Errors
    /// [`Error::File`] with the reason.
    pub fn open(path: &Path) -> Result<Self> {
        let file_error = |reason| Error::File {
            path: path.into(),
            reason,
        };
        let bytes = std::fs::read(path).map_err(|e| file_error(format!("cannot be read: {e}")))?;
        Self::from_bytes(&bytes).map_err(|e| file_error(e.to_string()))
    }

    /// The encoder's shape.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The encoder file.
    pub fn bytes(&self) -> &[u8] {
        self.file.get()
    }

    /// Bytes of the encoder file.
    pub fn file_bytes(&self) -> usize {
        self.file.len
    }

    /// Bytes of scratch memory that a device without vector instructions needs for class token, mean or patch tokens.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch_len
    }

    /// The encoder on this file.
    ///
    /// # Errors
    /// None that [`from_bytes`](Self::from_bytes) did not give.
    pub fn encoder(&self) -> Result<Encoder<'_>> {
        Encoder::from_bytes(self.file.get()).map_err(|e| Error::Data(e.to_string()))
    }

    /// Embeds `count` images, `[count, height, width, channels]`, into `[count, dim]`: the real values of what a device
    /// computes.
    ///
    /// # Errors
    /// [`Error::Data`] for pixels of another number than `count` images have.
    pub fn embed(&self, pixels: &[u8], count: usize, pool: Pool) -> Result<Vec<f32>> {
        let kind = match pool {
            Pool::Cls => OutputKind::Class,
            Pool::Mean => OutputKind::Mean,
        };
        let embedded = self.outputs(pixels, count)?;
        Ok(match kind {
            OutputKind::Class => embedded.class,
            _ => embedded.mean,
        })
    }

    /// Class tokens, means and logits of `count` images, `[count, height, width, channels]`.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn outputs(&self, pixels: &[u8], count: usize) -> Result<Embedded> {
        let encoder = self.encoder()?;
        let (dim, image_len) = (self.geometry.dim, self.geometry.image_len());
        if count.checked_mul(image_len) != Some(pixels.len()) {
            return Err(Error::Data(format!(
                "{} bytes of pixels where {count} images of the encoder's size have {}",
                pixels.len(),
                count.saturating_mul(image_len)
            )));
        }
        let classes = encoder.output_len(OutputKind::Logits);
        let row = 2 * dim + classes;
        let mut all = vec![0.0; count * row];
        let images = pixels.par_chunks_exact(image_len);
        images.zip(all.par_chunks_exact_mut(row)).try_for_each_init(
            || (AlignedBytes::zeroed(self.fast_scratch_len), vec![0i16; row]),
            |(scratch, integers), (image, real)| {
                let (class, rest) = integers.split_at_mut(dim);
                let (mean, logits) = rest.split_at_mut(dim);
                let output = Output {
                    class: Some(&mut *class),
                    mean: Some(&mut *mean),
                    logits: Some(&mut *logits).filter(|_| classes > 0),
                    ..Output::default()
                };
                let done = encoder.encode(Image::Pixels(image), scratch.get_mut(), output);
                done.map_err(|e| Error::Data(e.to_string()))?;
                encoder.to_f32(OutputKind::Class, class, &mut real[..dim]);
                encoder.to_f32(OutputKind::Mean, mean, &mut real[dim..2 * dim]);
                encoder.to_f32(OutputKind::Logits, logits, &mut real[2 * dim..]);
                Ok::<(), Error>(())
            },
        )?;
        let columns = |from: usize, to: usize| all.chunks_exact(row).flat_map(|row| &row[from..to]).copied().collect();
        Ok(Embedded {
            class: columns(0, dim),
            mean: columns(dim, 2 * dim),
            logits: columns(2 * dim, row),
        })
    }
}

/// Real values of outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// `[images, dim]`.
    pub class: Vec<f32>,
    /// `[images, dim]`.
    pub mean: Vec<f32>,
    /// `[images, classes]`; empty without a head.
    pub logits: Vec<f32>,
}
