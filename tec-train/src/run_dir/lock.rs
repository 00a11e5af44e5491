//! One process at a time trains in a run directory.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::Path,
};

use crate::{Error, Result};

/// The file that is locked. It stays where it is: removing it would let a third process in beside one that has it open.
pub(super) const NAME: &str = "lock";

/// A run directory that no other process trains in while this value lives.
///
/// The operating system holds the lock, so it ends with the process, however that ends: a file that a killed run left behind
/// locks nobody out.
#[derive(Debug)]
pub struct RunLock {
    /// Open for as long as the lock is held.
    _file: File,
    doubt: Option<String>,
}

impl RunLock {
    /// Locks the run directory `root`, which must exist.
    ///
    /// # Errors
    /// [`Error::File`] when another process holds the lock, or the directory cannot be written.
    pub fn acquire(root: &Path) -> Result<Self> {
        let path = root.join(NAME);
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        let file = opened.map_err(|e| Error::File {
            path,
            reason: format!("cannot be written: {e}"),
        })?;
        let doubt = match file.try_lock() {
            Ok(()) => None,
            Err(TryLockError::WouldBlock) => {
                return Err(Error::File {
                    path: root.to_path_buf(),
                    reason: "another process is training in this run directory; wait until it has ended or stop it, or choose \
                             another --out"
                        .into(),
                });
            }
            // Some network file systems have no locks. Runs are to be possible there too.
            Err(TryLockError::Error(e)) => Some(format!(
                "{}: this file system does not lock files ({e}); make sure that no other process trains in this directory",
                root.display()
            )),
        };
        Ok(Self { _file: file, doubt })
    }

    /// Why the lock keeps nobody out, where the file system has no locks.
    pub fn doubt(&self) -> Option<&str> {
        self.doubt.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Existing, RunDir};
    use super::*;
    use crate::recipe::RecipeBuilder;

    #[test]
    fn a_directory_is_one_runs_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("run");
        let recipe = RecipeBuilder::new().build().unwrap();
        let create = |existing| RunDir::create(&root, &recipe, existing);
        let (run, lock) = create(Existing::Refuse).unwrap();
        assert_eq!(lock.doubt(), None);
        std::fs::write(run.metrics_path(), "kept").unwrap();
        let refused = |result: Result<()>| {
            let said = result.unwrap_err().to_string();
            assert!(
                said.contains("run: another process") && said.contains("--out"),
                "{said}"
            );
        };
        refused(RunLock::acquire(&root).map(drop));
        // The run that is under way is not removed.
        refused(create(Existing::Overwrite).map(drop));
        assert!(run.metrics_path().is_file());
        drop(lock);
        let lock = RunLock::acquire(&root).unwrap();
        refused(create(Existing::Overwrite).map(drop));
        drop(lock);
        // What a new run removes is everything but the file that it holds.
        let (run, lock) = create(Existing::Overwrite).unwrap();
        assert!(!run.metrics_path().exists() && run.checkpoints().is_dir());
        refused(RunLock::acquire(&root).map(drop));
        run.discard_unless_begun().unwrap();
        assert!(!root.exists());
        drop(lock);
    }

    /// Another process has made the directory and nothing in it yet.
    #[test]
    fn a_run_that_is_being_made_is_locked_too() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = RecipeBuilder::new().build().unwrap();
        let lock = RunLock::acquire(folder.path()).unwrap();
        assert!(RunDir::create(folder.path(), &recipe, Existing::Refuse).is_err());
        assert!(!folder.path().join("recipe.toml").exists());
        // Killed then, it leaves no obstacle.
        drop(lock);
        RunDir::create(folder.path(), &recipe, Existing::Refuse).unwrap();
    }
}
