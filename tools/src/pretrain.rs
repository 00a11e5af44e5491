//! `tec pretrain`.

use std::path::{Path, PathBuf};

use serde_json::json;
use tec_train::{
    Error, Result,
    device::DeviceName,
    ops::Amp,
    pretrain::{self, Job, Summary},
    ranks::{self, Collective, Launch},
    recipe::{Method, Recipe, RecipeBuilder, named},
    run_dir::{Existing, RunDir},
};

use crate::{
    encoder::locate_checkpoint,
    interrupt, output,
    progress::{Reporter, Style},
};

/// Arguments of `tec pretrain`.
#[derive(clap::Args)]
pub struct Args {
    /// How to train: from a frozen base (tec) or from the pixels alone (mae)
    #[arg(long, value_parser = ["tec", "mae"])]
    method: Option<String>,
    /// Base: a checkpoint file, a run directory, or the name of a run under runs/
    #[arg(long, value_name = "PATH|NAME")]
    base: Option<PathBuf>,
    /// Folder of JPEG and PNG images (nested or flat), or an IDX file
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Run directory to write [default: the next free runs/METHOD-N]
    #[arg(long, value_name = "RUN")]
    out: Option<PathBuf>,
    /// Recipe: a file, or the name of one that ships with tec: mae-300ep-b, mae-b, ibot-b, mae-l
    #[arg(long, value_name = "FILE|NAME")]
    recipe: Option<PathBuf>,
    /// Print the recipe with every flag and --set applied, and do nothing else
    #[arg(long, conflicts_with_all = ["resume", "json"])]
    print_recipe: bool,
    /// Size of the new model: ViT-Ti, S, B, L or H (--set model.dim, depth and heads override it)
    #[arg(long, value_parser = ["tiny", "small", "base", "large", "huge"])]
    size: Option<String>,
    /// Override a recipe key, such as optimizer.lr=1e-3 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Passes over the data
    #[arg(long)]
    epochs: Option<usize>,
    /// Images a step, of all processes together: the effective batch
    #[arg(long)]
    batch: Option<usize>,
    /// Parts that a step's images are computed in, one after the other, to need less memory
    #[arg(long, value_name = "N")]
    accumulate: Option<usize>,
    /// Compute blocks again for their gradients instead of keeping what they computed, to need less memory
    #[arg(long)]
    grad_checkpointing: bool,
    /// Mixed precision: products, and activations inside residual branches, in bf16, all else in f32 [default: none]
    #[arg(long, value_parser = Amp::ALL.map(Amp::name))]
    amp: Option<String>,
    /// Seed of weights, masks, augmentation and sample order
    #[arg(long)]
    seed: Option<u64>,
    /// Stop after this many steps in all, with a checkpoint (the schedule stays that of the recipe's epochs)
    #[arg(long, value_name = "N")]
    max_steps: Option<usize>,
    /// Decode threads of each process
    #[arg(long)]
    threads: Option<usize>,
    /// Go on with the run in --out from its newest checkpoint
    #[arg(long, conflicts_with = "overwrite", requires = "out")]
    resume: bool,
    /// Remove the run in --out first
    #[arg(long)]
    overwrite: bool,
    /// Where to compute: cpu, cuda (with several processes a GPU for each) or cuda:N
    #[arg(long, default_value_t, value_name = "DEVICE")]
    device: DeviceName,
    /// Print one JSON object a step on standard output
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Where to compute, as all processes were told.
    pub fn device(&self) -> DeviceName {
        self.device
    }
}

/// Runs the verb, in each process of `collective`; `launch` says which this one is.
pub fn run(args: &Args, collective: &dyn Collective, launch: &Launch) -> Result<()> {
    let speaks = collective.rank() == 0;
    if args.print_recipe {
        let recipe = ranks::agree(collective, builder(args, None).and_then(|b| b.build()?.to_toml()))?;
        if speaks {
            output::line(recipe.trim_end());
        }
        return Ok(());
    }
    let job = ranks::agree(collective, job(args, launch))?;
    let style = if args.json { Style::Json } else { Style::People };
    let mut reporter = Reporter::new(style, "pretrain");
    interrupt::settle();
    let summary = pretrain::run(job, collective, &mut reporter)?;
    if summary.interrupted {
        interrupt::note_stopped();
    }
    if speaks {
        report(&summary, args.json);
    }
    Ok(())
}

/// What the arguments ask for.
fn job(args: &Args, launch: &Launch) -> Result<Job> {
    let device = launch.device(args.device)?;
    let existing = match (args.resume, args.overwrite) {
        (true, _) => Existing::Resume,
        (_, true) => Existing::Overwrite,
        _ => Existing::Refuse,
    };
    if let Some(out) = &args.out {
        // Before anything slow, so that a wrong --out is known at once.
        RunDir::check(out, existing)?;
    }
    let recipe = recipe(args, existing)?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => RunDir::next_free(&recipe.method.to_string())?,
    };
    if existing == Existing::Overwrite {
        keep_inputs(&recipe, &out)?;
    }
    Ok(Job {
        recipe,
        out,
        existing,
        source: None,
        max_steps: args.max_steps,
        device,
    })
}

/// Says what the run has left.
fn report(summary: &Summary, json: bool) {
    let root = summary.run.root().display().to_string();
    for (images, count, list) in [
        (
            "left out because they could not be read",
            summary.skipped,
            summary.run.skipped_path(),
        ),
        (
            "used although their data are damaged",
            summary.damaged,
            summary.run.damaged_path(),
        ),
    ] {
        if count > 0 {
            eprintln!("images {images}: {count}; {} lists them", list.display());
        }
    }
    if !summary.finished {
        eprintln!(
            "stopped after {} steps; go on with: {}",
            summary.step,
            summary.run.resume_command()
        );
    }
    eprintln!(
        "waited for images: {:.1} % of the steps' time",
        100.0 * summary.data_wait()
    );
    match json {
        true => output::json(&json!({
            "run": root, "step": summary.step, "loss": summary.loss, "skipped": summary.skipped, "damaged": summary.damaged,
            "data_wait": summary.data_wait(),
        })),
        false => output::line(&root),
    }
}

/// A run is not removed while it is what the new one is made from.
fn keep_inputs(recipe: &Recipe, out: &Path) -> Result<()> {
    let Ok(root) = out.canonicalize() else { return Ok(()) };
    for (key, path) in [
        ("base.path", &recipe.base.path),
        ("init.path", &recipe.init.path),
        ("data.path", &recipe.data.path),
    ] {
        let Some(path) = path else { continue };
        if path.canonicalize().is_ok_and(|p| p.starts_with(&root)) {
            return Err(Error::Usage(format!(
                "--overwrite: would remove {key} {}, from which the new run is made; choose another --out",
                path.display()
            )));
        }
    }
    Ok(())
}

/// The recipe of a file, a name or a run (`stored`), with flags and `--set` applied.
fn builder(args: &Args, stored: Option<&Path>) -> Result<RecipeBuilder> {
    let mut builder = match (stored, &args.recipe) {
        (Some(_), Some(_)) => {
            return Err(Error::Usage(
                "--recipe: a resumed run keeps its own recipe; leave --recipe out".into(),
            ));
        }
        (Some(path), None) => RecipeBuilder::from_file(path)?,
        (None, Some(given)) => named::find(given)?,
        (None, None) => RecipeBuilder::new(),
    };
    if let Some(method) = &args.method {
        builder.set("method", method.as_str());
    }
    if let Some(size) = &args.size {
        builder.set("model.size", size.as_str());
    }
    let text = |p: &Path| p.display().to_string();
    if let Some(base) = &args.base {
        builder.set("base.path", text(base));
    }
    if let Some(data) = &args.data {
        builder.set("data.path", text(data));
    }
    for (key, value) in [
        ("optimizer.epochs", args.epochs.map(|v| v as u64)),
        ("optimizer.batch", args.batch.map(|v| v as u64)),
        ("optimizer.accumulate", args.accumulate.map(|v| v as u64)),
        ("seed", args.seed),
        ("data.threads", args.threads.map(|v| v as u64)),
    ] {
        if let Some(value) = value {
            let value = i64::try_from(value).map_err(|_| Error::Usage(format!("{key} = {value}: too large")))?;
            builder.set(key, value);
        }
    }
    if args.grad_checkpointing {
        builder.set("optimizer.grad_checkpointing", true);
    }
    if let Some(amp) = &args.amp {
        builder.set("optimizer.amp", amp.as_str());
    }
    for argument in &args.set {
        builder.set_argument(argument)?;
    }
    Ok(builder)
}

fn recipe(args: &Args, existing: Existing) -> Result<Recipe> {
    let stored = match (&args.out, existing) {
        (Some(out), Existing::Resume) => Some(RunDir::open(out)?.recipe_path()),
        _ => None,
    };
    let mut recipe = builder(args, stored.as_deref())?.build()?;
    if let Some(path) = stored {
        let before = RecipeBuilder::from_file(&path)?.build()?;
        let changed = before.differences(&recipe)?;
        if !changed.is_empty() {
            let text = format!(
                "a resumed run keeps its recipe, but these differ: {}; leave them out",
                changed.join(", ")
            );
            return Err(Error::Usage(text));
        }
    }
    if recipe.method == Method::Tec {
        let Some(base) = &recipe.base.path else {
            return Err(Error::Usage(
                "--base: TEC trains from a base; give a checkpoint or a run, or --method mae to train one".into(),
            ));
        };
        recipe.base.path = Some(locate_checkpoint(base, "--base")?);
    }
    if let (Method::Mae, Some(base)) = (recipe.method, &recipe.base.path) {
        let text = format!(
            "--base {}: a masked autoencoder has no base; leave --base out, or --method mae, or give --set init.path=… \
             to start from its weights",
            base.display()
        );
        return Err(Error::Usage(text));
    }
    if recipe.data.path.is_none() {
        return Err(Error::Usage("--data: give a folder of images".into()));
    }
    // The run can then be resumed from any directory.
    let probe = &mut recipe.probe.path;
    for path in [
        &mut recipe.base.path,
        &mut recipe.init.path,
        &mut recipe.data.path,
        probe,
    ] {
        if let Some(given) = path.take() {
            *path = Some(std::path::absolute(&given).unwrap_or(given));
        }
    }
    Ok(recipe)
}
