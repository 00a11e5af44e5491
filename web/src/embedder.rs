//! From the bytes of a JPEG or PNG file to an embedding, as `tec embed` computes it, bit for bit.

use std::fmt;

use tec_edge::{Encoder, Image, Options, Output, OutputKind, Outputs, Pool};
use tec_image::{Decoder, Region, Resizer};

use crate::aligned::AlignedBytes;

/// An encoder with the memory it needs, kept from image to image.
pub struct Embedder<'f> {
    encoder: Encoder<'f>,
    kind: OutputKind,
    decoder: Decoder,
    resizer: Resizer,
    /// The image as the encoder sees it, `[height, width, channels]`; empty before the first.
    square: Vec<u8>,
    scratch: AlignedBytes,
    integers: Vec<i16>,
    embedding: Vec<f32>,
}

/// What became of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// It was decoded.
    Whole,
    /// Its coded data are damaged where the encoder looks; what could be decoded was.
    Damaged,
}

impl<'f> Embedder<'f> {
    /// An encoder from its file, which starts at a 16-byte boundary. Embeddings are of the kind that the file names, class token or
    /// mean.
    ///
    /// # Errors
    /// A sentence that says why this is no encoder, or that there is no memory for it.
    pub fn new(file: &'f [u8]) -> Result<Self, String> {
        let encoder = Encoder::from_bytes(file).map_err(|error| error.to_string())?;
        let (kind, outputs) = match encoder.pool() {
            Pool::Class => (OutputKind::Class, Outputs::CLASS),
            Pool::Mean => (OutputKind::Mean, Outputs::MEAN),
        };
        let needed = encoder.fast_scratch_len(&Options::default(), outputs);
        let scratch = AlignedBytes::zeroed(needed)
            .ok_or_else(|| format!("the encoder needs {needed} bytes of memory that the browser does not give"))?;
        let len = encoder.output_len(kind);
        Ok(Self {
            encoder,
            kind,
            decoder: Decoder::new(),
            resizer: Resizer::new(),
            square: Vec::new(),
            scratch,
            integers: vec![0; len],
            embedding: vec![0.0; len],
        })
    }

    /// Decodes a JPEG or PNG file and makes of it the square that evaluation takes ([`Region::central_square`]).
    ///
    /// # Errors
    /// A sentence that says why the image cannot be used; there is no image to encode then.
    pub fn prepare(&mut self, image: &[u8]) -> Result<Prepared, String> {
        self.square.clear();
        let geometry = self.encoder.geometry();
        let (size, channels) = (geometry.image_size, geometry.channels);
        let central = |width, height| Region::central_square(width, height, size);
        let (mut pixels, region) = self.decoder.part(image, size, central)?;
        // Gray is repeated last, which gives the same values; RGB becomes gray first, as PIL's users do it.
        if channels < pixels.channels {
            pixels = pixels.into_channels(channels)?;
        }
        let square = self.resizer.square(&pixels, region, size)?;
        self.square = match pixels.channels < channels {
            true => square.into_iter().flat_map(|gray| [gray; 3]).collect(),
            false => square,
        };
        Ok(match self.decoder.damaged() {
            true => Prepared::Damaged,
            false => Prepared::Whole,
        })
    }

    /// Embeds the image that [`prepare`](Self::prepare) made.
    ///
    /// # Errors
    /// A sentence when there is none.
    pub fn encode(&mut self) -> Result<(), String> {
        let integers = Some(self.integers.as_mut_slice());
        let output = match self.kind {
            OutputKind::Class => Output {
                class: integers,
                ..Output::default()
            },
            _ => Output {
                mean: integers,
                ..Output::default()
            },
        };
        let done = self
            .encoder
            .encode(Image::Pixels(&self.square), self.scratch.get_mut(), output);
        done.map_err(|error| error.to_string())?;
        self.encoder.to_f32(self.kind, &self.integers, &mut self.embedding);
        Ok(())
    }

    /// The last embedding, `[dim]`; zeros before the first.
    pub fn embedding(&self) -> &[f32] {
        &self.embedding
    }
}

impl fmt::Display for Embedder<'_> {
    /// Back end, side of an image, channels, values of an embedding, `class` or `mean`, name; separated by tabs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let geometry = self.encoder.geometry();
        let pool = match self.encoder.pool() {
            Pool::Class => "class",
            Pool::Mean => "mean",
        };
        write!(
            f,
            "{}\t{}\t{}\t{}\t{pool}\t{}",
            self.encoder.back_end().name(),
            geometry.image_size,
            geometry.channels,
            geometry.dim,
            self.encoder.name()
        )
    }
}
