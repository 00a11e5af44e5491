//! Bicubic resizing of a part of an image.

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer as Engine};

use super::Pixels;

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
}

/// Resizes images; keeps its buffers between calls.
#[derive(Default)]
pub struct Resizer {
    engine: Engine,
}

impl Resizer {
    /// A resizer without buffers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A region of an image as `size` × `size` pixels, `size * size * channels` values: separable bicubic convolution with
    /// a = -0.5, widened by the scale when shrinking (antialias), as PIL's `BICUBIC`.
    ///
    /// # Errors
    /// A reason when the region reaches outside the image or `size` is zero.
    pub fn square(&mut self, pixels: &Pixels, region: Region, size: usize) -> Result<Vec<u8>, String> {
        if size == 0 {
            return Err("an image cannot be resized to 0 pixels".into());
        }
        let kind = match pixels.channels {
            1 => PixelType::U8,
            _ => PixelType::U8x3,
        };
        let source = ImageRef::new(side(pixels.width)?, side(pixels.height)?, &pixels.data, kind).map_err(text)?;
        let mut out = vec![0; size * size * pixels.channels];
        let mut target = Image::from_slice_u8(side(size)?, side(size)?, &mut out, kind).map_err(text)?;
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
        match region {
            Region::Cut {
                left,
                top,
                width,
                height,
            } => {
                let cut = CroppedImage::new(&source, side(left)?, side(top)?, side(width)?, side(height)?);
                self.engine
                    .resize(&cut.map_err(text)?, &mut target, &options)
                    .map_err(text)?;
            }
            Region::Window {
                left,
                top,
                width,
                height,
            } => {
                let options = options.crop(left, top, width, height);
                self.engine.resize(&source, &mut target, &options).map_err(text)?;
            }
        }
        Ok(out)
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
