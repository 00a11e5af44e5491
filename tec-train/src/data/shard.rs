//! Files that hold many images: finding them, reading a part of one.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A pattern may name this many files.
const MAX_SHARDS: usize = 1_000_000;

/// Reads `len` bytes from `offset` on. The file is opened for each: thousands of shards would need more handles than there are.
pub(super) fn read_at(path: &Path, offset: u64, len: usize) -> Result<Vec<u8>, String> {
    let fail = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = File::open(path).map_err(fail)?;
    file.seek(SeekFrom::Start(offset)).map_err(fail)?;
    let mut bytes = Vec::with_capacity(len);
    file.take(len as u64).read_to_end(&mut bytes).map_err(fail)?;
    match bytes.len() == len {
        true => Ok(bytes),
        false => Err(format!("{}: the file has become shorter; restore it", path.display())),
    }
}

/// The first bytes of a file, up to `len`.
pub(super) fn head(path: &Path, len: u64) -> Result<Vec<u8>> {
    let read = || {
        let mut head = Vec::new();
        File::open(path)?.take(len).read_to_end(&mut head)?;
        Ok(head)
    };
    read().map_err(|error: std::io::Error| Error::File {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })
}

/// The visible files directly in a folder whose names end in `.extension`, sorted by name.
pub(super) fn files_in(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let fail = |error: std::io::Error| Error::File {
        path: folder.to_path_buf(),
        reason: error.to_string(),
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let right = path
            .extension()
            .is_some_and(|found| found.eq_ignore_ascii_case(extension));
        if right && !hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The files that a pattern such as `shard-{000..012}.tar` names, in order; `None` where it has no range in braces.
///
/// # Errors
/// [`Error::Usage`] for an endless range, [`Error::File`] naming the first file that is missing.
pub(super) fn expand(pattern: &Path) -> Result<Option<Vec<PathBuf>>> {
    let Some(text) = pattern.to_str().filter(|text| range(text).is_some()) else {
        return Ok(None);
    };
    let mut names = vec![text.to_string()];
    while let Some((_, first, last, _, _)) = names.first().and_then(|name| range(name)) {
        let (count, known) = (last.abs_diff(first).saturating_add(1), names.len() as u64);
        if count.saturating_mul(known) > MAX_SHARDS as u64 {
            return Err(Error::Usage(format!(
                "{text}: more than {MAX_SHARDS} files; give a shorter range"
            )));
        }
        names = names
            .iter()
            .filter_map(|name| range(name))
            .flat_map(|(before, first, last, width, after)| {
                let numbers: Vec<u64> = if first <= last {
                    (first..=last).collect()
                } else {
                    (last..=first).rev().collect()
                };
                let (before, after) = (before.to_string(), after.to_string());
                numbers
                    .into_iter()
                    .map(move |number| format!("{before}{number:0width$}{after}"))
            })
            .collect();
    }
    let files: Vec<_> = names.into_iter().map(PathBuf::from).collect();
    let missing = files.iter().filter(|file| !file.is_file()).count();
    match files.iter().find(|file| !file.is_file()) {
        Some(file) => Err(Error::File {
            path: file.clone(),
            reason: format!(
                "no such file; of the {} that the pattern names, {missing} are missing",
                files.len()
            ),
        }),
        None => Ok(Some(files)),
    }
}

/// What comes before the first `{first..last}`, the two numbers, how many digits they are written with, what comes after.
fn range(text: &str) -> Option<(&str, u64, u64, usize, &str)> {
    let (before, rest) = text.split_once('{')?;
    let (inside, after) = rest.split_once('}')?;
    let (first, last) = inside.split_once("..")?;
    let width = if first.len() == last.len() || first.starts_with('0') {
        first.len()
    } else {
        0
    };
    Some((before, first.parse().ok()?, last.parse().ok()?, width, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_expand_like_a_shells() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a-08.tar", "a-09.tar", "a-10.tar", "b-9.tar", "b-10.tar"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let expand = |pattern: &str| expand(&dir.path().join(pattern));
        let names = |pattern: &str| -> Vec<String> {
            let files = expand(pattern).unwrap().unwrap();
            files
                .iter()
                .map(|file| file.file_name().unwrap().to_str().unwrap().into())
                .collect()
        };
        assert_eq!(names("a-{08..10}.tar"), ["a-08.tar", "a-09.tar", "a-10.tar"]);
        assert_eq!(names("a-{0..0}{9..8}.tar"), ["a-09.tar", "a-08.tar"]);
        assert_eq!(names("b-{9..10}.tar"), ["b-9.tar", "b-10.tar"]);
        assert!(expand("a-08.tar").unwrap().is_none() && expand("{a,b}.tar").unwrap().is_none());
        let error = expand("a-{08..12}.tar").err().unwrap().to_string();
        assert!(
            error.contains("a-11.tar") && error.contains("of the 5 that the pattern names, 2 are missing"),
            "{error}"
        );
        assert!(expand("a-{0..99999999999}.tar").is_err());
    }

    #[test]
    fn parts_are_read_and_the_end_is_noticed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "0123456789").unwrap();
        assert_eq!(read_at(file.path(), 3, 4).unwrap(), b"3456");
        assert!(read_at(file.path(), 8, 4).unwrap_err().contains("shorter"));
        assert_eq!(head(file.path(), 3).unwrap(), b"012");
    }
}
