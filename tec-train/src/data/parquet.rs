//! Images in Parquet files, as Hugging Face's `datasets` writes them.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Type;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::serialized_reader::SerializedPageReader;
use serde_json::Value;

use super::{Pixels, Source, Stored};
use crate::{Error, Result};

/// Columns that hold images, the first that exists.
const IMAGES: [&str; 4] = ["image.bytes", "img.bytes", "image", "img"];
/// Columns that hold classes, the first that exists.
const LABELS: [&str; 3] = ["label", "labels", "fine_label"];
/// A label from here on is no class number.
const MAX_CLASSES: i64 = 1 << 24;

/// Images in a column of Parquet files, read in any order.
///
/// The column is `image` or `img`, a struct with `bytes` or binary itself; classes are whole numbers in `label`, `labels` or
/// `fine_label`, named by the metadata of `datasets` where they are in the file. Missing or negative labels mean that there are
/// no classes. Opening reads the footers and the labels. An image costs the page that it lies in and the headers of the pages
/// before it in its row group; nothing is kept between two images.
pub struct ParquetImages {
    files: Vec<PathBuf>,
    groups: Vec<Group>,
    len: usize,
    labels: Vec<u32>,
    classes: Vec<String>,
    unlabelled: usize,
}

/// The images of a row group.
struct Group {
    file: u32,
    /// The first image, among all and in its file.
    start: usize,
    row: usize,
    rows: usize,
    chunk: ColumnChunkMetaData,
}

impl ParquetImages {
    /// Reads the footers and labels of Parquet files, in the order given.
    ///
    /// # Errors
    /// [`Error::File`] naming the file that is damaged or has no column of images.
    pub fn open(files: Vec<PathBuf>) -> Result<Self> {
        let mut source = Self {
            files: Vec::new(),
            groups: Vec::new(),
            len: 0,
            labels: Vec::new(),
            classes: Vec::new(),
            unlabelled: 0,
        };
        for (number, path) in files.iter().enumerate() {
            let added = guarded(|| source.add(number, path));
            added.map_err(|reason| Error::File {
                path: path.clone(),
                reason,
            })?;
        }
        if source.len == 0 {
            return Err(Error::File {
                path: files.into_iter().next().unwrap_or_default(),
                reason: "there is no row in it; give Parquet files with images".into(),
            });
        }
        source.files = files;
        if source.unlabelled > 0 {
            (source.labels, source.classes) = (Vec::new(), Vec::new());
        }
        source.labels.shrink_to_fit();
        let last = source.labels.iter().max().map_or(0, |&last| last as usize + 1);
        for class in source.classes.len()..last {
            source.classes.push(class.to_string());
        }
        Ok(source)
    }

    fn add(&mut self, number: usize, path: &Path) -> Result<(), String> {
        let file = Arc::new(File::open(path).map_err(|error| error.to_string())?);
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&*file).map_err(damaged)?;
        let image = column(&metadata, &IMAGES, &[Type::BYTE_ARRAY]).ok_or_else(|| {
            let columns = metadata.file_metadata().schema_descr().columns();
            let found: Vec<_> = columns.iter().map(|column| column.path().string()).collect();
            format!(
                "no column of images; give files with one called image or img (there are: {})",
                found.join(", ")
            )
        })?;
        let label = column(&metadata, &LABELS, &[Type::INT32, Type::INT64]);
        if self.classes.is_empty() {
            let name = label.map(|at| metadata.file_metadata().schema_descr().column(at).name().to_string());
            self.classes = name.and_then(|name| class_names(&metadata, &name)).unwrap_or_default();
        }
        let mut row = 0;
        for group in metadata.row_groups() {
            let rows = usize::try_from(group.num_rows()).map_err(|_| "a row group has a negative number of rows")?;
            match label {
                Some(at) => self.add_labels(&file, group.column(at), rows)?,
                None => self.unlabelled += rows,
            }
            // Statistics of images are of no use and can be long.
            let chunk = group
                .column(image)
                .clone()
                .into_builder()
                .clear_statistics()
                .build()
                .map_err(damaged)?;
            self.groups.push(Group {
                file: number as u32,
                start: self.len,
                row,
                rows,
                chunk,
            });
            self.len += rows;
            row += rows;
        }
        Ok(())
    }

    fn add_labels(&mut self, file: &Arc<File>, chunk: &ColumnChunkMetaData, rows: usize) -> Result<(), String> {
        let values: Vec<i64> = match chunk.column_type() {
            Type::INT32 => {
                let values = values::<Int32Type>(file, chunk, rows, 0, rows)?;
                values.into_iter().map(i64::from).collect()
            }
            _ => values::<Int64Type>(file, chunk, rows, 0, rows)?,
        };
        // Missing values are left out, so that there are fewer.
        let known = values.len() == rows && values.iter().all(|value| (0..MAX_CLASSES).contains(value));
        match known {
            true => self.labels.extend(values.into_iter().map(|value| value as u32)),
            false => self.unlabelled += rows,
        }
        Ok(())
    }

    fn group(&self, index: usize) -> Option<&Group> {
        let after = self.groups.partition_point(|group| group.start <= index);
        let group = self.groups.get(after.checked_sub(1)?)?;
        (index - group.start < group.rows).then_some(group)
    }
}

impl Source for ParquetImages {
    fn len(&self) -> usize {
        self.len
    }

    fn name(&self, index: usize) -> String {
        let Some(group) = self.group(index) else {
            return format!("image {index}");
        };
        let file = self.files.get(group.file as usize).and_then(|file| file.file_name());
        let file = file.map(|name| name.to_string_lossy().into_owned());
        format!("{}: row {}", file.unwrap_or_default(), group.row + index - group.start)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, index: usize) -> Result<Pixels, String> {
        self.read(index)?.decode()
    }

    fn read(&self, index: usize) -> Result<Stored, String> {
        let group = self.group(index);
        let found = group.and_then(|group| Some((group, self.files.get(group.file as usize)?)));
        let (group, path) = found.ok_or_else(|| format!("there is no image {index}"))?;
        guarded(|| {
            let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let skip = index - group.start;
            let images = values::<ByteArrayType>(&Arc::new(file), &group.chunk, group.rows, skip, 1)?;
            match images.first() {
                Some(image) => Ok(Stored::File(image.data().to_vec())),
                None => Err("the image is missing in its row; only images within the file are read, no paths".into()),
            }
        })
    }

    fn summary(&self) -> String {
        let mut text = format!("{} images in {} Parquet files", self.len, self.files.len());
        match self.classes.len() {
            0 if self.unlabelled < self.len => text += ", some without a class: none is used",
            0 => {}
            classes => text += &format!(", {classes} classes"),
        }
        text
    }
}

/// Values `skip..skip + count` of a column in a row group of `rows`, without the missing ones.
fn values<T: DataType>(
    file: &Arc<File>,
    chunk: &ColumnChunkMetaData,
    rows: usize,
    skip: usize,
    count: usize,
) -> Result<Vec<T::T>, String> {
    let pages = SerializedPageReader::new(Arc::clone(file), chunk, rows, None).map_err(damaged)?;
    let descriptor = chunk.column_descr_ptr();
    let optional = descriptor.max_def_level() > 0;
    let mut reader = ColumnReaderImpl::<T>::new(descriptor, Box::new(pages));
    if skip > 0 && reader.skip_records(skip).map_err(damaged)? != skip {
        return Err("is damaged: a row group has fewer rows than it says; fetch the file again".into());
    }
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    let mut read = 0;
    while read < count {
        let wanted = optional.then_some(&mut levels);
        let (records, _, _) = reader
            .read_records(count - read, wanted, None, &mut values)
            .map_err(damaged)?;
        if records == 0 {
            return Err("is damaged: a row group has fewer rows than it says; fetch the file again".into());
        }
        read += records;
    }
    Ok(values)
}

/// The first of `names` that is a column of one of the types, not within a list.
fn column(metadata: &ParquetMetaData, names: &[&str], types: &[Type]) -> Option<usize> {
    let columns = metadata.file_metadata().schema_descr().columns();
    names.iter().find_map(|name| {
        columns.iter().position(|column| {
            column.path().string() == *name && types.contains(&column.physical_type()) && column.max_rep_level() == 0
        })
    })
}

/// The names that `datasets` keeps in the file.
fn class_names(metadata: &ParquetMetaData, column: &str) -> Option<Vec<String>> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    let text = pairs.iter().find(|pair| pair.key == "huggingface")?.value.as_deref()?;
    let json: Value = serde_json::from_str(text).ok()?;
    let names = json
        .get("info")?
        .get("features")?
        .get(column)?
        .get("names")?
        .as_array()?;
    names.iter().map(|name| Some(name.as_str()?.to_string())).collect()
}

fn damaged(error: ParquetError) -> String {
    match error {
        ParquetError::NYI(what) => format!("cannot be read: {what}; write it again with snappy or zstd compression"),
        ParquetError::General(what) if what.starts_with("Disabled feature") => {
            format!("cannot be read: {what}; write it again with snappy or zstd compression")
        }
        other => format!("is damaged or no Parquet file ({other}); fetch it again"),
    }
}

/// Files of unknown origin meet other people's code here: where that panics, the file is invalid.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err("is damaged: its reader gave up; fetch it again".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data;
    use std::fs;

    fn material(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
    }

    fn sizes(source: &dyn Source) -> Vec<Option<(usize, usize)>> {
        (0..source.len())
            .map(|index| source.load(index).ok().map(|image| (image.width, image.height)))
            .collect()
    }

    #[test]
    fn a_file_as_datasets_writes_it() {
        let source = data::open(material("hf.parquet")).unwrap();
        assert_eq!(
            sizes(&*source),
            [(20, 12), (21, 13), (22, 14), (23, 15), (24, 16)].map(Some)
        );
        assert_eq!(source.classes(), ["ape", "bee", "cat"]);
        assert_eq!(
            (0..5).map(|i| source.label(i).unwrap()).collect::<Vec<_>>(),
            [0, 1, 2, 0, 1]
        );
        assert_eq!(source.name(3), "hf.parquet: row 3");
        assert_eq!(source.summary(), "5 images in 1 Parquet files, 3 classes");
        assert!(source.load(5).is_err());
    }

    #[test]
    fn plain_columns_other_names_and_missing_images() {
        let source = data::open(material("plain.parquet")).unwrap();
        assert_eq!(
            sizes(&*source),
            [Some((20, 12)), None, Some((22, 14)), Some((23, 15)), Some((24, 16))]
        );
        assert_eq!(source.label(0), Some(7));
        assert_eq!(source.classes().len(), 8);
        assert!(source.load(1).unwrap_err().contains("missing in its row"));
    }

    #[test]
    fn folders_of_one_split() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["train-00001.parquet", "train-00000.parquet"] {
            fs::copy(material("hf.parquet"), dir.path().join(name)).unwrap();
        }
        let source = data::open(dir.path()).unwrap();
        assert_eq!(
            (source.len(), source.name(7)),
            (10, "train-00001.parquet: row 2".into())
        );
        fs::copy(material("hf.parquet"), dir.path().join("test-00000.parquet")).unwrap();
        let error = data::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("test, train"), "{error}");
        fs::remove_file(dir.path().join("train-00001.parquet")).unwrap();
        assert!(source.load(7).unwrap_err().contains("train-00001.parquet"));
    }

    #[test]
    fn damage_is_named() {
        let bytes = fs::read(material("hf.parquet")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        let error = data::open(&path).err().unwrap().to_string();
        assert!(error.contains("x.parquet: is damaged"), "{error}");
        // Damage in the pages is found when an image is read, and the others stay usable or are refused as well.
        for at in (4..bytes.len() - 600).step_by(97) {
            let mut changed = bytes.clone();
            changed[at] ^= 0xFF;
            fs::write(&path, changed).unwrap();
            if let Ok(source) = data::open(&path) {
                (0..source.len()).for_each(|index| drop(source.load(index)));
            }
        }
    }
}
