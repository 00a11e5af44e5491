//! The archive around the pickle.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};
use zip::result::ZipError;

use crate::error::{Error, Refused, Result, damaged, too_large};
use crate::pickle::{self, MAX_BYTES};
use crate::tensors::TensorInfo;

/// The number that legacy files begin with, as their pickle writes it.
const LEGACY_MAGIC: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// An open checkpoint: its tensors by name, read one at a time.
#[derive(Debug)]
pub struct TensorFile<R = BufReader<File>> {
    archive: ZipArchive<R>,
    /// The folder inside the archive, with its slash.
    folder: String,
    tensors: BTreeMap<String, TensorInfo>,
    /// The last storage of which a part was read: views of one storage come one after the other.
    shared: Option<(String, Vec<u8>)>,
}

impl TensorFile {
    /// Opens a file and reads its pickle, not its tensors.
    ///
    /// # Errors
    /// A file that cannot be read, is none of PyTorch's, or of a kind that is refused.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(BufReader::new(File::open(path)?))
    }
}

impl<R: Read + Seek> TensorFile<R> {
    /// As [`TensorFile::open`], from anything that can be read.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn new(mut reader: R) -> Result<Self> {
        let mut start = Vec::new();
        reader.by_ref().take(512).read_to_end(&mut start)?;
        reader.rewind()?;
        if !start.starts_with(b"PK") {
            return Err(not_zip(&start));
        }
        // PyTorch puts nothing before the archive, and looking for something fails on some of its files (zip 9.5).
        let config = Config {
            archive_offset: ArchiveOffset::Known(0),
        };
        let mut archive = ZipArchive::with_config(config, reader).map_err(|error| broken(&error))?;
        let names: Vec<String> = archive
            .file_names()
            .filter_map(|name| name.ok().map(|name| name.into_owned()))
            .collect();
        let mut pickles = names.iter().filter_map(|name| {
            let folder = name.strip_suffix("data.pkl")?;
            (folder.is_empty() || folder.ends_with('/')).then_some(folder)
        });
        let Some(folder) = pickles.next() else {
            return Err(Error::Foreign("it is a zip archive without a `data.pkl`".into()));
        };
        let folder = folder.to_string();
        let compiled = names.iter().filter_map(|name| name.strip_prefix(&folder));
        if compiled
            .into_iter()
            .any(|name| name == "constants.pkl" || name.starts_with("code/"))
        {
            return Err(Error::Refused(Refused::TorchScript));
        }
        let mut part = |name: &str, limit: usize| content(&mut archive, &format!("{folder}{name}"), limit);
        if names.iter().any(|name| name.strip_prefix(&folder) == Some("byteorder"))
            && part("byteorder", 64)?.as_slice() != b"little"
        {
            return Err(Error::Refused(Refused::BigEndian));
        }
        let tensors = pickle::parse(&part("data.pkl", MAX_BYTES)?)?.tensors()?;
        Ok(Self {
            archive,
            folder,
            tensors,
            shared: None,
        })
    }

    /// Every tensor by its path, such as `model.blocks.0.norm1.weight`; numbers that are no floats too.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The values of a tensor of floats, as f32, in the order of its shape.
    ///
    /// # Errors
    /// No such tensor, one of other numbers, or a storage that is shorter than the tensor needs.
    pub fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let Some(info) = self.tensors.get(name) else {
            return damaged(format!("it has no tensor `{name}`"));
        };
        if !info.dtype.is_float() {
            return damaged(format!("`{name}` holds no floats"));
        }
        let (info, count, size) = (info.clone(), info.count(), info.dtype.size());
        if count == 0 {
            return Ok(Vec::new());
        }
        let short = || Error::Damaged(format!("the storage of `{name}` is shorter than it says"));
        // A typed view of bytes has its length in bytes.
        let limit = info.storage_len.checked_mul(size).ok_or_else(short)?;
        let entry = format!("{}data/{}", self.folder, info.storage);
        let whole = info.is_contiguous() && info.offset == 0 && count == info.storage_len;
        if whole {
            let bytes = content(&mut self.archive, &entry, limit)?;
            return match bytes.len() == limit {
                true => Ok(info.dtype.to_f32(&bytes)),
                false => Err(short()),
            };
        }
        if self.shared.as_ref().is_none_or(|(key, _)| *key != info.storage) {
            self.shared = None;
            let bytes = content(&mut self.archive, &entry, limit)?;
            self.shared = Some((info.storage.clone(), bytes));
        }
        let bytes = self.shared.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        if info.is_contiguous() {
            let range = info.offset * size..(info.offset + count) * size;
            return Ok(info.dtype.to_f32(bytes.get(range).ok_or_else(short)?));
        }
        let storage = info.dtype.to_f32(bytes);
        gather(&storage, &info).ok_or_else(short)
    }
}

/// The values of a view, in the order of its shape.
fn gather(storage: &[f32], info: &TensorInfo) -> Option<Vec<f32>> {
    let mut values = Vec::with_capacity(info.count());
    let mut index = vec![0usize; info.shape.len()];
    let mut at = info.offset;
    loop {
        values.push(*storage.get(at)?);
        // Count up, the last axis first.
        let mut axis = index.len();
        loop {
            let Some(before) = axis.checked_sub(1) else {
                return Some(values);
            };
            axis = before;
            let (position, size, stride) = (index.get_mut(axis)?, *info.shape.get(axis)?, *info.stride.get(axis)?);
            *position += 1;
            at += stride;
            if *position < size {
                break;
            }
            at -= *position * stride;
            *position = 0;
        }
    }
}

/// A file of the archive, whole, its checksum compared; `limit` bytes at most.
fn content<R: Read + Seek>(archive: &mut ZipArchive<R>, name: &str, limit: usize) -> Result<Vec<u8>> {
    let file = archive.by_name(name).map_err(|error| match error {
        ZipError::FileNotFound => Error::Damaged(format!("it has no `{name}`")),
        other => broken(&other),
    })?;
    if file.size() > limit as u64 {
        return too_large(format!(
            "`{name}` has {} bytes, at most {limit} were expected",
            file.size()
        ));
    }
    // Grows with what is there: what the archive says about sizes is not to be trusted.
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::Damaged(format!("`{name}`: {error}")))?;
    Ok(bytes)
}

fn broken(error: &ZipError) -> Error {
    match error {
        ZipError::UnsupportedArchive(reason) => {
            Error::Foreign(format!("its zip archive is of another kind ({reason})"))
        }
        other => Error::Damaged(format!("its zip archive cannot be read ({other})")),
    }
}

/// What a file is that is no zip archive.
fn not_zip(start: &[u8]) -> Error {
    let tar = start.get(257..262) == Some(b"ustar");
    let pickle = start.first() == Some(&0x80) && start.get(1).is_some_and(|&protocol| (2..=5).contains(&protocol));
    if start.windows(LEGACY_MAGIC.len()).any(|window| window == LEGACY_MAGIC) || tar || pickle {
        return Error::Refused(Refused::Legacy);
    }
    let seems = if start.is_empty() {
        "it is empty"
    } else if start.starts_with(b"version https://git-lfs") {
        "it is a pointer of Git LFS, not the file itself; run `git lfs pull`"
    } else if start.trim_ascii_start().starts_with(b"<") {
        "it is a web page; the download did not give the file"
    } else {
        "its first bytes are not those of such a file"
    };
    Error::Foreign(seems.into())
}
