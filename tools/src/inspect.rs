//! `tec inspect`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tec_train::{Error, Result, checkpoint::Checkpoint, data, embed::Encoder, recipe::RecipeBuilder, run_dir::RunDir};

use crate::output;

/// Arguments of `tec inspect`.
#[derive(clap::Args)]
pub struct Args {
    /// An image, a checkpoint, an encoder, or a run directory
    #[arg(value_name = "IMAGE|CHECKPOINT|ENCODER|RUN")]
    path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the verb: what the file is, one fact a line.
pub fn run(args: &Args) -> Result<()> {
    let facts = facts(&args.path)?;
    if args.json {
        output::json(&facts);
    } else if let Value::Object(map) = &facts {
        let width = map.keys().map(String::len).max().unwrap_or(0);
        for (key, value) in map {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
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

fn facts(path: &Path) -> Result<Value> {
    let fail = |reason: String| Error::File {
        path: path.to_path_buf(),
        reason,
    };
    if !path.exists() {
        return Err(Error::Usage(format!("{}: no such file", path.display())));
    }
    if path.is_dir() {
        return run_facts(path);
    }
    let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    if bytes.starts_with(&tec_edge::format::MAGIC) {
        return device_facts(path);
    }
    let looks_safetensors = bytes.get(8) == Some(&b'{');
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default()
        .to_ascii_lowercase();
    if looks_safetensors || extension == "safetensors" {
        return checkpoint_facts(path);
    }
    let info = data::inspect(&bytes);
    if info.is_err() && !matches!(extension.as_str(), "jpg" | "jpeg" | "png") {
        return Err(fail(
            "is no image (JPEG, PNG), no safetensors checkpoint and no encoder.tec".into(),
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

fn checkpoint_facts(path: &Path) -> Result<Value> {
    if let Ok(state) = Checkpoint::read(path) {
        return Ok(json!({
            "kind": "training checkpoint", "step": state.state.step, "steps_per_epoch": state.state.steps_per_epoch,
            "images": state.state.images, "updates": state.state.updates, "seen": format!("{:08x}", state.state.seen),
            "mean_loss": state.state.mean_loss, "knn_top1": state.state.knn_top1, "tensors": state.tensors.len(),
        }));
    }
    let Encoder::Float { vit, .. } = Encoder::open(path)? else {
        return Err(Error::File {
            path: path.to_path_buf(),
            reason: "is no safetensors checkpoint".into(),
        });
    };
    let c = vit.config();
    let parameters: usize = vit.weights().iter().map(|(_, tensor)| tensor.elem_count()).sum();
    Ok(json!({
        "kind": "encoder", "precision": "f32", "image_size": c.image_size, "patch_size": c.patch_size, "channels": c.channels,
        "dim": c.dim, "depth": c.depth, "heads": c.heads, "mlp_ratio": c.mlp_ratio, "parameters": parameters,
        "mean": vit.metadata().map(|m| &m.mean), "std": vit.metadata().map(|m| &m.std), "can_be_base": true,
    }))
}

fn device_facts(path: &Path) -> Result<Value> {
    let Encoder::Device(edge) = Encoder::open(path)? else {
        return Err(Error::File {
            path: path.to_path_buf(),
            reason: "is no encoder.tec".into(),
        });
    };
    let g = edge.geometry();
    Ok(json!({
        "kind": "encoder", "precision": "int8", "image_size": g.image_size, "patch_size": g.patch_size,
        "channels": g.channels, "dim": g.dim, "depth": g.depth, "heads": g.heads,
        "bytes": edge.file_bytes(), "scratch_bytes": edge.scratch_bytes(),
    }))
}
