//! The encoder: what users call.

use tec_core::integer::{center_pixel, pixel_constants, pixel_from_f32, reciprocal, round_shift, saturate_i16};

use crate::block::Block;
use crate::format::{File, HEAD_SECTIONS, Header, Normalization, Pool, Section, section_index};
use crate::layers::{Linear, Norm};
use crate::plan::{self, Shared, TILE};
use crate::trace::{NoTrace, Stage, Trace, TraceValues};
use crate::views::{I16s, I32s, part};
use crate::{Error, Geometry};

/// An image of the encoder's size.
#[derive(Debug, Clone, Copy)]
pub enum Image<'i> {
    /// Pixels as a camera gives them, `[height, width, channels]`, rows from the top, red first.
    Pixels(&'i [u8]),
    /// `(pixel / 255 - mean) / std` in the same order `[height, width, channels]`. Each value is taken to the nearest pixel
    /// first, so both kinds of image give the same outputs.
    Normalized(&'i [f32]),
}

/// One of the encoder's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// The class token after the final norm, `[dim]`.
    Class,
    /// The mean of the patch tokens after the final norm, `[dim]`.
    Mean,
    /// The patch tokens after the final norm, `[patches, dim]`.
    Patches,
}

/// A choice of outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outputs {
    /// [`OutputKind::Class`].
    pub class: bool,
    /// [`OutputKind::Mean`].
    pub mean: bool,
    /// [`OutputKind::Patches`].
    pub patches: bool,
}

impl Outputs {
    /// The class token only.
    pub const CLASS: Self = Self {
        class: true,
        mean: false,
        patches: false,
    };
    /// The mean only.
    pub const MEAN: Self = Self {
        class: false,
        mean: true,
        patches: false,
    };
    /// The patch tokens only.
    pub const PATCHES: Self = Self {
        class: false,
        mean: false,
        patches: true,
    };
    /// All of them.
    pub const ALL: Self = Self {
        class: true,
        mean: true,
        patches: true,
    };
}

/// Where the outputs go; those left `None` are not computed. [`Encoder::to_f32`] gives their real values.
#[derive(Debug, Default)]
pub struct Output<'o> {
    /// `[dim]`.
    pub class: Option<&'o mut [i16]>,
    /// `[dim]`.
    pub mean: Option<&'o mut [i16]>,
    /// `[patches, dim]`.
    pub patches: Option<&'o mut [i16]>,
}

impl Output<'_> {
    /// Which outputs have a place.
    pub fn outputs(&self) -> Outputs {
        Outputs {
            class: self.class.is_some(),
            mean: self.mean.is_some(),
            patches: self.patches.is_some(),
        }
    }
}

/// A quantized encoder in its file's bytes.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    file: File<'a>,
}

impl<'a> Encoder<'a> {
    /// Checks a whole file and borrows it: nothing is copied or unpacked. `bytes` must start at a 16-byte boundary
    /// ([`Aligned`](crate::Aligned)).
    ///
    /// # Errors
    /// Whatever is wrong with the file: see [`Error`]. No bytes make this, or later calls, panic or read elsewhere.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, Error> {
        Ok(Self {
            file: File::from_bytes(bytes)?,
        })
    }

    /// The encoder's shape.
    pub fn geometry(&self) -> &Geometry {
        &self.file.header.geometry
    }

    /// Everything the file's header says.
    pub fn header(&self) -> &Header {
        &self.file.header
    }

    /// The encoder's name; may be empty.
    pub fn name(&self) -> &'a str {
        let depth = self.geometry().depth;
        core::str::from_utf8(self.file.section(section_index(depth, 2))).unwrap_or("")
    }

    /// How pixels were normalized in training.
    pub fn normalization(&self) -> &Normalization {
        &self.file.header.normalization
    }

    /// Which output is meant as the image's embedding.
    pub fn pool(&self) -> Pool {
        self.file.header.pool
    }

    /// Bytes of scratch memory that [`encode`](Self::encode) needs for these outputs, exactly.
    pub fn scratch_len(&self, outputs: Outputs) -> usize {
        plan::scratch_len(self.geometry(), outputs)
    }

    /// Values of an output.
    pub fn output_len(&self, kind: OutputKind) -> usize {
        let dim = self.geometry().dim;
        match kind {
            OutputKind::Class | OutputKind::Mean => dim,
            OutputKind::Patches => dim * self.geometry().patches(),
        }
    }

    /// The shift `k` of an output: its real values are its integers times 2^-k.
    pub fn output_scale_shift(&self, kind: OutputKind) -> i32 {
        let header = &self.file.header;
        i32::from(match kind {
            OutputKind::Class => header.class_bits,
            OutputKind::Mean => header.mean_bits,
            OutputKind::Patches => header.patch_bits,
        })
    }

    /// An output's real values, exactly: each integer times [2^-k](Self::output_scale_shift). The shorter of the two slices
    /// decides how many are written.
    pub fn to_f32(&self, kind: OutputKind, values: &[i16], out: &mut [f32]) {
        // k is -16 ..= 44, so 2^-k and every product are normal f32 numbers.
        let exponent = (127 - self.output_scale_shift(kind)).clamp(1, 254) as u32;
        let step = f32::from_bits(exponent << 23);
        for (out, &value) in out.iter_mut().zip(values) {
            *out = f32::from(value) * step;
        }
    }

    /// Encodes one image. `scratch` must start at a 16-byte boundary and have [`scratch_len`](Self::scratch_len) bytes or
    /// more; what it held before does not matter.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Misaligned`] for a slice that does not fit, [`Error::NotANumber`] for an image that
    /// holds a NaN. The outputs are untouched then.
    pub fn encode(&self, image: Image<'_>, scratch: &mut [u8], out: Output<'_>) -> Result<(), Error> {
        self.encode_traced(image, scratch, out, &mut NoTrace)
    }

    /// As [`encode`](Self::encode), and shows `trace` what was computed on the way.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_traced(
        &self,
        image: Image<'_>,
        scratch: &mut [u8],
        out: Output<'_>,
        trace: &mut impl Trace,
    ) -> Result<(), Error> {
        let geometry = self.geometry();
        self.check_lengths(image, &out)?;
        let (tokens, mut shared) = plan::split(scratch, geometry, out.outputs())?;
        self.embed(image, tokens, shared.embedding(geometry)?)?;
        trace.record(Stage::Embedding, 0, 0, TraceValues::I16(tokens));
        for index in 0..geometry.depth {
            let block = Block::read(&self.file, index)?;
            block.rescale(tokens);
            trace.record(Stage::Scaled, index, 0, TraceValues::I16(tokens));
            block.attention(tokens, shared.attention(geometry)?, trace);
            trace.record(Stage::Attended, index, 0, TraceValues::I16(tokens));
            block.mlp(tokens, shared.mlp(geometry)?, trace);
            trace.record(Stage::Tokens, index, 0, TraceValues::I16(tokens));
        }
        self.write_outputs(tokens, &mut shared, out)
    }

    fn check_lengths(&self, image: Image<'_>, out: &Output<'_>) -> Result<(), Error> {
        let check = |what, expected, actual| {
            if expected == actual {
                Ok(())
            } else {
                Err(Error::Length { what, expected, actual })
            }
        };
        let image_len = match image {
            Image::Pixels(pixels) => pixels.len(),
            Image::Normalized(values) => values.len(),
        };
        check("image's values", self.geometry().image_len(), image_len)?;
        let outputs = [
            ("class output's values", OutputKind::Class, &out.class),
            ("mean output's values", OutputKind::Mean, &out.mean),
            ("patch outputs' values", OutputKind::Patches, &out.patches),
        ];
        for (what, kind, slice) in outputs {
            if let Some(slice) = slice {
                check(what, self.output_len(kind), slice.len())?;
            }
        }
        Ok(())
    }

    /// Writes the tokens that enter the first block.
    fn embed(&self, image: Image<'_>, tokens: &mut [i16], pixels: &mut [i8]) -> Result<(), Error> {
        let geometry = self.geometry();
        let (dim, patch_len) = (geometry.dim, geometry.patch_len());
        let section = |section| {
            let index = HEAD_SECTIONS.iter().position(|&s| s == section);
            self.file.section(index.unwrap_or(usize::MAX))
        };
        let projection = Linear {
            weight: bytemuck::cast_slice(section(Section::PatchWeight)),
            inner: patch_len,
            bias: I32s(section(Section::PatchBias)),
            multiplier: I32s(section(Section::PatchMultiplier)),
            shift: self.file.header.patch_shift.into(),
        };
        let (class, patches) = tokens.split_at_mut_checked(dim).unwrap_or_default();
        for (slot, value) in class.iter_mut().zip(I16s(section(Section::ClassToken)).iter()) {
            *slot = value;
        }
        for (slot, value) in patches.iter_mut().zip(I16s(section(Section::Position)).iter()) {
            *slot = value;
        }
        for (tile_index, tile) in patches.chunks_mut((TILE * dim).max(1)).enumerate() {
            let count = tile.len() / dim.max(1);
            for (i, patch) in pixels.chunks_exact_mut(patch_len.max(1)).take(count).enumerate() {
                self.gather(image, tile_index * TILE + i, patch)?;
            }
            projection.apply(part(pixels, 0, count * patch_len), |token, output, value| {
                if let Some(slot) = tile.get_mut(token * dim + output) {
                    // The position is there already.
                    *slot = slot.saturating_add(saturate_i16(value));
                }
            });
        }
        Ok(())
    }

    /// Collects one patch, `[patch_size, patch_size, channels]`, as centered pixels.
    fn gather(&self, image: Image<'_>, patch: usize, out: &mut [i8]) -> Result<(), Error> {
        let geometry = self.geometry();
        let channels = geometry.channels;
        let size = geometry.patch_size;
        let grid = geometry.grid().max(1);
        let row_len = size * channels;
        let (top, left) = (patch / grid * size, patch % grid * row_len);
        for (y, row) in out.chunks_exact_mut(row_len.max(1)).enumerate() {
            let start = (top + y) * geometry.image_size * channels + left;
            match image {
                Image::Pixels(pixels) => {
                    for (slot, &pixel) in row.iter_mut().zip(part(pixels, start, row_len)) {
                        *slot = center_pixel(pixel);
                    }
                }
                Image::Normalized(values) => {
                    let normalization = self.normalization();
                    let constants = normalization.mean.iter().zip(&normalization.std).take(channels).cycle();
                    for (i, ((slot, &value), (&mean, &std))) in row
                        .iter_mut()
                        .zip(part(values, start, row_len))
                        .zip(constants)
                        .enumerate()
                    {
                        let (multiplier, offset) = pixel_constants(mean, std);
                        let pixel = pixel_from_f32(value, multiplier, offset);
                        *slot = center_pixel(pixel.map_err(|_| Error::NotANumber { index: start + i })?);
                    }
                }
            }
        }
        Ok(())
    }

    /// The final norm and the outputs.
    fn write_outputs(&self, tokens: &[i16], shared: &mut Shared<'_>, out: Output<'_>) -> Result<(), Error> {
        let header = &self.file.header;
        let geometry = &header.geometry;
        let dim = (geometry.dim).max(1);
        let tail = section_index(geometry.depth, 0);
        let norm = Norm {
            multiplier: I32s(self.file.section(tail)),
            offset: I32s(self.file.section(tail + 1)),
            bits: header.norm_bits.into(),
            epsilon: header.epsilon,
        };
        let shift = |bits: i8| norm.bits.saturating_add_signed(-i32::from(bits));
        let mut rows = tokens.chunks_exact(dim);
        let class = rows.next().unwrap_or(&[]);
        let round = |value: i64, shift: u32| saturate_i16(round_shift(value, shift));
        if let Some(out) = out.class {
            let shift = shift(header.class_bits);
            norm.row(class, out, |slot, value| *slot = round(value, shift));
        }
        let shift = shift(header.patch_bits);
        if let Some(out) = out.patches {
            for (row, out) in rows.clone().zip(out.chunks_exact_mut(dim)) {
                norm.row(row, out, |slot, value| *slot = round(value, shift));
            }
        }
        if let Some(out) = out.mean {
            let sums = shared.sums(geometry)?;
            sums.fill(0);
            for row in rows {
                norm.row(row, sums, |sum, value| {
                    *sum = sum.wrapping_add(round(value, shift).into())
                });
            }
            let inverse = reciprocal(geometry.patches() as u32);
            let shift = header.mean_shift().unwrap_or(0);
            for (slot, &sum) in out.iter_mut().zip(&*sums) {
                *slot = round(i64::from(sum).wrapping_mul(inverse.mantissa), shift);
            }
        }
        Ok(())
    }
}
