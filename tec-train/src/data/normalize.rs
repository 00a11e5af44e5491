//! From 8-bit pixels to the numbers a model reads.

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Pixels, Source};
use crate::{Error, Result};
use tec_image::check_channels;

/// Mean of ImageNet's red, green and blue values, as fractions of 255.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviation of ImageNet's red, green and blue values, as fractions of 255.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// What is subtracted from a channel and what it is divided by, as fractions of 255: `(value / 255 - mean) / std`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// One value a channel.
    pub mean: Vec<f32>,
    /// One value a channel, above 0.
    pub std: Vec<f32>,
}

impl Normalization {
    /// ImageNet's for RGB; for a single channel, the means of its three values.
    ///
    /// # Errors
    /// [`Error::Usage`] when `channels` is neither 1 nor 3.
    pub fn imagenet(channels: usize) -> Result<Self> {
        check_channels(channels).map_err(Error::Usage)?;
        let average = |values: [f32; 3]| vec![values.iter().sum::<f32>() / 3.0];
        Ok(match channels {
            1 => Self {
                mean: average(IMAGENET_MEAN),
                std: average(IMAGENET_STD),
            },
            _ => Self {
                mean: IMAGENET_MEAN.to_vec(),
                std: IMAGENET_STD.to_vec(),
            },
        })
    }

    /// Measures a data set: mean and standard deviation of the pixels of up to `images` images, spread evenly over the
    /// source, each image with the same weight whatever its size. Images that cannot be read are passed over. A channel
    /// that never varies gets the deviation of one gray level.
    ///
    /// # Errors
    /// [`Error::Usage`] when `channels` is neither 1 nor 3, [`Error::Data`] when no image could be read.
    pub fn measure(source: &dyn Source, channels: usize, images: usize) -> Result<Self> {
        check_channels(channels).map_err(Error::Usage)?;
        let count = source.len().min(images.max(1));
        let sampled: Vec<_> = (0..count)
            .into_par_iter()
            .map(|number| {
                let index = (number as u128 * source.len() as u128 / count as u128) as usize;
                let image = source.load(index).and_then(|image| image.into_channels(channels));
                image
                    .map(|image| moments(&image))
                    .map_err(|reason| format!("{}: {reason}", source.name(index)))
            })
            .collect();
        let readable = sampled.iter().filter(|image| image.is_ok()).count();
        if readable == 0 {
            let first = sampled
                .into_iter()
                .find_map(Result::err)
                .unwrap_or_else(|| "there is none".into());
            return Err(Error::Data(format!(
                "none of {count} images could be read to measure their colors ({first})"
            )));
        }
        // Summed in the order of the images, whatever thread read them.
        let mut sums = [[0.0; 2]; 3];
        for image in sampled.into_iter().flatten() {
            for (sum, moment) in sums.iter_mut().zip(image) {
                sum[0] += moment[0];
                sum[1] += moment[1];
            }
        }
        let (mean, std) = sums[..channels]
            .iter()
            .map(|[sum, squares]| {
                let mean = sum / readable as f64;
                let deviation = (squares / readable as f64 - mean * mean).max(0.0).sqrt();
                ((mean / 255.0) as f32, (deviation.max(1.0) / 255.0) as f32)
            })
            .unzip();
        Ok(Self { mean, std })
    }

    /// Checks that there is one finite mean and one finite deviation above 0 for each channel.
    ///
    /// # Errors
    /// [`Error::Usage`] saying which number is wrong.
    pub fn validate(&self, channels: usize) -> Result<()> {
        check_channels(channels).map_err(Error::Usage)?;
        if self.mean.len() != channels || self.std.len() != channels {
            return Err(Error::Usage(format!(
                "normalization has {} means and {} deviations for {channels} channels; give one of each for a channel",
                self.mean.len(),
                self.std.len()
            )));
        }
        if let Some(bad) = self.mean.iter().find(|mean| !mean.is_finite()) {
            return Err(Error::Usage(format!(
                "normalization by a mean of {bad}; give a finite number"
            )));
        }
        match self.std.iter().find(|&&std| !(std.is_finite() && std > 0.0)) {
            Some(bad) => Err(Error::Usage(format!(
                "normalization by a deviation of {bad}; give a number above 0"
            ))),
            None => Ok(()),
        }
    }
}

/// Mean and mean of squares of each channel's values, 0 to 255.
fn moments(image: &Pixels) -> [[f64; 2]; 3] {
    let mut sums = [[0_u64; 2]; 3];
    for pixel in image.data.chunks_exact(image.channels) {
        for (sum, &value) in sums.iter_mut().zip(pixel) {
            let value = u64::from(value);
            sum[0] += value;
            sum[1] += value * value;
        }
    }
    let pixels = (image.width * image.height) as f64;
    sums.map(|sum| sum.map(|value| value as f64 / pixels))
}

/// Pixels `[batch, size, size, channels]` as an f32 tensor `[batch, channels, size, size]` of `(value / 255 - mean) / std`.
///
/// # Errors
/// [`Error::Usage`] from [`Normalization::validate`], [`Error::Data`] when `pixels` has another length,
/// [`Error::Candle`] when the device has no room for it.
pub fn to_tensor(
    pixels: &[u8],
    batch: usize,
    size: usize,
    channels: usize,
    normalization: &Normalization,
    device: &Device,
) -> Result<Tensor> {
    normalization.validate(channels)?;
    let plane = size * size;
    let expected = batch * plane * channels;
    if pixels.len() != expected {
        return Err(Error::Data(format!(
            "{} bytes of pixels where {batch} images of {size}x{size}x{channels} need {expected}",
            pixels.len()
        )));
    }
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        let pixels = Tensor::from_slice(pixels, (batch, size, size, channels), device)?;
        return crate::ops::images_from_pixels(&pixels, normalization);
    }
    let tables: Vec<[f32; 256]> = normalization
        .mean
        .iter()
        .zip(&normalization.std)
        .map(|(mean, std)| std::array::from_fn(|value| (value as f32 / 255.0 - mean) / std))
        .collect();
    let mut out = vec![0_f32; expected];
    if expected > 0 {
        out.par_chunks_exact_mut(plane).enumerate().for_each(|(number, out)| {
            let (image, channel) = (number / channels, number % channels);
            let image = &pixels[image * plane * channels..(image + 1) * plane * channels];
            let table = &tables[channel];
            for (out, pixel) in out.iter_mut().zip(image.chunks_exact(channels)) {
                *out = table[usize::from(pixel[channel])];
            }
        });
    }
    Ok(Tensor::from_vec(out, (batch, channels, size, size), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Idx;
    use crate::data::idx::tests::idx_bytes;

    #[test]
    fn tensors_hold_channels_first() {
        let normalization = Normalization {
            mean: vec![0.5, 0.0, 0.25],
            std: vec![0.5, 1.0, 0.25],
        };
        let pixels: Vec<u8> = (0..2 * 2 * 2 * 3).map(|value| value * 10).collect();
        let tensor = to_tensor(&pixels, 2, 2, 3, &normalization, &Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), [2, 3, 2, 2]);
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        for image in 0..2 {
            for channel in 0..3 {
                for at in 0..4 {
                    let value = f32::from(pixels[(image * 4 + at) * 3 + channel]);
                    let expected = (value / 255.0 - normalization.mean[channel]) / normalization.std[channel];
                    assert_eq!(values[(image * 3 + channel) * 4 + at], expected);
                }
            }
        }
        assert!(to_tensor(&pixels[1..], 2, 2, 3, &normalization, &Device::Cpu).is_err());
        assert!(to_tensor(&pixels, 6, 2, 1, &normalization, &Device::Cpu).is_err());
        assert_eq!(
            to_tensor(&[], 0, 2, 3, &normalization, &Device::Cpu).unwrap().dims(),
            [0, 3, 2, 2]
        );
    }

    #[test]
    fn imagenet_has_an_average_for_grey() {
        assert_eq!(Normalization::imagenet(3).unwrap().std, [0.229, 0.224, 0.225]);
        let grey = Normalization::imagenet(1).unwrap();
        approx::assert_relative_eq!(grey.mean[0], 0.449, epsilon = 1e-6);
        approx::assert_relative_eq!(grey.std[0], 0.226, epsilon = 1e-6);
        assert!(Normalization::imagenet(2).is_err());
    }

    #[test]
    fn wrong_numbers_are_refused() {
        let check = |mean: f32, std: f32| {
            Normalization {
                mean: vec![mean],
                std: vec![std],
            }
            .validate(1)
        };
        assert!(check(0.5, 0.5).is_ok());
        for (mean, std) in [(f32::NAN, 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, f32::INFINITY)] {
            assert!(check(mean, std).is_err(), "{mean} {std}");
        }
        assert!(
            Normalization {
                mean: vec![0.5],
                std: vec![0.5]
            }
            .validate(3)
            .is_err()
        );
    }

    #[test]
    fn a_measured_data_set_is_standardized() {
        let (images, _) = idx_bytes(9, 4, 5);
        let source = Idx::from_bytes(&images, None).unwrap();
        let all: Vec<f64> = images[16..].iter().map(|&value| f64::from(value) / 255.0).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let variance = all.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / all.len() as f64;
        for channels in [1, 3] {
            let measured = Normalization::measure(&source, channels, 1000).unwrap();
            assert_eq!(measured.mean.len(), channels);
            approx::assert_relative_eq!(measured.mean[0], mean as f32, epsilon = 1e-6);
            approx::assert_relative_eq!(measured.std[channels - 1], variance.sqrt() as f32, epsilon = 1e-6);
        }
        let sample = Normalization::measure(&source, 1, 3).unwrap();
        assert_ne!(sample, Normalization::measure(&source, 1, 9).unwrap());
    }

    #[test]
    fn a_constant_data_set_has_a_deviation() {
        let mut images = vec![0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1];
        images.extend([51, 51]);
        let measured = Normalization::measure(&Idx::from_bytes(&images, None).unwrap(), 1, 10).unwrap();
        assert_eq!(
            measured,
            Normalization {
                mean: vec![0.2],
                std: vec![1.0 / 255.0]
            }
        );
    }
}
