//! Finding out what a path holds.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::folder::has_image_extension;
use super::shard::{expand, files_in, head};
use super::tar::{compression, is_header};
use super::{Cifar, Folder, Idx, List, ParquetImages, Source, TarShards};
use crate::{Error, Result};

/// What can be given, for messages.
const KINDS: &str = "a folder of JPEG or PNG images, a text file with one image path a line, a .tar in WebDataset layout, a \
                     .parquet with a column `image`, CIFAR's binary files, IDX, a folder of .tar or .parquet files or a pattern \
                     like shard-{000..012}.tar";

/// How much of a file says what it is: a tar header and the beginning of a list.
const HEAD: u64 = 4096;

/// Opens a data set; what it is, its content decides.
///
/// A folder with tar, Parquet or CIFAR training files directly in it is those files, in the order of their names; any other
/// folder is searched for JPEG and PNG files. A pattern with numbers in braces is the files it names. A file is told by its first
/// bytes: tar, Parquet, IDX (labels beside it), CIFAR, or a text list.
///
/// # Errors
/// [`Error::File`] when the path is missing, holds no images, or is damaged; the message says what to give instead.
pub fn open(path: impl AsRef<Path>) -> Result<Box<dyn Source>> {
    let path = path.as_ref();
    let fail = |reason: String| Error::File {
        path: path.to_path_buf(),
        reason,
    };
    match path.metadata() {
        Err(error) => match expand(path)? {
            Some(files) => several(files),
            None => Err(fail(format!("{error}; give {KINDS}"))),
        },
        Ok(metadata) if metadata.is_dir() => folder(path),
        Ok(metadata) => {
            let head = head(path, HEAD)?;
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .to_ascii_lowercase();
            let packed_tar = [".tar.", ".tgz", ".tzst", ".txz"]
                .iter()
                .any(|part| name.contains(part));
            match head.as_slice() {
                _ if compression(&head).is_some() && (packed_tar || is_header(&unzipped(&head))) => {
                    Ok(Box::new(TarShards::open(vec![path.into()])?))
                }
                _ if name.ends_with(".bin") && Cifar::recognizes(&head, metadata.len()) => {
                    Ok(Box::new(Cifar::open(vec![path.into()])?))
                }
                [0, 0, ..] | [0x1F, 0x8B, ..] => Ok(Box::new(Idx::open(path)?)),
                [0xFF, 0xD8, 0xFF, ..] | [0x89, b'P', b'N', b'G', ..] => Err(fail(
                    "is one image, not a data set; give the folder that it lies in".into(),
                )),
                [b'P', b'A', b'R', b'1', ..] => Ok(Box::new(ParquetImages::open(vec![path.into()])?)),
                _ if name.ends_with(".tar") || is_header(&head) => Ok(Box::new(TarShards::open(vec![path.into()])?)),
                _ if Cifar::recognizes(&head, metadata.len()) => Ok(Box::new(Cifar::open(vec![path.into()])?)),
                _ if List::recognizes(&head) => Ok(Box::new(List::open(path)?)),
                _ if name.ends_with(".parquet") => Ok(Box::new(ParquetImages::open(vec![path.into()])?)),
                _ if name.ends_with(".bin") => Ok(Box::new(Cifar::open(vec![path.into()])?)),
                _ => Err(fail(format!("is no data set; give {KINDS}"))),
            }
        }
    }
}

/// What a gzip file that begins like this holds at its beginning; nothing where it is none.
fn unzipped(head: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A beginning ends too early, which is no matter.
    let _ = GzDecoder::new(head).take(HEAD).read_to_end(&mut bytes);
    bytes
}

fn folder(path: &Path) -> Result<Box<dyn Source>> {
    let (tar, parquet) = (files_in(path, "tar")?, files_in(path, "parquet")?);
    let training = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("data_batch_") || name == "train.bin"
    };
    let mut cifar = files_in(path, "bin")?;
    cifar.retain(training);
    let kinds: Vec<_> = [
        (&tar, "tar files"),
        (&parquet, "Parquet files"),
        (&cifar, "CIFAR files"),
    ]
    .into_iter()
    .filter(|(files, _)| !files.is_empty())
    .map(|(_, kind)| kind)
    .collect();
    if kinds.is_empty() || has_images(path)? {
        return Ok(Box::new(Folder::open(path)?));
    }
    if kinds.len() > 1 {
        return Err(Error::File {
            path: path.to_path_buf(),
            reason: format!(
                "has {} in it; give one kind, by a pattern like shard-{{000..012}}.tar",
                kinds.join(" and ")
            ),
        });
    }
    several([tar, parquet, cifar].concat())
}

/// Whether there are images directly in a folder.
fn has_images(path: &Path) -> Result<bool> {
    let entries = fs::read_dir(path).map_err(|error| Error::File {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })?;
    Ok(entries.flatten().any(|entry| has_image_extension(&entry.path())))
}

/// Files of one kind, told by the first one's name.
fn several(files: Vec<PathBuf>) -> Result<Box<dyn Source>> {
    let extension = files
        .first()
        .and_then(|file| file.extension())
        .unwrap_or_default()
        .to_ascii_lowercase();
    match extension.to_str() {
        Some("parquet") => {
            one_split(&files)?;
            Ok(Box::new(ParquetImages::open(files)?))
        }
        Some("bin") => Ok(Box::new(Cifar::open(files)?)),
        _ => Ok(Box::new(TarShards::open(files)?)),
    }
}

/// Training and test images must not be mixed by mistake: `datasets` begins the files' names with the split.
fn one_split(files: &[PathBuf]) -> Result<()> {
    let split = |file: &PathBuf| {
        let name = file.file_name()?.to_str()?;
        let split = name.split(['-', '.', '_']).next()?;
        ["train", "test", "validation", "val", "valid"]
            .contains(&split)
            .then(|| split.to_string())
    };
    let mut splits: Vec<_> = files.iter().filter_map(split).collect();
    splits.sort();
    splits.dedup();
    match (splits.len() > 1, files.first()) {
        (true, Some(first)) => Err(Error::File {
            path: first.parent().map(Path::to_path_buf).unwrap_or_default(),
            reason: format!(
                "has several splits in it ({}); give one, by a pattern like train-{{00000..00003}}-of-00004.parquet",
                splits.join(", ")
            ),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
        let reason = fails(&text);
        assert!(reason.contains("no data set") && reason.contains("a .tar"), "{reason}");
        fs::write(&text, b"\x89PNG\r\n\x1a\n").unwrap();
        assert!(fails(&text).contains("one image"));
        fs::write(&text, b"\0\0\x08\x01").unwrap();
        assert!(fails(&text).contains("three dimensions"));
        fs::remove_file(&text).unwrap();
        fs::write(&text, "some text").unwrap();
        assert!(fails(dir.path()).contains("no JPEG or PNG among 1 file;"));
    }

    #[test]
    fn folders_of_several_kinds_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.tar"), "").unwrap();
        fs::write(dir.path().join("a.parquet"), "").unwrap();
        let error = open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("tar files and Parquet files"), "{error}");
    }
}
