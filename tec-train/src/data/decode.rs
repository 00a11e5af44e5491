//! From the bytes of a JPEG or PNG file to 8-bit pixels, as PIL's `convert("RGB")` or `convert("L")` gives them.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, Limits};

use super::Pixels;

/// Images of more pixels are refused: at 400 MB of RGB, they are a mistake or an attack.
const MAX_PIXELS: u64 = 1 << 27;
/// What a decoder may allocate for one image: `MAX_PIXELS` of 16-bit RGBA.
const MAX_BYTES: u64 = MAX_PIXELS * 8;

/// What a file's header says about an image, in PIL's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// `JPEG` or `PNG`, from the content, whatever the file is called.
    pub format: &'static str,
    /// How pixels are stored: `1`, `L`, `I;16`, `LA`, `P`, `RGB`, `RGBA` or `CMYK`.
    pub mode: &'static str,
    /// Columns as stored, before the EXIF orientation is applied.
    pub width: usize,
    /// Rows as stored, before the EXIF orientation is applied.
    pub height: usize,
    /// The EXIF orientation, 1 (upright) to 8; 1 where there is none or it is invalid.
    pub orientation: u8,
}

/// Reads the header of a JPEG or PNG file.
///
/// # Errors
/// A reason when the header cannot be read. A file with a good header may still fail to [`decode`].
pub fn inspect(bytes: &[u8]) -> Result<ImageInfo, String> {
    guarded(|| {
        let format = Format::of(bytes)?;
        let mut decoder = open_decoder(bytes, format)?;
        let (width, height) = decoder.dimensions();
        let orientation = decoder.orientation().map_or(1, Orientation::to_exif);
        Ok(ImageInfo {
            format: format.name(),
            mode: format.mode(bytes),
            width: width as usize,
            height: height as usize,
            orientation,
        })
    })
}

/// Decodes a JPEG or PNG file: which one, its content decides.
///
/// Grey stays grey, all else becomes RGB: palettes are looked up, CMYK and YCCK converted, alpha dropped without
/// compositing, 16-bit samples cut to their high byte. The EXIF orientation is applied. A JPEG whose data merely
/// contain errors decodes as far as it goes, as in browsers and PIL; one that ends early is an error.
///
/// # Errors
/// A reason when the bytes are no JPEG or PNG, truncated, invalid, or describe an image of more than 2^27 pixels.
pub fn decode(bytes: &[u8]) -> Result<Pixels, String> {
    guarded(|| {
        let format = Format::of(bytes)?;
        if format == Format::Jpeg && jpeg_end(bytes).is_none() {
            return Err("truncated JPEG: the file ends before the image does".into());
        }
        let mut decoder = open_decoder(bytes, format)?;
        // An unreadable EXIF block says nothing about the pixels.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut image = DynamicImage::from_decoder(decoder).map_err(|error| reason(format, &error))?;
        image.apply_orientation(orientation);
        to_pixels(image)
    })
}

/// Decoders are other people's code fed with files of unknown origin: one that panics has found an invalid file.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("the decoder gave up on invalid data".into()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Jpeg,
    Png,
}

impl Format {
    fn of(bytes: &[u8]) -> Result<Self, String> {
        if bytes.is_empty() {
            Err("the file is empty".into())
        } else if bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
            Ok(Self::Jpeg)
        } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Ok(Self::Png)
        } else {
            Err("neither a JPEG nor a PNG, whatever its name says".into())
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
        }
    }

    /// PIL's mode; the decoder has accepted the header before.
    fn mode(self, bytes: &[u8]) -> &'static str {
        match self {
            Self::Jpeg => match jpeg_components(bytes) {
                Some(1) => "L",
                Some(4) => "CMYK",
                _ => "RGB",
            },
            // Bit depth and color type of IHDR, which is always the first chunk.
            Self::Png => match (bytes.get(24), bytes.get(25)) {
                (Some(1), Some(0)) => "1",
                (Some(16), Some(0)) => "I;16",
                (_, Some(0)) => "L",
                (_, Some(3)) => "P",
                (_, Some(4)) => "LA",
                (_, Some(6)) => "RGBA",
                _ => "RGB",
            },
        }
    }
}

fn open_decoder<'a>(bytes: &'a [u8], format: Format) -> Result<Box<dyn ImageDecoder + 'a>, String> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    let mut decoder: Box<dyn ImageDecoder + 'a> = match format {
        Format::Jpeg => Box::new(JpegDecoder::new(Cursor::new(bytes)).map_err(|error| reason(format, &error))?),
        Format::Png => Box::new(
            PngDecoder::with_limits(Cursor::new(bytes), limits.clone()).map_err(|error| reason(format, &error))?,
        ),
    };
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(format!("the image is empty: {width}x{height} pixels"));
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!(
            "{width}x{height} pixels are more than the {MAX_PIXELS} this program decodes"
        ));
    }
    decoder.set_limits(limits).map_err(|error| reason(format, &error))?;
    Ok(decoder)
}

fn reason(format: Format, error: &ImageError) -> String {
    match error {
        ImageError::Limits(_) => format!("{} too large to decode", format.name()),
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            format!("truncated {}: the file ends before the image does", format.name())
        }
        other => format!("invalid {}: {other}", format.name()),
    }
}

fn to_pixels(image: DynamicImage) -> Result<Pixels, String> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let high = |value: u16| (value >> 8) as u8;
    let (channels, data) = match image {
        DynamicImage::ImageLuma8(image) => (1, image.into_raw()),
        DynamicImage::ImageRgb8(image) => (3, image.into_raw()),
        DynamicImage::ImageLumaA8(image) => (1, image.pixels().map(|pixel| pixel.0[0]).collect()),
        DynamicImage::ImageRgba8(image) => (3, image.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect()),
        DynamicImage::ImageLuma16(image) => (1, image.into_raw().into_iter().map(high).collect()),
        DynamicImage::ImageRgb16(image) => (3, image.into_raw().into_iter().map(high).collect()),
        DynamicImage::ImageLumaA16(image) => (1, image.pixels().map(|pixel| high(pixel.0[0])).collect()),
        DynamicImage::ImageRgba16(image) => (
            3,
            image
                .pixels()
                .flat_map(|p| [high(p.0[0]), high(p.0[1]), high(p.0[2])])
                .collect(),
        ),
        other => return Err(format!("pixels of kind {:?} are not supported", other.color())),
    };
    Pixels::new(width, height, channels, data)
}

/// A marker of a JPEG file with the bytes of its segment, empty for markers without one.
struct Segment<'a> {
    marker: u8,
    body: &'a [u8],
}

/// Walks the markers of a JPEG file, stepping over segments (thumbnails in EXIF blocks end there) and coded data.
fn jpeg_segments(bytes: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let mut rest = bytes.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        loop {
            let at = rest.iter().position(|&byte| byte == 0xFF)?;
            let marker = *rest.get(at + 1)?;
            match marker {
                // A fill byte: the next one may start the marker.
                0xFF => rest = rest.get(at + 1..)?,
                // Coded data: a stuffed 0xFF, TEM, a restart marker, a nested start.
                0x00 | 0x01 | 0xD0..=0xD8 => rest = rest.get(at + 2..)?,
                0xD9 => {
                    rest = &[];
                    return Some(Segment { marker, body: &[] });
                }
                _ => {
                    let length = rest
                        .get(at + 2..at + 4)
                        .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))?;
                    let end = at + 2 + usize::from(length).max(2);
                    let body = rest.get(at + 4..end)?;
                    rest = rest.get(end..)?;
                    return Some(Segment { marker, body });
                }
            }
        }
    })
}

/// The end-of-image marker, which a truncated file lacks. The decoder itself would fill the missing part with grey.
fn jpeg_end(bytes: &[u8]) -> Option<()> {
    jpeg_segments(bytes).find(|segment| segment.marker == 0xD9).map(|_| ())
}

fn jpeg_components(bytes: &[u8]) -> Option<u8> {
    let is_frame = |marker: u8| matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC);
    jpeg_segments(bytes)
        .find(|segment| is_frame(segment.marker))
        .and_then(|frame| frame.body.get(5).copied())
}
