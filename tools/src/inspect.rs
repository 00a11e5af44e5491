//! `tec inspect`.

mod device;

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tec_train::{
    Error, Result,
    checkpoint::Checkpoint,
    data,
    embed::Encoder,
    model::{self, LoadOptions},
    recipe::RecipeBuilder,
    run_dir::RunDir,
};

use crate::{
    encoder::{Unsaid, is_hub_folder},
    output,
};

/// Arguments of `tec inspect`.
#[derive(clap::Args)]
pub struct Args {
    /// An image, a checkpoint, an encoder, or a run directory
    #[arg(value_name = "IMAGE|CHECKPOINT|ENCODER|RUN")]
    path: PathBuf,
    #[command(flatten)]
    unsaid: Unsaid,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Of an encoder.tec: print its sizes as constants for a program, in Rust or C
    #[arg(long, value_parser = ["rust", "c"], conflicts_with = "json")]
    constants: Option<String>,
}

/// Runs the verb: what the file is, one fact a line.
pub fn run(args: &Args) -> Result<()> {
    if let Some(language) = &args.constants {
        let Encoder::Device(edge) = Encoder::open(&args.path, &args.unsaid.options())? else {
            return Err(Error::Usage(format!(
                "--constants: {} is no encoder.tec; `tec quantize` makes one",
                args.path.display()
            )));
        };
        output::line(device::constants(&edge, language)?.trim_end());
        return Ok(());
    }
    let facts = facts(&args.path, &args.unsaid.options())?;
    if args.json {
        output::json(&facts);
    } else if let Value::Object(map) = &facts {
        let width = map.keys().map(String::len).max().unwrap_or(0);
        for (key, value) in map {
            let text = in_words(value);
            output::line(&format!("{key:<width$}  {text}"));
        }
    }
    // An image that does not decode was inspected, but it is no success.
    match facts.get("decoded") {
        Some(Value::Bool(false)) => {
            let reason = facts
                .get("reason")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_string();
            Err(Error::File {
                path: args.path.clone(),
                reason,
            })
        }
        _ => Ok(()),
    }
}

/// A value on one line: lists of names as their number and the first few.
fn in_words(value: &Value) -> String {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let joined = |values: &[Value]| values.iter().map(plain).collect::<Vec<_>>().join(", ");
    match (value.get("count").and_then(Value::as_u64), value.get("first")) {
        (Some(count), Some(Value::Array(first))) => match count.saturating_sub(first.len() as u64) {
            _ if count == 0 => "0".into(),
            0 => format!("{count}: {}", joined(first)),
            more => format!("{count}: {} and {more} more", joined(first)),
        },
        _ => match value {
            Value::Array(values) if values.iter().any(Value::is_string) => joined(values),
            other => plain(other),
        },
    }
}

fn facts(path: &Path, options: &LoadOptions) -> Result<Value> {
    let fail = |reason: String| Error::File {
        path: path.to_path_buf(),
        reason,
    };
    if !path.exists() {
        return Err(Error::Usage(format!("{}: no such file", path.display())));
    }
    if path.is_dir() {
        return match is_hub_folder(path) {
            true => checkpoint_facts(path, options),
            false => run_facts(path),
        };
    }
    // Weights are large: only what looks like something else is read whole.
    let mut start = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(512).read_to_end(&mut start))
        .map_err(|e| fail(e.to_string()))?;
    if start.starts_with(&tec_edge::format::MAGIC) {
        return device_facts(path, options);
    }
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default()
        .to_ascii_lowercase();
    let looks_weights =
        start.get(8) == Some(&b'{') || start.starts_with(b"PK\x03\x04") || start.starts_with(&[0x80, 2]);
    let named_weights = matches!(extension.as_str(), "safetensors" | "pth" | "pt" | "bin");
    if looks_weights || named_weights || path.to_string_lossy().ends_with(".index.json") {
        return checkpoint_facts(path, options);
    }
    let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    let info = data::inspect(&bytes);
    if info.is_err() && !matches!(extension.as_str(), "jpg" | "jpeg" | "png") {
        return Err(fail(
            "is no image (JPEG, PNG), no safetensors or PyTorch checkpoint and no encoder.tec".into(),
        ));
    }
    // What the header says and whether the whole decodes are two things.
    let mut decoder = data::Decoder::new();
    let reason = info.as_ref().err().cloned().or_else(|| decoder.whole(&bytes).err());
    let info = info.ok();
    let info = info.as_ref();
    Ok(json!({
        "kind": "image", "format": info.map(|i| i.format), "decoded": reason.is_none(), "mode": info.map(|i| i.mode),
        "width": info.map(|i| i.width), "height": info.map(|i| i.height), "orientation": info.map(|i| i.orientation),
        "reason": reason, "damaged": decoder.damaged(),
    }))
}

fn run_facts(path: &Path) -> Result<Value> {
    let run = RunDir::open(path)?;
    let recipe = RecipeBuilder::from_file(&run.recipe_path())?.build()?;
    let last = run.metrics()?.pop();
    Ok(json!({
        "kind": "run", "method": recipe.method.to_string(), "epochs": recipe.optimizer.epochs,
        "step": last.map(|m| m.step), "epoch": last.map(|m| m.epoch), "loss": last.map(|m| m.loss),
        "finished": run.encoder_path().is_file(),
        "checkpoints": tec_train::checkpoint::list(&run.checkpoints())?.len(),
        "best_step": tec_train::checkpoint::best(&run.checkpoints())?.map(|(_, state)| state.step),
        "encoder": run.encoder_path().is_file().then(|| run.encoder_path().display().to_string()),
        "device_encoder": run.device_encoder_path().is_file().then(|| run.device_encoder_path().display().to_string()),
    }))
}

fn checkpoint_facts(path: &Path, options: &LoadOptions) -> Result<Value> {
    if path.is_file()
        && path.extension().is_some_and(|e| e == "safetensors")
        && let Ok(state) = Checkpoint::read(path)
    {
        return Ok(json!({
            "kind": "training checkpoint", "step": state.state.step, "steps_per_epoch": state.state.steps_per_epoch,
            "images": state.state.images, "updates": state.state.updates, "seen": format!("{:08x}", state.state.seen),
            "mean_loss": state.state.mean_loss, "knn_top1": state.state.knn_top1, "tensors": state.tensors.len(),
        }));
    }
    let found = model::inspect(path, options)?;
    let Some(encoder) = found.encoder else {
        return Ok(json!({
            "kind": "weights", "tensors": found.tensors, "can_be_base": false, "reason": found.refusal,
        }));
    };
    let (c, v, origin, report) = (&encoder.config, &encoder.variant, &encoder.origin, &encoder.report);
    let colors = origin.normalization.as_ref();
    Ok(json!({
        "kind": "encoder", "precision": "f32", "family": origin.family, "title": origin.title, "prefix": origin.prefix,
        "image_size": c.image_size, "patch_size": c.patch_size, "channels": c.channels, "dim": c.dim, "depth": c.depth,
        "heads": c.heads, "mlp_hidden": v.hidden, "activation": v.activation.name(), "eps": v.eps,
        "registers": v.registers, "layer_scale": v.layer_scale, "pre_norm": v.pre_norm, "patch_bias": v.patch_bias,
        "class_position": v.class_position, "pooled_norm": v.pooled_norm, "parameters": encoder.parameters,
        "mean": colors.map(|m| &m.mean), "std": colors.map(|m| &m.std), "normalization_from": origin.normalization_from,
        "notes": origin.notes, "can_be_base": found.refusal.is_none(), "reason": found.refusal,
        "matched": report.matched.len(), "ignored": names(&report.ignored), "missing": names(&report.missing),
        "unexpected": names(&report.unexpected),
        "mis_shaped": names(&report.mis_shaped.iter().map(|m| m.name.clone()).collect::<Vec<_>>()),
    }))
}

/// How many names there are, and the first of them.
fn names(all: &[String]) -> Value {
    const SHOWN: usize = 8;
    json!({"count": all.len(), "first": all.iter().take(SHOWN).collect::<Vec<_>>()})
}

fn device_facts(path: &Path, options: &LoadOptions) -> Result<Value> {
    let Encoder::Device(edge) = Encoder::open(path, options)? else {
        return Err(Error::File {
            path: path.to_path_buf(),
            reason: "is no encoder.tec".into(),
        });
    };
    device::facts(&edge)
}
