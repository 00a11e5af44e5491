//! What the tests of gradients share: f64 differences and reproducible values.

use std::vec::Vec;

use crate::philox::{Noise, Stream};

/// `count` reproducible values in [-scale, scale).
pub fn values(seed: u64, count: usize, scale: f32) -> Vec<f32> {
    let noise = Noise {
        seed,
        epoch: 0,
        sample: 0,
        stream: Stream::Init,
    };
    (0..count as u32)
        .map(|i| (2.0 * noise.uniform(i) - 1.0) * scale)
        .collect()
}

/// Widens a slice.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// The gradient of an f64 function by central differences.
pub fn gradient(x: &[f32], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut at = wide(x);
    (0..x.len())
        .map(|i| {
            let center = at[i];
            at[i] = center + STEP;
            let above = f(&at);
            at[i] = center - STEP;
            let below = f(&at);
            at[i] = center;
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

/// Asserts max|a − b| ≤ tolerance · max|b|.
#[track_caller]
pub fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let error = actual
        .iter()
        .zip(expected)
        .fold(0.0f64, |m, (&a, b)| m.max((f64::from(a) - b).abs()));
    assert!(
        error.is_finite() && error <= tolerance * largest,
        "error {error:e}, largest value {largest:e}"
    );
}

/// softmax(scale · x) in f64.
pub fn softmax(x: &[f64], scale: f64) -> Vec<f64> {
    let max = x.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v * scale));
    let e: Vec<f64> = x.iter().map(|&v| (v * scale - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|v| v / sum).collect()
}
