//! `tec bench train`.

use std::time::Instant;

use candle_core::{Device, Tensor};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::json;
use tec_core::philox::{Noise, Stream};
use tec_train::{
    Error, Result,
    device::DeviceName,
    model::{BaseConfig, DecoderConfig, Mae, MaeConfig, Masks, Tec, TecConfig, Vit, VitConfig},
    ops::Amp,
    optim::{AdamW, AdamWConfig},
    pretrain::{Gradients, MeanLoss, Workers, pieces},
    recipe::{Geometry, Size},
    run_dir::peak_bytes,
};

use crate::output;

/// Arguments of `tec bench train`.
#[derive(clap::Args)]
pub struct Args {
    /// The new model
    #[arg(long, value_parser = size_names(), default_value = "tiny")]
    student: String,
    /// The frozen base
    #[arg(long, value_parser = size_names(), default_value = "tiny")]
    base: String,
    /// Images a step
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Steps measured, after three that are not
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Side of an image in pixels
    #[arg(long, default_value_t = 224)]
    img: usize,
    /// Side of a patch in pixels
    #[arg(long, default_value_t = 16)]
    patch: usize,
    /// Threads; absent: all cores
    #[arg(long)]
    threads: Option<usize>,
    /// Where to compute: cpu, cuda or cuda:N
    #[arg(long, default_value_t)]
    device: DeviceName,
    /// Mixed precision of model and base
    #[arg(long, value_parser = PossibleValuesParser::new(Amp::ALL.map(Amp::name)).try_map(|name| name.parse::<Amp>()), default_value = "none")]
    amp: Amp,
    /// Compute blocks again for their gradients instead of keeping what they computed
    #[arg(long)]
    grad_checkpointing: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The sizes' names, for clap.
pub(super) fn size_names() -> [&'static str; Size::ALL.len()] {
    Size::ALL.map(|(name, _)| name)
}

/// Steps that are not measured: the first ones allocate.
const WARM_UP: usize = 3;

/// What was measured.
struct Measured {
    seconds: Vec<f64>,
    losses: Vec<f64>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if args.steps == 0 || args.batch == 0 {
        return Err(Error::Usage("--steps and --batch: give at least 1".into()));
    }
    let threads = args.threads.unwrap_or(0);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::Usage(format!("--threads {threads}: {e}")))?;
    let mut measured = pool.install(|| measure(args))?;
    measured.seconds.sort_by(f64::total_cmp);
    let median = measured
        .seconds
        .get(measured.seconds.len() / 2)
        .copied()
        .unwrap_or(f64::NAN);
    let images_per_s = args.batch as f64 / median;
    let (first, last) = (measured.losses.first(), measured.losses.last());
    let facts = json!({
        "student": args.student, "base": args.base, "batch": args.batch, "steps": args.steps, "img": args.img,
        "patch": args.patch, "device": args.device.to_string(), "amp": args.amp.name(), "threads": pool.current_num_threads(),
        "images_per_s": images_per_s, "peak_bytes": peak_bytes(), "loss_first": first, "loss_last": last,
    });
    match args.json {
        true => output::json(&facts),
        false => println!(
            "{images_per_s:.2} images/s, peak {} MB, {} threads, loss {:.4} to {:.4}",
            peak_bytes().unwrap_or(0) / 1_000_000,
            pool.current_num_threads(),
            first.unwrap_or(&f64::NAN),
            last.unwrap_or(&f64::NAN)
        ),
    }
    Ok(())
}

fn measure(args: &Args) -> Result<Measured> {
    let device = args.device.open()?;
    let encoder = |name: &str| {
        let size = Size::named(name).ok_or_else(|| Error::Usage(format!("{name} is no size")))?;
        let Geometry { dim, depth, heads, .. } = size.geometry();
        Ok::<_, Error>(VitConfig {
            image_size: args.img,
            patch_size: args.patch,
            channels: 3,
            dim,
            depth,
            heads,
            mlp_ratio: 4,
        })
    };
    let decoder = DecoderConfig {
        dim: 512,
        depth: 2,
        heads: 16,
    };
    let base = random_base(encoder(&args.base)?, &decoder, &device, args.amp)?;
    let config = TecConfig {
        encoder: encoder(&args.student)?,
        base: BaseConfig {
            dim: base.config().dim,
            heads: base.config().heads,
        },
        decoder,
        adapters: None,
        temperature: 1.8,
    };
    let patches = config.encoder.patches();
    let top_k = patches.min(15);
    let mut model = Tec::with_amp(config, 0, &device, args.amp)?;
    model.set_grad_checkpointing(args.grad_checkpointing);
    let adamw = AdamWConfig {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.05,
    };
    let mut optimizer = AdamW::new(model.params().trainable(), adamw);
    let images = random_images(args, &device)?;
    let samples: Vec<u32> = (0..args.batch as u32).collect();
    let tokens = 1 + patches;
    let workers = match device.is_cpu() {
        true => Workers::new(pieces(args.batch, tokens).len())?,
        false => Workers::whole(),
    };
    let mut measured = Measured {
        seconds: Vec::new(),
        losses: Vec::new(),
    };
    for step in 0..WARM_UP + args.steps {
        let started = Instant::now();
        let mut sum = Gradients::new(model.params().trainable(), args.batch, 0);
        sum.add(&workers, args.batch, tokens, |range| {
            let images = images.narrow(0, range.start, range.len())?;
            let targets = base.targets(&images, 2, top_k)?;
            let masks = Masks::draw(0, step as u32, &samples[range], patches, 0.75, &device)?;
            let losses = model.losses(&images, &targets, &masks)?;
            Ok(MeanLoss {
                feature: losses.feature,
                relation: Some(losses.relation),
                total: losses.total,
            })
        })?;
        let losses = sum.losses();
        if let Some(grads) = sum.finish()? {
            optimizer.step_for(&grads, losses.values()?.as_ref(), 1.5e-4, None)?;
        }
        let (feature, relation) = losses.means()?;
        let seconds = started.elapsed().as_secs_f64();
        measured.losses.push(feature + relation.unwrap_or(0.0));
        if step >= WARM_UP {
            measured.seconds.push(seconds);
        }
    }
    Ok(measured)
}

fn random_base(encoder: VitConfig, decoder: &DecoderConfig, device: &Device, amp: Amp) -> Result<Vit> {
    let config = MaeConfig {
        encoder,
        decoder: decoder.clone(),
        norm_pix: true,
    };
    Mae::new(config, 1, device)?.encoder_with_amp(amp)
}

/// Values as normalized pixels have them, about -2 to 2.
fn random_images(args: &Args, device: &Device) -> Result<Tensor> {
    let mut values = vec![0.0; args.batch * 3 * args.img * args.img];
    Noise {
        seed: 2,
        epoch: 0,
        sample: 0,
        stream: Stream::Augment,
    }
    .fill(&mut values);
    values.iter_mut().for_each(|v| *v = 4.0 * *v - 2.0);
    Ok(Tensor::from_vec(values, (args.batch, 3, args.img, args.img), device)?)
}
