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
        let similarities: Vec<f32> = ops::linear(&queries, &chunk, None)?.flatten_all()?.to_vec1()?;
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
