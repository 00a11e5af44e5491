//! The IDX format of MNIST and its successors: one file of images, one of labels.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::{Pixels, Source};
use crate::{Error, Result};

/// The first bytes of an IDX file of unsigned bytes with one or three dimensions.
const LABELS_MAGIC: [u8; 4] = [0, 0, 8, 1];
const IMAGES_MAGIC: [u8; 4] = [0, 0, 8, 3];
/// All images of a file are held in memory; more than this is refused.
const MAX_BYTES: u64 = 4 << 30;

/// Grey images in memory, from IDX files, gzip-compressed or not.
pub struct Idx {
    width: usize,
    height: usize,
    images: Vec<u8>,
    labels: Option<Vec<u8>>,
    classes: Vec<String>,
}

impl Idx {
    /// Images and, if given, labels from the contents of IDX files. Classes are named by their numbers, "0" to the
    /// largest label.
    ///
    /// # Errors
    /// [`Error::Data`] when a header is wrong, a file is shorter or longer than its header says, or the numbers of images
    /// and labels differ.
    pub fn from_bytes(images: &[u8], labels: Option<&[u8]>) -> Result<Self> {
        Self::parse(images, labels).map_err(|(what, reason)| Error::Data(format!("IDX {what}: {reason}")))
    }

    /// Gives the classes names, the first for label 0. Labels beyond the names keep their numbers.
    pub fn named(mut self, names: &[&str]) -> Self {
        for (class, name) in self.classes.iter_mut().zip(names) {
            *class = (*name).into();
        }
        self
    }

    /// Reads an images file and, beside it, the labels file of the corresponding name (`images` → `labels`, `idx3` →
    /// `idx1`), where there is one.
    ///
    /// # Errors
    /// [`Error::File`] naming the file that is missing, unreadable, or invalid as in [`Idx::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let read = |path: &Path| {
            fs::read(path).map_err(|error| Error::File {
                path: path.to_path_buf(),
                reason: format!("{error}; give an IDX file of images"),
            })
        };
        let images = read(path)?;
        let labels_path = labels_path(path).filter(|labels| labels.is_file());
        let labels = labels_path.as_deref().map(read).transpose()?;
        Self::parse(&images, labels.as_deref()).map_err(|(what, reason)| Error::File {
            path: match (what, labels_path) {
                ("labels", Some(labels)) => labels,
                _ => path.to_path_buf(),
            },
            reason,
        })
    }

    fn parse(images: &[u8], labels: Option<&[u8]>) -> Result<Self, (&'static str, String)> {
        let ([count, height, width], images) = read_idx(images, IMAGES_MAGIC).map_err(|reason| ("images", reason))?;
        let labels = match labels {
            Some(labels) => {
                let ([labelled], labels) = read_idx(labels, LABELS_MAGIC).map_err(|reason| ("labels", reason))?;
                if labelled != count {
                    return Err((
                        "labels",
                        format!("{labelled} labels for {count} images; use files that belong together"),
                    ));
                }
                Some(labels)
            }
            None => None,
        };
        let last = labels.as_ref().and_then(|labels| labels.iter().max().copied());
        let classes = last.map_or_else(Vec::new, |last| (0..=last).map(|class| class.to_string()).collect());
        Ok(Self {
            width,
            height,
            images,
            labels,
            classes,
        })
    }
}

impl Source for Idx {
    fn len(&self) -> usize {
        self.images.len() / (self.width * self.height)
    }

    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels
            .as_ref()
            .and_then(|labels| labels.get(index))
            .map(|&label| u32::from(label))
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, index: usize) -> Result<Pixels, String> {
        let size = self.width * self.height;
        let image = self
            .images
            .chunks_exact(size)
            .nth(index)
            .ok_or_else(|| format!("there is no image {index}"))?;
        Pixels::new(self.width, self.height, 1, image.to_vec())
    }
}

/// The dimensions and the data of an IDX file of `N` dimensions.
fn read_idx<const N: usize>(bytes: &[u8], magic: [u8; 4]) -> Result<([usize; N], Vec<u8>), String> {
    let mut reader: Box<dyn Read + '_> = if bytes.starts_with(&[0x1F, 0x8B]) {
        Box::new(GzDecoder::new(bytes))
    } else {
        Box::new(bytes)
    };
    let cut = |error: std::io::Error| format!("not an IDX file, or a truncated one ({error})");
    let mut head = [0; 4];
    reader.read_exact(&mut head).map_err(cut)?;
    if head != magic {
        let wanted = if magic == IMAGES_MAGIC {
            "images (three dimensions)"
        } else {
            "labels (one dimension)"
        };
        return Err(match head {
            [0, 0, 8, dimensions] => format!("an IDX file of {dimensions} dimensions instead of one of {wanted}"),
            [0, 0, kind, _] => format!("an IDX file of values of kind {kind:#04x} instead of bytes (0x08)"),
            _ => format!("not an IDX file of {wanted}"),
        });
    }
    let mut sides = [0; N];
    let mut expected = 1_u64;
    for side in &mut sides {
        let mut field = [0; 4];
        reader.read_exact(&mut field).map_err(cut)?;
        let value = u32::from_be_bytes(field);
        *side = value as usize;
        expected = expected.saturating_mul(u64::from(value));
    }
    if expected == 0 {
        return Err(format!("there is nothing in it: its dimensions are {sides:?}"));
    }
    if expected > MAX_BYTES {
        return Err(format!(
            "{expected} bytes by its header; IDX files above {MAX_BYTES} are not read"
        ));
    }
    let mut data = Vec::new();
    reader.take(expected + 1).read_to_end(&mut data).map_err(cut)?;
    match data.len() as u64 {
        length if length < expected => Err(format!("truncated: {length} bytes where its header says {expected}")),
        length if length > expected => Err(format!("longer than the {expected} bytes its header says")),
        _ => Ok((sides, data)),
    }
}

/// Where the labels of an images file lie by the naming of MNIST.
fn labels_path(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    let labels = name.replace("images", "labels").replace("idx3", "idx1");
    (labels != name).then(|| images.with_file_name(labels))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// `count` images whose pixels are all different where they can be, labels 0, 1, 2, 0, 1, 2, …
    pub(crate) fn idx_bytes(count: u32, height: u32, width: u32) -> (Vec<u8>, Vec<u8>) {
        let mut images = IMAGES_MAGIC.to_vec();
        for side in [count, height, width] {
            images.extend(side.to_be_bytes());
        }
        images.extend((0..count * height * width).map(|value| (value * 7 % 251) as u8));
        let mut labels = LABELS_MAGIC.to_vec();
        labels.extend(count.to_be_bytes());
        labels.extend((0..count).map(|value| (value % 3) as u8));
        (images, labels)
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn refused(images: &[u8], labels: Option<&[u8]>) -> String {
        Idx::from_bytes(images, labels).err().unwrap().to_string()
    }

    #[test]
    fn raw_and_compressed_files_are_the_same() {
        let (images, labels) = idx_bytes(5, 3, 2);
        for idx in [
            Idx::from_bytes(&images, Some(&labels)).unwrap(),
            Idx::from_bytes(&gz(&images), Some(&gz(&labels))).unwrap(),
        ] {
            assert_eq!(idx.len(), 5);
            assert_eq!(idx.classes(), ["0", "1", "2"]);
            assert_eq!(idx.label(4), Some(1));
            let image = idx.load(1).unwrap();
            assert_eq!((image.width, image.height, image.channels), (2, 3, 1));
            assert_eq!(image.data, [42, 49, 56, 63, 70, 77]);
            assert!(idx.load(5).is_err());
        }
        let unlabelled = Idx::from_bytes(&images, None).unwrap();
        assert_eq!((unlabelled.label(0), unlabelled.classes().len()), (None, 0));
    }

    #[test]
    fn wrong_sizes_and_headers_are_refused() {
        let (images, labels) = idx_bytes(5, 3, 2);
        assert!(refused(&images[..images.len() - 1], None).contains("truncated: 29 bytes where its header says 30"));
        assert!(refused(&images[..9], None).contains("truncated"));
        assert!(refused(&[], None).contains("not an IDX file"));
        assert!(refused(&[images.as_slice(), &[0]].concat(), None).contains("longer"));
        assert!(refused(&labels, None).contains("1 dimensions"));
        assert!(refused(&gz(&images)[..40], None).contains("truncated"));
        assert!(refused(&images, Some(&idx_bytes(4, 3, 2).1)).contains("4 labels for 5 images"));
        assert!(refused(&idx_bytes(0, 3, 2).0, None).contains("nothing"));
        let huge = [&IMAGES_MAGIC[..], &[0xFF; 12]].concat();
        assert!(refused(&huge, None).contains("not read"));
        assert!(refused(&[0, 0, 0x0D, 3, 0, 0], None).contains("0x0d"));
    }

    #[test]
    fn labels_are_found_beside_images() {
        let (images, labels) = idx_bytes(5, 3, 2);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t10k-images-idx3-ubyte.gz");
        fs::write(&path, gz(&images)).unwrap();
        assert_eq!(Idx::open(&path).unwrap().label(0), None);
        let labels_file = dir.path().join("t10k-labels-idx1-ubyte.gz");
        fs::write(&labels_file, gz(&labels)).unwrap();
        assert_eq!(Idx::open(&path).unwrap().label(1), Some(1));
        fs::write(&labels_file, &labels[..6]).unwrap();
        let error = Idx::open(&path).err().unwrap().to_string();
        assert!(error.contains("t10k-labels-idx1-ubyte.gz"), "{error}");
        assert!(Idx::open(dir.path().join("none")).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(head in 0_u8..5, mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            if head == 1 && bytes.len() >= 16 {
                bytes[..16].copy_from_slice(&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]);
            }
            if head == 2 && bytes.len() >= 2 {
                bytes[..2].copy_from_slice(&[0x1F, 0x8B]);
            }
            if let Ok(idx) = Idx::from_bytes(&bytes, None) {
                proptest::prop_assert_eq!(idx.len() * idx.width * idx.height, idx.images.len());
            }
        }
    }
}
