//! `tec embed`.

use std::{path::PathBuf, sync::Arc};

use serde_json::json;
use tec_train::{
    Error, Result, data,
    embed::{Encoder, embed_source},
};

use crate::{
    encoder::{Unsaid, locate_checkpoint},
    eval::pool,
    output,
};

/// Arguments of `tec embed`.
#[derive(clap::Args)]
pub struct Args {
    /// Images, or folders of images
    #[arg(value_name = "IMAGE|DIR", required = true)]
    images: Vec<PathBuf>,
    /// Encoder (safetensors: f32; encoder.tec: int8, as the device computes) or run directory
    #[arg(long, value_name = "ENCODER|RUN")]
    encoder: PathBuf,
    #[command(flatten)]
    unsaid: Unsaid,
    /// Embedding: the mean of the patch tokens, or the class token
    #[arg(long, value_parser = ["mean", "cls"], default_value = "mean")]
    pool: String,
    /// Decode threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Print one JSON object an image instead of tab-separated values
    #[arg(long)]
    json: bool,
}

/// Runs the verb: one line an image, its path and its embedding.
pub fn run(args: &Args) -> Result<()> {
    let path = locate_checkpoint(&args.encoder, "--encoder")?;
    let encoder = Encoder::open(&path, &args.unsaid.options())?;
    let (mut unreadable, mut done) = (0, 0);
    for path in &args.images {
        let source: Arc<dyn data::Source> = match path.is_dir() {
            true => Arc::from(data::open(path)?),
            false => Arc::new(data::Files::new(vec![path.clone()])),
        };
        // A named file that is no image is left out by its own reason; the others are still wanted.
        if !path.is_dir()
            && let Err(reason) = source.load(0)
        {
            eprintln!("left out: {}: {reason}", path.display());
            unreadable += 1;
            continue;
        }
        let embedded = match embed_source(&encoder, source.clone(), pool(&args.pool), args.threads, |_| {}) {
            Ok(embedded) => embedded,
            Err(e @ Error::Data(_)) => {
                eprintln!("left out: {}: {e}", path.display());
                unreadable += source.len();
                continue;
            }
            Err(e) => return Err(e),
        };
        for skipped in &embedded.skipped {
            eprintln!("left out: {}: {}", skipped.name, skipped.reason);
        }
        unreadable += embedded.skipped.len();
        let lines = embedded.features.data.chunks(embedded.features.dim);
        for (sample, values) in embedded.samples.iter().zip(lines) {
            done += 1;
            let name = match path.is_dir() {
                true => path.join(source.name(*sample as usize)).display().to_string(),
                false => path.display().to_string(),
            };
            if args.json {
                output::json(&json!({"image": name, "pool": args.pool, "embedding": values}));
            } else {
                let values: Vec<String> = values.iter().map(f32::to_string).collect();
                output::line(&format!("{name}\t{}", values.join("\t")));
            }
        }
    }
    match (done, unreadable) {
        (_, 0) => Ok(()),
        (0, n) => Err(Error::Data(format!(
            "images that could not be read: {n}, and there were no others; give JPEG or PNG files"
        ))),
        (_, n) => Err(Error::Data(format!(
            "images that could not be read: {n}; the others were embedded"
        ))),
    }
}
