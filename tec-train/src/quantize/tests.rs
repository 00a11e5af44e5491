//! Small random encoders through calibration, quantization and the device's code.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use tec_core::philox::{Noise, Stream};
use tec_edge::{Encoder, OutputKind, Precision};

use super::{Calibration, EdgeEncoder, Fidelity, Reference, Samples, Target, cosines, noise as noise_of, quantize};
use crate::Error;
use crate::data::{Normalization, Pixels, Source, to_tensor};
use crate::eval::Features;
use crate::model::{DecoderConfig, Head, Mae, MaeConfig, Pool, Vit, VitConfig};

fn noise(seed: u64, stream: Stream) -> Noise {
    Noise {
        seed,
        epoch: 0,
        sample: 0,
        stream,
    }
}

fn config(channels: usize) -> VitConfig {
    VitConfig {
        image_size: 28,
        patch_size: 7,
        channels,
        dim: 48,
        depth: 3,
        heads: 3,
        mlp_ratio: 4,
    }
}

/// A fresh encoder, its biases and norms not at their start; `change` may spoil a parameter.
fn vit(config: &VitConfig, seed: u64, change: impl Fn(&str, &mut [f32])) -> Vit {
    let decoder = DecoderConfig {
        dim: 16,
        depth: 1,
        heads: 1,
    };
    let mae = MaeConfig {
        encoder: config.clone(),
        decoder,
        norm_pix: true,
    };
    let fresh = Mae::new(mae, seed, &Device::Cpu).unwrap().encoder().unwrap();
    let mut state = Vec::new();
    for (number, (name, tensor)) in fresh.weights().iter().enumerate() {
        let mut values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let noise = noise(seed + number as u64, Stream::Init);
        for (i, x) in values.iter_mut().enumerate() {
            *x = *x * 1.5 + (noise.uniform(i as u32) - 0.5) * 0.3;
        }
        change(name, &mut values);
        state.push((
            name.clone(),
            Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap(),
        ));
    }
    Vit::from_state(state, config, &Device::Cpu).unwrap()
}

/// Pictures of a few soft blobs, which differ from each other more than noise does.
fn picture(config: &VitConfig, number: u32) -> Vec<u8> {
    let noise = Noise {
        sample: number,
        ..noise(7, Stream::Augment)
    };
    let size = config.image_size;
    let mut pixels = Vec::new();
    for y in 0..size {
        for x in 0..size {
            for c in 0..config.channels {
                let mut value = 0.0;
                for blob in 0..4 {
                    let at = |k: u32| noise.uniform(16 * blob + k + 4 * c as u32) * size as f32;
                    let (dx, dy) = (x as f32 - at(0), y as f32 - at(1));
                    value += 200.0 * (-(dx * dx + dy * dy) / (10.0 + 5.0 * at(2))).exp();
                }
                pixels.push(value.min(255.0) as u8);
            }
        }
    }
    pixels
}

fn pictures(config: &VitConfig, numbers: std::ops::Range<u32>) -> Vec<u8> {
    numbers.flat_map(|n| picture(config, n)).collect()
}

fn normalization(config: &VitConfig) -> Normalization {
    Normalization::imagenet(config.channels).unwrap()
}

fn calibrated(vit: &Vit) -> Calibration {
    let config = vit.config();
    let pixels = pictures(config, 0..32);
    let normalization = normalization(config);
    let images = to_tensor(
        &pixels,
        32,
        config.image_size,
        config.channels,
        &normalization,
        &Device::Cpu,
    )
    .unwrap();
    let mut calibration = Calibration::new();
    calibration.add(vit, &images).unwrap();
    calibration
}

fn quantized(vit: &Vit) -> Vec<u8> {
    let target = Target {
        name: "small",
        ..Target::default()
    };
    quantize(vit, &normalization(vit.config()), &target, &calibrated(vit)).unwrap()
}

/// Cosines after taking away the mean over the images, which all embeddings share: what tells images apart.
fn centered(a: &[f32], b: &[f32], dim: usize) -> Fidelity {
    let center = |x: &[f32]| -> Vec<f32> {
        let images = (x.len() / dim) as f32;
        let mean = |c: usize| x.iter().skip(c).step_by(dim).sum::<f32>() / images;
        let means: Vec<f32> = (0..dim).map(mean).collect();
        x.iter().enumerate().map(|(i, x)| x - means[i % dim]).collect()
    };
    Fidelity::of(&center(a), &center(b), dim).unwrap()
}

fn f32_tokens(vit: &Vit, pixels: &[u8], count: usize) -> Tensor {
    let config = vit.config();
    let (size, channels) = (config.image_size, config.channels);
    let images = to_tensor(pixels, count, size, channels, &normalization(config), &Device::Cpu).unwrap();
    vit.tokens(&images).unwrap()
}

fn values(tensor: Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn int8_is_near_f32_on_other_images() {
    for (channels, seed) in [(3, 1), (1, 2)] {
        let config = config(channels);
        let vit = vit(&config, seed, |_, _| {});
        let edge = EdgeEncoder::from_bytes(&quantized(&vit)).unwrap();
        let pixels = pictures(&config, 100..124);
        let tokens = f32_tokens(&vit, &pixels, 24);
        let class = values(tokens.narrow(1, 0, 1).unwrap());
        let mean = values(tokens.narrow(1, 1, config.patches()).unwrap().mean(1).unwrap());
        for (what, exact, pool) in [("class", class, Pool::Cls), ("mean", mean, Pool::Mean)] {
            let got = edge.embed(&pixels, 24, pool).unwrap();
            let plain = Fidelity::of(&exact, &got, config.dim).unwrap();
            let centered = centered(&exact, &got, config.dim);
            println!("{channels} channels, {what}: {plain:?}, centered {centered:?}");
            assert!(plain.mean > 0.999 && plain.worst > 0.995, "{what}: {plain:?}");
            assert!(centered.mean > 0.99 && centered.worst > 0.95, "{what}: {centered:?}");
        }
    }
}

#[test]
fn patch_tokens_are_near_f32() {
    let config = config(3);
    let vit = vit(&config, 3, |_, _| {});
    let bytes = quantized(&vit);
    let mut memory = vec![0u128; bytes.len().div_ceil(16)];
    let aligned: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut memory)[..bytes.len()];
    aligned.copy_from_slice(&bytes);
    let encoder = Encoder::from_bytes(aligned).unwrap();
    assert_eq!((encoder.name(), encoder.pool()), ("small", tec_edge::Pool::Mean));
    let pixels = picture(&config, 200);
    let mut patches = vec![0i16; encoder.output_len(OutputKind::Patches)];
    let mut scratch = vec![0u128; encoder.scratch_len(tec_edge::Outputs::PATCHES).div_ceil(16)];
    let output = tec_edge::Output {
        patches: Some(&mut patches),
        ..Default::default()
    };
    let scratch = bytemuck::cast_slice_mut(&mut scratch);
    encoder
        .encode(tec_edge::Image::Pixels(&pixels), scratch, output)
        .unwrap();
    let mut got = vec![0.0; patches.len()];
    encoder.to_f32(OutputKind::Patches, &patches, &mut got);
    let exact = values(f32_tokens(&vit, &pixels, 1).narrow(1, 1, config.patches()).unwrap());
    let near = Fidelity::of(&exact, &got, config.dim).unwrap();
    assert!(near.mean > 0.999 && near.worst > 0.995, "{near:?}");
}

#[test]
fn the_same_encoder_gives_the_same_bytes() {
    let vit = vit(&config(1), 4, |_, _| {});
    assert!(quantized(&vit) == quantized(&vit));
}

#[test]
fn dead_channels_and_rows_are_no_trouble() {
    // A norm that ignores a channel, a layer with an output that is always zero, one that is only its bias.
    let vit = vit(&config(1), 5, |name, values| match name {
        "blocks.0.norm1.weight" | "blocks.1.norm2.weight" | "norm.weight" => values[3] = 0.0,
        "blocks.0.norm1.bias" => values[3] = 0.0,
        "blocks.1.attn.qkv.weight" => values[..48 * 5].fill(0.0),
        "blocks.1.mlp.fc1.weight" => values[..48 * 9].fill(0.0),
        "blocks.2.attn.proj.weight" | "blocks.2.attn.proj.bias" | "blocks.2.mlp.fc2.weight" => values.fill(0.0),
        _ => {}
    });
    let edge = EdgeEncoder::from_bytes(&quantized(&vit)).unwrap();
    let pixels = pictures(vit.config(), 50..54);
    let exact = values(f32_tokens(&vit, &pixels, 4).narrow(1, 0, 1).unwrap());
    let near = Fidelity::of(&exact, &edge.embed(&pixels, 4, Pool::Cls).unwrap(), 48).unwrap();
    assert!(near.worst > 0.998, "{near:?}");
}

#[test]
fn what_cannot_be_quantized_is_refused() {
    let good = vit(&config(1), 6, |_, _| {});
    let normalization = normalization(good.config());
    let message = |result: crate::Result<Vec<u8>>| result.map(|_| ()).unwrap_err().to_string();
    let unseen = message(quantize(&good, &normalization, &Target::default(), &Calibration::new()));
    assert!(unseen.contains("not calibrated"), "{unseen}");

    let calibration = calibrated(&good);
    let rgb = Normalization::imagenet(3).unwrap();
    assert!(matches!(
        quantize(&good, &rgb, &Target::default(), &calibration),
        Err(Error::Usage(_))
    ));

    let huge = vit(&config(1), 6, |name, values| {
        if name == "blocks.1.mlp.fc2.weight" {
            values[0] = f32::MAX;
        }
    });
    let refused = message(quantize(&huge, &normalization, &Target::default(), &calibration));
    assert!(refused.contains("blocks.1.mlp.fc2"), "{refused}");

    let pixels = picture(good.config(), 0);
    let short = EdgeEncoder::from_bytes(&[0; 40]).map(|_| ()).unwrap_err().to_string();
    assert!(short.contains("not an encoder file"), "{short}");
    let edge = EdgeEncoder::from_bytes(&quantized(&good)).unwrap();
    assert!(matches!(edge.embed(&pixels[1..], 1, Pool::Mean), Err(Error::Data(_))));
}

/// Pictures, of which every fifth cannot be read.
struct Pictures {
    config: VitConfig,
    count: usize,
}

impl Source for Pictures {
    fn len(&self) -> usize {
        self.count
    }

    fn name(&self, index: usize) -> String {
        format!("picture {index}")
    }

    fn label(&self, _: usize) -> Option<u32> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn load(&self, index: usize) -> Result<Pixels, String> {
        if index % 5 == 4 {
            return Err("torn".into());
        }
        let size = self.config.image_size;
        Pixels::new(size, size, self.config.channels, picture(&self.config, index as u32))
    }
}

#[test]
fn embeddings_neighbors_and_logits_are_near_f32() {
    let config = config(3);
    let vit = vit(&config, 8, |_, _| {});
    let source = |count| -> Arc<dyn Source> {
        Arc::new(Pictures {
            config: config.clone(),
            count,
        })
    };
    let normalization = normalization(&config);
    let samples = Samples::read(&vit, source(40), 16, 16, 1).unwrap();
    assert_eq!(samples.calibrated() + samples.compared() + samples.skipped.len(), 32);
    assert!(samples.fresh() && samples.skipped.iter().all(|s| s.reason == "torn"));
    let calibration = samples.calibrate(&vit, &normalization).unwrap();
    let head = Head {
        weight: (0..7 * config.dim)
            .map(|i| ((i * 31 % 17) as f32 - 8.0) / 20.0)
            .collect(),
        bias: (0..7).map(|i| i as f32 / 10.0).collect(),
    };
    for (pool, precision, least) in [
        (Pool::Cls, Precision::Int8, 0.999),
        (Pool::Mean, Precision::Int8, 0.999),
        (Pool::Mean, Precision::Int4 { group: 16 }, 0.97),
    ] {
        let target = Target {
            name: "",
            pool,
            precision,
            head: Some(&head),
        };
        let edge = EdgeEncoder::from_bytes(&quantize(&vit, &normalization, &target, &calibration).unwrap()).unwrap();
        let reference = Reference::new(&vit, &normalization, Some(&head), pool, &samples).unwrap();
        let quality = reference.compare(&edge).unwrap();
        println!("{pool:?} {precision:?}: {quality:?}");
        assert!(quality.mean.mean > least && quality.class.mean > least, "{quality:?}");
        assert!(quality.neighbors > 0.6 && quality.top1.unwrap() > 0.8, "{quality:?}");
        // The pictures have no classes.
        assert_eq!((quality.knn_top1, reference.knn_top1().unwrap()), (None, None));
        let noise = noise_of(&vit, &normalization, &edge, &samples).unwrap();
        assert_eq!(noise.len(), 1 + 2 * config.depth);
        assert_eq!((&*noise[0].layer, &*noise[6].layer), ("embedding", "blocks.2.mlp"));
        println!("{noise:?}");
        assert!(noise.iter().all(|n| n.decibels > 12.0), "{noise:?}");
        assert!(noise[0].decibels > 40.0 || precision != Precision::Int8, "{noise:?}");
    }

    let alone = Samples::read(&vit, source(1), 16, 16, 1).unwrap();
    assert_eq!((alone.calibrated(), alone.compared(), alone.fresh()), (1, 1, false));
    assert!(matches!(Samples::read(&vit, source(4), 0, 1, 1), Err(Error::Usage(_))));
}

#[test]
fn cosines_are_cosines() {
    let features = |data: &[f32]| Features {
        dim: 2,
        data: data.to_vec(),
        labels: vec![None; data.len() / 2],
        classes: Vec::new(),
    };
    let a = features(&[1.0, 0.0, 3.0, 4.0, 0.0, 0.0]);
    let b = features(&[1.0, 1.0, 6.0, 8.0, 0.0, 0.0]);
    let f = cosines(&a, &b).unwrap();
    assert!((f.worst - 0.5f32.sqrt()).abs() < 1e-6, "{f:?}");
    assert!((f.mean - (0.5f32.sqrt() + 2.0) / 3.0).abs() < 1e-6, "{f:?}");
    assert!(cosines(&a, &features(&[1.0, 0.0])).is_err());
    assert!(cosines(&features(&[]), &features(&[])).is_err());
}
