//! How near one encoder's embeddings are to another's.

use crate::eval::Features;
use crate::{Error, Result};

/// Cosines between f32 and int8 embeddings of the same images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fidelity {
    /// The mean over the images.
    pub mean: f32,
    /// The least of them.
    pub worst: f32,
}

impl Fidelity {
    /// Cosines of the rows of `a` and `b`, each `[images, dim]`.
    ///
    /// # Errors
    /// [`Error::Data`] if there are no rows or not equally many.
    pub fn of(a: &[f32], b: &[f32], dim: usize) -> Result<Self> {
        if a.len() != b.len() || dim == 0 || a.is_empty() || !a.len().is_multiple_of(dim) {
            return Err(Error::Data(format!(
                "{} and {} values of embeddings of width {dim} cannot be compared",
                a.len(),
                b.len()
            )));
        }
        let cosines: Vec<f64> = a
            .chunks_exact(dim)
            .zip(b.chunks_exact(dim))
            .map(|(a, b)| cosine(a, b))
            .collect();
        Ok(Self {
            mean: (cosines.iter().sum::<f64>() / cosines.len() as f64) as f32,
            worst: cosines.iter().copied().fold(f64::INFINITY, f64::min) as f32,
        })
    }
}

/// Cosines of the embeddings that two encoders gave the same images.
///
/// # Errors
/// [`Error::Data`] if there are none or not equally many.
pub fn cosines(a: &Features, b: &Features) -> Result<Fidelity> {
    Fidelity::of(&a.data, &b.data, a.dim)
}

/// Cosine of two vectors; 1 if both are zero, 0 if one is.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 {
        dot(a, b) / norms
    } else if a == b {
        1.0
    } else {
        0.0
    }
}
