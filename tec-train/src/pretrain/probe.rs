//! The k-NN probe: how well the encoder tells classes apart while it trains, so that a bad run is seen early.

use std::{collections::HashMap, sync::Arc};

use tec_core::{
    mask,
    philox::{Noise, Stream},
};

use super::Progress;
use crate::{
    Result,
    data::{self, Normalization, Source, Subset},
    embed::{self, Encoder},
    eval::knn::{self, KnnConfig},
    model::{Pool, Vit},
    recipe::ProbeSection,
};

/// The order of images that no epoch of a run has.
const EPOCH: u32 = u32::MAX;
/// Training images a class at least; with more classes than that allows, some are left out.
const A_CLASS: usize = 20;
/// A probe embeds at most this fraction of the images that were trained on since the one before.
const SHARE: usize = 10;

/// Labelled images and when they are embedded. It draws nothing that training draws, and training uses nothing of it.
pub struct Probe {
    train: Arc<dyn Source>,
    test: Arc<dyn Source>,
    k: usize,
    every_epochs: usize,
    threads: usize,
}

/// What a probe needs to know of the run.
pub struct Run<'a> {
    /// The images trained on.
    pub source: &'a Arc<dyn Source>,
    /// Images of one epoch, and the run's epochs.
    pub epoch_images: usize,
    /// The run's seed.
    pub seed: u64,
    /// Decode threads.
    pub threads: usize,
}

impl Probe {
    /// Chooses the images, and fills `section.every_epochs`. `None` when the probe is off or nothing has classes, which is said.
    ///
    /// # Errors
    /// `probe.path` that cannot be read.
    pub fn new(section: &mut ProbeSection, run: &Run, progress: &mut dyn Progress) -> Result<Option<Self>> {
        if section.every_epochs == Some(0) {
            return Ok(None);
        }
        let labelled = match &section.path {
            Some(path) => Arc::from(data::open(path)?),
            None => run.source.clone(),
        };
        let (train, test) = choose(&*labelled, section.train_images, section.test_images, run.seed)?;
        if test.is_empty() {
            progress.note(
                "no k-NN probe: the images have no classes (a folder for each), or too few; probe.path may name images that have",
            );
            return Ok(None);
        }
        let embedded = train.len() + test.len();
        let every_epochs = (SHARE * embedded).div_ceil(run.epoch_images.max(1)).max(1);
        Ok(Some(Self {
            k: section.k.min(train.len()),
            train: Arc::new(Subset::new(labelled.clone(), train)?),
            test: Arc::new(Subset::new(labelled, test)?),
            every_epochs: *section.every_epochs.get_or_insert(every_epochs),
            threads: run.threads,
        }))
    }

    /// Whether a probe is due after `step` of `all` steps: every so many epochs, and at the end.
    pub fn is_due(&self, step: usize, steps_per_epoch: usize, all: usize) -> bool {
        step == all || step.is_multiple_of(steps_per_epoch.saturating_mul(self.every_epochs).max(1))
    }

    /// One line on what it does.
    pub fn summary(&self) -> String {
        format!(
            "{} labelled images, {} neighbors among {} others, every {} epochs",
            self.test.len(),
            self.k,
            self.train.len(),
            self.every_epochs
        )
    }

    /// The share of the test images whose class is found by mean-pooled patch tokens.
    ///
    /// # Errors
    /// Images of which none can be read, features that are not finite.
    pub fn accuracy(&self, vit: Vit, normalization: &Normalization) -> Result<f64> {
        let encoder = Encoder::Float {
            vit: Box::new(vit),
            normalization: normalization.clone(),
        };
        let features = |source: &Arc<dyn Source>| {
            Ok::<_, crate::Error>(
                embed::embed_source(&encoder, source.clone(), Pool::Mean, self.threads, |_| {})?.features,
            )
        };
        let (train, test) = (features(&self.train)?, features(&self.test)?);
        let config = KnnConfig {
            // Images that cannot be read leave fewer neighbors.
            k: self.k.min(train.len()),
            ..KnnConfig::default()
        };
        Ok(knn::knn(&train, &test, &config)?.accuracy)
    }
}

/// Numbers of images to compare with and of images to classify: a function of the labels and the seed. Classes share alike, each
/// split in the same proportion, so that a class to be found always has images to find it by.
fn choose(source: &dyn Source, train: usize, test: usize, seed: u64) -> Result<(Vec<u32>, Vec<u32>)> {
    let mut chosen = (Vec::new(), Vec::new());
    if source.classes().len() < 2 {
        return Ok(chosen);
    }
    let mut noise = vec![0.0; source.len()];
    Noise {
        seed,
        epoch: EPOCH,
        sample: 0,
        stream: Stream::Order,
    }
    .fill(&mut noise);
    let mut order = vec![0; source.len()];
    mask::argsort(&noise, &mut order)?;
    let classes = source.classes().len().min((train / A_CLASS).max(2));
    let of_a_class = ((train + test) / classes).max(2);
    let mut taken: HashMap<u32, usize> = HashMap::new();
    for sample in order {
        let Some(label) = source.label(sample as usize) else {
            continue;
        };
        if taken.len() == classes && !taken.contains_key(&label) {
            continue;
        }
        let count = taken.entry(label).or_insert(0);
        if *count == of_a_class {
            continue;
        }
        let tests = |count: usize| count * test / (train + test);
        match tests(*count + 1) > tests(*count) {
            true => chosen.1.push(sample),
            false => chosen.0.push(sample),
        }
        *count += 1;
    }
    if taken.len() < 2 {
        return Ok((Vec::new(), Vec::new()));
    }
    chosen.0.sort_unstable();
    chosen.1.sort_unstable();
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Pixels;

    /// Images of classes by number.
    struct Labels(Vec<Option<u32>>, Vec<String>);

    impl Source for Labels {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn name(&self, index: usize) -> String {
            index.to_string()
        }
        fn label(&self, index: usize) -> Option<u32> {
            self.0[index]
        }
        fn classes(&self) -> &[String] {
            &self.1
        }
        fn load(&self, _: usize) -> Result<Pixels, String> {
            Err("none".into())
        }
    }

    fn labels(images: u32, classes: u32) -> Labels {
        // Every seventh has no class.
        let label = |n: u32| (!n.is_multiple_of(7)).then_some(n % classes);
        Labels(
            (0..images).map(label).collect(),
            (0..classes).map(|c| c.to_string()).collect(),
        )
    }

    fn counts(source: &Labels, chosen: &[u32]) -> HashMap<u32, usize> {
        let mut counts = HashMap::new();
        for sample in chosen {
            *counts.entry(source.0[*sample as usize].unwrap()).or_insert(0) += 1;
        }
        counts
    }

    #[test]
    fn classes_share_alike_and_no_image_is_on_both_sides() {
        let source = labels(5000, 10);
        let (train, test) = choose(&source, 1000, 250, 3).unwrap();
        assert_eq!((train.len(), test.len()), (1000, 250));
        assert!(counts(&source, &train).values().all(|n| *n == 100));
        assert!(counts(&source, &test).values().all(|n| *n == 25));
        assert!(test.iter().all(|t| train.binary_search(t).is_err()));
        // A function of the seed.
        assert_eq!(choose(&source, 1000, 250, 3).unwrap(), (train.clone(), test));
        assert_ne!(choose(&source, 1000, 250, 4).unwrap().0, train);
    }

    #[test]
    fn many_classes_are_sampled_and_few_images_all_used() {
        let source = labels(20_000, 1000);
        let (train, test) = choose(&source, 200, 50, 0).unwrap();
        let (of_train, of_test) = (counts(&source, &train), counts(&source, &test));
        assert_eq!((of_train.len(), of_test.len()), (10, 10));
        assert!(of_test.keys().all(|class| of_train.contains_key(class)));
        let few = labels(40, 3);
        let (train, test) = choose(&few, 1000, 250, 0).unwrap();
        assert_eq!(train.len() + test.len(), 34);
        assert!((4..=8).contains(&test.len()), "{test:?}");
    }

    #[test]
    fn without_two_classes_there_is_none() {
        for source in [labels(100, 1), Labels(vec![None; 50], vec!["a".into(), "b".into()])] {
            assert_eq!(choose(&source, 100, 20, 0).unwrap(), (vec![], vec![]));
        }
    }
}
