//! `tec export`.

use std::path::PathBuf;

use serde_json::json;
use tec_train::{Error, Result, atomic, checkpoint, pretrain, run_dir::RunDir};

use crate::output;

/// Arguments of `tec export`.
#[derive(clap::Args)]
pub struct Args {
    /// Run directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Checkpoint of that run [default: the newest]
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Take the best checkpoint: by the k-NN probe, or where there was none by the loss
    #[arg(long, conflicts_with = "checkpoint")]
    best: bool,
    /// File to write [default: RUN/encoder.safetensors]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace --out where it exists
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let run = RunDir::open(&args.run)?;
    let out = args.out.clone().unwrap_or_else(|| run.encoder_path());
    refuse_existing(args.out.as_deref(), args.overwrite)?;
    let best = match args.best {
        true => checkpoint::best(&run.checkpoints())?.map(|(path, _)| path),
        false => None,
    };
    let (encoder, metadata, step) = pretrain::export(&run, best.as_deref().or(args.checkpoint.as_deref()))?;
    atomic::require_folder(&out)?;
    encoder.save(&out, &metadata)?;
    let config = encoder.config();
    if args.json {
        output::json(&json!({"encoder": out.display().to_string(), "step": step, "config": config}));
    } else {
        output::line(&format!(
            "{}: {} blocks, width {}, {} heads, patch {} on {}×{} pixels, timm's names, after step {step}",
            out.display(),
            config.depth,
            config.dim,
            config.heads,
            config.patch_size,
            config.image_size,
            config.image_size
        ));
    }
    Ok(())
}

/// A file the user names is not replaced unasked.
pub fn refuse_existing(out: Option<&std::path::Path>, overwrite: bool) -> Result<()> {
    match out {
        Some(out) if out.exists() && !overwrite => Err(Error::Usage(format!(
            "--out {}: exists; choose another or add --overwrite",
            out.display()
        ))),
        _ => Ok(()),
    }
}
