//! A text file that lists images.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::folder::{bytes_path, has_image_extension, read_file};
use super::paths::Paths;
use super::{Pixels, Source, Stored};
use crate::{Error, Result};

/// Images named by a text file, one a line, in its order.
///
/// A path is relative to the folder of the list. A class may follow it: behind a tab, or, where there is none, as the last word
/// if that is not itself an image's name (`some folder/cat 1.jpg 3`: class 3). Either every line has a class or none. Classes are
/// sorted, by value where all are whole numbers. Empty lines and lines that begin with `#` are passed over.
pub struct List {
    folder: PathBuf,
    paths: Paths,
    labels: Vec<u32>,
    classes: Vec<String>,
}

impl List {
    /// Reads a list; no image is opened.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read, names no image, or only some of its lines have a class.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let fail = |reason: String| Error::File {
            path: path.to_path_buf(),
            reason,
        };
        let file = File::open(path).map_err(|error| fail(format!("{error}; give a list of images")))?;
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Self::parse(BufReader::new(file), folder).map_err(fail)
    }

    pub(super) fn parse(mut text: impl BufRead, folder: PathBuf) -> Result<Self, String> {
        let mut paths = Paths::default();
        let mut numbers = BTreeMap::new();
        let mut labels = Vec::new();
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if text.read_until(b'\n', &mut line).map_err(|error| error.to_string())? == 0 {
                break;
            }
            let Some((name, class)) = entry(&line) else { continue };
            if name.is_empty() || name.contains(&0) {
                return Err(format!("line {number} begins with no path; give one image a line"));
            }
            if paths.len() > 0 && class.is_some() == labels.is_empty() {
                let (has, others) = if class.is_some() { ("a", "none") } else { ("no", "one") };
                return Err(format!(
                    "line {number} has {has} class and the lines before it have {others}; give every line a class or none"
                ));
            }
            if let Some(class) = class {
                let next = numbers.len() as u32;
                labels.push(*numbers.entry(class.to_vec()).or_insert(next));
            }
            paths.push(name);
        }
        if paths.len() == 0 {
            return Err("there is no image in it; give one path a line".into());
        }
        paths.shrink();
        labels.shrink_to_fit();
        let mut classes: Vec<_> = numbers
            .into_iter()
            .map(|(class, number)| (String::from_utf8_lossy(&class).into_owned(), number))
            .collect();
        if let Some(values) = whole_numbers(&classes) {
            let mut order: Vec<_> = values.into_iter().zip(classes).collect();
            order.sort();
            classes = order.into_iter().map(|(_, class)| class).collect();
        }
        let mut places = vec![0; classes.len()];
        for (place, &(_, number)) in classes.iter().enumerate() {
            places[number as usize] = place as u32;
        }
        labels.iter_mut().for_each(|label| *label = places[*label as usize]);
        Ok(Self {
            folder,
            paths,
            labels,
            classes: classes.into_iter().map(|(class, _)| class).collect(),
        })
    }

    /// Whether a file that begins like this can be a list: text whose first line names an image.
    pub(super) fn recognizes(head: &[u8]) -> bool {
        let text = !head.iter().any(|&byte| byte < b' ' && !b"\t\r\n".contains(&byte));
        let first = head.split(|&byte| byte == b'\n').find_map(entry);
        text && first.is_some_and(|(path, _)| has_image_extension(&bytes_path(path)))
    }

    fn path(&self, index: usize) -> PathBuf {
        self.folder.join(bytes_path(&self.paths.name(index)))
    }
}

impl Source for List {
    fn len(&self) -> usize {
        self.paths.len()
    }

    fn name(&self, index: usize) -> String {
        self.paths.text(index)
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
        read_file(&self.path(index)).map(Stored::File)
    }
}

/// A line's path and class; `None` for a line that says nothing.
fn entry(line: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let line = line.trim_ascii();
    (!line.is_empty() && !line.starts_with(b"#")).then(|| split(line))
}

fn split(line: &[u8]) -> (&[u8], Option<&[u8]>) {
    if let Some(tab) = line.iter().position(|&byte| byte == b'\t') {
        let (path, class) = line.split_at(tab);
        return (
            path.trim_ascii_end(),
            Some(class.trim_ascii()).filter(|class| !class.is_empty()),
        );
    }
    match line.iter().rposition(|&byte| byte == b' ') {
        Some(space) if !has_image_extension(&bytes_path(&line[space + 1..])) => {
            (line[..space].trim_ascii_end(), Some(&line[space + 1..]))
        }
        _ => (line, None),
    }
}

fn whole_numbers(classes: &[(String, u32)]) -> Option<Vec<u64>> {
    classes.iter().map(|(class, _)| class.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn parse(text: &str) -> Result<List, String> {
        List::parse(text.as_bytes(), PathBuf::from("/data"))
    }

    fn classes(list: &List) -> Vec<String> {
        (0..list.len())
            .map(|index| {
                list.label(index)
                    .map_or(String::new(), |label| list.classes()[label as usize].clone())
            })
            .collect()
    }

    #[test]
    fn lines_are_paths_with_or_without_classes() {
        let list = parse("# mine\nb/2.jpg\n\n a 1.PNG \r\n/else/3.jpeg").unwrap();
        assert_eq!(list.len(), 3);
        assert_eq!(
            (0..3).map(|i| list.name(i)).collect::<Vec<_>>(),
            ["b/2.jpg", "a 1.PNG", "/else/3.jpeg"]
        );
        assert_eq!(list.path(0), Path::new("/data/b/2.jpg"));
        assert_eq!(list.path(2), Path::new("/else/3.jpeg"));
        assert!(list.classes().is_empty() && list.label(0).is_none());

        let list = parse("x 1.jpg 10\ny.jpg 9\nz.jpg   10\n").unwrap();
        assert_eq!(list.classes(), ["9", "10"]);
        assert_eq!(
            (list.name(0), classes(&list)),
            ("x 1.jpg".into(), vec!["10".into(), "9".into(), "10".into()])
        );

        let list = parse("x.jpg\tblue tit\ny.jpg\tape").unwrap();
        assert_eq!(list.classes(), ["ape", "blue tit"]);
        assert_eq!(classes(&list), ["blue tit", "ape"]);
    }

    #[test]
    fn odd_lists_are_refused_with_the_line() {
        let fails = |text: &str| parse(text).err().unwrap();
        assert!(fails("").contains("no image"));
        assert!(fails("a.jpg 1\n\nb.jpg").contains("line 3 has no class"));
        assert!(fails("a.jpg\nb.jpg\t1").contains("line 2 has a class"));
        assert!(fails("a.jpg\tx\n\0").contains("line 2 begins with no path"));
        assert!(fails("a\0.jpg").contains("line 1"));
    }

    #[test]
    fn lists_are_told_from_other_text() {
        assert!(List::recognizes(b"# list\nimages/a.jpg 3\n"));
        assert!(!List::recognizes(b"some text\n"));
        assert!(!List::recognizes(b"\0\0\x08\x03 a.jpg"));
        assert!(!List::recognizes(b""));
    }

    #[test]
    fn images_are_found_beside_the_list() {
        let dir = tempfile::tempdir().unwrap();
        image::GrayImage::from_pixel(3, 2, image::Luma([9]))
            .save(dir.path().join("a.png"))
            .unwrap();
        fs::write(dir.path().join("list.txt"), "a.png\nmissing.png").unwrap();
        let list = crate::data::open(dir.path().join("list.txt")).unwrap();
        assert_eq!(list.load(0).unwrap().data, [9; 6]);
        assert!(list.load(1).is_err() && list.load(2).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::sample::select(b"a.jpg\t \n#\0\xFF1".to_vec()), 0..200)) {
            let _ = List::recognizes(&bytes);
            if let Ok(list) = List::parse(bytes.as_slice(), PathBuf::new()) {
                for index in 0..list.len() {
                    let label = list.label(index);
                    proptest::prop_assert!(label.is_none_or(|label| (label as usize) < list.classes().len()));
                    proptest::prop_assert!(!list.name(index).is_empty());
                }
            }
        }
    }
}
