//! Finding the file that a path, a run directory or a run's name means, and what the user says about it.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use tec_train::{
    Error, Result,
    model::{Activation, LoadOptions, in_folder},
    run_dir::RunDir,
};

/// What weights do not show, where their file does not say it. (A recipe has the same of its base: `base.heads`, …)
#[derive(clap::Args)]
pub struct Unsaid {
    /// Attention heads of the encoder, where its file does not say
    #[arg(long)]
    heads: Option<usize>,
    /// What the names of the encoder's parameters begin with, where a file holds several models
    #[arg(long)]
    prefix: Option<String>,
    /// Nonlinearity of the encoder's MLPs, where its file does not say
    #[arg(long, value_parser = PossibleValuesParser::new(Activation::ALL.map(Activation::name)).try_map(|name| name.parse::<Activation>()))]
    activation: Option<Activation>,
}

impl Unsaid {
    /// For loading.
    pub fn options(&self) -> LoadOptions {
        LoadOptions {
            heads: self.heads,
            prefix: self.prefix.clone(),
            activation: self.activation,
            ..LoadOptions::default()
        }
    }
}

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
