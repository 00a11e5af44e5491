//! The binary files of CIFAR-10 and CIFAR-100.

use std::fs;
use std::path::{Path, PathBuf};

use super::shard::read_at;
use super::{Pixels, Source, Stored};
use crate::{Error, Result};

/// Sides of an image, and its bytes: three planes.
const SIDE: usize = 32;
const IMAGE: usize = 3 * SIDE * SIDE;

/// Which of the two, and so what comes before an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One byte: the class.
    Ten,
    /// Two bytes: the coarse class, the fine one.
    Hundred,
}

impl Kind {
    fn head(self) -> usize {
        match self {
            Self::Ten => 1,
            Self::Hundred => 2,
        }
    }

    fn record(self) -> usize {
        self.head() + IMAGE
    }

    fn classes(self) -> u8 {
        match self {
            Self::Ten => 10,
            Self::Hundred => 100,
        }
    }

    /// Where the distributions keep the classes' names.
    fn names(self) -> &'static str {
        match self {
            Self::Ten => "batches.meta.txt",
            Self::Hundred => "fine_label_names.txt",
        }
    }

    /// The label of a record that begins so.
    fn label(self, head: &[u8]) -> Option<u8> {
        match (self, head) {
            (Self::Ten, &[label]) => Some(label),
            (Self::Hundred, &[coarse, label]) if coarse < 20 => Some(label),
            _ => None,
        }
        .filter(|&label| label < self.classes())
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        [Self::Ten, Self::Hundred].into_iter().find(|kind| {
            let whole = !bytes.is_empty() && bytes.len().is_multiple_of(kind.record());
            let mut records = bytes.chunks_exact(kind.record());
            whole && records.all(|record| kind.label(&record[..kind.head()]).is_some())
        })
    }
}

/// 32 × 32 RGB images with the classes of CIFAR-10, or the fine ones of CIFAR-100.
pub struct Cifar {
    kind: Kind,
    files: Vec<PathBuf>,
    /// The first image of each file.
    starts: Vec<usize>,
    labels: Vec<u8>,
    classes: Vec<String>,
}

impl Cifar {
    /// Reads the labels of binary files, in the order given; classes have names where `batches.meta.txt` or
    /// `fine_label_names.txt` lies beside the first.
    ///
    /// # Errors
    /// [`Error::File`] naming the file that is not made of whole records, or not of the first one's kind.
    pub fn open(files: Vec<PathBuf>) -> Result<Self> {
        let (mut starts, mut labels, mut first) = (Vec::new(), Vec::new(), None);
        for path in &files {
            let fail = |reason: String| Error::File {
                path: path.clone(),
                reason,
            };
            let bytes = fs::read(path).map_err(|error| fail(error.to_string()))?;
            let kind = Kind::of(&bytes).ok_or_else(|| {
                let (ten, hundred) = (Kind::Ten.record(), Kind::Hundred.record());
                fail(format!(
                    "is no binary file of CIFAR: {} bytes are not records of {ten} or {hundred} that begin with a class; \
                     fetch the \"binary version\" again",
                    bytes.len()
                ))
            })?;
            if *first.get_or_insert(kind) != kind {
                return Err(fail("mixes CIFAR-10 and CIFAR-100; give files of one".into()));
            }
            starts.push(labels.len());
            let records = bytes.chunks_exact(kind.record());
            labels.extend(records.filter_map(|record| kind.label(&record[..kind.head()])));
        }
        let kind = first.ok_or_else(|| Error::Usage("no CIFAR file was given".into()))?;
        let classes = names(&files, kind);
        Ok(Self {
            kind,
            files,
            starts,
            labels,
            classes,
        })
    }

    /// Whether a file can be one of CIFAR's by its length and its first label.
    pub(super) fn recognizes(head: &[u8], len: u64) -> bool {
        [Kind::Ten, Kind::Hundred].into_iter().any(|kind| {
            let whole = len > 0 && len.is_multiple_of(kind.record() as u64);
            whole && head.get(..kind.head()).is_some_and(|head| kind.label(head).is_some())
        })
    }
}

/// The names in the file beside the images, if there are as many as classes; else numbers.
fn names(files: &[PathBuf], kind: Kind) -> Vec<String> {
    let count = usize::from(kind.classes());
    let path = files
        .first()
        .and_then(|file| file.parent())
        .unwrap_or(Path::new(""))
        .join(kind.names());
    let text = fs::read_to_string(path).unwrap_or_default();
    let names: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(String::from)
        .collect();
    match names.len() == count {
        true => names,
        false => (0..count).map(|class| class.to_string()).collect(),
    }
}

impl Source for Cifar {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn name(&self, index: usize) -> String {
        let file = self.starts.partition_point(|&start| start <= index).saturating_sub(1);
        let name = self.files.get(file).and_then(|file| file.file_name());
        let name = name.map(|name| name.to_string_lossy().into_owned());
        let start = self.starts.get(file).copied().unwrap_or(0);
        format!("{}: image {}", name.unwrap_or_default(), index - start.min(index))
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).map(|&label| u32::from(label))
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, index: usize) -> Result<Pixels, String> {
        self.read(index)?.decode()
    }

    fn read(&self, index: usize) -> Result<Stored, String> {
        let file = self.starts.partition_point(|&start| start <= index).saturating_sub(1);
        let found = self.files.get(file).zip(self.starts.get(file));
        let (path, start) = found
            .filter(|_| index < self.labels.len())
            .ok_or_else(|| format!("there is no image {index}"))?;
        let offset = (index - start) * self.kind.record() + self.kind.head();
        let planes = read_at(path, offset as u64, IMAGE)?;
        let data = (0..IMAGE).map(|at| planes[at % 3 * SIDE * SIDE + at / 3]).collect();
        Pixels::new(SIDE, SIDE, 3, data).map(Stored::Pixels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data;

    /// Records as the published description has them: labels, then 1024 red, green and blue values in rows.
    fn records(heads: &[&[u8]]) -> Vec<u8> {
        let image = |number: usize| (0..IMAGE).map(move |at| (at / 1024 * 60 + at % 1024 / 32 + number) as u8);
        heads
            .iter()
            .enumerate()
            .flat_map(|(number, head)| head.iter().copied().chain(image(number)))
            .collect()
    }

    #[test]
    fn files_and_folders_of_both_kinds() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        write("data_batch_1.bin", &records(&[&[3], &[9]]));
        write("data_batch_2.bin", &records(&[&[0]]));
        write("test_batch.bin", &records(&[&[1]]));
        let train = data::open(dir.path()).unwrap();
        assert_eq!((train.len(), train.classes().len()), (3, 10));
        assert_eq!((0..3).map(|i| train.label(i).unwrap()).collect::<Vec<_>>(), [3, 9, 0]);
        assert_eq!(train.name(2), "data_batch_2.bin: image 0");
        let image = train.load(1).unwrap();
        assert_eq!((image.width, image.height, image.channels), (32, 32, 3));
        assert_eq!(image.data[..6], [1, 61, 121, 1, 61, 121]);
        assert_eq!(image.data[IMAGE - 3..], [32, 92, 152]);
        assert!(train.load(3).is_err());

        write("batches.meta.txt", b"a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n");
        let test = data::open(dir.path().join("test_batch.bin")).unwrap();
        assert_eq!((test.len(), test.classes()[1].as_str()), (1, "b"));

        write("train.bin", &records(&[&[19, 99], &[0, 5]]));
        let hundred = data::open(dir.path().join("train.bin")).unwrap();
        assert_eq!(
            (hundred.len(), hundred.label(0), hundred.classes().len()),
            (2, Some(99), 100)
        );
        assert_eq!(hundred.load(0).unwrap().data[..3], [0, 60, 120]);
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data_batch_1.bin");
        let fails = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            Cifar::open(vec![path.clone()]).err().unwrap().to_string()
        };
        let whole = records(&[&[3], &[9]]);
        assert!(fails(&whole[1..]).contains("data_batch_1.bin: is no binary file of CIFAR: 6145 bytes"));
        assert!(fails(&records(&[&[3], &[10]])).contains("no binary file"));
        assert!(fails(&[]).contains("no binary file"));
        let other = dir.path().join("train.bin");
        fs::write(&other, records(&[&[1, 1]])).unwrap();
        fs::write(&path, whole).unwrap();
        let mixed = Cifar::open(vec![path, other]).err().unwrap().to_string();
        assert!(mixed.contains("train.bin: mixes"), "{mixed}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(length in 0_usize..7000, head in proptest::num::u8::ANY, at in 0_usize..7000) {
            let mut bytes = vec![0; length];
            if let Some(byte) = bytes.get_mut(at) {
                *byte = head;
            }
            let kind = Kind::of(&bytes);
            proptest::prop_assert!(kind.is_none() || Cifar::recognizes(&bytes, length as u64));
            proptest::prop_assert!(kind.is_none_or(|kind| length % kind.record() == 0));
        }
    }
}
