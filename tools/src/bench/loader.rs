//! `tec bench loader`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use serde_json::json;
use tec_train::{
    Error, Result,
    data::{self, Loader, LoaderConfig, Normalization, Source},
};

use crate::output;

/// Arguments of `tec bench loader`.
#[derive(clap::Args)]
pub struct Args {
    /// Images: what `tec pretrain --data` takes
    #[arg(long)]
    data: PathBuf,
    /// Side of the squares in pixels
    #[arg(long, default_value_t = 224)]
    img: usize,
    /// Threads that decode; run the program on one core to measure one core
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Images a batch
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// How long to measure, in seconds
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the verb: training's crops of one image after the other, to normalized f32 batches, for a while.
pub fn run(args: &Args) -> Result<()> {
    if !(args.seconds > 0.0 && args.seconds <= 86_400.0) {
        return Err(Error::Usage("--seconds is above 0 and at most 86400".into()));
    }
    let source: Arc<dyn Source> = Arc::from(data::open(&args.data)?);
    let summary = source.summary();
    let config = LoaderConfig {
        threads: args.threads,
        ..LoaderConfig::train(args.img, 3, args.batch.min(source.len()), 0)
    };
    let normalization = Normalization::imagenet(3)?;
    let mut batches = Loader::new(source, config)?.batches(0, 0, u32::MAX)?;
    // The first batch finds the files and the memory; `peer_loader.py` leaves it out as well.
    let mut next = || -> Result<(usize, usize)> {
        let Some(batch) = batches.next() else { return Ok((0, 0)) };
        let batch = batch?;
        data::to_tensor(&batch.pixels, batch.len(), args.img, 3, &normalization, &Device::Cpu)?;
        Ok((batch.len(), batch.skipped.len()))
    };
    next()?;
    let (start, cpu) = (Instant::now(), cpu_time());
    let (mut images, mut skipped) = (0, 0);
    while start.elapsed().as_secs_f64() < args.seconds {
        let (ready, left_out) = next()?;
        images += ready;
        skipped += left_out;
    }
    let took = start.elapsed().as_secs_f64();
    let per_second = images as f64 / took;
    let cpu = cpu.zip(cpu_time()).map(|(before, after)| after.saturating_sub(before));
    let cpu_ms = cpu.map(|cpu| cpu.as_secs_f64() * 1e3 / images.max(1) as f64);
    let digits = |value: f64, scale: f64| (value * scale).round() / scale;
    if args.json {
        output::json(&json!({
            "images_per_s": digits(per_second, 10.0), "cpu_ms_per_image": cpu_ms.map(|ms| digits(ms, 1000.0)),
            "threads": args.threads, "img": args.img, "images": images, "skipped": skipped, "seconds": digits(took, 100.0),
        }));
        return Ok(());
    }
    output::line(&summary);
    output::line(&format!(
        "{per_second:.1} images/s with {} decoding threads, {} pixels",
        args.threads, args.img
    ));
    if let Some(ms) = cpu_ms {
        output::line(&format!("{ms:.3} ms of processor time an image"));
    }
    if skipped > 0 {
        output::line(&format!("{skipped} images could not be read"));
    }
    Ok(())
}

/// The processor time of all threads of this process, where the system tells it in a file.
fn cpu_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses and may hold anything; user and system time are the 14th and 15th,
    // in hundredths of a second on every Linux.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(10 * ticks))
}
