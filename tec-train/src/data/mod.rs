//! Images: where they come from, how they are decoded, cropped and batched.
//!
//! A [`Source`] is a numbered collection of images: a [`Folder`] of JPEG and PNG files, an [`Idx`] file, a [`Subset`] of
//! either; [`open`] finds out which. The [`Loader`] shuffles it, decodes and augments on several threads, and yields
//! [`Batch`]es of 8-bit pixels that depend on (seed, epoch, step) alone; [`to_tensor`] normalizes them for a model.

mod augment;
mod files;
mod folder;
mod idx;
mod loader;
mod normalize;
mod source;
mod worker;

use std::path::Path;

pub use augment::{Augment, Placement};
pub use files::Files;
pub use folder::{Folder, read_image};
pub use idx::Idx;
pub use loader::{Batch, Batches, Loader, LoaderConfig, Order, Skipped};
pub use normalize::{IMAGENET_MEAN, IMAGENET_STD, Normalization, to_tensor};
pub use source::{Source, Subset};
pub use tec_image::{ImageInfo, Pixels, Region, Resizer, decode, inspect};

use crate::{Error, Result};

/// Opens a data set: a folder of JPEG and PNG images, or an IDX file of images (with its labels beside it).
///
/// # Errors
/// [`Error::File`] when the path is missing or holds no images; the message says what to give instead.
pub fn open(path: impl AsRef<Path>) -> Result<Box<dyn Source>> {
    let path = path.as_ref();
    match path.metadata() {
        Err(error) => Err(Error::File {
            path: path.to_path_buf(),
            reason: format!("{error}; give a folder of JPEG or PNG images, or an IDX file of images"),
        }),
        Ok(metadata) if metadata.is_dir() => Ok(Box::new(Folder::open(path)?)),
        Ok(_) => Ok(Box::new(Idx::open(path)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data that ship with the command.
    #[test]
    fn fashion_mnist_opens() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/assets/fashion-mnist");
        let source = open(folder.join("t10k-images-idx3-ubyte.gz")).unwrap();
        assert_eq!(source.len(), 10_000);
        assert_eq!(source.classes().len(), 10);
        let mut counts = [0; 10];
        (0..source.len()).for_each(|index| counts[source.label(index).unwrap() as usize] += 1);
        assert_eq!(counts, [1000; 10]);
        // The published first labels: ankle boot, pullover, trouser, trouser, shirt.
        assert_eq!(
            [0, 1, 2, 3, 4].map(|index| source.label(index).unwrap()),
            [9, 2, 1, 1, 6]
        );
        let image = source.load(0).unwrap();
        assert_eq!((image.width, image.height, image.channels), (28, 28, 1));
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let fails = |path: &Path| open(path).err().unwrap().to_string();
        let missing = fails(&dir.path().join("none"));
        assert!(
            missing.contains("none: ") && missing.contains("give a folder"),
            "{missing}"
        );
        let text = dir.path().join("text");
        std::fs::write(&text, "some text").unwrap();
        assert!(fails(&text).contains("not an IDX file"));
        assert!(fails(dir.path()).contains("no JPEG or PNG among 1 file;"));
    }
}
