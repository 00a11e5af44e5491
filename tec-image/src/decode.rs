//! From the bytes of a JPEG or PNG file to 8-bit pixels, as PIL's `convert("RGB")` or `convert("L")` gives them.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::png::PngDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageDecoder, ImageError, Limits, RgbImage};

use crate::jpeg::{Jpeg, Scratch};
use crate::{Pixels, Rect, Region};

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
        let (mode, width, height, orientation) = match format {
            Format::Jpeg => {
                let jpeg = open_jpeg(bytes)?;
                let mode = match jpeg.channels() {
                    1 => "L",
                    3 => "RGB",
                    _ => "CMYK",
                };
                (mode, jpeg.width(), jpeg.height(), jpeg_orientation(&jpeg))
            }
            Format::Png => {
                let mut png = open_png(bytes)?;
                let (width, height) = png.dimensions();
                (
                    png_mode(bytes),
                    width as usize,
                    height as usize,
                    png_orientation(&mut png),
                )
            }
        };
        Ok(ImageInfo {
            format: format.name(),
            mode,
            width,
            height,
            orientation: orientation.to_exif(),
        })
    })
}

/// Decodes a JPEG or PNG file: which one, its content decides.
///
/// Grey stays grey, all else becomes RGB: palettes are looked up, CMYK and YCCK converted, alpha dropped without
/// compositing, 16-bit samples cut to their high byte. The EXIF orientation is applied.
///
/// # Errors
/// A reason when the bytes are no JPEG or PNG, truncated, invalid, or describe an image of more than 2^27 pixels.
pub fn decode(bytes: &[u8]) -> Result<Pixels, String> {
    Decoder::new().whole(bytes)
}

/// Decodes parts of images; keeps its buffers between calls.
#[derive(Default)]
pub struct Decoder {
    scratch: Scratch,
}

impl Decoder {
    /// A decoder without buffers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`decode`].
    ///
    /// # Errors
    /// As [`decode`].
    pub fn whole(&mut self, bytes: &[u8]) -> Result<Pixels, String> {
        let all = |width, height| Region::Cut {
            left: 0,
            top: 0,
            width,
            height,
        };
        self.part(bytes, 1, all).map(|(pixels, _)| pixels)
    }

    /// Whether coded data of the JPEG decoded last were damaged, as far as they were looked at. PIL shows such an image without a
    /// word, grey where data are missing, and so does this.
    pub fn damaged(&self) -> bool {
        self.scratch.damaged
    }

    /// The pixels that resizing a region of an image to a square of `size` or more needs, and where the region lies among
    /// them. `region` is given the image's width and height, upright, and must choose within them.
    ///
    /// The pixels are the ones that [`decode`] gives. What of a JPEG lies outside the region is not decoded, so that damage
    /// there goes unnoticed; a file that lacks its end is refused nevertheless.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn part(
        &mut self,
        bytes: &[u8],
        size: usize,
        region: impl FnOnce(usize, usize) -> Region,
    ) -> Result<(Pixels, Region), String> {
        let scratch = &mut self.scratch;
        scratch.damaged = false;
        guarded(move || {
            let (image, orientation) = match Format::of(bytes)? {
                Format::Jpeg => {
                    let jpeg = open_jpeg(bytes)?;
                    let (width, height) = (jpeg.width(), jpeg.height());
                    let orientation = jpeg_orientation(&jpeg);
                    if orientation == Orientation::NoTransforms {
                        let region = region(width, height);
                        let rect = region.needs(width, height, size)?;
                        let pixels = jpeg.decode(rect, scratch).map_err(jpeg_reason)?;
                        return Ok((pixels, region.within(rect)));
                    }
                    let whole = Rect {
                        left: 0,
                        top: 0,
                        width,
                        height,
                    };
                    (
                        from_pixels(jpeg.decode(whole, scratch).map_err(jpeg_reason)?)?,
                        orientation,
                    )
                }
                Format::Png => {
                    let mut png = open_png(bytes)?;
                    let orientation = png_orientation(&mut png);
                    (
                        DynamicImage::from_decoder(png).map_err(|error| png_reason(&error))?,
                        orientation,
                    )
                }
            };
            let mut image = image;
            image.apply_orientation(orientation);
            let pixels = to_pixels(image)?;
            let region = region(pixels.width, pixels.height);
            Ok((pixels, region))
        })
    }
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
}

fn open_jpeg(bytes: &[u8]) -> Result<Jpeg<'_>, String> {
    let jpeg = Jpeg::open(bytes).map_err(jpeg_reason)?;
    check_size(jpeg.width() as u64, jpeg.height() as u64)?;
    Ok(jpeg)
}

/// An unreadable EXIF block says nothing about the pixels.
fn jpeg_orientation(jpeg: &Jpeg) -> Orientation {
    let exif = jpeg.exif().and_then(Orientation::from_exif_chunk);
    exif.unwrap_or(Orientation::NoTransforms)
}

fn jpeg_reason(reason: String) -> String {
    match reason.starts_with("truncated") {
        true => reason,
        false => format!("invalid JPEG: {reason}"),
    }
}

fn open_png(bytes: &[u8]) -> Result<PngDecoder<Cursor<&[u8]>>, String> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits.clone());
    let mut decoder = decoder.map_err(|error| png_reason(&error))?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(format!("the image is empty: {width}x{height} pixels"));
    }
    check_size(u64::from(width), u64::from(height))?;
    decoder.set_limits(limits).map_err(|error| png_reason(&error))?;
    Ok(decoder)
}

/// PIL's mode, from bit depth and color type of IHDR, which is always the first chunk.
fn png_mode(bytes: &[u8]) -> &'static str {
    match (bytes.get(24), bytes.get(25)) {
        (Some(1), Some(0)) => "1",
        (Some(16), Some(0)) => "I;16",
        (_, Some(0)) => "L",
        (_, Some(3)) => "P",
        (_, Some(4)) => "LA",
        (_, Some(6)) => "RGBA",
        _ => "RGB",
    }
}

fn png_orientation(decoder: &mut PngDecoder<Cursor<&[u8]>>) -> Orientation {
    decoder.orientation().unwrap_or(Orientation::NoTransforms)
}

fn check_size(width: u64, height: u64) -> Result<(), String> {
    match width * height > MAX_PIXELS {
        true => Err(format!(
            "{width}x{height} pixels are more than the {MAX_PIXELS} this program decodes"
        )),
        false => Ok(()),
    }
}

fn png_reason(error: &ImageError) -> String {
    match error {
        ImageError::Limits(_) => "PNG too large to decode".into(),
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "truncated PNG: the file ends before the image does".into()
        }
        other => format!("invalid PNG: {other}"),
    }
}

/// For turning.
fn from_pixels(pixels: Pixels) -> Result<DynamicImage, String> {
    let (width, height) = (pixels.width as u32, pixels.height as u32);
    let image = match pixels.channels {
        1 => GrayImage::from_raw(width, height, pixels.data).map(DynamicImage::from),
        _ => RgbImage::from_raw(width, height, pixels.data).map(DynamicImage::from),
    };
    image.ok_or_else(|| "less data than the image's size needs".into())
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

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, Crc, write::ZlibEncoder};
    use image::codecs::jpeg::JpegEncoder;
    use image::{ExtendedColorType, ImageEncoder};
    use std::io::Write;

    /// A PNG written chunk by chunk: `rows` are the scanlines, each after its filter byte.
    fn png(width: u32, height: u32, depth: u8, color: u8, extra: &[(&[u8; 4], &[u8])], rows: &[u8]) -> Vec<u8> {
        let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
        let mut chunk = |kind: &[u8; 4], body: &[u8]| {
            let mut crc = Crc::new();
            crc.update(kind);
            crc.update(body);
            out.extend((body.len() as u32).to_be_bytes());
            out.extend_from_slice(kind);
            out.extend_from_slice(body);
            out.extend(crc.sum().to_be_bytes());
        };
        let mut head = [width.to_be_bytes(), height.to_be_bytes()].concat();
        head.extend([depth, color, 0, 0, 0]);
        chunk(b"IHDR", &head);
        for (kind, body) in extra {
            chunk(kind, body);
        }
        let mut data = ZlibEncoder::new(Vec::new(), Compression::fast());
        data.write_all(rows).unwrap();
        chunk(b"IDAT", &data.finish().unwrap());
        chunk(b"IEND", &[]);
        out
    }

    /// A JPEG of 16 × 8 pixels, left half dark, right half light.
    fn jpeg(grey: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let (channels, color) = if grey {
            (1, ExtendedColorType::L8)
        } else {
            (3, ExtendedColorType::Rgb8)
        };
        let data: Vec<u8> = (0..16 * 8)
            .flat_map(|i| vec![if i % 16 < 8 { 20 } else { 220 }; channels])
            .collect();
        JpegEncoder::new_with_quality(&mut out, 95)
            .write_image(&data, 16, 8, color)
            .unwrap();
        out
    }

    /// The same file with an EXIF block that says how to turn it.
    fn oriented(jpeg: &[u8], orientation: u8) -> Vec<u8> {
        let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        let mut out = jpeg[..2].to_vec();
        out.extend([0xFF, 0xE1]);
        out.extend((exif.len() as u16 + 2).to_be_bytes());
        out.extend(exif);
        out.extend_from_slice(&jpeg[2..]);
        out
    }

    fn pixels(bytes: &[u8]) -> (usize, usize, usize, Vec<u8>) {
        let Pixels {
            width,
            height,
            channels,
            data,
        } = decode(bytes).unwrap();
        (width, height, channels, data)
    }

    #[test]
    fn every_kind_of_png() {
        let palette: (&[u8; 4], &[u8]) = (b"PLTE", &[255, 0, 0, 1, 2, 3]);
        let transparent: (&[u8; 4], &[u8]) = (b"tRNS", &[0, 128]);
        let cases = [
            ("1", png(4, 1, 1, 0, &[], &[0, 0b0110_0000]), 1, vec![0, 255, 255, 0]),
            ("L", png(2, 1, 4, 0, &[], &[0, 0x1F]), 1, vec![17, 255]),
            ("L", png(2, 1, 8, 0, &[], &[0, 7, 9]), 1, vec![7, 9]),
            (
                "I;16",
                png(2, 1, 16, 0, &[], &[0, 0x12, 0xFF, 0x80, 0x00]),
                1,
                vec![0x12, 0x80],
            ),
            ("LA", png(2, 1, 8, 4, &[], &[0, 7, 0, 9, 255]), 1, vec![7, 9]),
            (
                "P",
                png(2, 1, 8, 3, &[palette], &[0, 1, 0]),
                3,
                vec![1, 2, 3, 255, 0, 0],
            ),
            (
                "P",
                png(2, 1, 1, 3, &[palette, transparent], &[0, 0b1000_0000]),
                3,
                vec![1, 2, 3, 255, 0, 0],
            ),
            ("RGB", png(1, 1, 8, 2, &[], &[0, 4, 5, 6]), 3, vec![4, 5, 6]),
            (
                "RGB",
                png(1, 1, 16, 2, &[], &[0, 4, 200, 5, 200, 6, 200]),
                3,
                vec![4, 5, 6],
            ),
            (
                "RGB",
                png(1, 1, 8, 2, &[(b"tRNS", &[0, 4, 0, 5, 0, 6])], &[0, 4, 5, 6]),
                3,
                vec![4, 5, 6],
            ),
            ("RGBA", png(1, 1, 8, 6, &[], &[0, 4, 5, 6, 0]), 3, vec![4, 5, 6]),
            (
                "RGBA",
                png(1, 1, 16, 6, &[], &[0, 4, 9, 5, 9, 6, 9, 0, 0]),
                3,
                vec![4, 5, 6],
            ),
        ];
        for (mode, bytes, channels, expected) in cases {
            let (_, height, found, data) = pixels(&bytes);
            assert_eq!((height, found, data), (1, channels, expected), "{mode}");
            let info = inspect(&bytes).unwrap();
            assert_eq!(
                (info.format, info.mode, info.height, info.orientation),
                ("PNG", mode, 1, 1)
            );
        }
    }

    #[test]
    fn jpegs_grey_and_colored() {
        for (grey, channels, mode) in [(true, 1, "L"), (false, 3, "RGB")] {
            let (width, height, found, data) = pixels(&jpeg(grey));
            assert_eq!((width, height, found), (16, 8, channels));
            assert!(data[0] < 40 && data[15 * channels] > 200);
            let info = inspect(&jpeg(grey)).unwrap();
            assert_eq!(
                info,
                ImageInfo {
                    format: "JPEG",
                    mode,
                    width: 16,
                    height: 8,
                    orientation: 1
                }
            );
        }
    }

    /// Where the light half lies after turning: as EXIF defines the eight orientations.
    #[test]
    fn the_exif_orientation_is_applied() {
        for (orientation, upright, light_first) in [
            (1, true, false),
            (2, true, true),
            (3, true, true),
            (4, true, false),
            (5, false, false),
            (6, false, false),
            (7, false, true),
            (8, false, true),
            (0, true, false),
            (9, true, false),
        ] {
            let bytes = oriented(&jpeg(true), orientation);
            let (width, height, _, data) = pixels(&bytes);
            assert_eq!(
                (width, height),
                if upright { (16, 8) } else { (8, 16) },
                "{orientation}"
            );
            assert_eq!(data[0] > 128, light_first, "{orientation}");
            assert_eq!(data[data.len() - 1] > 128, !light_first, "{orientation}");
            let expected = if (1..=8).contains(&orientation) { orientation } else { 1 };
            assert_eq!(inspect(&bytes).unwrap().orientation, expected);
        }
    }

    #[test]
    fn truncation_anywhere_is_an_error() {
        for bytes in [oriented(&jpeg(false), 1), png(4, 4, 8, 0, &[], &[0; 20])] {
            assert!(decode(&bytes).is_ok());
            // Without its end chunk, a PNG still has all its pixels.
            let needed = if bytes[0] == 0xFF {
                bytes.len()
            } else {
                bytes.len() - 12 - 4
            };
            for length in 0..needed {
                assert!(decode(&bytes[..length]).is_err(), "{length} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn reasons_are_given() {
        let fails = |bytes: &[u8]| decode(bytes).unwrap_err();
        assert!(fails(&[]).contains("empty"));
        assert!(fails(b"GIF89a").contains("neither a JPEG nor a PNG"));
        assert!(fails(&jpeg(false)[..300]).contains("truncated JPEG"));
        assert!(fails(&png(0, 3, 8, 0, &[], &[0])).contains("PNG"));
        assert!(fails(&png(60_000, 60_000, 8, 0, &[], &[0])).contains("60000x60000"));
        assert!(inspect(b"text").is_err());
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
        #[test]
        fn no_bytes_panic(
            kind in 0..3,
            changes in proptest::collection::vec((proptest::num::u16::ANY, proptest::num::u8::ANY), 0..8),
        ) {
            let mut bytes = match kind {
                0 => oriented(&jpeg(false), 6),
                1 => png(4, 4, 8, 6, &[], &[0; 68]),
                _ => jpeg(true),
            };
            for (at, value) in changes {
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            let _ = inspect(&bytes);
            if let Ok(image) = decode(&bytes) {
                proptest::prop_assert_eq!(image.data.len(), image.width * image.height * image.channels);
            }
        }
    }
}
