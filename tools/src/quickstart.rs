//! `tec quickstart`: the whole way, from images to an encoder on a device, on data that ships with the program.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use serde_json::json;
use tec_train::{
    Error, Result,
    data::{Idx, Source, Subset},
    device::DeviceName,
    embed::{Encoder, embed_source},
    eval::{
        Features,
        knn::{self, KnnConfig},
    },
    model::{LoadOptions, Pool},
    pretrain::{self, Job, Summary},
    quantize::{self, EdgeEncoder, Samples, Target},
    ranks::OneProcess,
    recipe::{Recipe, RecipeBuilder, named},
    report::{self, Cell, Column, Html, Plot, Report, Scale, Series, Table},
    run_dir::{Existing, RunDir},
};

use crate::{
    output,
    progress::{Reporter, Style},
};

/// Fashion-MNIST's test split: 10,000 grey images of 28×28 in ten classes (MIT license, Zalando SE).
const IMAGES: &[u8] = include_bytes!("../assets/fashion-mnist/t10k-images-idx3-ubyte.gz");
const LABELS: &[u8] = include_bytes!("../assets/fashion-mnist/t10k-labels-idx1-ubyte.gz");
const CLASSES: [&str; 10] = [
    "T-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
];

/// The first images train, the rest test.
const TRAIN: usize = 8_000;
const CALIBRATION: usize = 256;
const THREADS: usize = 2;

/// Arguments of `tec quickstart`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory to write [default: the next free runs/quickstart-N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Override a key in both recipes, such as optimizer.epochs=2 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print one JSON object a row of the table instead of the table
    #[arg(long)]
    json: bool,
}

/// One row of the table.
struct Row {
    name: &'static str,
    encoder: String,
    epochs: usize,
    seconds: Option<f64>,
    knn: f64,
    cosine: Option<f64>,
    bytes: u64,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let clock = Instant::now();
    let out = match &args.out {
        Some(out) => out.clone(),
        None => RunDir::next_free("quickstart")?,
    };
    RunDir::check(&out, Existing::Refuse)?;
    let images: Arc<dyn Source> = Arc::new(Idx::from_bytes(IMAGES, Some(LABELS))?.named(&CLASSES));
    let train: Arc<dyn Source> = Arc::new(Subset::range(images.clone(), 0..TRAIN)?);
    let test: Arc<dyn Source> = Arc::new(Subset::range(images.clone(), TRAIN..images.len())?);
    eprintln!(
        "Fashion-MNIST: {} grey images of 28×28 to train on (labels unused), {} to test on; everything goes to {}",
        train.len(),
        test.len(),
        out.display()
    );

    let base_recipe = recipe("quickstart-base", args)?;
    let mut new_recipe = recipe("quickstart-tec", args)?;
    let job = |recipe: Recipe, name: &str| Job {
        recipe,
        out: out.join(name),
        existing: Existing::Refuse,
        source: Some(train.clone()),
        max_steps: None,
        device: DeviceName::Cpu,
    };
    let train_run = |recipe: Recipe, name: &str, label: &str| {
        pretrain::run(job(recipe, name), &OneProcess, &mut Reporter::new(Style::People, label))
    };

    let base = train_run(base_recipe.clone(), "base", "1/5 base (masked autoencoder)")?;
    new_recipe.base.path = Some(base.run.encoder_path());
    let new = train_run(new_recipe.clone(), "new", "2/5 new model (TEC from the base)")?;
    let mut further = base_recipe.clone();
    further.init.path = Some(base.run.root().to_path_buf());
    further.optimizer.epochs = new_recipe.optimizer.epochs;
    further.optimizer.warmup_epochs = new_recipe.optimizer.warmup_epochs;
    let continued = train_run(further, "base-continued", "3/5 base, trained on for as many epochs")?;

    eprintln!("4/5 k-nearest-neighbor accuracy on the test images");
    let measure = |encoder: &Encoder| -> Result<(f64, Features)> {
        let of = |source: &Arc<dyn Source>| {
            Ok::<_, Error>(embed_source(encoder, source.clone(), Pool::Mean, THREADS, |_| {})?.features)
        };
        let (train, test) = (of(&train)?, of(&test)?);
        Ok((knn::knn(&train, &test, &KnnConfig::default())?.accuracy, test))
    };
    let mut rows = Vec::new();
    let mut float_features = None;
    for (name, summary, epochs) in [
        ("base", &base, base_recipe.optimizer.epochs),
        (
            "base, trained on",
            &continued,
            base_recipe.optimizer.epochs + new_recipe.optimizer.epochs,
        ),
        ("new model (TEC)", &new, new_recipe.optimizer.epochs),
    ] {
        let path = summary.run.encoder_path();
        let (accuracy, features) = measure(&Encoder::open(&path, &LoadOptions::default())?)?;
        float_features = Some(features);
        let bytes = size(&path)?;
        rows.push(Row {
            name,
            encoder: "f32".into(),
            epochs,
            seconds: Some(summary.seconds),
            knn: accuracy,
            cosine: None,
            bytes,
        });
    }

    eprintln!("5/5 int8: calibrate, quantize, run through tec-edge");
    let Encoder::Float { vit, normalization } = Encoder::open(&new.run.encoder_path(), &LoadOptions::default())? else {
        return Err(Error::Data("the new model's encoder is not f32".into()));
    };
    let samples = Samples::read(&vit, train.clone(), CALIBRATION, 0, THREADS)?;
    let calibration = samples.calibrate(&vit, &normalization)?;
    let made = quantize::quantize(&vit, &normalization, &Target::default(), &calibration)?;
    let scratch_bytes = EdgeEncoder::from_bytes(&made)?.scratch_bytes();
    let device_file = new.run.device_encoder_path();
    tec_train::atomic::write(&device_file, &made)?;
    let (accuracy, int8_features) = measure(&Encoder::open(&device_file, &LoadOptions::default())?)?;
    let cosine = float_features
        .map(|f| quantize::cosines(&f, &int8_features))
        .transpose()?;
    rows.push(Row {
        name: "new model (TEC), on the device",
        encoder: "int8".into(),
        epochs: new_recipe.optimizer.epochs,
        seconds: None,
        knn: accuracy,
        cosine: cosine.as_ref().map(|c| f64::from(c.mean)),
        bytes: size(&device_file)?,
    });

    let runs = Runs {
        base: &base,
        continued: &continued,
        new: &new,
    };
    let seconds = clock.elapsed().as_secs_f64();
    let page = write_report(&out, &rows, &runs, scratch_bytes, seconds)?;
    if args.json {
        for row in &rows {
            output::json(&json!({
                "encoder": row.name, "precision": row.encoder, "epochs": row.epochs, "seconds": row.seconds,
                "metric": "knn_top1", "value": row.knn, "cosine_to_f32": row.cosine, "bytes": row.bytes,
            }));
        }
        return Ok(());
    }
    output::line(summary_table(&rows).to_string().trim_end());
    output::line(&format!(
        "\nThe int8 row is what a device computes, bit for bit; it needs {} of scratch memory.\nTook {}. The report: {}\n{}",
        output::bytes(scratch_bytes as u64),
        output::seconds(seconds),
        page.display(),
        out.display()
    ));
    Ok(())
}

struct Runs<'a> {
    base: &'a Summary,
    continued: &'a Summary,
    new: &'a Summary,
}

fn recipe(name: &str, args: &Args) -> Result<Recipe> {
    let mut builder = RecipeBuilder::from_text(named::text(name).unwrap_or_default(), name)?;
    for argument in &args.set {
        builder.set_argument(argument)?;
    }
    builder.build()
}

fn size(path: &Path) -> Result<u64> {
    std::fs::metadata(path).map(|m| m.len()).map_err(|e| Error::File {
        path: path.to_path_buf(),
        reason: e.to_string(),
    })
}

fn write_report(out: &Path, rows: &[Row], runs: &Runs, scratch: usize, seconds: f64) -> Result<PathBuf> {
    let mut page = Report::new(
        "TEC quickstart",
        "A small masked autoencoder as the base, a new model trained from it by TEC, the base trained on for as many \
         epochs, and the new model in int8 as a device computes it. Fashion-MNIST, 8,000 images to train on without labels, \
         2,000 to test on.",
    );
    page.section(
        "Result",
        "k-nearest-neighbor accuracy on the test images (k 20, temperature 0.07, mean of the patch tokens). \
         One seed; nothing is fixed in advance.",
        summary_table(rows).to_html(),
    );
    let named = [
        ("base", runs.base),
        ("base, trained on", runs.continued),
        ("new model", runs.new),
    ];
    let mut curves = Html::new();
    let mut rates = Plot::new("Learning rate", "epoch").small();
    let mut pixel = Plot::new("Masked autoencoder: pixel loss", "epoch").scale(Scale::Linear);
    for (name, summary) in named {
        let metrics = summary.run.metrics()?;
        rates = rates.series(Series::new(name, metrics.iter().map(|m| (m.epoch, m.lr))));
        if metrics.iter().all(|m| m.loss_relation.is_none()) {
            pixel = pixel.series(Series::new(name, metrics.iter().map(|m| (m.epoch, m.loss))));
        }
    }
    curves = curves
        .then(pixel.to_html())
        .then(pretrain::loss_plot("TEC: losses of the new model", &runs.new.run)?.to_html());
    page.section(
        "Losses",
        "Each step's loss and its running mean.",
        curves.then(rates.to_html()),
    );
    page.section(
        "Masked images",
        "What the encoder gets to see: three quarters of the patches are removed.",
        report::masked_images(&runs.new.pictures.masked)?,
    );
    page.section(
        "Attention of the selected queries",
        "Where the class token and the highest-ranked patches look: the base on the whole image (the target), and what the \
         new model's relation head predicts from the masked one.",
        report::attention_maps(&runs.new.pictures.attention)?,
    );
    let facts = [
        ("Time", output::seconds(seconds)),
        ("Scratch memory of the int8 encoder", output::bytes(scratch as u64)),
        ("Base", runs.base.run.root().display().to_string()),
        ("New model", runs.new.run.root().display().to_string()),
        ("Base, trained on", runs.continued.run.root().display().to_string()),
    ];
    page.section("Run", "", report::facts(facts));
    page.write(&out.join("report"))
}

fn summary_table(rows: &[Row]) -> Table {
    let mut table = Table::new([
        Column::text("encoder"),
        Column::text("precision"),
        Column::number("epochs", ""),
        Column::number("training", "s"),
        Column::number("k-NN top-1", "%"),
        Column::number("cosine to f32", ""),
        Column::number("file", "kB"),
    ]);
    let best = rows.iter().map(|r| r.knn).fold(f64::NEG_INFINITY, f64::max);
    for row in rows {
        table.row([
            Cell::new(row.name),
            Cell::new(row.encoder.clone()),
            Cell::new(row.epochs.to_string()),
            row.seconds.map_or_else(Cell::none, |s| Cell::new(format!("{s:.0}"))),
            Cell::new(format!("{:.2}", 100.0 * row.knn)).best(row.knn == best),
            row.cosine.map_or_else(Cell::none, |c| Cell::new(format!("{c:.5}"))),
            Cell::new(format!("{:.0}", row.bytes as f64 / 1e3)),
        ]);
    }
    table
}
