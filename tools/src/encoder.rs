//! Finding the file that a path, a run directory or a run's name means.

use std::path::{Path, PathBuf};

use tec_train::{Error, Result, model::in_folder, run_dir::RunDir};

/// Whether a folder is one of Hugging Face's, with its weights, and no run.
pub fn is_hub_folder(folder: &Path) -> bool {
    !folder.join("recipe.toml").is_file() && in_folder(folder).is_some()
}

/// The f32 checkpoint that `given` means: a file, a folder of Hugging Face, a run directory (its `encoder.safetensors`), or the
/// name of a run under `runs/`. `what` names the flag or argument in messages.
///
/// # Errors
/// Nothing there, or a run that has no encoder yet.
pub fn locate_checkpoint(given: &Path, what: &str) -> Result<PathBuf> {
    let named = Path::new("runs").join(given);
    let found = match (given.exists(), named.exists()) {
        (true, _) => given.to_path_buf(),
        (false, true) => named,
        (false, false) => {
            let text = format!(
                "{what} {}: no such file or run (looked for {} too); give a checkpoint file or a run directory",
                given.display(),
                named.display()
            );
            return Err(Error::Usage(text));
        }
    };
    if !found.is_dir() || is_hub_folder(&found) {
        return Ok(found);
    }
    let run = RunDir::open(&found)?;
    let encoder = run.encoder_path();
    if encoder.is_file() {
        return Ok(encoder);
    }
    let reason = format!(
        "the run has not finished (there is no encoder.safetensors); finish it with `tec pretrain --out {0} --resume`, \
         or take the newest checkpoint as it is with `tec export {0}`",
        found.display()
    );
    Err(Error::File { path: found, reason })
}
