//! `tec quantize`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, json};
use tec_edge::Precision;
use tec_train::{
    Error, Result, atomic, data,
    embed::Encoder,
    model::{Head, Pool, Vit},
    quantize::{EdgeEncoder, Fidelity, Noise, Quality, Reference, Samples, Target, noise, quantize},
    report::{Cell, Column, Table},
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
    /// Images to calibrate on
    #[arg(long, default_value_t = 128)]
    images: usize,
    /// Other images to compare on [default: as many]
    #[arg(long, value_name = "IMAGES")]
    compare: Option<usize>,
    /// Bits of a weight in the blocks: 8 or 4
    #[arg(long, default_value = "8", value_parser = ["8", "4"])]
    bits: String,
    /// Inputs that share a scale with weights of 4 bits: a multiple of 4
    #[arg(long, default_value_t = 32)]
    group: usize,
    /// Which output is the embedding, and enters the classification head [default: what the encoder says]
    #[arg(long, value_parser = ["cls", "mean"])]
    pool: Option<String>,
    /// Leave out the classification head that the file has
    #[arg(long)]
    no_head: bool,
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
    if args.group == 0 || !args.group.is_multiple_of(4) || args.group > 65_536 {
        return Err(Error::Usage(format!(
            "--group {}: give a multiple of 4 up to 65536",
            args.group
        )));
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
    let head = match args.no_head {
        true => None,
        false => Head::load(&path, vit.config().dim)?,
    };
    let pool = match args.pool.as_deref() {
        Some("cls") => Pool::Cls,
        Some(_) => Pool::Mean,
        None => embedding(&vit, head.is_some()),
    };
    let compared = args.compare.unwrap_or(args.images);
    let samples = Samples::read(&vit, source, args.images, compared, args.threads)?;
    for skipped in &samples.skipped {
        eprintln!("left out: {}: {}", skipped.name, skipped.reason);
    }
    let calibration = samples.calibrate(&vit, &normalization)?;
    let target = |precision| Target {
        name: "",
        pool,
        precision,
        head: head.as_ref(),
    };
    let int4 = Precision::Int4 { group: args.group };
    let wanted = if args.bits == "4" { int4 } else { Precision::Int8 };
    let made = quantize(&vit, &normalization, &target(wanted), &calibration)?;
    atomic::write(&out, &made)?;

    let reference = Reference::new(&vit, &normalization, head.as_ref(), pool, &samples)?;
    let mut rows = Vec::new();
    for precision in [Precision::Int8, int4] {
        let edge = match precision == wanted {
            true => EdgeEncoder::from_bytes(&made)?,
            false => EdgeEncoder::from_bytes(&quantize(&vit, &normalization, &target(precision), &calibration)?)?,
        };
        rows.push(Row {
            precision,
            quality: reference.compare(&edge)?,
            noise: noise(&vit, &normalization, &edge, &samples)?,
            edge,
        });
    }
    let report = Report {
        out: &out,
        wanted,
        samples: &samples,
        knn_top1: reference.knn_top1()?,
        weights: 4 * vit
            .weights()
            .iter()
            .map(|(_, tensor)| tensor.elem_count())
            .sum::<usize>(),
        rows,
    };
    match args.json {
        true => report.json(),
        false => report.lines(),
    }
    Ok(())
}

/// What of an encoder's outputs its embedding is, where the user does not say.
fn embedding(vit: &Vit, head: bool) -> Pool {
    match (vit.variant().pooled_norm, vit.metadata()) {
        (true, _) => Pool::Mean,
        (false, Some(metadata)) => metadata.pool,
        // A head without a norm of its own is on the class token.
        (false, None) if head => Pool::Cls,
        (false, None) => Pool::Mean,
    }
}

struct Row {
    precision: Precision,
    quality: Quality,
    noise: Vec<Noise>,
    edge: EdgeEncoder,
}

impl Row {
    fn name(&self) -> String {
        match self.precision {
            Precision::Int8 => "int8".into(),
            Precision::Int4 { group } => format!("int4, groups of {group}"),
        }
    }
}

/// What the user is told.
struct Report<'r> {
    out: &'r Path,
    wanted: Precision,
    samples: &'r Samples,
    /// Of f32.
    knn_top1: Option<f64>,
    /// Bytes of the f32 encoder's parameters.
    weights: usize,
    /// int8, then int4.
    rows: Vec<Row>,
}

impl Report<'_> {
    fn json(&self) {
        let fidelity = |f: &Fidelity| json!({"mean": f.mean, "worst": f.worst});
        let rows = self.rows.iter().map(|row| {
            let q = &row.quality;
            json!({
                "precision": row.name(), "written": row.precision == self.wanted, "bytes": row.edge.file_bytes(),
                "scratch_bytes": row.edge.scratch_bytes(), "cosine_cls": fidelity(&q.class), "cosine_mean": fidelity(&q.mean),
                "same_neighbor": q.neighbors, "knn_top1": q.knn_top1, "same_class": q.top1,
                "signal_to_noise_db": row.noise.iter().map(|n| (n.layer.clone(), json!(n.decibels))).collect::<Map<_, _>>(),
            })
        });
        let written = self.rows.iter().find(|row| row.precision == self.wanted);
        output::json(&json!({
            "encoder": self.out.display().to_string(), "bytes": written.map(|row| row.edge.file_bytes()), "calibration_images": self.samples.calibrated(),
            "compared_images": self.samples.compared(), "compared_on_other_images": self.samples.fresh(),
            "f32": {"bytes": self.weights, "knn_top1": self.knn_top1}, "rows": rows.collect::<Vec<_>>(),
        }));
    }

    fn lines(&self) {
        let mut noise = Table::new([
            Column::text("after"),
            Column::number("int8", "dB"),
            Column::number("int4", "dB"),
        ]);
        if let [int8, int4] = &self.rows[..] {
            for (a, b) in int8.noise.iter().zip(&int4.noise) {
                let decibels = |n: &Noise| Cell::new(format!("{:.1}", n.decibels));
                noise.row([Cell::new(a.layer.clone()), decibels(a), decibels(b)]);
            }
        }
        output::line("Signal to noise of the residual stream:\n");
        output::line(noise.to_string().trim_end());

        let percent = |share: f64| Cell::new(format!("{:.1}", 100.0 * share));
        let perhaps = |share: Option<f64>| share.map_or_else(Cell::none, percent);
        let mut table = Table::new([
            Column::text("precision"),
            Column::number("file", ""),
            Column::text("cosine to f32 of the class token"),
            Column::text("of the mean"),
            Column::number("same neighbor", "%"),
            Column::number("k-NN top-1", "%"),
            Column::number("same class", "%"),
        ]);
        let none = Cell::none;
        let bytes = Cell::new(output::bytes(self.weights as u64));
        table.row([
            Cell::new("f32"),
            bytes,
            none(),
            none(),
            none(),
            perhaps(self.knn_top1),
            none(),
        ]);
        for row in &self.rows {
            let q = &row.quality;
            let cosine = |f: &Fidelity| Cell::new(format!("{:.5}, worst {:.5}", f.mean, f.worst));
            table.row([
                Cell::new(row.name()),
                Cell::new(output::bytes(row.edge.file_bytes() as u64)),
                cosine(&q.class),
                cosine(&q.mean),
                percent(q.neighbors),
                perhaps(q.knn_top1),
                perhaps(q.top1),
            ]);
        }
        let (compared, calibrated) = (self.samples.compared(), self.samples.calibrated());
        let whose = match self.samples.fresh() {
            true => format!("other images than the {calibrated} of the calibration"),
            false => "images, those of the calibration, for there are no others".into(),
        };
        output::line(&format!("\nOn {compared} {whose}:\n"));
        output::line(table.to_string().trim_end());
        if let Some(row) = self.rows.iter().find(|row| row.precision == self.wanted) {
            output::line(&format!(
                "\n{}: {}, {}, scratch {}",
                self.out.display(),
                row.name(),
                output::bytes(row.edge.file_bytes() as u64),
                output::bytes(row.edge.scratch_bytes() as u64),
            ));
        }
    }
}
