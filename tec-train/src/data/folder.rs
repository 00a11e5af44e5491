//! A folder of JPEG and PNG files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::{Pixels, Source, decode};
use crate::{Error, Result};

/// Files above this size are not read: no photograph is so large.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// All JPEG and PNG files below a folder, sorted by the bytes of their paths.
///
/// When every image lies in a subfolder, the first component of its path below the root is its class; when one lies in
/// the root itself, there are no classes. Symbolic links are followed. Files of other kinds, names that start with a
/// dot and broken links are ignored and counted.
pub struct Folder {
    root: PathBuf,
    /// The paths below the root, joined: millions of files need one allocation, not one each.
    paths: Vec<u8>,
    /// Where each image's path lies in `paths`, in order.
    spans: Vec<Range<usize>>,
    /// A class for each image, or empty.
    labels: Vec<u32>,
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
        let mut folder = Self {
            root: root.clone(),
            paths: Vec::new(),
            spans: Vec::new(),
            labels: Vec::new(),
            classes: Vec::new(),
            ignored: 0,
        };
        folder.walk()?;
        match (folder.spans.is_empty(), folder.ignored) {
            (true, 0) => fail("the folder is empty; put JPEG or PNG images into it".into()),
            (true, others) => fail(format!(
                "no JPEG or PNG among {others} file{}; give a folder with .jpg, .jpeg or .png files",
                if others == 1 { "" } else { "s" }
            )),
            (false, _) => {
                let Self { paths, spans, .. } = &mut folder;
                spans.sort_unstable_by(|a, b| paths[a.clone()].cmp(&paths[b.clone()]));
                folder.classify();
                Ok(folder)
            }
        }
    }

    /// How many files and links below the folder were passed over because they are no JPEG or PNG.
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// The path of image `index`, including the folder's own.
    pub fn path(&self, index: usize) -> PathBuf {
        self.root.join(bytes_path(self.relative(index)))
    }

    fn relative(&self, index: usize) -> &[u8] {
        &self.paths[self.spans[index].clone()]
    }

    fn walk(&mut self) -> Result<()> {
        let visible = |name: &OsStr| !name.as_encoded_bytes().starts_with(b".");
        let entries = WalkDir::new(&self.root).follow_links(true).into_iter();
        let mut ignored = 0;
        for entry in
            entries.filter_entry(|entry| entry.depth() == 0 || visible(entry.file_name()) || count(&mut ignored))
        {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let path = error.path().unwrap_or(&self.root).to_path_buf();
                    if path.is_symlink() {
                        self.ignored += 1;
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
            let relative = entry.path().strip_prefix(&self.root).ok().and_then(path_bytes);
            match relative {
                Some(bytes) if entry.file_type().is_file() && has_image_extension(entry.path()) => {
                    let start = self.paths.len();
                    self.paths.extend_from_slice(bytes);
                    self.spans.push(start..self.paths.len());
                }
                _ => self.ignored += 1,
            }
        }
        self.ignored += ignored;
        Ok(())
    }

    fn classify(&mut self) {
        let mut numbers = BTreeMap::new();
        for index in 0..self.spans.len() {
            match first_component(self.relative(index)) {
                Some(class) => numbers.entry(class.to_vec()).or_insert(0),
                None => return,
            };
        }
        for (number, entry) in numbers.values_mut().enumerate() {
            *entry = number as u32;
        }
        self.labels = (0..self.spans.len())
            .filter_map(|index| first_component(self.relative(index)).and_then(|class| numbers.get(class).copied()))
            .collect();
        self.classes = numbers
            .keys()
            .map(|class| String::from_utf8_lossy(class).into_owned())
            .collect();
    }
}

impl Source for Folder {
    fn len(&self) -> usize {
        self.spans.len()
    }

    fn name(&self, index: usize) -> String {
        String::from_utf8_lossy(self.relative(index)).into_owned()
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, index: usize) -> Result<Pixels, String> {
        read_image(&self.path(index))
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
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("{size} bytes are too large for an image"));
    }
    decode(&fs::read(path).map_err(|error| error.to_string())?)
}

/// Counts a hidden entry while refusing it.
fn count(ignored: &mut usize) -> bool {
    *ignored += 1;
    false
}

fn has_image_extension(path: &Path) -> bool {
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
fn bytes_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes))
}

/// Elsewhere than on Unix, names that are not Unicode are ignored (and counted).
#[cfg(not(unix))]
fn path_bytes(path: &Path) -> Option<&[u8]> {
    path.to_str().map(str::as_bytes)
}

#[cfg(not(unix))]
fn bytes_path(bytes: &[u8]) -> PathBuf {
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
