//! Where images come from.

use std::ops::Range;
use std::sync::Arc;

use super::{Pixels, decode};
use crate::{Error, Result};

/// An image as a source keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The bytes of a JPEG or PNG file, of which a crop may need only a part.
    File(Vec<u8>),
    /// Its pixels.
    Pixels(Pixels),
}

impl Stored {
    /// All its pixels, grey or RGB as it is stored.
    ///
    /// # Errors
    /// The reason why it cannot be decoded.
    pub fn decode(self) -> Result<Pixels, String> {
        match self {
            Self::File(bytes) => decode(&bytes),
            Self::Pixels(pixels) => Ok(pixels),
        }
    }
}

/// A numbered collection of images, perhaps labelled. Numbers are stable: the same source opened again gives the same
/// image for the same number, which is what seeds, masks and resumed runs count on.
pub trait Source: Send + Sync {
    /// The number of images.
    fn len(&self) -> usize;

    /// Whether there is no image at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What to call image `index` in messages: its path below the folder, or its number.
    fn name(&self, index: usize) -> String;

    /// The class of image `index`, a position in [`Source::classes`]; `None` where images have no classes.
    fn label(&self, index: usize) -> Option<u32>;

    /// The names of the classes, sorted; empty where images have no classes.
    fn classes(&self) -> &[String];

    /// Decodes image `index`, grey or RGB as it is stored.
    ///
    /// # Errors
    /// The reason why this image cannot be used; the others still can.
    fn load(&self, index: usize) -> Result<Pixels, String>;

    /// Image `index` undecoded, where the source has it so; a loader then decodes only what its crop needs.
    ///
    /// # Errors
    /// As [`Source::load`]. Bytes may turn out to be no image later.
    fn read(&self, index: usize) -> Result<Stored, String> {
        self.load(index).map(Stored::Pixels)
    }

    /// One line on what was found, for the start of a run.
    fn summary(&self) -> String {
        match self.classes().len() {
            0 => format!("{} images", self.len()),
            classes => format!("{} images in {classes} classes", self.len()),
        }
    }
}

/// Some images of another source, in a given order.
pub struct Subset {
    source: Arc<dyn Source>,
    indices: Vec<u32>,
}

impl Subset {
    /// The images `indices` of `source`.
    ///
    /// # Errors
    /// [`Error::Usage`] when an index is not below `source.len()`.
    pub fn new(source: Arc<dyn Source>, indices: Vec<u32>) -> Result<Self> {
        match indices.iter().find(|&&index| index as usize >= source.len()) {
            Some(index) => Err(Error::Usage(format!(
                "image {index} does not exist: there are {}",
                source.len()
            ))),
            None => Ok(Self { source, indices }),
        }
    }

    /// A contiguous range of images.
    ///
    /// # Errors
    /// [`Error::Usage`] when the range reaches beyond `source.len()`.
    pub fn range(source: Arc<dyn Source>, range: Range<usize>) -> Result<Self> {
        let indices = range.map(|index| u32::try_from(index).unwrap_or(u32::MAX)).collect();
        Self::new(source, indices)
    }

    fn index(&self, index: usize) -> usize {
        self.indices[index] as usize
    }
}

impl Source for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn name(&self, index: usize) -> String {
        self.source.name(self.index(index))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.source.label(self.index(index))
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }

    fn load(&self, index: usize) -> Result<Pixels, String> {
        self.source.load(self.index(index))
    }

    fn read(&self, index: usize) -> Result<Stored, String> {
        self.source.read(self.index(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Idx;
    use crate::data::idx::tests::idx_bytes;

    fn six() -> Arc<dyn Source> {
        let (images, labels) = idx_bytes(6, 2, 2);
        Arc::new(Idx::from_bytes(&images, Some(&labels)).unwrap())
    }

    #[test]
    fn a_subset_renumbers() {
        let subset = Subset::new(six(), vec![4, 1]).unwrap();
        assert_eq!(subset.len(), 2);
        assert_eq!(subset.load(0).unwrap(), six().load(4).unwrap());
        assert_eq!(subset.label(1), six().label(1));
        assert_eq!(subset.name(0), six().name(4));
        assert_eq!(subset.classes(), six().classes());
    }

    #[test]
    fn ranges_are_checked() {
        assert_eq!(Subset::range(six(), 2..6).unwrap().len(), 4);
        let error = Subset::range(six(), 2..7).err().unwrap().to_string();
        assert!(error.contains("image 6 does not exist"), "{error}");
    }
}
