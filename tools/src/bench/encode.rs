//! `tec bench encode`: the int8 encoder on one image at a time, against itself in f32.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use candle_core::{Device, Tensor};
use serde_json::json;
use tec_core::philox::{Noise, Stream};
use tec_edge::{BackEnd, Encoder, Image, Options, Output, Outputs};
use tec_train::{
    Error, Result, atomic,
    data::Normalization,
    model::{DecoderConfig, LoadOptions, Mae, MaeConfig, Pool, Vit, VitConfig},
    quantize::{AlignedBytes, Calibration, Fidelity, Target, quantize},
    recipe::{Geometry, Size},
};

use crate::{bench::train::size_names, export::refuse_existing, output};

/// Arguments of `tec bench encode`.
#[derive(clap::Args)]
pub struct Args {
    /// Shape of an encoder with random weights
    #[arg(long, value_parser = size_names(), default_value = "tiny")]
    size: String,
    /// An encoder.tec instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["size", "weights"])]
    encoder: Option<PathBuf>,
    /// f32 weights instead, a safetensors file that may hold the image `x` and images `calibration`, as the ONNX Runtime peer saves it
    #[arg(long, value_name = "FILE", conflicts_with = "size")]
    weights: Option<PathBuf>,
    /// Threads that share an image
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Images encoded
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// What computes: auto or one of the back ends that this processor has
    #[arg(long, default_value = "auto")]
    back_end: String,
    /// Side of an image in pixels
    #[arg(long, default_value_t = 224)]
    img: usize,
    /// Side of a patch in pixels
    #[arg(long, default_value_t = 16)]
    patch: usize,
    /// Blocks, instead of the size's
    #[arg(long)]
    depth: Option<usize>,
    /// Values of a token, instead of the size's
    #[arg(long)]
    dim: Option<usize>,
    /// Heads of a block, instead of the size's
    #[arg(long)]
    heads: Option<usize>,
    /// Write the encoder.tec that was measured to a file that does not exist yet
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Images before those that are measured.
const WARM_UP: usize = 5;
/// Images to calibrate on, as many as the peer has.
const CALIBRATION: usize = 8;
/// How random images are normalized: normal numbers of up to four standard deviations are pixels.
const RANDOM_MEAN: f32 = 0.5;
const RANDOM_STD: f32 = 0.125;

/// An encoder, an image, and what f32 makes of it.
struct Subject {
    file: Vec<u8>,
    image: Vec<u8>,
    expected: Option<Vec<f32>>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if args.runs == 0 || args.threads == 0 {
        return Err(Error::Usage("--runs and --threads: give at least 1".into()));
    }
    let subject = match &args.encoder {
        Some(path) => from_file(path)?,
        None => made(args)?,
    };
    if let Some(path) = &args.save {
        refuse_existing(Some(path), false)?;
        atomic::write(path, &subject.file)?;
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build()
        .map_err(|e| Error::Usage(format!("--threads {}: {e}", args.threads)))?;
    // From a file's bytes on, as a program that has just started.
    let started = Instant::now();
    let file = AlignedBytes::from(&subject.file[..]);
    let mut encoder = Encoder::from_bytes(file.get()).map_err(|e| Error::Data(e.to_string()))?;
    if args.back_end != "auto" {
        encoder = encoder.with_back_end(back_end(&args.back_end)?);
    }
    let options = Options {
        patches: None,
        workers: args.threads,
    };
    let mut scratch = AlignedBytes::zeroed(encoder.fast_scratch_len(&options, Outputs::MEAN));
    let mut embedding = vec![0i16; encoder.geometry().dim];
    let mut encode = || {
        pool.install(|| {
            let out = Output {
                mean: Some(&mut embedding),
                ..Output::default()
            };
            encoder.encode_with(&options, Image::Pixels(&subject.image), scratch.get_mut(), out)
        })
        .map_err(|e| Error::Data(e.to_string()))
    };
    encode()?;
    let first = started.elapsed();
    (1..WARM_UP).try_for_each(|_| encode())?;
    let mut took = Vec::with_capacity(args.runs);
    for _ in 0..args.runs {
        let started = Instant::now();
        encode()?;
        took.push(started.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    let (median, least) = (took[took.len() / 2], took[0]);
    let mut real = vec![0.0; embedding.len()];
    encoder.to_f32(tec_edge::OutputKind::Mean, &embedding, &mut real);
    let cosine = match &subject.expected {
        Some(expected) => Some(Fidelity::of(&real, expected, real.len())?.mean),
        None => None,
    };
    let smallest = encoder.scratch_len_with(&options, Outputs::MEAN);
    if args.json {
        output::json(&json!({
            "size": args.encoder.is_none().then_some(&args.size), "threads": args.threads, "runs": args.runs,
            "ms_median": median, "ms_min": least, "ms_first": first.as_secs_f64() * 1e3, "cosine_to_f32": cosine,
            "scratch_bytes": scratch.get().len(), "scratch_bytes_least": smallest, "file_bytes": subject.file.len(),
            "back_end": encoder.back_end().name(),
        }));
    } else {
        let cosine = cosine.map_or(String::new(), |cosine| format!(", cosine to f32 {cosine:.6}"));
        output::line(&format!(
            "{median:.2} ms (least {least:.2}, first {:.1}) by {} with {} of scratch memory{cosine}",
            first.as_secs_f64() * 1e3,
            encoder.back_end().name(),
            output::bytes(scratch.get().len() as u64),
        ));
    }
    Ok(())
}

fn back_end(name: &str) -> Result<BackEnd> {
    let names: Vec<_> = BackEnd::all().map(BackEnd::name).collect();
    BackEnd::all()
        .find(|back_end| back_end.name() == name)
        .ok_or_else(|| Error::Usage(format!("--back-end {name}: this processor has {}", names.join(", "))))
}

fn from_file(path: &Path) -> Result<Subject> {
    let file = fs::read(path).map_err(|e| Error::File {
        path: path.into(),
        reason: format!("cannot be read: {e}"),
    })?;
    let aligned = AlignedBytes::from(&file[..]);
    let encoder = Encoder::from_bytes(aligned.get()).map_err(|e| Error::File {
        path: path.into(),
        reason: e.to_string(),
    })?;
    let image = (0..encoder.geometry().image_len())
        .map(|i| (i * 89 % 251) as u8)
        .collect();
    Ok(Subject {
        file,
        image,
        expected: None,
    })
}

/// Quantizes f32 weights, random ones or a file's.
fn made(args: &Args) -> Result<Subject> {
    let (vit, images) = match &args.weights {
        Some(path) => saved(path)?,
        None => random(args)?,
    };
    let normalization = Normalization {
        mean: vec![RANDOM_MEAN; 3],
        std: vec![RANDOM_STD; 3],
    };
    // What f32 sees are the pixels, too.
    let pixels = ((images * f64::from(RANDOM_STD * 255.0))? + f64::from(RANDOM_MEAN * 255.0))?;
    let pixels = pixels.round()?.clamp(0f32, 255f32)?;
    let images = ((&pixels / 255.0)? - f64::from(RANDOM_MEAN))?.affine(1.0 / f64::from(RANDOM_STD), 0.0)?;
    let (count, ..) = images.dims4()?;
    let mut calibration = Calibration::new();
    for image in 1..count {
        calibration.add(&vit, &images.narrow(0, image, 1)?)?;
    }
    let target = Target {
        name: &args.size,
        ..Target::default()
    };
    let file = quantize(&vit, &normalization, &target, &calibration)?;
    let tokens = vit.tokens(&images.narrow(0, 0, 1)?)?;
    let expected = vit.pool(&tokens, Pool::Mean)?.flatten_all()?.to_vec1()?;
    let first = pixels.get(0)?.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?;
    Ok(Subject {
        file,
        image: first.into_iter().map(|pixel| pixel as u8).collect(),
        expected: Some(expected),
    })
}

/// An encoder with random weights, and random images: one, and those to calibrate on.
fn random(args: &Args) -> Result<(Vit, Tensor)> {
    let size = Size::named(&args.size).ok_or_else(|| Error::Usage(format!("{} is no size", args.size)))?;
    let Geometry { dim, depth, heads, .. } = size.geometry();
    let config = MaeConfig {
        encoder: VitConfig {
            image_size: args.img,
            patch_size: args.patch,
            channels: 3,
            dim: args.dim.unwrap_or(dim),
            depth: args.depth.unwrap_or(depth),
            heads: args.heads.unwrap_or(heads),
            mlp_ratio: 4,
        },
        decoder: DecoderConfig {
            dim: 16,
            depth: 1,
            heads: 1,
        },
        norm_pix: true,
    };
    let vit = Mae::new(config, 1, &Device::Cpu)?.encoder()?;
    let mut values = vec![0.0; (1 + CALIBRATION) * 3 * args.img * args.img];
    Noise {
        seed: 0,
        epoch: 0,
        sample: 0,
        stream: Stream::Augment,
    }
    .fill(&mut values);
    // About normal: of deviation 1.
    let values: Vec<f32> = values.iter().map(|u| (u - 0.5) * 12f32.sqrt()).collect();
    let images = Tensor::from_vec(values, (1 + CALIBRATION, 3, args.img, args.img), &Device::Cpu)?;
    Ok((vit, images))
}

/// Weights with their image and calibration images.
fn saved(path: &Path) -> Result<(Vit, Tensor)> {
    let mut tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(path, &Device::Cpu).map_err(|e| Error::File {
            path: path.into(),
            reason: e.to_string(),
        })?;
    let mut take = |name: &str| {
        tensors.remove(name).ok_or_else(|| Error::File {
            path: path.into(),
            reason: format!("holds no {name}: give what `peer_edge.py --save` wrote"),
        })
    };
    let (x, calibration) = (take("x")?, take("calibration")?);
    take("y")?;
    let vit = Vit::from_tensors(tensors, &LoadOptions::default(), path, &Device::Cpu)?;
    Ok((vit, Tensor::cat(&[x, calibration], 0)?))
}
