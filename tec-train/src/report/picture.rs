//! Pictures at the size they are shown, inside the page as PNG.

use crate::{Error, Result};
use image::{ExtendedColorType, ImageEncoder, codecs::png};

/// Smaller pictures are enlarged, by whole factors and without blurring, until their longer side is at least this.
const SMALLEST: usize = 112;
/// viridis (Smith & van der Walt 2015) at nine equal steps; between them it is as good as linear.
const VIRIDIS: [[u8; 3]; 9] = [
    [68, 1, 84],
    [71, 44, 122],
    [59, 81, 139],
    [44, 113, 142],
    [33, 144, 141],
    [39, 173, 129],
    [92, 200, 99],
    [170, 220, 50],
    [253, 231, 37],
];

/// An image's pixels: rows from the top, 1 (grey) or 3 (RGB) bytes a pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    channels: usize,
    data: Vec<u8>,
}

impl Picture {
    /// The image of `data` `[height, width, channels]`.
    ///
    /// # Errors
    /// [`Error::Data`] if there are no pixels, `channels` is neither 1 nor 3, or `data` has another length.
    pub fn new(width: usize, height: usize, channels: usize, data: Vec<u8>) -> Result<Self> {
        let length = width
            .checked_mul(height)
            .and_then(|pixels| pixels.checked_mul(channels));
        if length != Some(data.len()) || data.is_empty() || !matches!(channels, 1 | 3) {
            return Err(Error::Data(format!(
                "a picture of the report: {} bytes are no image of {width}×{height} pixels and {channels} channels (1 or 3)",
                data.len()
            )));
        }
        Ok(Self {
            width,
            height,
            channels,
            data,
        })
    }

    /// Patch rows and columns.
    pub(super) fn grid(&self, patch_size: usize) -> Result<Grid> {
        if patch_size == 0 || !self.width.is_multiple_of(patch_size) || !self.height.is_multiple_of(patch_size) {
            return Err(Error::Data(format!(
                "a picture of the report: {}×{} pixels do not divide into patches of {patch_size}×{patch_size}",
                self.width, self.height
            )));
        }
        Ok(Grid {
            rows: self.height / patch_size,
            columns: self.width / patch_size,
        })
    }

    fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * self.channels;
        match self.channels {
            1 => [self.data[at]; 3],
            _ => [self.data[at], self.data[at + 1], self.data[at + 2]],
        }
    }
}

/// How an image is divided into patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    pub rows: usize,
    pub columns: usize,
}

impl Grid {
    pub(super) fn patches(self) -> usize {
        self.rows * self.columns
    }
}

/// A picture at the size it is shown.
#[derive(Debug, Clone)]
pub(super) struct Canvas {
    pub width: usize,
    pub height: usize,
    /// Whether a pixel of the picture covers several of the canvas, whose edges shall stay sharp.
    pub enlarged: bool,
    pixels: Vec<[u8; 3]>,
}

impl Canvas {
    /// `picture`, enlarged by a whole factor if small, reduced until its longer side is `largest` if larger, so that a
    /// page stays small enough to mail.
    pub(super) fn new(picture: &Picture, largest: usize) -> Self {
        let side = picture.width.max(picture.height);
        if side > largest {
            let reduced = |length: usize| (length * largest / side).max(1);
            return Self::build(
                reduced(picture.width),
                reduced(picture.height),
                |x, y, canvas_width, canvas_height| {
                    mean(
                        picture,
                        span(x, canvas_width, picture.width),
                        span(y, canvas_height, picture.height),
                    )
                },
            );
        }
        let factor = SMALLEST.div_ceil(side);
        let canvas = Self::build(picture.width * factor, picture.height * factor, |x, y, _, _| {
            picture.pixel(x / factor, y / factor)
        });
        Self {
            enlarged: factor > 1,
            ..canvas
        }
    }

    /// The colors of [`heat`] from 0 to 1, as a bar.
    pub(super) fn heat_scale() -> Self {
        Self::build(128, 1, |x, _, width, _| heat(x as f32 / (width - 1) as f32))
    }

    fn build(width: usize, height: usize, pixel: impl Fn(usize, usize, usize, usize) -> [u8; 3]) -> Self {
        let pixels = (0..width * height)
            .map(|i| pixel(i % width, i / width, width, height))
            .collect();
        Self {
            width,
            height,
            enlarged: false,
            pixels,
        }
    }

    /// Replaces every pixel by `paint(patch, pixel, whether at the patch's right or lower edge)`.
    pub(super) fn paint_patches(&mut self, grid: Grid, paint: impl Fn(usize, [u8; 3], bool) -> [u8; 3]) {
        let (width, height) = (self.width, self.height);
        let row = |y: usize| y * grid.rows / height;
        let column = |x: usize| x * grid.columns / width;
        for (i, pixel) in self.pixels.iter_mut().enumerate() {
            let (x, y) = (i % width, i / width);
            let edge = column(x + 1) != column(x) || row(y + 1) != row(y);
            *pixel = paint(row(y) * grid.columns + column(x), *pixel, edge);
        }
    }

    /// Draws a frame around a patch: two pixels of `color` between one of black inside and outside, where there is room.
    pub(super) fn outline(&mut self, grid: Grid, patch: usize, color: [u8; 3]) {
        let first = |index: usize, parts: usize, length: usize| (index * length).div_ceil(parts);
        let (row, column) = (patch / grid.columns, patch % grid.columns);
        let left = first(column, grid.columns, self.width);
        let right = first(column + 1, grid.columns, self.width);
        let top = first(row, grid.rows, self.height);
        let bottom = first(row + 1, grid.rows, self.height);
        for y in top.saturating_sub(1)..(bottom + 1).min(self.height) {
            for x in left.saturating_sub(1)..(right + 1).min(self.width) {
                // Steps inwards from the frame's outermost line, which lies just outside the patch.
                let depth = (x + 1 - left).min(right - x).min(y + 1 - top).min(bottom - y);
                match depth {
                    1 | 2 => self.pixels[y * self.width + x] = color,
                    0 | 3 => self.pixels[y * self.width + x] = [0; 3],
                    _ => {}
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        self.pixels[y * self.width + x]
    }

    /// The picture as an `img` source that needs no file.
    pub(super) fn data_uri(&self) -> Result<String> {
        let mut file = Vec::new();
        let side = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let grey = self.pixels.iter().all(|p| p[0] == p[1] && p[1] == p[2]);
        let (bytes, color): (Vec<u8>, _) = if grey {
            (
                self.pixels.iter().map(|pixel| pixel[0]).collect(),
                ExtendedColorType::L8,
            )
        } else {
            (self.pixels.concat(), ExtendedColorType::Rgb8)
        };
        png::PngEncoder::new_with_quality(&mut file, png::CompressionType::Best, png::FilterType::Adaptive)
            .write_image(&bytes, side(self.width), side(self.height), color)
            .map_err(|error| Error::Data(format!("a picture of the report cannot be encoded: {error}")))?;
        Ok(format!("data:image/png;base64,{}", base64(&file)))
    }
}

/// The pixels of a longer line that pixel `at` of `length` stands for.
fn span(at: usize, length: usize, longer: usize) -> std::ops::Range<usize> {
    let from = at * longer / length;
    from..((at + 1) * longer / length).max(from + 1)
}

fn mean(picture: &Picture, columns: std::ops::Range<usize>, rows: std::ops::Range<usize>) -> [u8; 3] {
    let count = columns.len() * rows.len();
    let mut sums = [0usize; 3];
    for y in rows {
        for x in columns.clone() {
            for (sum, value) in sums.iter_mut().zip(picture.pixel(x, y)) {
                *sum += usize::from(value);
            }
        }
    }
    sums.map(|sum| ((sum + count / 2) / count) as u8)
}

/// The color of `value` in 0..=1, dark to bright.
pub(super) fn heat(value: f32) -> [u8; 3] {
    let position = value.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f32;
    let index = (position as usize).min(VIRIDIS.len() - 2);
    mix(VIRIDIS[index], VIRIDIS[index + 1], position - index as f32)
}

/// `share` of `b` over the rest of `a`.
pub(super) fn mix(a: [u8; 3], b: [u8; 3], share: f32) -> [u8; 3] {
    let channel = |i: usize| f32::from(a[i]) + share * (f32::from(b[i]) - f32::from(a[i]));
    [
        channel(0).round() as u8,
        channel(1).round() as u8,
        channel(2).round() as u8,
    ]
}

/// The brightness of a pixel (Rec. 601 weights).
pub(super) fn brightness(pixel: [u8; 3]) -> u8 {
    let sum = 299 * u32::from(pixel[0]) + 587 * u32::from(pixel[1]) + 114 * u32::from(pixel[2]);
    ((sum + 500) / 1000) as u8
}

/// RFC 4648's base 64, padded.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .enumerate()
            .fold(0u32, |bits, (i, &byte)| bits | u32::from(byte) << (16 - 8 * i));
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() {
                char::from(DIGITS[value as usize])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_standards() {
        // RFC 4648, section 10.
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xFB, 0xFF, 0xBF]), "+/+/");
    }

    #[test]
    fn small_pictures_are_enlarged_without_blurring() {
        let picture = Picture::new(28, 28, 1, (0..784).map(|i| (i % 251) as u8).collect()).expect("a picture");
        let canvas = Canvas::new(&picture, 224);
        assert_eq!((canvas.width, canvas.height), (112, 112));
        for (x, y) in [(0, 0), (3, 3), (4, 0), (111, 111), (50, 77)] {
            assert_eq!(canvas.pixels[y * 112 + x], picture.pixel(x / 4, y / 4));
        }
        let one = Canvas::new(&Picture::new(1, 1, 3, vec![1, 2, 3]).expect("a picture"), 224);
        assert_eq!((one.width, one.pixels[5000]), (112, [1, 2, 3]));
    }

    #[test]
    fn large_pictures_are_reduced_to_means() {
        let data = (0..448 * 896).map(|i| if i % 2 == 0 { 10 } else { 20 }).collect();
        let canvas = Canvas::new(&Picture::new(448, 896, 1, data).expect("a picture"), 224);
        assert_eq!((canvas.width, canvas.height), (112, 224));
        assert!(canvas.pixels.iter().all(|&pixel| pixel == [15; 3]));
        let thin = Canvas::new(&Picture::new(5000, 1, 1, vec![9; 5000]).expect("a picture"), 224);
        assert_eq!((thin.width, thin.height), (224, 1));
    }

    #[test]
    fn pictures_survive_the_page() {
        use std::io::Cursor;
        for channels in [1, 3] {
            let data: Vec<u8> = (0..120 * 130 * channels).map(|i| (i * 31 % 256) as u8).collect();
            let picture = Picture::new(120, 130, channels, data).expect("a picture");
            let uri = Canvas::new(&picture, 224).data_uri().expect("encodes");
            let text = uri.strip_prefix("data:image/png;base64,").expect("a PNG");
            let decoded = image::load(Cursor::new(unbase64(text)), image::ImageFormat::Png)
                .expect("decodes")
                .to_rgb8();
            assert_eq!(decoded.dimensions(), (120, 130));
            assert!(
                decoded
                    .enumerate_pixels()
                    .all(|(x, y, p)| p.0 == picture.pixel(x as usize, y as usize))
            );
        }
    }

    fn unbase64(text: &str) -> Vec<u8> {
        let value = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let mut bytes = Vec::new();
        let (mut bits, mut held) = (0u32, 0);
        for c in text.bytes().filter(|&c| c != b'=') {
            bits = bits << 6 | u32::from(value(c));
            held += 6;
            if held >= 8 {
                held -= 8;
                bytes.push((bits >> held) as u8);
            }
        }
        bytes
    }

    #[test]
    fn patches_cover_the_canvas() {
        let picture = Picture::new(30, 20, 1, vec![0; 600]).expect("a picture");
        let grid = picture.grid(5).expect("divides");
        assert_eq!((grid, grid.patches()), (Grid { rows: 4, columns: 6 }, 24));
        let mut canvas = Canvas::new(&picture, 224);
        canvas.paint_patches(grid, |patch, _, _| [patch as u8; 3]);
        let scale = canvas.width / 30;
        for y in 0..canvas.height {
            for x in 0..canvas.width {
                let patch = y / (5 * scale) * 6 + x / (5 * scale);
                assert_eq!(canvas.pixels[y * canvas.width + x], [patch as u8; 3]);
            }
        }
        // Every patch can be framed, at the edges too, and only it is.
        for patch in 0..24 {
            let mut canvas = Canvas::new(&picture, 224);
            canvas.outline(grid, patch, [255, 0, 0]);
            let red = canvas.pixels.iter().filter(|&&p| p == [255, 0, 0]).count();
            let side = 5 * scale;
            assert_eq!(red, side * side - (side - 4) * (side - 4), "patch {patch}");
        }
    }

    #[test]
    fn impossible_pictures_are_errors() {
        for (width, height, channels, length) in [(2, 2, 1, 3), (0, 2, 1, 0), (2, 2, 2, 8), (usize::MAX, 2, 3, 6)] {
            let error = Picture::new(width, height, channels, vec![0; length]).expect_err("no picture");
            assert!(error.to_string().contains(&format!("{width}×{height}")), "{error}");
        }
        let picture = Picture::new(28, 28, 1, vec![0; 784]).expect("a picture");
        assert!(picture.grid(0).is_err() && picture.grid(5).is_err() && picture.grid(56).is_err());
    }

    #[test]
    fn heat_rises_in_brightness() {
        let values: Vec<u8> = (0..=100).map(|i| brightness(heat(i as f32 / 100.0))).collect();
        assert!(values.windows(2).all(|pair| pair[0] <= pair[1]), "{values:?}");
        assert_eq!(
            (heat(-1.0), heat(0.0), heat(1.0), heat(2.0)),
            (VIRIDIS[0], VIRIDIS[0], VIRIDIS[8], VIRIDIS[8])
        );
    }
}
