//! `tec eval`.

use std::{path::PathBuf, sync::Arc};

use clap::Subcommand;
use serde_json::json;
use tec_train::{
    Error, Result, data,
    embed::{Encoder, embed_source},
    eval::{
        Features,
        knn::{self, KnnConfig},
    },
    model::Pool,
};

use crate::{
    encoder::{Unsaid, locate_checkpoint},
    output,
    progress::Counter,
};

/// The kinds of evaluation.
#[derive(Subcommand)]
pub enum Verb {
    /// Weighted k-nearest-neighbor accuracy on frozen embeddings
    Knn(KnnArgs),
}

/// Arguments of `tec eval knn`.
#[derive(clap::Args)]
pub struct KnnArgs {
    /// Encoder (safetensors or encoder.tec) or run directory
    #[arg(value_name = "ENCODER|RUN")]
    encoder: PathBuf,
    #[command(flatten)]
    unsaid: Unsaid,
    /// Labeled images that vote: a folder with one subfolder a class, or an IDX file
    #[arg(long, value_name = "DIR")]
    train: PathBuf,
    /// Labeled images that are classified
    #[arg(long, value_name = "DIR")]
    test: PathBuf,
    /// Embedding: the mean of the patch tokens, or the class token
    #[arg(long, value_parser = ["mean", "cls"], default_value = "mean")]
    pool: String,
    /// Neighbors that vote
    #[arg(long, default_value_t = 20)]
    k: usize,
    /// Temperature of the votes
    #[arg(long, default_value_t = 0.07)]
    temperature: f64,
    /// Decode threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Knn(args) => knn(args),
    }
}

/// `mean` or `cls`, as clap lets through.
pub fn pool(text: &str) -> Pool {
    if text == "cls" { Pool::Cls } else { Pool::Mean }
}

fn knn(args: &KnnArgs) -> Result<()> {
    let path = locate_checkpoint(&args.encoder, "ENCODER")?;
    let (train, test) = (data::open(&args.train)?, data::open(&args.test)?);
    for (folder, source) in [(&args.train, &train), (&args.test, &test)] {
        if source.classes().is_empty() {
            return Err(Error::File {
                path: folder.clone(),
                reason: "its images have no classes; k-NN needs a folder with one subfolder for each class".into(),
            });
        }
    }
    let encoder = Encoder::open(&path, &args.unsaid.options())?;
    let pool = pool(&args.pool);
    let embed = |what: &str, source: Arc<dyn data::Source>| -> Result<Features> {
        let counter = Counter::new(what, source.len());
        let embedded = embed_source(&encoder, source, pool, args.threads, |done| counter.at(done))?;
        counter.end();
        for skipped in &embedded.skipped {
            eprintln!("left out: {}: {}", skipped.name, skipped.reason);
        }
        Ok(embedded.features)
    };
    let train = embed("training images", Arc::from(train))?;
    let test = embed("test images", Arc::from(test))?;
    let result = knn::knn(
        &train,
        &test,
        &KnnConfig {
            k: args.k,
            temperature: args.temperature,
        },
    )?;
    let classes = train.classes.len();
    if args.json {
        output::json(&json!({
            "metric": "knn_top1", "value": result.accuracy, "k": args.k, "temperature": args.temperature, "pool": args.pool,
            "train_images": train.labels.len(), "test_images": test.labels.len(), "classes": classes,
            "encoder": path.display().to_string(),
        }));
    } else {
        output::line(&format!(
            "k-NN top-1 {:.2} %  (k {}, temperature {}, {} embedding, {} training and {} test images, {classes} classes)",
            100.0 * result.accuracy,
            args.k,
            args.temperature,
            args.pool,
            train.labels.len(),
            test.labels.len()
        ));
    }
    Ok(())
}
