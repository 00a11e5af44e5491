//! Image files named one by one.

use std::path::PathBuf;

use super::folder::read_file;
use super::{Pixels, Source, Stored};

/// Single image files in a given order, without classes.
pub struct Files(Vec<PathBuf>);

impl Files {
    /// The files; none is opened yet.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self(paths)
    }
}

impl Source for Files {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn name(&self, index: usize) -> String {
        self.0.get(index).map(|p| p.display().to_string()).unwrap_or_default()
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn load(&self, index: usize) -> Result<Pixels, String> {
        self.read(index)?.decode()
    }

    fn read(&self, index: usize) -> Result<Stored, String> {
        let path = self.0.get(index).ok_or_else(|| format!("there is no image {index}"))?;
        read_file(path).map(Stored::File)
    }
}
