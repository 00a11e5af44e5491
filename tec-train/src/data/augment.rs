//! Which part of an image a model sees: random in training, fixed in evaluation.

use tec_core::activation;
use tec_core::philox::Noise;

use super::{Pixels, Region, Resizer, pixels};
use crate::{Error, Result};

/// Natural logarithm of 4/3: the aspect ratio of a random crop lies between 3/4 and 4/3.
const LOG_RATIO: f32 = 0.287_682_07;
/// How often a random crop is drawn before the central one is taken.
const TRIES: u32 = 10;
/// Which random number decides on the flip; those before belong to the crops, four a try.
const FLIP: u32 = 4 * TRIES;
/// The share of the shorter side that evaluation keeps: 224 of 256 pixels.
const EVAL_CROP: f64 = 0.875;
/// Below this size, evaluation does not cut off a margin: 1/8 of a 32-pixel image is part of its subject.
const EVAL_CROP_FROM: usize = 64;

/// How an image becomes a square.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Augment {
    /// Training: torchvision's `RandomResizedCrop` with aspect ratios 3/4 to 4/3, then perhaps mirrored. A function of
    /// the noise alone, that is of (seed, epoch, sample number).
    Train {
        /// Least and greatest share of the image's area that a crop covers, each above 0 and at most 1.
        scale: (f64, f64),
        /// Whether half of the images are mirrored left to right.
        flip: bool,
    },
    /// Evaluation. An image that has the model's size already is taken as it is. Otherwise the shorter side is resized to
    /// `floor(size / 0.875)` and the central square cut out, as MAE's evaluation does (256 for 224); for models below 64
    /// pixels, to `size` itself, so that only the longer side loses its ends.
    Eval,
}

impl Augment {
    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Usage`] when the scales are not `0 < least <= greatest <= 1`.
    pub fn validate(&self) -> Result<()> {
        match *self {
            Self::Train {
                scale: (least, greatest),
                ..
            } if !(0.0 < least && least <= greatest && greatest <= 1.0) => Err(Error::Usage(format!(
                "crops of {least} to {greatest} of an image's area: give two shares with 0 < least <= greatest <= 1"
            ))),
            _ => Ok(()),
        }
    }

    /// Where a square of `size` pixels is taken from an image of `width` × `height`.
    pub fn place(&self, width: usize, height: usize, size: usize, noise: &Noise) -> Placement {
        match *self {
            Self::Train { scale, flip } => Placement {
                region: random_crop(width, height, scale, noise),
                flip: flip && noise.uniform(FLIP) < 0.5,
            },
            Self::Eval => Placement {
                region: central_square(width, height, size),
                flip: false,
            },
        }
    }
}

/// A square taken from an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// Its place in the image.
    pub region: Region,
    /// Whether it is mirrored left to right after resizing.
    pub flip: bool,
}

impl Placement {
    /// The square's pixels, `size * size * channels` values.
    ///
    /// # Errors
    /// A reason, see [`Resizer::square`].
    pub fn take(&self, image: &Pixels, size: usize, resizer: &mut Resizer) -> Result<Vec<u8>, String> {
        let mut square = resizer.square(image, self.region, size)?;
        if self.flip {
            pixels::flip_horizontal(&mut square, size, image.channels);
        }
        Ok(square)
    }
}

fn random_crop(width: usize, height: usize, (least, greatest): (f64, f64), noise: &Noise) -> Region {
    let area = (width * height) as f64;
    for attempt in 0..TRIES {
        let uniform = |number: u32| noise.uniform(4 * attempt + number);
        let target = area * (least + f64::from(uniform(0)) * (greatest - least));
        // exp from tec-core: the same crop on every platform.
        let ratio = f64::from(activation::exp((2.0 * uniform(1) - 1.0) * LOG_RATIO));
        let crop_width = (target * ratio).sqrt().round_ties_even() as usize;
        let crop_height = (target / ratio).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
            let left = pick(uniform(3), width - crop_width + 1);
            let top = pick(uniform(2), height - crop_height + 1);
            return Region::Cut {
                left,
                top,
                width: crop_width,
                height: crop_height,
            };
        }
    }
    central_crop(width, height)
}

/// One of `0..count`.
fn pick(uniform: f32, count: usize) -> usize {
    // 24 bits times a side below 2^29 is exact in f64, so the result stays below count.
    (f64::from(uniform) * count as f64) as usize
}

/// The largest central rectangle of an aspect ratio between 3/4 and 4/3.
fn central_crop(width: usize, height: usize) -> Region {
    let ratio = width as f64 / height as f64;
    let (crop_width, crop_height) = if ratio < 0.75 {
        (
            width,
            ((width as f64 / 0.75).round_ties_even() as usize).clamp(1, height),
        )
    } else if ratio > 4.0 / 3.0 {
        (
            ((height as f64 * 4.0 / 3.0).round_ties_even() as usize).clamp(1, width),
            height,
        )
    } else {
        (width, height)
    };
    Region::Cut {
        left: (width - crop_width) / 2,
        top: (height - crop_height) / 2,
        width: crop_width,
        height: crop_height,
    }
}

/// The part of an image that its central `size` × `size` square comes from after the shorter side was resized.
fn central_square(width: usize, height: usize, size: usize) -> Region {
    if width == size && height == size {
        return Region::Cut {
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
    // torchvision's Resize: the longer side is cut to whole pixels.
    let (resized_width, resized_height) = if width <= height {
        (shorter, shorter.saturating_mul(height) / width)
    } else {
        (shorter.saturating_mul(width) / height, shorter)
    };
    let along = |side: usize, resized: usize| {
        let scale = side as f64 / resized as f64;
        let start = ((resized - size) as f64 / 2.0).round_ties_even() * scale;
        // Rounding must not carry the window past the edge.
        (start, (size as f64 * scale).min(side as f64 - start))
    };
    let (left, window_width) = along(width, resized_width);
    let (top, window_height) = along(height, resized_height);
    Region::Window {
        left,
        top,
        width: window_width,
        height: window_height,
    }
}
