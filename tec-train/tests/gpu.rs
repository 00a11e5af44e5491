//! Models on a GPU against the same models on the CPU: losses, every gradient, steps of AdamW, checkpoints.
//!
//! Needs the feature `cuda` and a GPU, or the emulated driver (`ci/cuda` runs it there).

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use tec_core::philox::{Noise, Stream};
use tec_train::{
    data::{Pixels, Source},
    device::DeviceName,
    model::{
        BaseConfig, DecoderConfig, EncoderMetadata, Mae, MaeConfig, Masks, Params, Pool, Tec, TecConfig, Vit, VitConfig,
    },
    ops::{self, Amp},
    optim::{AdamW, AdamWConfig},
    pretrain::{Job, Plan, Progress, run},
    ranks::OneProcess,
    ranks::{Collective, Launch, Nccl},
    recipe::RecipeBuilder,
    run_dir::{Existing, StepMetrics},
};

const BATCH: usize = 3;
const SAMPLES: [u32; BATCH] = [4, 9, 2];

fn gpu() -> Device {
    DeviceName::Cuda(0)
        .open()
        .expect("these tests need a GPU, real or emulated")
}

fn encoder(dim: usize, heads: usize) -> VitConfig {
    VitConfig {
        image_size: 24,
        patch_size: 4,
        channels: 3,
        dim,
        depth: 2,
        heads,
        mlp_ratio: 4,
    }
}

fn decoder() -> DecoderConfig {
    DecoderConfig {
        dim: 40,
        depth: 2,
        heads: 2,
    }
}

fn mae_config(dim: usize, heads: usize) -> MaeConfig {
    MaeConfig {
        encoder: encoder(dim, heads),
        decoder: decoder(),
        norm_pix: true,
    }
}

fn images(device: &Device) -> Tensor {
    let mut values = vec![0.0; BATCH * 3 * 24 * 24];
    Noise {
        seed: 2,
        epoch: 0,
        sample: 0,
        stream: Stream::Augment,
    }
    .fill(&mut values);
    values.iter_mut().for_each(|v| *v = 4.0 * *v - 2.0);
    Tensor::from_vec(values, (BATCH, 3, 24, 24), device).unwrap()
}

fn masks(device: &Device) -> Masks {
    Masks::draw(5, 1, &SAMPLES, 36, 0.75, device).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor
        .to_device(&Device::Cpu)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// The largest difference, relative to the largest value.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(1e-6f32, |largest, v| largest.max(v.abs()));
    let off = |(a, b): (&f32, &f32)| {
        if a.is_finite() && b.is_finite() {
            (a - b).abs()
        } else {
            f32::INFINITY
        }
    };
    a.iter().zip(b).map(off).fold(0.0, f32::max) / largest
}

/// Gradients by parameter.
fn gradients(loss: &Tensor, params: &Params) -> HashMap<String, Vec<f32>> {
    let grads = ops::backward(loss).unwrap();
    let of = |(name, var): &(String, candle_core::Var)| (name.clone(), flat(grads.get(var).unwrap()));
    params.trainable().iter().map(of).collect()
}

fn compare(cpu: &HashMap<String, Vec<f32>>, gpu: &HashMap<String, Vec<f32>>, tolerance: f32) {
    let mut wrong: Vec<String> = cpu
        .iter()
        .map(|(name, values)| (name, difference(values, &gpu[name])))
        .filter(|(_, difference)| *difference >= tolerance)
        .map(|(name, difference)| format!("{name}: {difference}"))
        .collect();
    wrong.sort();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn base(device: &Device) -> Vit {
    Mae::new(mae_config(48, 3), 1, device).unwrap().encoder().unwrap()
}

fn tec_config() -> TecConfig {
    TecConfig {
        encoder: encoder(32, 2),
        base: BaseConfig { dim: 48, heads: 3 },
        decoder: decoder(),
        adapters: None,
        temperature: 1.8,
    }
}

fn tec(device: &Device) -> Tec {
    Tec::new(tec_config(), 7, device).unwrap()
}

#[test]
fn a_masked_autoencoder_has_the_cpu_s_loss_and_gradients() {
    let [cpu, gpu] = [Device::Cpu, gpu()].map(|device| {
        let model = Mae::new(mae_config(32, 2), 3, &device).unwrap();
        let loss = model.loss(&images(&device), &masks(&device)).unwrap();
        (flat(&loss), gradients(&loss, model.params()))
    });
    assert!(difference(&cpu.0, &gpu.0) < 1e-5, "{:?} {:?}", cpu.0, gpu.0);
    compare(&cpu.1, &gpu.1, 1e-4);
}

#[test]
fn the_base_s_targets_are_the_cpu_s() {
    let [cpu, gpu] = [Device::Cpu, gpu()].map(|device| base(&device).targets(&images(&device), 2, 5).unwrap());
    let index = |t: &Tensor| t.to_device(&Device::Cpu).unwrap().to_vec2::<u32>().unwrap();
    assert!(difference(&flat(&cpu.features), &flat(&gpu.features)) < 1e-5);
    assert_eq!(index(&cpu.index), index(&gpu.index));
    assert!(difference(&flat(&cpu.logits), &flat(&gpu.logits)) < 1e-5);
}

#[test]
fn a_new_model_has_the_cpu_s_losses_and_gradients() {
    for checkpointing in [false, true] {
        let [cpu, gpu] = [Device::Cpu, gpu()].map(|device| {
            let targets = base(&device).targets(&images(&device), 2, 5).unwrap();
            let mut model = tec(&device);
            model.set_grad_checkpointing(checkpointing);
            let losses = model.losses(&images(&device), &targets, &masks(&device)).unwrap();
            let values = [&losses.feature, &losses.relation].map(|loss| flat(loss)[0]);
            (values, gradients(&losses.total, model.params()))
        });
        assert!(difference(&cpu.0, &gpu.0) < 1e-5, "{:?} {:?}", cpu.0, gpu.0);
        compare(&cpu.1, &gpu.1, 1e-4);
    }
}

/// Rounding to 8 bits makes of a different order of sums, now and then, a neighbor.
#[test]
fn mixed_precision_has_the_cpu_s_losses_and_gradients() {
    let of_mae = |device: &Device| {
        let model = Mae::with_amp(mae_config(32, 2), 3, device, Amp::Bf16).unwrap();
        let loss = model.loss(&images(device), &masks(device)).unwrap();
        (flat(&loss), gradients(&loss, model.params()))
    };
    let of_tec = |device: &Device, checkpointing: bool| {
        let config = mae_config(48, 3);
        let base = Mae::new(config, 1, device)
            .unwrap()
            .encoder_with_amp(Amp::Bf16)
            .unwrap();
        let targets = base.targets(&images(device), 2, 5).unwrap();
        let mut model = Tec::with_amp(tec_config(), 7, device, Amp::Bf16).unwrap();
        model.set_grad_checkpointing(checkpointing);
        let losses = model.losses(&images(device), &targets, &masks(device)).unwrap();
        let values = [&losses.feature, &losses.relation].map(|loss| flat(loss)[0]);
        (values.to_vec(), gradients(&losses.total, model.params()))
    };
    let devices = [Device::Cpu, gpu()];
    for [cpu, gpu] in [
        devices.each_ref().map(of_mae),
        devices.each_ref().map(|device| of_tec(device, false)),
        devices.each_ref().map(|device| of_tec(device, true)),
    ] {
        assert!(difference(&cpu.0, &gpu.0) < 2e-3, "{:?} {:?}", cpu.0, gpu.0);
        compare(&cpu.1, &gpu.1, 2e-2);
        let usable = |values: &Vec<f32>| values.iter().all(|v| v.is_finite()) && values.iter().any(|v| *v != 0.0);
        assert!(gpu.1.values().all(usable));
    }
    let exact = Mae::new(mae_config(32, 2), 3, &devices[1]).unwrap();
    let loss = exact.loss(&images(&devices[1]), &masks(&devices[1])).unwrap();
    assert_ne!(flat(&loss), of_mae(&devices[1]).0, "nothing was rounded");
}

#[test]
fn steps_and_a_restored_optimizer_are_the_cpu_s() {
    let config = AdamWConfig {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.05,
    };
    let [cpu, gpu] = [Device::Cpu, gpu()].map(|device| {
        let model = Mae::new(mae_config(32, 2), 3, &device).unwrap();
        let step = |optimizer: &mut AdamW| {
            let loss = model.loss(&images(&device), &masks(&device)).unwrap();
            optimizer.step(&ops::backward(&loss).unwrap(), 1e-3, Some(0.5)).unwrap() as f32
        };
        let mut optimizer = AdamW::new(model.params().trainable(), config);
        let mut norms = vec![step(&mut optimizer), step(&mut optimizer)];
        let state = optimizer
            .moments()
            .unwrap()
            .iter()
            .map(|m| (m.name.to_owned(), m.first.to_vec(), m.second.to_vec()))
            .collect();
        let mut optimizer = AdamW::new(model.params().trainable(), config);
        optimizer.restore(2, state).unwrap();
        norms.push(step(&mut optimizer));
        let weights: HashMap<String, Vec<f32>> = model
            .params()
            .trainable()
            .iter()
            .map(|(name, var)| (name.clone(), flat(var)))
            .collect();
        (norms, weights)
    });
    assert!(difference(&cpu.0, &gpu.0) < 1e-4, "{:?} {:?}", cpu.0, gpu.0);
    // Adam divides by the gradient's size: where that is near zero, rounding decides the direction.
    compare(&cpu.1, &gpu.1, 2e-2);
}

#[test]
fn the_same_step_gives_the_same_bits() {
    let device = gpu();
    let [one, two] = [(), ()].map(|()| {
        let targets = base(&device).targets(&images(&device), 2, 5).unwrap();
        let model = tec(&device);
        let losses = model.losses(&images(&device), &targets, &masks(&device)).unwrap();
        gradients(&losses.total, model.params())
    });
    let bits = |values: &Vec<f32>| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for (name, values) in &one {
        assert_eq!(bits(values), bits(&two[name]), "{name}");
    }
}

/// Values about -1 to 1.
fn values(seed: u64, shape: &[usize], device: &Device) -> Tensor {
    let mut values = vec![0.0; shape.iter().product()];
    Noise {
        seed,
        epoch: 0,
        sample: 0,
        stream: Stream::Augment,
    }
    .fill(&mut values);
    values.iter_mut().for_each(|v| *v = 2.0 * *v - 1.0);
    Tensor::from_vec(values, shape, device).unwrap()
}

/// NCCL itself, as far as one process uses it: its sums are what it gives. More processes need more GPUs, or `ci/cuda-jobs`.
#[test]
fn a_job_of_one_process_sums_by_nccl() {
    let device = gpu();
    let launch = Launch {
        rendezvous: Some(("127.0.0.1".into(), 0)),
        ..Launch::alone()
    };
    let job = Nccl::join(&launch).unwrap();
    let said = match job.introduce(&device) {
        Err(e) if e.to_string().contains("libnccl.so.2") => return eprintln!("not run: {e}"),
        said => said.unwrap(),
    };
    job.connect(&device, vec![said]).unwrap();
    let tensors = [1_000_001, 5, 1000].map(|n| values(n as u64, &[n], &device)).to_vec();
    let sums = job.sum(tensors.clone()).unwrap();
    for (sum, tensor) in sums.iter().zip(&tensors) {
        assert_eq!(sum.to_vec1::<f32>().unwrap(), tensor.to_vec1::<f32>().unwrap());
    }
}

#[test]
fn operations_on_tokens_are_the_cpu_s() {
    let of = |device: &Device| {
        let masks = masks(device);
        let x = values(1, &[BATCH, 36, 20], device);
        let visible = values(2, &[BATCH, 10, 20], device);
        let table = values(3, &[36, 20], device);
        let token = values(4, &[20], device);
        let selected = table.index_select(&masks.keep.flatten_all().unwrap(), 0).unwrap();
        let selected = selected.reshape((BATCH, 9, 20)).unwrap();
        let class = token.reshape((1, 1, 20)).unwrap().broadcast_as((BATCH, 1, 20)).unwrap();
        vec![
            ("gather_tokens", ops::gather_tokens(&x, &masks.removed_patches).unwrap()),
            ("unmask", ops::unmask(&visible, &table, &masks.restore).unwrap()),
            ("index_select", selected.clone()),
            ("sum", (&selected + visible.narrow(1, 1, 9).unwrap()).unwrap()),
            ("broadcast_add", table.broadcast_add(&token).unwrap()),
            ("cat", Tensor::cat(&[&class, &selected], 1).unwrap()),
            ("transpose", x.transpose(1, 2).unwrap().contiguous().unwrap()),
            ("narrow", x.narrow(2, 3, 7).unwrap().contiguous().unwrap()),
            (
                "attention_of",
                ops::attention_of(&visible, &values(5, &[BATCH, 37, 40], device), 2, Amp::None).unwrap(),
            ),
            (
                "patchify",
                ops::patchify(&images(device), 4, ops::PatchOrder::ChannelsLast).unwrap(),
            ),
        ]
    };
    for ((name, cpu), (_, gpu)) in of(&Device::Cpu).into_iter().zip(of(&gpu())) {
        assert_eq!(cpu.dims(), gpu.dims(), "{name}");
        assert!(difference(&flat(&cpu), &flat(&gpu)) < 1e-5, "{name}");
    }
}

/// Images that look alike in nothing, of which two cannot be read.
struct Images;

impl Source for Images {
    fn len(&self) -> usize {
        46
    }
    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }
    fn label(&self, _: usize) -> Option<u32> {
        None
    }
    fn classes(&self) -> &[String] {
        &[]
    }
    fn load(&self, index: usize) -> Result<Pixels, String> {
        if index == 7 || index == 8 {
            return Err("cut short".into());
        }
        let value = |at: usize| ((at * (5 + index) + at / 40 * (index * 13)) % 256) as u8;
        Ok(Pixels {
            width: 40,
            height: 30,
            channels: 3,
            data: (0..40 * 30 * 3).map(value).collect(),
        })
    }
}

/// Hears the metrics of every step.
#[derive(Default)]
struct Metrics(Vec<StepMetrics>);

impl Progress for Metrics {
    fn begin(&mut self, _: &Plan) {}
    fn step(&mut self, metrics: &StepMetrics, _: &Plan) {
        self.0.push(*metrics);
    }
    fn note(&mut self, text: &str) {
        assert!(!text.contains("uploaded"), "{text}");
    }
    fn end(&mut self) {}
}

/// Steps of a run of two epochs with seven each.
const STEPS: usize = 13;

/// The losses and gradient norms of the steps of a run. The base sees the images in another size than the new model, so that both copies of
/// them are needed, each step has several parts, and some parts have fewer images than others.
fn run_on(device: DeviceName, folder: &Path, settings: &[&str]) -> Vec<f32> {
    let encoder = encoder(48, 3);
    let metadata = EncoderMetadata {
        config: encoder.clone(),
        mean: vec![0.5, 0.4, 0.3],
        std: vec![0.25, 0.2, 0.3],
        pool: Pool::Mean,
    };
    let path = folder.join("base.safetensors");
    base(&Device::Cpu).save(&path, &metadata).unwrap();
    let text = "
        seed = 5
        [data]
        image_size = 48
        [model]
        patch_size = 8
        dim = 16
        depth = 1
        heads = 2
        [decoder]
        dim = 16
        depth = 1
        heads = 2
        [objective]
        top_k = 3
        [optimizer]
        lr = 1e-6
        batch = 6
        accumulate = 3
        epochs = 2
        [probe]
        every_epochs = 0
    ";
    let mut recipe = RecipeBuilder::from_text(text, "test").unwrap();
    for setting in settings {
        recipe.set_argument(setting).unwrap();
    }
    let mut recipe = recipe.build().unwrap();
    recipe.base.path = Some(path);
    let job = Job {
        recipe,
        out: folder.join(device.to_string().replace(':', "-")),
        existing: Existing::Overwrite,
        source: Some(Arc::new(Images)),
        // Not to the end: the report's pictures are no matter here.
        max_steps: Some(STEPS),
        device,
    };
    let mut metrics = Metrics::default();
    run(job, &OneProcess, &mut metrics).unwrap();
    let values = |m: &StepMetrics| [m.loss_feature, m.loss_relation.unwrap_or(0.0), m.grad_norm].map(|v| v as f32);
    metrics.0.iter().flat_map(values).collect()
}

/// The learning rate is so small that steps differ by their images alone: what is not there in time, or no longer, shows.
#[test]
fn steps_of_a_run_see_the_images_that_the_cpu_s_see() {
    let folder = tempfile::tempdir().unwrap();
    let [cpu, gpu] = [DeviceName::Cpu, DeviceName::Cuda(0)].map(|device| run_on(device, folder.path(), &[]));
    assert_eq!(cpu.len(), 3 * STEPS);
    assert_eq!(cpu.len(), gpu.len());
    for (step, (cpu, gpu)) in cpu.chunks(3).zip(gpu.chunks(3)).enumerate() {
        for (a, b) in cpu.iter().zip(gpu) {
            assert!((a - b).abs() <= 1e-4 * a.abs(), "step {step}: {cpu:?} {gpu:?}");
        }
    }
    let norm = |step: usize| cpu[3 * step + 2];
    let differ = |step: usize| (norm(step) - norm(step - 1)).abs() > 1e-3 * norm(step);
    assert!((1..STEPS).all(differ), "other images would not show: {cpu:?}");
}

/// Rounded weights are kept beside the exact ones. After steps, and after weights were loaded, they must be those that the weights
/// round to: then a model that goes on, one that was loaded and one made of the weights anew compute the same bits.
#[test]
fn rounded_weights_follow_the_exact_ones() {
    let device = gpu();
    let config = AdamWConfig {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.05,
    };
    let of = |model: &Mae| {
        let loss = model.loss(&images(&device), &masks(&device)).unwrap();
        (flat(&loss), gradients(&loss, model.params()))
    };
    let new = |seed: u64| Mae::with_amp(mae_config(32, 2), seed, &device, Amp::Bf16).unwrap();
    let model = new(3);
    let before = of(&model);
    let mut optimizer = AdamW::new(model.params().trainable(), config);
    for _ in 0..2 {
        let loss = model.loss(&images(&device), &masks(&device)).unwrap();
        optimizer.step(&ops::backward(&loss).unwrap(), 0.05, None).unwrap();
    }
    let after = of(&model);
    assert_ne!(before.0, after.0);
    let other = new(4);
    other
        .params()
        .load_state(model.params().state().into_iter().collect(), Path::new("the other"))
        .unwrap();
    assert!(
        after == of(&other),
        "loaded weights are not the rounded ones that AdamW left"
    );
    // On the CPU weights are rounded whenever they are used.
    let cpu = Mae::with_amp(mae_config(32, 2), 3, &Device::Cpu, Amp::Bf16).unwrap();
    let state = model.params().state().into_iter();
    let state = state.map(|(name, t)| (name, t.to_device(&Device::Cpu).unwrap()));
    cpu.params()
        .load_state(state.collect(), Path::new("the GPU's"))
        .unwrap();
    let loss = cpu.loss(&images(&Device::Cpu), &masks(&Device::Cpu)).unwrap();
    assert!(
        difference(&flat(&loss), &after.0) < 2e-3,
        "{:?} {:?}",
        flat(&loss),
        after.0
    );
    compare(&gradients(&loss, cpu.params()), &after.1, 2e-2);
}
