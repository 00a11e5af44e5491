//! A folder of JPEG and PNG files.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::paths::Paths;
use super::{Pixels, Source, Stored, decode};
use crate::{Error, Result};

/// Files above this size are not read: no photograph is so large.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 30;

/// All JPEG and PNG files below a folder, sorted by the bytes of their paths.
///
/// When every image lies in a subfolder, the first component of its path below the root is its class; when one lies in
/// the root itself, there are no classes. Symbolic links are followed. Files of other kinds, names that start with a
/// dot and broken links are ignored and counted.
pub struct Folder {
    root: PathBuf,
    /// The paths below the root.
    paths: Paths,
    /// The first image of each class, in order, and which class it is: the images of a class are neighbors.
    starts: Vec<(u32, u32)>,
    classes: Vec<String>,
    ignored: usize,
}

impl Folder {
    /// Lists a folder; no image is opened.
    ///
    /// # Errors
    /// [`Error::File`] when `root` is missing, no folder, unreadable, empty, or holds neither JPEG nor PNG.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let fail = |reason: String| {
            Err(Error::File {
                path: root.clone(),
                reason,
            })
        };
        match fs::metadata(&root) {
            Err(error) => return fail(format!("{error}; give a folder of JPEG or PNG images")),
            Ok(metadata) if !metadata.is_dir() => return fail("not a folder; give a folder of images".into()),
            Ok(_) => {}
        }
        let found = Found::below(&root)?;
        if found.starts.is_empty() {
            return match found.ignored {
                0 => fail("the folder is empty; put JPEG or PNG images into it".into()),
                others => fail(format!(
                    "no JPEG or PNG among {others} file{}; give a folder with .jpg, .jpeg or .png files",
                    if others == 1 { "" } else { "s" }
                )),
            };
        }
        let ignored = found.ignored;
        let paths = found.sorted();
        let (starts, classes) = classify(&paths);
        Ok(Self {
            root,
            paths,
            starts,
            classes,
            ignored,
        })
    }

    /// How many files and links below the folder were passed over because they are no JPEG or PNG.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// The path of image `index`, including the folder's own.
    pub fn path(&self, index: usize) -> PathBuf {
        self.root.join(bytes_path(&self.paths.name(index)))
    }
}

/// Paths as they are found, before they have an order.
#[derive(Default)]
struct Found {
    /// Each with its length in two bytes before it: millions of files need one allocation, not one each.
    paths: Vec<u8>,
    starts: Vec<u64>,
    ignored: usize,
}

impl Found {
    fn below(root: &Path) -> Result<Self> {
        let mut found = Self::default();
        let visible = |name: &OsStr| !name.as_encoded_bytes().starts_with(b".");
        let entries = WalkDir::new(root).follow_links(true).into_iter();
        let mut hidden = 0;
        for entry in
            entries.filter_entry(|entry| entry.depth() == 0 || visible(entry.file_name()) || count(&mut hidden))
        {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let path = error.path().unwrap_or(root).to_path_buf();
                    if path.is_symlink() {
                        found.ignored += 1;
                        continue;
                    }
                    let reason = error.io_error().map_or_else(|| error.to_string(), ToString::to_string);
                    return Err(Error::File {
                        path,
                        reason: format!("{reason}; make it readable or remove it"),
                    });
                }
            };
            if entry.file_type().is_dir() {
                continue;
            }
            let image = entry.file_type().is_file() && has_image_extension(entry.path());
            let relative = entry.path().strip_prefix(root).ok().and_then(path_bytes);
            match relative.map(|bytes| (bytes, u16::try_from(bytes.len()))) {
                Some((bytes, Ok(length))) if image => {
                    found.starts.push(found.paths.len() as u64);
                    found.paths.extend_from_slice(&length.to_le_bytes());
                    found.paths.extend_from_slice(bytes);
                }
                _ => found.ignored += 1,
            }
        }
        found.ignored += hidden;
        Ok(found)
    }

    /// In the order of their bytes.
    fn sorted(self) -> Paths {
        let Self { paths, mut starts, .. } = self;
        let path = |start: u64| {
            let start = start as usize;
            let length = usize::from(u16::from_le_bytes([paths[start], paths[start + 1]]));
            &paths[start + 2..start + 2 + length]
        };
        starts.sort_unstable_by(|&a, &b| path(a).cmp(path(b)));
        let mut sorted = Paths::default();
        starts.iter().for_each(|&start| sorted.push(path(start)));
        sorted.shrink();
        sorted
    }
}

/// Where each class begins and the classes' names; nothing if an image lies in no subfolder.
fn classify(paths: &Paths) -> (Vec<(u32, u32)>, Vec<String>) {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut starts = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        let Some(class) = first_component(&path) else {
            return (Vec::new(), Vec::new());
        };
        if names.last().is_none_or(|last| last != class) {
            names.push(class.to_vec());
            starts.push(index as u32);
        }
    }
    // The paths' order is not quite the names': "a-b/" comes before "a/", but "a" before "a-b".
    let mut order: Vec<_> = (0..names.len()).collect();
    order.sort_by(|&a, &b| names[a].cmp(&names[b]));
    let mut numbers = vec![0; names.len()];
    for (number, &at) in order.iter().enumerate() {
        numbers[at] = number as u32;
    }
    let classes = order
        .iter()
        .map(|&at| String::from_utf8_lossy(&names[at]).into_owned())
        .collect();
    (starts.into_iter().zip(numbers).collect(), classes)
}

impl Source for Folder {
    fn len(&self) -> usize {
        self.paths.len()
    }

    fn name(&self, index: usize) -> String {
        self.paths.text(index)
    }

    fn label(&self, index: usize) -> Option<u32> {
        if index >= self.len() {
            return None;
        }
        let after = self.starts.partition_point(|&(start, _)| start as usize <= index);
        self.starts.get(after.checked_sub(1)?).map(|&(_, class)| class)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, index: usize) -> Result<Pixels, String> {
        self.read(index)?.decode()
    }

    fn read(&self, index: usize) -> Result<Stored, String> {
        if index >= self.len() {
            return Err(format!("there is no image {index}"));
        }
        read_file(&self.path(index)).map(Stored::File)
    }

    fn summary(&self) -> String {
        let mut text = format!("{} images", self.len());
        if !self.classes.is_empty() {
            text += &format!(" in {} classes", self.classes.len());
        }
        if self.ignored > 0 {
            text += &format!(", {} other files ignored", self.ignored);
        }
        text
    }
}

/// Reads and decodes one JPEG or PNG file.
///
/// # Errors
/// The reason why it cannot be read or decoded.
pub fn read_image(path: &Path) -> Result<Pixels, String> {
    decode(&read_file(path)?)
}

/// The bytes of an image's file.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut file = File::open(path).map_err(text)?;
    let size = file.metadata().map_err(text)?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("{size} bytes are too large for an image"));
    }
    // One more, so that the end is seen without growing.
    let mut bytes = Vec::with_capacity(size as usize + 1);
    file.by_ref()
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(text)?;
    Ok(bytes)
}

/// Counts a hidden entry while refusing it.
fn count(ignored: &mut usize) -> bool {
    *ignored += 1;
    false
}

pub(super) fn has_image_extension(path: &Path) -> bool {
    let known = |extension: &OsStr| {
        ["jpg", "jpeg", "png"]
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    };
    path.extension().is_some_and(known)
}

fn first_component(relative: &[u8]) -> Option<&[u8]> {
    let end = relative
        .iter()
        .position(|&byte| byte == b'/' || (cfg!(windows) && byte == b'\\'))?;
    relative.get(..end)
}

#[cfg(unix)]
fn path_bytes(path: &Path) -> Option<&[u8]> {
    Some(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
}

#[cfg(unix)]
pub(super) fn bytes_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes))
}

/// Elsewhere than on Unix, names that are not Unicode are ignored (and counted).
#[cfg(not(unix))]
fn path_bytes(path: &Path) -> Option<&[u8]> {
    path.to_str().map(str::as_bytes)
}

#[cfg(not(unix))]
pub(super) fn bytes_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_image(path: &Path, value: u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::GrayImage::from_pixel(3, 2, image::Luma([value]))
            .save_with_format(path, image::ImageFormat::Png)
            .unwrap();
    }

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (value, file) in files.iter().enumerate() {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if has_image_extension(&path) {
                write_image(&path, value as u8)
            } else {
                fs::write(path, "text").unwrap()
            }
        }
        dir
    }

    fn names(folder: &Folder) -> Vec<String> {
        (0..folder.len()).map(|index| folder.name(index)).collect()
    }

    #[test]
    fn subfolders_are_classes() {
        let dir = folder(&[
            "b/2.PNG",
            "a-b/x.jpg",
            "b/deep/1.jpeg",
            "a/9.png",
            "a/notes.txt",
            "read.me",
        ]);
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(names(&folder), ["a-b/x.jpg", "a/9.png", "b/2.PNG", "b/deep/1.jpeg"]);
        assert_eq!(folder.classes(), ["a", "a-b", "b"]);
        assert_eq!(
            (0..4).map(|i| folder.label(i).unwrap()).collect::<Vec<_>>(),
            [1, 0, 2, 2]
        );
        assert_eq!(folder.ignored(), 2);
        assert_eq!(folder.summary(), "4 images in 3 classes, 2 other files ignored");
        assert_eq!(folder.load(0).unwrap().data, [1; 6], "a PNG called .jpg");
    }

    #[test]
    fn a_flat_or_mixed_folder_has_no_classes() {
        for files in [&["2.png", "10.png"][..], &["1.png", "a/2.png"]] {
            let dir = folder(files);
            let folder = Folder::open(dir.path()).unwrap();
            assert_eq!((folder.len(), folder.classes().len(), folder.label(0)), (2, 0, None));
        }
    }

    #[test]
    fn hidden_files_are_ignored_but_not_a_hidden_root() {
        let dir = folder(&[".hidden/._1.png", ".hidden/1.png", ".hidden/.cache/2.png"]);
        let folder = Folder::open(dir.path().join(".hidden")).unwrap();
        assert_eq!((names(&folder), folder.ignored()), (vec!["1.png".to_string()], 2));
    }

    #[test]
    fn folders_without_images_say_so() {
        let fails = |path: &Path| Folder::open(path).err().unwrap().to_string();
        let dir = tempfile::tempdir().unwrap();
        assert!(fails(dir.path()).contains("the folder is empty"));
        let missing = fails(&dir.path().join("missing"));
        assert!(
            missing.contains("missing: ") && missing.contains("give a folder"),
            "{missing}"
        );
        for number in 0..5 {
            fs::write(dir.path().join(format!("{number}.txt")), "text").unwrap();
        }
        assert!(fails(dir.path()).contains("no JPEG or PNG among 5 files"));
        assert!(fails(&dir.path().join("1.txt")).contains("not a folder"));
    }

    #[test]
    fn unreadable_images_have_a_reason() {
        let dir = folder(&["1.png", "2.png", "3.png"]);
        fs::write(dir.path().join("2.png"), "").unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert!(folder.load(0).is_ok());
        assert!(folder.load(1).unwrap_err().contains("empty"));
        fs::remove_file(dir.path().join("3.png")).unwrap();
        assert!(folder.load(2).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_odd_names_open() {
        use std::os::unix::ffi::OsStrExt;
        let dir = folder(&["a/1.png"]);
        std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("a/broken.png")).unwrap();
        write_image(&dir.path().join("a").join(OsStr::from_bytes(b"\xFF.png")), 9);
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.len(), 4);
        assert_eq!(folder.classes(), ["a", "b"]);
        assert!((0..4).all(|index| folder.load(index).is_ok()));
    }
}
