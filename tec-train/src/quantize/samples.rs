//! Images to calibrate on and others to compare on.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::Calibration;
use crate::data::{Loader, LoaderConfig, Normalization, Skipped, Source, Subset, to_tensor};
use crate::model::Vit;
use crate::{Error, Result};

/// Images that are encoded at once.
pub(super) const BATCH: usize = 16;

/// Pixels of some images, with their classes.
#[derive(Debug, Clone, Default)]
pub(super) struct Images {
    /// `[images, size, size, channels]`.
    pub(super) pixels: Vec<u8>,
    pub(super) labels: Vec<Option<u32>>,
}

impl Images {
    pub(super) fn count(&self) -> usize {
        self.labels.len()
    }
}

/// Images of a source, spread evenly over it, the same for the same source.
#[derive(Debug, Clone)]
pub struct Samples {
    pub(super) calibration: Images,
    /// Empty where there are no others.
    others: Images,
    /// Names of the classes.
    pub(super) classes: Vec<String>,
    size: usize,
    channels: usize,
    /// Images that could not be read.
    pub skipped: Vec<Skipped>,
}

impl Samples {
    /// Reads up to `images` images to calibrate `vit` on and up to `compared` others, as `vit` takes them. `threads` decode.
    ///
    /// # Errors
    /// [`Error::Usage`] for no images, [`Error::Data`] if none to calibrate on can be read.
    pub fn read(vit: &Vit, source: Arc<dyn Source>, images: usize, compared: usize, threads: usize) -> Result<Self> {
        if images == 0 || source.is_empty() {
            return Err(Error::Usage(
                "quantizing needs images to calibrate on: give a folder with at least one".into(),
            ));
        }
        // Before the work, not after it.
        vit.require_quantizable("encoder.tec")?;
        let (first, second) = spread(source.len(), images, compared);
        let mut samples = Self {
            calibration: Images::default(),
            others: Images::default(),
            classes: source.classes().to_vec(),
            size: vit.config().image_size,
            channels: vit.config().channels,
            skipped: Vec::new(),
        };
        samples.calibration = samples.load(&source, first, threads)?;
        samples.others = samples.load(&source, second, threads)?;
        if samples.calibration.count() == 0 {
            return Err(Error::Data("none of the images to calibrate on could be read".into()));
        }
        Ok(samples)
    }

    fn load(&mut self, source: &Arc<dyn Source>, numbers: Vec<u32>, threads: usize) -> Result<Images> {
        let mut images = Images::default();
        if numbers.is_empty() {
            return Ok(images);
        }
        let config = LoaderConfig {
            threads,
            ..LoaderConfig::eval(self.size, self.channels, BATCH)
        };
        for batch in Loader::new(Arc::new(Subset::new(source.clone(), numbers)?), config)?.batches(0, 0, 1)? {
            let batch = batch?;
            images.pixels.extend(batch.pixels);
            images.labels.extend(batch.labels);
            self.skipped.extend(batch.skipped);
        }
        Ok(images)
    }

    /// Images to calibrate on.
    pub fn calibrated(&self) -> usize {
        self.calibration.count()
    }

    /// Whether there are other images to compare on; otherwise they are those that were calibrated on.
    pub fn fresh(&self) -> bool {
        self.others.count() > 0
    }

    /// Images to compare on.
    pub fn compared(&self) -> usize {
        self.to_compare().count()
    }

    pub(super) fn to_compare(&self) -> &Images {
        match self.fresh() {
            true => &self.others,
            false => &self.calibration,
        }
    }

    /// Shows an encoder the images to calibrate on.
    ///
    /// # Errors
    /// Those of [`Calibration::add`].
    pub fn calibrate(&self, vit: &Vit, normalization: &Normalization) -> Result<Calibration> {
        let mut calibration = Calibration::new();
        for images in self.batches(&self.calibration, normalization) {
            calibration.add(vit, &images?)?;
        }
        Ok(calibration)
    }

    /// Normalized images, some at once.
    pub(super) fn batches<'s>(
        &'s self,
        images: &'s Images,
        normalization: &'s Normalization,
    ) -> impl Iterator<Item = Result<Tensor>> + 's {
        let image_len = self.size * self.size * self.channels;
        images.pixels.chunks(BATCH * image_len).map(move |pixels| {
            let count = pixels.len() / image_len;
            to_tensor(pixels, count, self.size, self.channels, normalization, &Device::Cpu)
        })
    }
}

/// Up to `first` and `second` of so many numbers, evenly spread, none twice.
fn spread(all: usize, first: usize, second: usize) -> (Vec<u32>, Vec<u32>) {
    let second = second.min(all.saturating_sub(1));
    let taken = first.saturating_add(second).min(all);
    // With few images, those to calibrate on give way in proportion.
    let second = (taken * second)
        .checked_div(first + second)
        .unwrap_or(0)
        .min(taken.saturating_sub(1));
    let (mut ones, mut others) = (Vec::new(), Vec::new());
    for i in 0..taken {
        let number = (i * all / taken) as u32;
        // As evenly as they can be mixed.
        match (i + 1) * second / taken > i * second / taken {
            true => others.push(number),
            false => ones.push(number),
        }
    }
    (ones, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_spread_and_none_is_taken_twice() {
        for (all, first, second) in [
            (40, 16, 16),
            (1, 16, 16),
            (2, 1, 1),
            (10, 4, 100),
            (1000, 128, 256),
            (5, 9, 0),
            (7, 3, 3),
        ] {
            let (ones, others) = spread(all, first, second);
            let mut both = [ones.clone(), others.clone()].concat();
            both.sort_unstable();
            assert_eq!(
                both.len(),
                (first + second.min(all - 1)).min(all),
                "{all} {first} {second}"
            );
            assert!(both.windows(2).all(|two| two[0] < two[1]) && both.iter().all(|&n| (n as usize) < all));
            assert!(!ones.is_empty());
            assert!(all < 2 || second == 0 || !others.is_empty(), "{all} {first} {second}");
        }
        assert_eq!(spread(8, 2, 2), (vec![0, 4], vec![2, 6]));
    }
}
