//! Groups of checks: one for each kind of vector file, and one whose inputs are made here.

mod adapters;
mod bits;
mod encoder;
mod functions;
mod integer;
mod masking;
mod positions;
mod relation;
mod session;

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::goldens::{self, Goldens};
use crate::provider::Provider;
use crate::record::Row;

pub(crate) use session::Session;

/// Error that f32 values may have beside golden ones computed in f64.
pub const VALUES: f64 = 1e-5;
/// As [`VALUES`], for gradients.
pub const GRADIENTS: f64 = 1e-4;

/// What a group does.
type Check = fn(&mut Session<'_>) -> Result<()>;

/// Some vectors and the checks that go with them.
#[derive(Clone)]
pub struct Group {
    name: String,
    goldens: Option<Arc<Goldens>>,
    check: Check,
}

impl Group {
    /// Its name in reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is about the integer encoder.
    pub fn is_integer(&self) -> bool {
        self.name.starts_with("integer ") || self.name.starts_with("encoder_")
    }

    /// Whether the inputs are made here, so that there is nothing to compare with but a reference.
    pub fn needs_reference(&self) -> bool {
        self.goldens.is_none()
    }

    /// Checks a provider. With a `reference`, whatever is computed in f32 must also have the reference's bits.
    pub fn check<'p>(&self, provider: &'p mut dyn Provider, reference: Option<&'p mut dyn Provider>) -> Row {
        let mut session = Session::new(&self.name, provider, reference, self.goldens.clone());
        let outcome = (self.check)(&mut session);
        session.finish(outcome)
    }
}

/// The groups of a directory of vectors, in the order of their files' names, and the group whose inputs are made here.
///
/// # Errors
/// [`Error::File`] when the directory or a file cannot be read, or holds no vectors. Files of unknown names are refused:
/// a misspelt one would otherwise pass unseen.
pub fn find_groups(directory: &Path) -> Result<Vec<Group>> {
    let mut groups = Vec::new();
    for goldens in read_all(directory)? {
        let goldens = Arc::new(goldens);
        let name = goldens.name().to_owned();
        let mut add = |name: String, check| {
            groups.push(Group {
                name,
                goldens: Some(goldens.clone()),
                check,
            });
        };
        match name.as_str() {
            "masking" => add(name, masking::check),
            "noise" => add(name, masking::noise),
            "kept" => add(name, masking::kept),
            "relation" | "relation_edges" => add(name, relation::check),
            "pos_embed" => add(name, positions::check),
            "adapters" | "adapters_edges" => add(name, adapters::check),
            "functions" => {
                for (function, check) in functions::CHECKS {
                    add(format!("functions {function}"), *check);
                }
            }
            "integer" => {
                for (operation, check) in integer::CHECKS {
                    add(format!("integer {operation}"), *check);
                }
            }
            _ if name.starts_with("encoder_") => add(name, encoder::check),
            // Training's, which takes more than single operations.
            "tec_step" | "train_steps" | "mae_step" => {}
            _ => {
                return Err(Error::File {
                    path: goldens.path().to_path_buf(),
                    reason: "is no file of golden vectors that this program knows; see tests/goldens/README.md".into(),
                });
            }
        }
    }
    groups.push(Group {
        name: "f32 bits".into(),
        goldens: None,
        check: bits::check,
    });
    Ok(groups)
}

/// All vector files of a directory, by name.
pub(crate) fn read_all(directory: &Path) -> Result<Vec<Goldens>> {
    let fail = |reason: String| Error::File {
        path: directory.to_path_buf(),
        reason,
    };
    let entries = std::fs::read_dir(directory).map_err(|e| fail(e.to_string()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| fail(e.to_string()))?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(fail("holds no .safetensors files".into()));
    }
    paths.sort();
    paths.iter().map(|path| goldens::read(path)).collect()
}
