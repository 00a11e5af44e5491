//! The encoder: what users call.

use crate::back_end::BackEnd;
use crate::format::{File, Header, Normalization, Pool, Precision, Section};
use crate::kernel::Needs;
use crate::plan::{Last, Plan, ScratchUsage};
use crate::trace::{NoTrace, Trace};
use crate::{Error, Geometry};

/// An image of the encoder's size.
#[derive(Debug, Clone, Copy)]
pub enum Image<'i> {
    /// Pixels as a camera gives them, `[height, width, channels]`, rows from the top, red first.
    Pixels(&'i [u8]),
    /// Grey pixels, `[height, width]`; each is taken for all channels of an encoder that has several.
    Grey(&'i [u8]),
    /// `(pixel / 255 - mean) / std` in the same order `[height, width, channels]`. Each value is taken to the nearest pixel
    /// first, so both kinds of image give the same outputs.
    Normalized(&'i [f32]),
}

impl Image<'_> {
    /// Values of a pixel.
    pub(crate) fn channels(&self, geometry: &Geometry) -> usize {
        match self {
            Self::Grey(_) => 1,
            Self::Pixels(_) | Self::Normalized(_) => geometry.channels,
        }
    }
}

/// One of the encoder's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// The class token after the final norm, `[dim]`; of an encoder with `fc_norm` the token itself.
    Class,
    /// The mean of the patch tokens after the final norm, `[dim]`; of an encoder with `fc_norm` the norm of their mean.
    Mean,
    /// The patch tokens after the final norm, `[patches, dim]`; of an encoder with `fc_norm` the tokens themselves.
    Patches,
    /// The classification head's outputs, `[classes]`; of encoders that have one.
    Logits,
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
    /// [`OutputKind::Logits`].
    pub logits: bool,
}

impl Outputs {
    /// The class token only.
    pub const CLASS: Self = Self {
        class: true,
        ..Self::NONE
    };
    /// The mean only.
    pub const MEAN: Self = Self {
        mean: true,
        ..Self::NONE
    };
    /// The patch tokens only.
    pub const PATCHES: Self = Self {
        patches: true,
        ..Self::NONE
    };
    /// The logits only.
    pub const LOGITS: Self = Self {
        logits: true,
        ..Self::NONE
    };
    /// Those that every encoder has: class token, mean and patch tokens.
    pub const ALL: Self = Self {
        class: true,
        mean: true,
        patches: true,
        logits: false,
    };
    const NONE: Self = Self {
        class: false,
        mean: false,
        patches: false,
        logits: false,
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
    /// `[classes]`.
    pub logits: Option<&'o mut [i16]>,
}

impl Output<'_> {
    /// Which outputs have a place.
    pub fn outputs(&self) -> Outputs {
        Outputs {
            class: self.class.is_some(),
            mean: self.mean.is_some(),
            patches: self.patches.is_some(),
            logits: self.logits.is_some(),
        }
    }
}

/// How an image is encoded.
#[derive(Debug, Clone, Copy)]
pub struct Options<'p> {
    /// The patches to encode, by number, row by row from the top left, in the order of their outputs; `None` for all. Attention and
    /// mean are over these alone: a quarter of the patches is a quarter of the work, or less.
    pub patches: Option<&'p [u32]>,
    /// Shares of the tokens that are computed side by side, at least 1: with the feature `std` by the threads of the rayon pool that
    /// the call runs in, otherwise one after the other. The number changes the time and the scratch memory, and no bit of an output.
    pub workers: usize,
}

impl Default for Options<'_> {
    /// All patches, one worker.
    fn default() -> Self {
        Self {
            patches: None,
            workers: 1,
        }
    }
}

/// The most workers; more are taken for as many.
const MAX_WORKERS: usize = 256;
/// The most bytes that a channel takes in a tile's rows of activations: so weights are read seldom, and a tile stays in a core's cache.
const FAST_BYTES: usize = 224;

/// A quantized encoder in its file's bytes.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    file: File<'a>,
    back_end: BackEnd,
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
            back_end: BackEnd::best(),
        })
    }

    /// The same encoder, computed by another back end: for comparing them.
    pub fn with_back_end(self, back_end: BackEnd) -> Self {
        Self { back_end, ..self }
    }

    /// What computes.
    pub fn back_end(&self) -> BackEnd {
        self.back_end
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
        core::str::from_utf8(self.file.outside(Section::Name)).unwrap_or("")
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
    ///
    /// It is the least; with more, up to [`fast_scratch_len`](Self::fast_scratch_len), each row of weights that is read serves more
    /// tokens.
    pub fn scratch_len(&self, outputs: Outputs) -> usize {
        self.scratch_len_with(&Options::default(), outputs)
    }

    /// Bytes of scratch memory that [`encode_with`](Self::encode_with) needs for these outputs, exactly.
    pub fn scratch_len_with(&self, options: &Options<'_>, outputs: Outputs) -> usize {
        let plan = self.plan(options, outputs);
        plan.len(self.back_end.needs(), 1)
    }

    /// What the least scratch memory for these outputs is used for, with the back end of this name, which may be another processor's
    /// ([`BackEnd::ALL_NAMES`]): what a device needs can be asked on a computer. `None` for no such name.
    pub fn scratch_usage(&self, back_end: &str, outputs: Outputs) -> Option<ScratchUsage> {
        let needs = Needs::of(back_end)?;
        Some(self.plan(&Options::default(), outputs).usage(needs))
    }

    /// Bytes of scratch memory with which [`encode_with`](Self::encode_with) is fastest on a computer with caches.
    pub fn fast_scratch_len(&self, options: &Options<'_>, outputs: Outputs) -> usize {
        let plan = self.plan(options, outputs);
        let needs = self.back_end.needs();
        // Tiles of about the same length.
        let tokens = plan.largest_share();
        let tiles = tokens.div_ceil(FAST_BYTES / needs.factor).max(1);
        plan.len(needs, tokens.div_ceil(tiles))
    }

    pub(crate) fn plan(&self, options: &Options<'_>, outputs: Outputs) -> Plan {
        let patches = options.patches.map_or(self.geometry().patches(), <[u32]>::len);
        Plan {
            geometry: *self.geometry(),
            tokens: patches.min(self.geometry().patches()) + 1,
            unpacks: self.file.header.precision != Precision::Int8,
            last: Last {
                mean: outputs.mean || outputs.logits && self.pool() == Pool::Mean,
                logits: outputs.logits,
            },
            workers: options.workers.clamp(1, MAX_WORKERS),
        }
    }

    pub(crate) fn file(&self) -> &File<'a> {
        &self.file
    }

    /// Values of an output; 0 for one that this encoder does not have.
    pub fn output_len(&self, kind: OutputKind) -> usize {
        let dim = self.geometry().dim;
        match kind {
            OutputKind::Class | OutputKind::Mean => dim,
            OutputKind::Patches => dim * self.geometry().patches(),
            OutputKind::Logits => self.header().classes(),
        }
    }

    /// The shift `k` of an output: its real values are its integers times 2^-k.
    pub fn output_scale_shift(&self, kind: OutputKind) -> i32 {
        let header = &self.file.header;
        i32::from(match kind {
            OutputKind::Class => header.class_bits,
            OutputKind::Mean => header.mean_bits,
            OutputKind::Patches => header.patch_bits,
            OutputKind::Logits => header.head.map_or(0, |head| head.logit_bits),
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
    /// holds a NaN, [`Error::NoOutput`] for logits without a head. The outputs are untouched then.
    pub fn encode(&self, image: Image<'_>, scratch: &mut [u8], out: Output<'_>) -> Result<(), Error> {
        self.encode_with(&Options::default(), image, scratch, out)
    }

    /// As [`encode`](Self::encode), of some patches or by several threads; `scratch` has
    /// [`scratch_len_with`](Self::scratch_len_with) bytes or more.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and [`Error::Patch`] for a patch that the image does not have.
    pub fn encode_with(
        &self,
        options: &Options<'_>,
        image: Image<'_>,
        scratch: &mut [u8],
        out: Output<'_>,
    ) -> Result<(), Error> {
        self.check(options, image, &out)?;
        self.back_end.encode(self, options, image, scratch, out, &mut NoTrace)
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
        let options = Options::default();
        self.check(&options, image, &out)?;
        self.back_end.encode(self, &options, image, scratch, out, trace)
    }

    fn check(&self, options: &Options<'_>, image: Image<'_>, out: &Output<'_>) -> Result<(), Error> {
        let check = |what, expected, actual| {
            if expected == actual {
                Ok(())
            } else {
                Err(Error::Length { what, expected, actual })
            }
        };
        let image_len = match image {
            Image::Pixels(pixels) | Image::Grey(pixels) => pixels.len(),
            Image::Normalized(values) => values.len(),
        };
        let size = self.geometry().image_size;
        let expected = size
            .saturating_mul(size)
            .saturating_mul(image.channels(self.geometry()));
        check("image's values", expected, image_len)?;
        let all = self.geometry().patches();
        let mut patches = all;
        if let Some(wanted) = options.patches {
            patches = wanted.len();
            check("patches to encode", patches.min(all).max(1), patches)?;
            if let Some(&patch) = wanted.iter().find(|&&patch| patch as usize >= all) {
                return Err(Error::Patch { patches: all, patch });
            }
        }
        let dim = self.geometry().dim;
        let outputs = [
            ("class output's values", dim, &out.class),
            ("mean output's values", dim, &out.mean),
            ("patch outputs' values", patches * dim, &out.patches),
            ("logits", self.header().classes(), &out.logits),
        ];
        if out.logits.is_some() && self.header().head.is_none() {
            return Err(Error::NoOutput { what: "class logits" });
        }
        for (what, expected, slice) in outputs {
            if let Some(slice) = slice {
                check(what, expected, slice.len())?;
            }
        }
        Ok(())
    }
}
