//! Files written whole or not at all: a killed process leaves the old file or the new one.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// How the names of temporary files begin.
const PREFIX: &str = ".writing-";

/// Writes `bytes` to `path` through a temporary file in the same folder, flushed to disk and then renamed.
///
/// # Errors
/// A folder that does not exist or cannot be written, or a full disk; `path` is then as it was before.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// As [`write()`], of what `fill` writes into the file.
///
/// # Errors
/// As [`write()`], and those of `fill`.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>) -> Result<()> {
    let fail = |e: std::io::Error| Error::File {
        path: path.to_path_buf(),
        reason: format!("cannot be written: {e}"),
    };
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX);
    // A temporary file is private by default; about this one the umask decides, as about any other new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(&folder).map_err(fail)?;
    fill(file.as_file_mut()).map_err(fail)?;
    file.as_file().sync_all().map_err(fail)?;
    file.persist(path).map_err(|e| fail(e.error))?;
    sync_folder(&folder).map_err(fail)
}

/// The rename itself reaches the disk with its folder. Some file systems cannot be asked for that.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    use std::io::ErrorKind;
    match std::fs::File::open(folder).and_then(|handle| handle.sync_all()) {
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        done => done,
    }
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// Whether a file of this name is one that [`write()`] was not to finish.
pub fn is_leftover(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with(PREFIX)
}

/// Removes the temporary files that a killed process left in `folder`.
///
/// # Errors
/// A folder that cannot be read or a file that cannot be removed.
pub fn sweep(folder: &Path) -> Result<()> {
    let fail = |e: std::io::Error| Error::File {
        path: folder.to_path_buf(),
        reason: format!("a leftover of an earlier run cannot be removed: {e}"),
    };
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if is_leftover(&entry.file_name()) {
            std::fs::remove_file(entry.path()).map_err(fail)?;
        }
    }
    Ok(())
}

/// Checks that the folder `path` would be written to is there.
///
/// # Errors
/// No such folder.
pub fn require_folder(path: &Path) -> Result<()> {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() && !p.is_dir() => Err(Error::Usage(format!(
            "{}: the folder {} does not exist; create it first",
            path.display(),
            p.display()
        ))),
        _ => Ok(()),
    }
}
