//! How good an encoder's features are.

pub mod knn;

use crate::{Error, Result};

/// Feature vectors of a data set, with the classes of their images.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Values in a vector.
    pub dim: usize,
    /// `[n, dim]`, row-major.
    pub data: Vec<f32>,
    /// n classes: positions in `classes`.
    pub labels: Vec<Option<u32>>,
    /// The names of the classes. Two data sets are compared by these names, since each numbers its own classes.
    pub classes: Vec<String>,
}

impl Features {
    /// The number of vectors.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no vector.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Checks the geometry, and that values are finite. `what` names the data set in messages.
    ///
    /// # Errors
    /// [`Error::Data`] saying what is wrong.
    pub fn validate(&self, what: &str) -> Result<()> {
        if self.is_empty() {
            return Err(Error::Data(format!("there are no {what} features")));
        }
        if self.dim == 0 || self.len().checked_mul(self.dim) != Some(self.data.len()) {
            return Err(Error::Data(format!(
                "{} {what} values are not {} vectors of {}",
                self.data.len(),
                self.len(),
                self.dim
            )));
        }
        match self.data.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(Error::Data(format!(
                "{what} image {} has a feature of {}; the encoder's weights are broken",
                at / self.dim,
                self.data[at]
            ))),
            None => Ok(()),
        }
    }
}
