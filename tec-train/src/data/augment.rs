//! Which part of an image a model sees: random in training, fixed in evaluation.

use tec_core::activation;
use tec_core::philox::Noise;

use super::{Pixels, Region, Resizer};
use crate::{Error, Result};

/// Natural logarithm of 4/3: the aspect ratio of a random crop lies between 3/4 and 4/3.
const LOG_RATIO: f32 = 0.287_682_07;
/// How often a random crop is drawn before the central one is taken.
const TRIES: u32 = 10;
/// Which random number decides on the flip; those before belong to the crops, four a try.
const FLIP: u32 = 4 * TRIES;

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
                region: Region::central_square(width, height, size),
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
            tec_image::flip_horizontal(&mut square, size, image.channels);
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

#[cfg(test)]
mod tests {
    use super::*;
    use tec_core::philox::Stream;

    fn noise(seed: u64, epoch: u32, sample: u32) -> Noise {
        Noise {
            seed,
            epoch,
            sample,
            stream: Stream::Augment,
        }
    }

    const TRAIN: Augment = Augment::Train {
        scale: (0.2, 1.0),
        flip: true,
    };

    /// Crops and flips computed in Python by torchvision's published formula from Philox numbers: first try, third try, and
    /// both fallbacks.
    #[test]
    fn crops_follow_torchvision() {
        let cases = [
            ((32, 32, 0, 0, 0), (10, 11, 17, 21), true),
            ((500, 375, 1, 0, 7), (168, 1, 278, 334), false),
            ((375, 500, 1, 3, 7), (71, 123, 274, 331), false),
            ((64, 64, (1 << 40) + 5, 2, 1_000_000), (1, 2, 52, 53), true),
            ((3000, 20, 9, 0, 1), (1486, 0, 27, 20), false),
            ((7, 300, 9, 1, 2), (0, 145, 7, 9), false),
            ((1, 1, 3, 0, 0), (0, 0, 1, 1), false),
            ((640, 480, 42, 199, 123_456), (3, 12, 604, 458), true),
        ];
        for ((image_width, image_height, seed, epoch, sample), (left, top, width, height), flip) in cases {
            let placement = TRAIN.place(image_width, image_height, 224, &noise(seed, epoch, sample));
            let region = Region::Cut {
                left,
                top,
                width,
                height,
            };
            assert_eq!(placement, Placement { region, flip }, "{image_width}x{image_height}");
        }
    }

    /// Windows computed in Python from torchvision's `Resize(256)` and `CenterCrop(224)`.
    #[test]
    fn evaluation_follows_mae() {
        let cases = [
            (
                (500, 375),
                [85.043_988_269_794_72, 23.4375, 328.445_747_800_586_5, 328.125],
            ),
            (
                (375, 500),
                [23.4375, 85.043_988_269_794_72, 328.125, 328.445_747_800_586_5],
            ),
            (
                (333, 777),
                [20.8125, 242.080_402_010_050_25, 291.375, 291.537_688_442_211_05],
            ),
        ];
        for ((image_width, image_height), expected) in cases {
            let placement = Augment::Eval.place(image_width, image_height, 224, &noise(0, 0, 0));
            assert!(!placement.flip);
            let Region::Window {
                left,
                top,
                width,
                height,
            } = placement.region
            else {
                panic!("{placement:?}")
            };
            for (value, expected) in [left, top, width, height].into_iter().zip(expected) {
                approx::assert_relative_eq!(value, expected, max_relative = 1e-12);
            }
        }
    }

    #[test]
    fn evaluation_keeps_small_and_exact_images_whole() {
        let place = |width, height, size| Augment::Eval.place(width, height, size, &noise(0, 0, 0)).region;
        assert_eq!(
            place(224, 224, 224),
            Region::Cut {
                left: 0,
                top: 0,
                width: 224,
                height: 224
            }
        );
        assert_eq!(
            place(32, 32, 32),
            Region::Cut {
                left: 0,
                top: 0,
                width: 32,
                height: 32
            }
        );
        assert_eq!(
            place(28, 28, 32),
            Region::Window {
                left: 0.0,
                top: 0.0,
                width: 28.0,
                height: 28.0
            }
        );
    }

    /// The values are PIL's: `resize((5, 4), BICUBIC)`, then the left 4 columns.
    #[test]
    fn evaluation_of_a_small_image_equals_pil() {
        let image = Pixels::new(10, 7, 1, (0..70).map(|i| (i * 37 % 256) as u8).collect()).unwrap();
        let placement = Augment::Eval.place(10, 7, 4, &noise(0, 0, 0));
        let square = placement.take(&image, 4, &mut Resizer::new()).unwrap();
        let expected = [
            73, 131, 117, 110, 117, 121, 114, 138, 149, 111, 136, 128, 150, 139, 133, 118,
        ];
        let off = square
            .iter()
            .zip(expected)
            .map(|(value, expected)| value.abs_diff(expected))
            .max();
        assert!(off <= Some(1), "{square:?}");
    }

    #[test]
    fn crops_cover_the_asked_share_and_half_are_mirrored() {
        let augment = Augment::Train {
            scale: (0.3, 0.5),
            flip: true,
        };
        let mut flips = 0;
        for sample in 0..2000 {
            let placement = augment.place(200, 160, 32, &noise(5, 1, sample));
            let Region::Cut {
                left,
                top,
                width,
                height,
            } = placement.region
            else {
                panic!("{placement:?}")
            };
            assert!(left + width <= 200 && top + height <= 160);
            let share = (width * height) as f64 / (200.0 * 160.0);
            assert!((0.29..0.51).contains(&share), "{share}");
            let ratio = width as f64 / height as f64;
            assert!((0.73..1.37).contains(&ratio), "{ratio}");
            flips += usize::from(placement.flip);
        }
        assert!((900..1100).contains(&flips), "{flips}");
    }

    #[test]
    fn mirrored_squares_are_mirrored() {
        let image = Pixels::new(2, 2, 1, vec![1, 2, 3, 4]).unwrap();
        let placement = Placement {
            region: Region::whole(&image),
            flip: true,
        };
        assert_eq!(placement.take(&image, 2, &mut Resizer::new()).unwrap(), [2, 1, 4, 3]);
    }

    #[test]
    fn impossible_scales_are_refused() {
        for scale in [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (f64::NAN, 1.0)] {
            assert!(Augment::Train { scale, flip: false }.validate().is_err(), "{scale:?}");
        }
        assert!(TRAIN.validate().is_ok() && Augment::Eval.validate().is_ok());
    }

    proptest::proptest! {
        /// Whatever the shape of the image, there is a square, and a crop's noise does not depend on the model's size.
        #[test]
        fn every_shape_gives_a_square(width in 1_usize..400, height in 1_usize..400, size in 1_usize..80, sample: u32) {
            let image = Pixels::new(width, height, 1, vec![77; width * height]).unwrap();
            let mut resizer = Resizer::new();
            for augment in [TRAIN, Augment::Eval] {
                let placement = augment.place(width, height, size, &noise(1, 2, sample));
                let square = placement.take(&image, size, &mut resizer).unwrap();
                proptest::prop_assert_eq!(square, vec![77; size * size]);
            }
            let placement = TRAIN.place(width, height, size, &noise(1, 2, sample));
            proptest::prop_assert_eq!(placement, TRAIN.place(width, height, size + 9, &noise(1, 2, sample)));
        }
    }
}
