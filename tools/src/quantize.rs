//! `tec quantize`.

use std::{path::PathBuf, sync::Arc};

use serde_json::json;
use tec_train::{
    Error, Result, atomic, data,
    embed::Encoder,
    quantize::{self, Fidelity},
    run_dir::RunDir,
};

use crate::{
    encoder::{Unsaid, locate_checkpoint},
    export::refuse_existing,
    output,
};

/// Arguments of `tec quantize`.
#[derive(clap::Args)]
pub struct Args {
    /// f32 encoder (safetensors) or run directory
    #[arg(value_name = "ENCODER|RUN")]
    encoder: PathBuf,
    #[command(flatten)]
    unsaid: Unsaid,
    /// Images to calibrate on, and others to compare f32 with int8 on: a folder or an IDX file
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Images to calibrate on; as many more are compared
    #[arg(long, default_value_t = 128)]
    images: usize,
    /// File to write [default: encoder.tec beside the encoder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace --out where it exists
    #[arg(long)]
    overwrite: bool,
    /// Decode threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if args.images == 0 {
        return Err(Error::Usage("--images: at least 1 image is needed to calibrate".into()));
    }
    refuse_existing(args.out.as_deref(), args.overwrite)?;
    let path = locate_checkpoint(&args.encoder, "ENCODER")?;
    let out = match (&args.out, RunDir::open(&args.encoder)) {
        (Some(out), _) => out.clone(),
        (None, Ok(run)) => run.device_encoder_path(),
        (None, Err(_)) => path.with_file_name("encoder.tec"),
    };
    atomic::require_folder(&out)?;
    let source: Arc<dyn data::Source> = Arc::from(data::open(&args.data)?);
    let Encoder::Float { vit, normalization } = Encoder::open(&path, &args.unsaid.options())? else {
        return Err(Error::Usage(format!(
            "{}: is quantized already; give the f32 encoder",
            path.display()
        )));
    };
    let made = quantize::from_source(&vit, &normalization, source, args.images, args.threads)?;
    for skipped in &made.skipped {
        eprintln!("left out: {}: {}", skipped.name, skipped.reason);
    }
    atomic::write(&out, &made.bytes)?;
    let scratch = made.scratch_bytes;
    if args.json {
        output::json(&json!({
            "encoder": out.display().to_string(), "bytes": made.bytes.len(), "scratch_bytes": scratch,
            "calibration_images": made.calibrated, "compared_images": made.compared,
            "cosine_mean": fidelity_json(&made.mean), "cosine_cls": fidelity_json(&made.cls),
        }));
    } else {
        output::line(&format!(
            "{}: {}, scratch {}, calibrated on {} images",
            out.display(),
            output::bytes(made.bytes.len() as u64),
            output::bytes(scratch as u64),
            made.calibrated
        ));
        let whose = match made.fresh {
            true => "others",
            false => "the same ones, there are no more",
        };
        for (name, f) in [("mean of patches", &made.mean), ("class token", &made.cls)] {
            output::line(&format!(
                "int8 against f32, {name}: cosine {:.5} on average, {:.5} at worst ({} images: {whose})",
                f.mean, f.worst, made.compared
            ));
        }
    }
    Ok(())
}

fn fidelity_json(f: &Fidelity) -> serde_json::Value {
    json!({"mean": f.mean, "worst": f.worst})
}
