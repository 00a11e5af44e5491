//! Weighted nearest-neighbor classification of frozen features, as in Wu et al., *Unsupervised Feature Learning via
//! Non-Parametric Instance Discrimination* (2018), section 3.4, and DINO's evaluation.

use std::cmp::Ordering;
use std::collections::HashMap;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::Features;
use crate::{Error, Result, ops};

/// Test images compared at once.
const TEST_CHUNK: usize = 256;
/// Training images compared at once: with `TEST_CHUNK`, 8 MB of similarities.
const TRAIN_CHUNK: usize = 8192;

/// Neighbors and weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KnnConfig {
    /// Neighbors that vote.
    pub k: usize,
    /// A vote weighs `exp(cosine similarity / temperature)`.
    pub temperature: f64,
}

impl Default for KnnConfig {
    /// 20 neighbors, temperature 0.07: DINO's.
    fn default() -> Self {
        Self {
            k: 20,
            temperature: 0.07,
        }
    }
}

/// The outcome of [`knn`].
#[derive(Clone, Debug, PartialEq)]
pub struct Knn {
    /// The share of test images whose class was found, 0 to 1.
    pub accuracy: f64,
    /// Test images whose class was found.
    pub correct: usize,
    /// The class found for each test image, a position in the training set's classes.
    pub predictions: Vec<u32>,
}

/// Classifies every test image by its `k` nearest training images, exactly.
///
/// Features are divided by their length (a zero vector stays zero); the nearest are those of largest cosine similarity,
/// of equals those with the lower number; each votes for its class with weight `exp(similarity / temperature)`; the class
/// with most votes wins, of equals the one with the lower number. Memory beyond the normalized features is bounded; the
/// result does not depend on the number of threads.
///
/// # Errors
/// [`Error::Data`] for features of different or wrong geometry or not finite, images without a class, fewer than two
/// classes to tell apart, or test classes that have no training images; [`Error::Usage`] when `k` is 0 or above the number of training
/// images, or the temperature is not above 0.
pub fn knn(train: &Features, test: &Features, config: &KnnConfig) -> Result<Knn> {
    check(train, test, config)?;
    let train_labels = labels(train, "training")?;
    let test_labels = aligned(train, test)?;
    if train_labels.iter().all(|label| Some(label) == train_labels.first()) {
        return Err(Error::Data(
            "all training images have the same class; k-NN needs a folder with one subfolder for each class".into(),
        ));
    }
    let (train_rows, test_rows) = (normalized(train), normalized(test));
    let mut predictions = Vec::with_capacity(test.len());
    for queries in test_rows.chunks(TEST_CHUNK * test.dim) {
        let nearest = nearest(queries, &train_rows, train.dim, config.k)?;
        predictions.extend(
            nearest
                .iter()
                .map(|neighbors| vote(neighbors, &train_labels, config.temperature)),
        );
    }
    let correct = predictions
        .iter()
        .zip(&test_labels)
        .filter(|(found, truth)| found == truth)
        .count();
    Ok(Knn {
        accuracy: correct as f64 / test.len() as f64,
        correct,
        predictions,
    })
}

/// The number of each test image's nearest training image.
///
/// # Errors
/// [`Error::Data`] for features of different or wrong geometry or not finite.
pub fn nearest_one(train: &Features, test: &Features) -> Result<Vec<u32>> {
    let config = KnnConfig {
        k: 1,
        ..KnnConfig::default()
    };
    check(train, test, &config)?;
    let (train_rows, test_rows) = (normalized(train), normalized(test));
    let mut found = Vec::with_capacity(test.len());
    for queries in test_rows.chunks(TEST_CHUNK * test.dim) {
        let nearest = nearest(queries, &train_rows, train.dim, 1)?;
        found.extend(
            nearest
                .iter()
                .map(|one| one.first().map_or(0, |neighbor| neighbor.index)),
        );
    }
    Ok(found)
}

fn check(train: &Features, test: &Features, config: &KnnConfig) -> Result<()> {
    train.validate("training")?;
    test.validate("test")?;
    if train.dim != test.dim {
        return Err(Error::Data(format!(
            "training features have {} values and test features {}; use the same encoder for both",
            train.dim, test.dim
        )));
    }
    if config.k == 0 || config.k > train.len() {
        return Err(Error::Usage(format!(
            "k is {} with {} training images; give --k between 1 and {}",
            config.k,
            train.len(),
            train.len()
        )));
    }
    if !(config.temperature.is_finite() && config.temperature > 0.0) {
        return Err(Error::Usage(format!(
            "a temperature of {}; give a number above 0",
            config.temperature
        )));
    }
    Ok(())
}

/// The class of every image.
fn labels(features: &Features, what: &str) -> Result<Vec<u32>> {
    let label = |(image, label): (usize, &Option<u32>)| match label {
        Some(label) if (*label as usize) < features.classes.len() => Ok(*label),
        Some(label) => Err(Error::Data(format!(
            "{what} image {image} has class {label} of {}",
            features.classes.len()
        ))),
        None => Err(Error::Data(format!(
            "{what} image {image} has no class; k-NN needs a folder with one subfolder for each class"
        ))),
    };
    features.labels.iter().enumerate().map(label).collect()
}

/// The class of every test image by the training set's numbers.
fn aligned(train: &Features, test: &Features) -> Result<Vec<u32>> {
    let numbers: HashMap<&str, u32> = train.classes.iter().map(String::as_str).zip(0..).collect();
    let trained: Vec<Option<u32>> = test
        .classes
        .iter()
        .map(|class| numbers.get(class.as_str()).copied())
        .collect();
    let align = |label: u32| {
        trained.get(label as usize).copied().flatten().ok_or_else(|| {
            let name = test.classes.get(label as usize).map_or("", String::as_str);
            Error::Data(format!(
                "the training images have no class {name:?} as the test images do; use the same class names"
            ))
        })
    };
    labels(test, "test")?.into_iter().map(align).collect()
}

/// Rows of length 1.
fn normalized(features: &Features) -> Vec<f32> {
    let mut rows = features.data.clone();
    rows.par_chunks_exact_mut(features.dim).for_each(|row| {
        let length = row
            .iter()
            .map(|&value| f64::from(value) * f64::from(value))
            .sum::<f64>()
            .sqrt();
        if length > 0.0 {
            row.iter_mut()
                .for_each(|value| *value = (f64::from(*value) / length) as f32);
        }
    });
    rows
}

/// A training image and its similarity.
#[derive(Clone, Copy)]
struct Neighbor {
    similarity: f32,
    index: u32,
}

impl Neighbor {
    /// Most similar first, of equals the lower number.
    fn order(&self, other: &Self) -> Ordering {
        other
            .similarity
            .total_cmp(&self.similarity)
            .then(self.index.cmp(&other.index))
    }
}

/// The `k` best seen so far, with room for as many more before the worse half is thrown away.
struct Best {
    k: usize,
    found: Vec<Neighbor>,
    /// What a later neighbor must exceed; equals come after those found.
    floor: f32,
}

impl Best {
    fn new(k: usize) -> Self {
        Self {
            k,
            found: Vec::with_capacity(2 * k),
            floor: f32::NEG_INFINITY,
        }
    }

    fn offer(&mut self, neighbor: Neighbor) {
        if neighbor.similarity > self.floor {
            self.found.push(neighbor);
            if self.found.len() >= 2 * self.k {
                self.trim();
            }
        }
    }

    fn trim(&mut self) {
        if self.found.len() > self.k {
            self.found.select_nth_unstable_by(self.k - 1, Neighbor::order);
            self.found.truncate(self.k);
            self.floor = self.found[self.k - 1].similarity;
        }
    }

    fn finish(mut self) -> Vec<Neighbor> {
        self.trim();
        self.found.sort_unstable_by(Neighbor::order);
        self.found
    }
}

/// The `k` nearest training rows of every query row, nearest first.
fn nearest(queries: &[f32], train: &[f32], dim: usize, k: usize) -> Result<Vec<Vec<Neighbor>>> {
    let rows = queries.len() / dim;
    let queries = Tensor::from_slice(queries, (rows, dim), &Device::Cpu)?;
    let mut best: Vec<_> = (0..rows).map(|_| Best::new(k)).collect();
    for (number, chunk) in train.chunks(TRAIN_CHUNK * dim).enumerate() {
        let columns = chunk.len() / dim;
        let chunk = Tensor::from_slice(chunk, (columns, dim), &Device::Cpu)?;
        let similarities: Vec<f32> = ops::linear(&queries, &chunk, None, ops::Amp::None)?
            .flatten_all()?
            .to_vec1()?;
        let first = number * TRAIN_CHUNK;
        best.par_iter_mut()
            .zip(similarities.par_chunks_exact(columns))
            .for_each(|(best, row)| {
                for (column, &similarity) in row.iter().enumerate() {
                    best.offer(Neighbor {
                        similarity,
                        index: (first + column) as u32,
                    });
                }
            });
    }
    Ok(best.into_par_iter().map(Best::finish).collect())
}

/// The class with the most votes. Weights are relative to the nearest neighbor's, so that none overflows.
fn vote(neighbors: &[Neighbor], labels: &[u32], temperature: f64) -> u32 {
    let top = neighbors.first().map_or(0.0, |nearest| f64::from(nearest.similarity));
    let mut votes: Vec<(u32, f64)> = Vec::new();
    for neighbor in neighbors {
        let weight = ((f64::from(neighbor.similarity) - top) / temperature).exp();
        let class = labels[neighbor.index as usize];
        match votes.iter_mut().find(|(voted, _)| *voted == class) {
            Some((_, votes)) => *votes += weight,
            None => votes.push((class, weight)),
        }
    }
    let better = |a: &&(u32, f64), b: &&(u32, f64)| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0));
    votes.iter().max_by(better).map_or(0, |(class, _)| *class)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(dim: usize, data: &[f32], labels: &[u32], classes: usize) -> Features {
        Features {
            dim,
            data: data.to_vec(),
            labels: labels.iter().copied().map(Some).collect(),
            classes: (0..classes).map(|class| class.to_string()).collect(),
        }
    }

    #[rustfmt::skip]
    const TRAIN: [f32; 72] = [
        5., -7., -5., -4., -5., 5., 6., 1., -8., -7., -3., -1., 2., 0., -4., -6., 3., 4., -8., -7., -1., -2., 7., 0.,
        -1., -1., 3., 1., -6., 4., 4., 8., 5., -4., -3., 3., 3., 3., 6., -4., 7., -8., -7., 8., 8., -3., -6., -3.,
        -8., 7., 3., 1., -4., 0., -5., 5., 0., -8., -4., 4., 0., -2., -4., -7., 2., 3., 0., 7., 7., -5., 2., 2.,
    ];
    const TRAIN_LABELS: [u32; 24] = [1, 0, 0, 2, 2, 0, 1, 2, 0, 0, 1, 1, 1, 1, 0, 1, 2, 0, 2, 0, 0, 2, 0, 2];
    #[rustfmt::skip]
    const TEST: [f32; 30] = [
        -4., -3., 0., 4., -4., 4., 3., -5., -2., 6., 6., 3., -8., 3., -5., 5., 7., -1., 8., 4., -3., 6., -2., -7.,
        2., 6., 3., -2., 7., 0.,
    ];
    const TEST_LABELS: [u32; 10] = [0, 1, 2, 2, 1, 0, 0, 2, 1, 0];

    fn literals() -> (Features, Features) {
        (
            features(3, &TRAIN, &TRAIN_LABELS, 3),
            features(3, &TEST, &TEST_LABELS, 3),
        )
    }

    /// Predictions made by scikit-learn's exact `NearestNeighbors(metric="cosine")` and a weighted vote in numpy.
    #[test]
    fn predictions_equal_scikit_learns() {
        let (train, test) = literals();
        for (k, temperature, expected, correct) in [
            (1, 0.07, [1, 0, 1, 1, 1, 1, 0, 0, 1, 2], 3),
            (5, 0.07, [1, 0, 1, 1, 1, 1, 0, 0, 1, 2], 3),
            (5, 1.0, [1, 0, 0, 1, 2, 1, 1, 0, 1, 2], 1),
            (7, 1.0, [1, 0, 0, 1, 2, 1, 1, 0, 2, 2], 0),
            (12, 0.2, [1, 0, 1, 1, 2, 1, 0, 0, 1, 2], 2),
        ] {
            let outcome = knn(&train, &test, &KnnConfig { k, temperature }).unwrap();
            assert_eq!(outcome.predictions, expected, "k {k}, temperature {temperature}");
            assert_eq!(outcome.correct, correct);
            assert_eq!(outcome.accuracy, correct as f64 / 10.0);
        }
    }

    /// Similarities 1, 0.6 and 0.6 of classes 2, 1, 1: a cold temperature trusts the nearest, a warm one the many.
    #[test]
    fn the_temperature_weighs() {
        let train = features(2, &[5.0, 0.0, 3.0, 4.0, 3.0, -4.0], &[2, 1, 1], 3);
        let test = features(2, &[1.0, 0.0], &[1], 3);
        let found = |temperature| {
            knn(&train, &test, &KnnConfig { k: 3, temperature })
                .unwrap()
                .predictions[0]
        };
        // exp(-0.4 / T) * 2 exceeds 1 where T is above 0.577.
        assert_eq!([found(0.001), found(0.57), found(0.58), found(10.0)], [2, 2, 1, 1]);
    }

    #[test]
    fn ties_go_to_lower_numbers() {
        let test = features(2, &[1.0, 0.0], &[0], 3);
        // Equal similarities: the first k count.
        let train = features(2, &[1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 1.0, 0.0], &[1, 1, 0, 0], 3);
        assert_eq!(
            knn(
                &train,
                &test,
                &KnnConfig {
                    k: 2,
                    temperature: 0.07
                }
            )
            .unwrap()
            .predictions,
            [1]
        );
        // Equal votes: the lower class.
        assert_eq!(
            knn(
                &train,
                &test,
                &KnnConfig {
                    k: 4,
                    temperature: 0.07
                }
            )
            .unwrap()
            .predictions,
            [0]
        );
    }

    /// More images than a chunk holds, against a plain search.
    #[test]
    fn chunks_join() {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        let (many, few, dim) = (TRAIN_CHUNK + 500, TEST_CHUNK + 3, 4);
        let data: Vec<f32> = (0..many * dim).map(|_| next()).collect();
        let labels: Vec<u32> = (0..many as u32).map(|index| index % 5).collect();
        let train = features(dim, &data, &labels, 5);
        let queries: Vec<f32> = (0..few * dim).map(|_| next()).collect();
        let test = features(dim, &queries, &vec![0; few], 5);
        let found = knn(
            &train,
            &test,
            &KnnConfig {
                k: 1,
                temperature: 0.07,
            },
        )
        .unwrap()
        .predictions;
        let unit = |row: &[f32]| {
            let length = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            row.iter().map(|&value| f64::from(value) / length).collect::<Vec<_>>()
        };
        let rows: Vec<_> = data.chunks(dim).map(unit).collect();
        for (query, found) in queries.chunks(dim).map(unit).zip(found) {
            let similarity = |row: &[f64]| row.iter().zip(&query).map(|(a, b)| a * b).sum::<f64>();
            let best = (0..many)
                .max_by(|&a, &b| similarity(&rows[a]).total_cmp(&similarity(&rows[b])))
                .unwrap();
            let of_class = |class: u32| (class as usize..many).step_by(5).map(|row| similarity(&rows[row]));
            let found_best = of_class(found).fold(f64::MIN, f64::max);
            assert!(found == labels[best] || similarity(&rows[best]) - found_best < 1e-6);
        }
    }

    /// Each data set numbers its own classes: here the test set lacks one.
    #[test]
    fn classes_meet_by_name() {
        let mut train = features(2, &[1.0, 0.0, 0.0, 1.0, -1.0, 0.0], &[0, 1, 2], 3);
        train.classes = ["cat", "dog", "owl"].map(String::from).to_vec();
        let mut test = features(2, &[-1.0, 0.1, 1.0, 0.1], &[1, 0], 2);
        test.classes = ["cat", "owl"].map(String::from).to_vec();
        let outcome = knn(
            &train,
            &test,
            &KnnConfig {
                k: 1,
                temperature: 0.07,
            },
        )
        .unwrap();
        assert_eq!((outcome.predictions, outcome.correct), (vec![2, 0], 2));
        test.classes[1] = "yak".into();
        let error = knn(
            &train,
            &test,
            &KnnConfig {
                k: 1,
                temperature: 0.07,
            },
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("\"yak\""), "{error}");
    }

    #[test]
    fn unusable_features_are_refused() {
        let fails = |change: &dyn Fn(&mut Features, &mut Features, &mut KnnConfig)| {
            let (mut train, mut test) = literals();
            let mut config = KnnConfig::default();
            change(&mut train, &mut test, &mut config);
            knn(&train, &test, &config).unwrap_err().to_string()
        };
        assert!(fails(&|train, _, _| train.labels[3] = None).contains("training image 3 has no class"));
        assert!(fails(&|_, test, _| test.labels[0] = None).contains("test image 0 has no class"));
        assert!(fails(&|train, _, _| train.labels.fill(Some(1))).contains("same class"));
        assert!(fails(&|_, _, config| config.k = 25).contains("k is 25 with 24 training images"));
        assert!(fails(&|_, _, config| config.k = 0).contains("k is 0"));
        assert!(fails(&|_, _, config| config.temperature = 0.0).contains("temperature"));
        assert!(fails(&|train, _, _| train.data[4] = f32::NAN).contains("training image 1"));
        assert!(fails(&|_, test, _| test.data[0] = f32::INFINITY).contains("test image 0"));
        assert!(fails(&|train, _, _| train.data.truncate(9)).contains("9 training values"));
        assert!(
            fails(&|_, test, _| (test.dim, test.data) = (1, vec![1.0; 10])).contains("3 values and test features 1")
        );
        assert!(fails(&|train, _, _| train.labels[0] = Some(3)).contains("class 3 of 3"));
    }
}
