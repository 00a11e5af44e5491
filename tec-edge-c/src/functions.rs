//! The functions of the header.
#![allow(
    clippy::missing_safety_doc,
    reason = "the header's introduction says it once for all functions"
)]

use core::ffi::{c_char, c_void};
use core::fmt;

use tec_edge::{Encoder, Image, Options, Output, OutputKind, Outputs, Pool};

use crate::failure::Failure;
use crate::interface::*;
use crate::memory::{Opened, Regions, opened, report, reported, set_opened, values, values_mut, write_text};

/// The library's version, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn tec_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Opens the encoder file that lies at `bytes`, at a boundary of `TEC_ALIGNMENT`: checks it whole and refers to it; nothing
/// is copied or unpacked. The bytes must stay as they are for as long as the encoder is used.
///
/// Fails with any code but those for images and patches; the encoder is not open then. No bytes make this, or later calls,
/// crash or read elsewhere.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tec_encoder_open(
    encoder: *mut tec_encoder,
    bytes: *const u8,
    len: usize,
    error: *mut tec_error,
) -> tec_code {
    // SAFETY: the caller's pointers are as the header demands.
    unsafe { report(open(encoder, bytes, len), error) }
}

/// # Safety
/// As the header demands.
unsafe fn open(encoder: *mut tec_encoder, bytes: *const u8, len: usize) -> Result<(), Failure> {
    let mut regions = Regions::new();
    regions.write("encoder", encoder, 1)?;
    // SAFETY: accepted, and the caller's.
    unsafe { set_opened(encoder, None) };
    regions.read("encoder file", bytes, len)?;
    // SAFETY: accepted; the caller keeps the bytes as long as the encoder.
    let new = Encoder::from_bytes(unsafe { values(bytes, len) })?;
    // SAFETY: accepted; `new` was read from these bytes.
    unsafe { set_opened(encoder, Some((new, (bytes, len)))) };
    Ok(())
}

/// What the encoder is. Fails with `TEC_ERROR_NULL`, `TEC_ERROR_MISALIGNED`, `TEC_ERROR_NOT_OPEN`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tec_encoder_info(
    encoder: *const tec_encoder,
    info: *mut tec_info,
    error: *mut tec_error,
) -> tec_code {
    // SAFETY: the caller's pointers are as the header demands.
    let found = unsafe { opened(encoder) }.map(|opened| info_of(&opened.encoder));
    // SAFETY: the same.
    unsafe { report(found.and_then(|found| put(found, "info", info)), error) }
}

fn info_of(encoder: &Encoder<'_>) -> tec_info {
    let geometry = encoder.geometry();
    let normalization = encoder.normalization();
    let embedding = match encoder.pool() {
        Pool::Class => tec_output_kind::TEC_CLASS,
        Pool::Mean => tec_output_kind::TEC_MEAN,
    };
    // The file has 32 bits for each.
    tec_info {
        image_size: geometry.image_size as u32,
        patch_size: geometry.patch_size as u32,
        channels: geometry.channels as u32,
        dim: geometry.dim as u32,
        depth: geometry.depth as u32,
        heads: geometry.heads as u32,
        hidden: geometry.hidden as u32,
        patches: geometry.patches() as u32,
        image_len: geometry.image_len(),
        classes: encoder.header().classes() as u32,
        fc_norm: encoder.header().fc_norm.into(),
        embedding: embedding as u32,
        mean: normalization.mean,
        std: normalization.std,
    }
}

/// Writes the encoder's name, UTF-8, which may be empty; as `tec_error_text` writes. 0 where the encoder is not open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tec_encoder_name(encoder: *const tec_encoder, text: *mut c_char, len: usize) -> usize {
    // SAFETY: the caller's pointers are as the header demands.
    unsafe {
        let name = opened(encoder).map_or("", |opened| opened.encoder.name());
        write_text(name, text.cast(), len)
    }
}

/// Writes the name of what computes, such as "dsp", "neon" or "scalar"; as `tec_error_text` writes. All give the same bits. 0
/// where the encoder is not open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tec_encoder_back_end(encoder: *const tec_encoder, text: *mut c_char, len: usize) -> usize {
    // SAFETY: the caller's pointers are as the header demands.
    unsafe {
        let name = opened(encoder).map_or("", |opened| opened.encoder.back_end().name());
        write_text(name, text.cast(), len)
    }
}

/// Length and scale of an output, a `tec_output_kind`. Fails with `TEC_ERROR_NULL`, `TEC_ERROR_MISALIGNED`, `TEC_ERROR_NOT_OPEN`,
/// `TEC_ERROR_KIND`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tec_encoder_output(
    encoder: *const tec_encoder,
    kind: u32,
    info: *mut tec_output_info,
    error: *mut tec_error,
) -> tec_code {
    // SAFETY: the caller's pointers are as the header demands.
    let found = unsafe { opened(encoder) }.and_then(|opened| {
        let (encoder, kind) = (&opened.encoder, output_kind(kind)?);
        let mut step = [0.0];
        encoder.to_f32(kind, &[1], &mut step);
        Ok(tec_output_info {
            len: encoder.output_len(kind),
            shift: encoder.output_scale_shift(kind),
            step: step[0],
        })
    });
    // SAFETY: the same.
    unsafe { report(found.and_then(|found| put(found, "output info", info)), error) }
}

/// Bytes of scratch memory that `tec_encode` needs with these options (NULL for the defaults) for these outputs, a sum of
/// `tec_output_kind`, exactly. It is the least; with more, up to `tec_encoder_fast_scratch_len`, each row of weights that is read
/// serves more tokens. 0 where the encoder is not open, or there is no such option or output.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tec_encoder_scratch_len(
    encoder: *const tec_encoder,
    options: *const tec_options,
    outputs: u32,
) -> usize {
    // SAFETY: the caller's pointers are as the header demands.
    unsafe { scratch_len(encoder, options, outputs, Encoder::scratch_len_with) }
}

/// Bytes of scratch memory with which `tec_encode` is fastest on a computer with caches; otherwise as `tec_encoder_scratch_len`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tec_encoder_fast_scratch_len(
    encoder: *const tec_encoder,
    options: *const tec_options,
    outputs: u32,
) -> usize {
    // SAFETY: the caller's pointers are as the header demands.
    unsafe { scratch_len(encoder, options, outputs, Encoder::fast_scratch_len) }
}

/// # Safety
/// As the header demands.
unsafe fn scratch_len(
    encoder: *const tec_encoder,
    options: *const tec_options,
    outputs: u32,
    len: impl Fn(&Encoder<'static>, &Options<'_>, Outputs) -> usize,
) -> usize {
    let found = || -> Result<usize, Failure> {
        // SAFETY: the caller's pointer.
        let opened = unsafe { opened(encoder) }?;
        // SAFETY: the same.
        let options = unsafe { read_options(options, &mut Regions::new()) }?;
        Ok(len(&opened.encoder, &options, chosen(outputs)?))
    };
    found().unwrap_or(0)
}

/// An image of pixels, `[height, width, channels]`, rows from the top, red first.
#[unsafe(no_mangle)]
pub extern "C" fn tec_pixels(values: *const u8, len: usize) -> tec_image {
    image(tec_image_kind::TEC_PIXELS, values.cast(), len)
}

/// An image of grey pixels, `[height, width]`, rows from the top.
#[unsafe(no_mangle)]
pub extern "C" fn tec_grey(values: *const u8, len: usize) -> tec_image {
    image(tec_image_kind::TEC_GREY, values.cast(), len)
}

/// An image of normalized values, `(pixel / 255 - mean) / std`, in the same order; `len` values.
#[unsafe(no_mangle)]
pub extern "C" fn tec_normalized(values: *const f32, len: usize) -> tec_image {
    image(tec_image_kind::TEC_NORMALIZED, values.cast(), len)
}

fn image(kind: tec_image_kind, values: *const c_void, len: usize) -> tec_image {
    let kind = kind as u32;
    tec_image { kind, values, len }
}

/// Encodes one image. `options` may be NULL. `scratch` must start at a boundary of `TEC_ALIGNMENT` and have
/// `tec_encoder_scratch_len` bytes or more; what it held before does not matter, and nothing in it is needed afterwards.
///
/// Scratch memory and outputs may overlap neither each other nor the image, the encoder, its file or the list of patches:
/// `TEC_ERROR_OVERLAP`. Other failures: `TEC_ERROR_NULL`, `TEC_ERROR_NOT_OPEN`, `TEC_ERROR_KIND`, `TEC_ERROR_MISALIGNED`,
/// `TEC_ERROR_LENGTH`, `TEC_ERROR_PATCH`, `TEC_ERROR_NAN`, `TEC_ERROR_NO_OUTPUT`. The outputs are untouched then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tec_encode(
    encoder: *const tec_encoder,
    options: *const tec_options,
    image: tec_image,
    scratch: *mut u8,
    scratch_len: usize,
    outputs: *const tec_outputs,
    error: *mut tec_error,
) -> tec_code {
    // SAFETY: the caller's pointers are as the header demands.
    unsafe {
        let scratch = (scratch, scratch_len);
        report(encode(encoder, options, image, scratch, outputs), error)
    }
}

/// # Safety
/// As the header demands.
unsafe fn encode(
    encoder: *const tec_encoder,
    options: *const tec_options,
    image: tec_image,
    scratch: (*mut u8, usize),
    outputs: *const tec_outputs,
) -> Result<(), Failure> {
    // SAFETY: the caller's pointer.
    let Opened {
        encoder: inner, file, ..
    } = unsafe { opened(encoder) }?;
    let mut regions = Regions::new();
    regions.read("encoder", encoder, 1)?;
    regions.read("encoder file", file.0, file.1)?;
    // SAFETY: the caller's pointer.
    let options = unsafe { read_options(options, &mut regions) }?;
    // SAFETY: the caller's pointer.
    let image = unsafe { read_image(image, &mut regions) }?;
    Regions::new().read("outputs", outputs, 1)?;
    // SAFETY: accepted, and the caller's; a copy.
    let places = unsafe { outputs.read() };
    regions.write("scratch memory", scratch.0, scratch.1)?;
    let mut place = |what, place: tec_values| -> Result<_, Failure> {
        if place.values.is_null() && place.len == 0 {
            return Ok(None);
        }
        regions.write(what, place.values, place.len)?;
        // SAFETY: accepted, and the caller's.
        Ok(Some(unsafe { values_mut(place.values, place.len) }))
    };
    let out = Output {
        class: place("class output", places.class_token)?,
        mean: place("mean output", places.mean)?,
        patches: place("patch outputs", places.patches)?,
        logits: place("logits", places.logits)?,
    };
    // SAFETY: accepted, and the caller's.
    let scratch = unsafe { values_mut(scratch.0, scratch.1) };
    Ok(inner.encode_with(&options, image, scratch, out)?)
}

/// An output's real values, exactly: `out[i] = values[i] * step`, `len` of them. Fails with `TEC_ERROR_NULL`,
/// `TEC_ERROR_MISALIGNED`, `TEC_ERROR_LENGTH` (more than memory holds), `TEC_ERROR_NOT_OPEN`, `TEC_ERROR_KIND`,
/// `TEC_ERROR_OVERLAP`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tec_to_float(
    encoder: *const tec_encoder,
    kind: u32,
    values: *const i16,
    len: usize,
    out: *mut f32,
    error: *mut tec_error,
) -> tec_code {
    // SAFETY: the caller's pointers are as the header demands.
    unsafe { report(to_float(encoder, kind, values, len, out), error) }
}

/// # Safety
/// As the header demands.
unsafe fn to_float(
    encoder: *const tec_encoder,
    kind: u32,
    integers: *const i16,
    len: usize,
    out: *mut f32,
) -> Result<(), Failure> {
    // SAFETY: the caller's pointer.
    let opened = unsafe { opened(encoder) }?;
    let kind = output_kind(kind)?;
    let mut regions = Regions::new();
    regions.read("encoder", encoder, 1)?;
    regions.read("values", integers, len)?;
    regions.write("out", out, len)?;
    // SAFETY: accepted, and the caller's.
    let (integers, out) = unsafe { (values(integers, len), values_mut(out, len)) };
    opened.encoder.to_f32(kind, integers, out);
    Ok(())
}

/// Writes why a call failed, as a sentence with what was expected and what came, into `len` bytes at `text`, with its terminator;
/// what does not fit is cut off (`TEC_ERROR_TEXT_LEN` bytes hold all). Returns the length of the whole text without the terminator,
/// as `snprintf` does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tec_error_text(error: *const tec_error, text: *mut c_char, len: usize) -> usize {
    // SAFETY: the caller's pointers are as the header demands.
    unsafe { write_text(Sentence(reported(error)), text.cast(), len) }
}

/// What was reported, or why nothing can be read.
struct Sentence(Result<Option<Failure>, Failure>);

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(None) => f.write_str("no error"),
            Ok(Some(failure)) | Err(failure) => failure.fmt(f),
        }
    }
}

/// # Safety
/// `options` is NULL or points to options, and `patches` in them to as many numbers as they say.
unsafe fn read_options<'o>(options: *const tec_options, regions: &mut Regions) -> Result<Options<'o>, Failure> {
    if options.is_null() {
        return Ok(Options::default());
    }
    Regions::new().read("options", options, 1)?;
    // SAFETY: accepted, and the caller's; a copy.
    let options = unsafe { options.read() };
    let patches = if options.patches.is_null() && options.patches_len == 0 {
        None
    } else {
        regions.read("list of patches", options.patches, options.patches_len)?;
        // SAFETY: accepted, and the caller's.
        Some(unsafe { values(options.patches, options.patches_len) })
    };
    Ok(Options {
        patches,
        workers: options.workers.max(1),
    })
}

/// # Safety
/// The image's pointer points to as many values of its kind as it says, or is NULL.
unsafe fn read_image<'i>(image: tec_image, regions: &mut Regions) -> Result<Image<'i>, Failure> {
    const PIXELS: u32 = tec_image_kind::TEC_PIXELS as u32;
    const GREY: u32 = tec_image_kind::TEC_GREY as u32;
    const NORMALIZED: u32 = tec_image_kind::TEC_NORMALIZED as u32;
    match image.kind {
        PIXELS | GREY => {
            let pixels = image.values.cast::<u8>();
            regions.read("image", pixels, image.len)?;
            // SAFETY: accepted, and the caller's.
            let pixels = unsafe { values(pixels, image.len) };
            Ok(match image.kind {
                GREY => Image::Grey(pixels),
                _ => Image::Pixels(pixels),
            })
        }
        NORMALIZED => {
            let normalized = image.values.cast::<f32>();
            regions.read("image", normalized, image.len)?;
            // SAFETY: accepted, and the caller's.
            Ok(Image::Normalized(unsafe { values(normalized, image.len) }))
        }
        kind => Err(Failure::Kind { what: "image", kind }),
    }
}

const CLASS: u32 = tec_output_kind::TEC_CLASS as u32;
const MEAN: u32 = tec_output_kind::TEC_MEAN as u32;
const PATCHES: u32 = tec_output_kind::TEC_PATCHES as u32;
const LOGITS: u32 = tec_output_kind::TEC_LOGITS as u32;

fn output_kind(kind: u32) -> Result<OutputKind, Failure> {
    match kind {
        CLASS => Ok(OutputKind::Class),
        MEAN => Ok(OutputKind::Mean),
        PATCHES => Ok(OutputKind::Patches),
        LOGITS => Ok(OutputKind::Logits),
        kind => Err(Failure::Kind { what: "output", kind }),
    }
}

/// A sum of kinds.
fn chosen(outputs: u32) -> Result<Outputs, Failure> {
    let unknown = outputs & !(CLASS | MEAN | PATCHES | LOGITS);
    if unknown != 0 {
        return Err(Failure::Kind {
            what: "output",
            kind: unknown,
        });
    }
    Ok(Outputs {
        class: outputs & CLASS != 0,
        mean: outputs & MEAN != 0,
        patches: outputs & PATCHES != 0,
        logits: outputs & LOGITS != 0,
    })
}

/// Writes a struct to the caller's memory.
///
/// # Safety
/// `to` is NULL or points to a `T`.
unsafe fn put<T>(value: T, what: &'static str, to: *mut T) -> Result<(), Failure> {
    Regions::new().write(what, to, 1)?;
    // SAFETY: accepted, and the caller's.
    unsafe { to.write(value) };
    Ok(())
}
