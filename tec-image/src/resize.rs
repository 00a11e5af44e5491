//! Bicubic resizing of a part of an image.

use std::ops::Range;

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer as Engine};

use crate::{Pixels, Rect};

/// The share of the shorter side that evaluation keeps: 224 of 256 pixels.
const EVAL_CROP: f64 = 0.875;
/// Below this size, evaluation does not cut off a margin: 1/8 of a 32-pixel image is part of its subject.
const EVAL_CROP_FROM: usize = 64;

/// A part of an image, in its pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Region {
    /// The rectangle is cut out first: no pixel outside contributes, as torchvision's `resized_crop`.
    Cut {
        /// Columns before it.
        left: usize,
        /// Rows above it.
        top: usize,
        /// Its columns, at least 1.
        width: usize,
        /// Its rows, at least 1.
        height: usize,
    },
    /// A window onto the whole image: what resizing the image and then cutting out the window would give, since pixels
    /// around it contribute to its margin, without ever holding the whole resized image.
    Window {
        /// Columns before it.
        left: f64,
        /// Rows above it.
        top: f64,
        /// Its width in columns.
        width: f64,
        /// Its height in rows.
        height: f64,
    },
}

impl Region {
    /// The whole image.
    pub fn whole(pixels: &Pixels) -> Self {
        Self::Cut {
            left: 0,
            top: 0,
            width: pixels.width,
            height: pixels.height,
        }
    }

    /// What evaluation takes of an image of `width` × `height` pixels, each at least 1, for a model of `size`.
    ///
    /// An image that has the model's size already is taken as it is. Otherwise the shorter side is resized to
    /// `floor(size / 0.875)` and the central square cut out, as MAE's evaluation does (256 for 224); for models below 64
    /// pixels, to `size` itself, so that only the longer side loses its ends.
    pub fn central_square(width: usize, height: usize, size: usize) -> Self {
        if width == size && height == size {
            return Self::Cut {
                left: 0,
                top: 0,
                width,
                height,
            };
        }
        let shorter = if size < EVAL_CROP_FROM {
            size
        } else {
            (size as f64 / EVAL_CROP) as usize
        };
        // torchvision's Resize: the longer side is cut to whole pixels. In 64 bits, for a browser's usize has 32.
        let longer = |side: usize, other: usize| (shorter as u64).saturating_mul(side as u64) / other as u64;
        let (resized_width, resized_height) = if width <= height {
            (shorter as u64, longer(height, width))
        } else {
            (longer(width, height), shorter as u64)
        };
        let along = |side: usize, resized: u64| {
            let scale = side as f64 / resized as f64;
            let start = ((resized - size as u64) as f64 / 2.0).round_ties_even() * scale;
            // Rounding must not carry the window past the edge.
            (start, (size as f64 * scale).min(side as f64 - start))
        };
        let (left, window_width) = along(width, resized_width);
        let (top, window_height) = along(height, resized_height);
        Self::Window {
            left,
            top,
            width: window_width,
            height: window_height,
        }
    }

    /// The pixels of an image that resizing the region to a square of `size` pixels or more looks at.
    ///
    /// # Errors
    /// A reason when the region is empty or reaches outside.
    pub(crate) fn needs(&self, width: usize, height: usize, size: usize) -> Result<Rect, String> {
        let rect = match *self {
            Self::Cut {
                left,
                top,
                width,
                height,
            } => Rect {
                left,
                top,
                width,
                height,
            },
            Self::Window {
                left: x,
                top: y,
                width: columns,
                height: rows,
            } => {
                let (x, y) = (reached(x, columns, size, width), reached(y, rows, size, height));
                Rect {
                    left: x.start,
                    top: y.start,
                    width: x.len(),
                    height: y.len(),
                }
            }
        };
        let inside = |start: usize, side: usize, all: usize| side > 0 && start <= all && side <= all - start;
        match inside(rect.left, rect.width, width) && inside(rect.top, rect.height, height) {
            true => Ok(rect),
            false => Err(format!(
                "there is nothing to resize: {self:?} of {width}x{height} pixels"
            )),
        }
    }

    /// The same region among the pixels of `rect`.
    pub(crate) fn within(self, rect: Rect) -> Self {
        match self {
            Self::Cut {
                left,
                top,
                width,
                height,
            } => Self::Cut {
                left: left - rect.left,
                top: top - rect.top,
                width,
                height,
            },
            Self::Window {
                left,
                top,
                width,
                height,
            } => Self::Window {
                left: left - rect.left as f64,
                top: top - rect.top as f64,
                width,
                height,
            },
        }
    }
}

/// The pixels of a side of `all` that resizing a stretch of it to `size` looks at.
fn reached(start: f64, length: f64, size: usize, all: usize) -> Range<usize> {
    let reach = SUPPORT * (length / size as f64).max(1.0) + 1.0;
    let first = (start - reach).max(0.0) as usize;
    let last = ((start + length + reach).ceil() as usize).min(all);
    first..last
}

/// How far bicubic convolution reaches, in pixels of the coarser of the two images.
const SUPPORT: f64 = 2.0;

/// Resizes images; keeps its buffers between calls.
#[derive(Default)]
pub struct Resizer {
    engine: Engine,
    /// The rows of the image that are needed, resized horizontally.
    narrow: Vec<u8>,
}

impl Resizer {
    /// A resizer without buffers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A region of an image as `size` × `size` pixels, `size * size * channels` values: separable bicubic convolution with
    /// a = -0.5, widened by the scale when shrinking (antialias), rows first and rounded between, as PIL's `BICUBIC`.
    ///
    /// # Errors
    /// A reason when the region is empty or reaches outside the image, or `size` is zero.
    pub fn square(&mut self, pixels: &Pixels, region: Region, size: usize) -> Result<Vec<u8>, String> {
        let mut out = vec![0; size * size * pixels.channels];
        match pixels.channels {
            1 => self.resize::<U8>(pixels, region, size, &mut out)?,
            _ => self.resize::<U8x3>(pixels, region, size, &mut out)?,
        }
        Ok(out)
    }

    fn resize<P: PixelTrait>(
        &mut self,
        pixels: &Pixels,
        region: Region,
        size: usize,
        out: &mut [u8],
    ) -> Result<(), String> {
        let span = Span::of(region, pixels, size)?;
        let rows = span.rows.len();
        self.narrow.resize(size * rows * pixels.channels, 0);
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
        let (wide, high) = (side(size)?, side(rows)?);

        let image = TypedImageRef::<P>::from_buffer(side(pixels.width)?, side(pixels.height)?, &pixels.data);
        let image = image.map_err(text)?;
        let (first, columns) = (side(span.columns.start)?, side(span.columns.len())?);
        let needed = TypedCroppedImage::from_ref(&image, first, side(span.rows.start)?, columns, high).map_err(text)?;
        let mut narrow = TypedImage::<P>::from_buffer(wide, high, &mut self.narrow).map_err(text)?;
        let horizontal = options.crop(span.left, 0.0, span.width, rows as f64);
        self.engine
            .resize_typed(&needed, &mut narrow, &horizontal)
            .map_err(text)?;

        let narrow = TypedImageRef::<P>::from_buffer(wide, high, &self.narrow).map_err(text)?;
        let narrow = TypedCroppedImage::from_ref(&narrow, 0, 0, wide, high).map_err(text)?;
        let mut square = TypedImage::<P>::from_buffer(wide, wide, out).map_err(text)?;
        let vertical = options.crop(0.0, span.top, size as f64, span.height);
        self.engine.resize_typed(&narrow, &mut square, &vertical).map_err(text)
    }
}

/// The pixels that contribute to a region, and the region's place among them.
struct Span {
    columns: Range<usize>,
    rows: Range<usize>,
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Span {
    fn of(region: Region, pixels: &Pixels, size: usize) -> Result<Self, String> {
        let span = match region {
            Region::Cut {
                left,
                top,
                width,
                height,
            } => Self {
                columns: left..left.saturating_add(width),
                rows: top..top.saturating_add(height),
                left: 0.0,
                top: 0.0,
                width: width as f64,
                height: height as f64,
            },
            Region::Window {
                left,
                top,
                width,
                height,
            } => {
                let rows = reached(top, height, size, pixels.height);
                let first = rows.start as f64;
                Self {
                    columns: 0..pixels.width,
                    rows,
                    left,
                    top: top - first,
                    width,
                    height,
                }
            }
        };
        let empty = !(span.width > 0.0 && span.height > 0.0) || span.rows.is_empty() || size == 0;
        match empty {
            true => Err(format!("there is nothing to resize: {region:?} to {size} pixels")),
            false => Ok(span),
        }
    }
}

fn side(value: usize) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("{value} pixels are too many for one side"))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: usize, height: usize, channels: usize) -> Pixels {
        let data = (0..width * height * channels).map(|i| (i * 37 % 256) as u8).collect();
        Pixels::new(width, height, channels, data).unwrap()
    }

    #[test]
    fn the_same_size_is_a_copy() {
        for channels in [1, 3] {
            let pixels = gradient(9, 9, channels);
            assert_eq!(
                Resizer::new().square(&pixels, Region::whole(&pixels), 9).unwrap(),
                pixels.data
            );
        }
    }

    /// The values are PIL's `resize((size, size), BICUBIC)`, shrinking, mixed and enlarging.
    #[test]
    fn resizing_equals_pil() {
        #[rustfmt::skip]
        let cases: [(Pixels, usize, &[u8]); 3] = [
            (gradient(7, 5, 3), 3, &[
                93, 75, 121, 151, 117, 83, 113, 159, 141, 110, 90, 136, 169, 135, 98, 128, 176, 160, 91, 110, 151, 139, 105, 117,
                148, 157, 114,
            ]),
            (gradient(7, 5, 3), 8, &[
                0, 33, 70, 86, 139, 176, 205, 37, 74, 136, 51, 105, 121, 175, 91, 152, 189, 21, 50, 87, 140, 156, 193, 230,
                2, 37, 74, 90, 143, 180, 209, 41, 78, 140, 55, 109, 125, 179, 95, 156, 193, 25, 54, 91, 144, 160, 197, 234,
                6, 44, 81, 97, 150, 187, 216, 48, 85, 147, 62, 116, 132, 186, 102, 163, 200, 32, 61, 98, 151, 167, 204, 241,
                12, 49, 86, 102, 155, 192, 221, 53, 90, 152, 67, 121, 137, 191, 107, 168, 205, 37, 66, 103, 156, 172, 209, 246,
                18, 55, 92, 107, 161, 198, 234, 59, 96, 162, 72, 127, 142, 201, 113, 174, 218, 43, 72, 108, 163, 178, 215, 255,
                23, 60, 97, 113, 166, 203, 238, 64, 101, 167, 78, 132, 148, 206, 118, 179, 222, 48, 77, 114, 169, 183, 220, 255,
                30, 67, 104, 130, 173, 210, 115, 71, 108, 96, 95, 139, 165, 136, 125, 186, 99, 60, 84, 131, 150, 190, 227, 103,
                34, 71, 108, 141, 177, 214, 23, 75, 112, 43, 107, 143, 177, 83, 129, 190, 7, 67, 88, 142, 136, 194, 231, 0,
            ]),
            (gradient(9, 9, 1), 4, &[89, 137, 114, 89, 124, 107, 134, 127, 144, 135, 117, 143, 108, 150, 155, 120]),
        ];
        for (pixels, size, expected) in cases {
            let out = Resizer::new().square(&pixels, Region::whole(&pixels), size).unwrap();
            assert_eq!(out.len(), expected.len());
            let off = out
                .iter()
                .zip(expected)
                .map(|(value, expected)| value.abs_diff(*expected))
                .max();
            assert!(off <= Some(1), "{size}: {out:?}");
        }
    }

    #[test]
    fn one_pixel_fills_the_square() {
        let pixel = Pixels::new(1, 1, 3, vec![10, 20, 30]).unwrap();
        let out = Resizer::new().square(&pixel, Region::whole(&pixel), 4).unwrap();
        assert_eq!(out, [10, 20, 30].repeat(16));
    }

    /// A cut must not see its surroundings; a window does.
    #[test]
    fn cuts_are_isolated() {
        let mut data = vec![255; 12 * 12];
        for y in 3..9 {
            data[y * 12 + 3..y * 12 + 9].fill(40);
        }
        let pixels = Pixels::new(12, 12, 1, data).unwrap();
        let mut resizer = Resizer::new();
        let cut = resizer
            .square(
                &pixels,
                Region::Cut {
                    left: 3,
                    top: 3,
                    width: 6,
                    height: 6,
                },
                4,
            )
            .unwrap();
        assert_eq!(cut, [40; 16]);
        let window = Region::Window {
            left: 3.0,
            top: 3.0,
            width: 6.0,
            height: 6.0,
        };
        assert_ne!(resizer.square(&pixels, window, 4).unwrap(), [40; 16]);
    }

    #[test]
    fn impossible_regions_are_refused() {
        let pixels = gradient(4, 4, 1);
        let mut resizer = Resizer::new();
        assert!(
            resizer
                .square(
                    &pixels,
                    Region::Cut {
                        left: 2,
                        top: 0,
                        width: 3,
                        height: 4
                    },
                    4
                )
                .is_err()
        );
        assert!(
            resizer
                .square(
                    &pixels,
                    Region::Cut {
                        left: 0,
                        top: 0,
                        width: 0,
                        height: 4
                    },
                    4
                )
                .is_err()
        );
        let outside = Region::Window {
            left: 2.0,
            top: 0.0,
            width: 3.0,
            height: 4.0,
        };
        assert!(resizer.square(&pixels, outside, 4).is_err());
        assert!(resizer.square(&pixels, Region::whole(&pixels), 0).is_err());
    }
}
