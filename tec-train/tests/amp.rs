//! Whole models in mixed precision beside the same models in f32, on the CPU.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use tec_core::philox::{Noise, Stream};
use tec_train::{
    model::{BaseConfig, DecoderConfig, Mae, MaeConfig, Masks, Params, Tec, TecConfig, VitConfig},
    ops::{self, Amp},
    optim::{AdamW, AdamWConfig},
};

const CPU: Device = Device::Cpu;

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

fn mae(amp: Amp, seed: u64) -> Mae {
    let config = MaeConfig {
        encoder: encoder(32, 2),
        decoder: decoder(),
        norm_pix: true,
    };
    Mae::with_amp(config, seed, &CPU, amp).unwrap()
}

fn tec(amp: Amp) -> Tec {
    let config = TecConfig {
        encoder: encoder(48, 3),
        base: BaseConfig { dim: 32, heads: 2 },
        decoder: decoder(),
        adapters: None,
        temperature: 1.8,
    };
    Tec::with_amp(config, 7, &CPU, amp).unwrap()
}

fn images() -> Tensor {
    let mut values = vec![0.0; 4 * 3 * 24 * 24];
    Noise {
        seed: 2,
        epoch: 0,
        sample: 0,
        stream: Stream::Augment,
    }
    .fill(&mut values);
    values.iter_mut().for_each(|v| *v = 4.0 * *v - 2.0);
    Tensor::from_vec(values, (4, 3, 24, 24), &CPU).unwrap()
}

fn masks(step: u32) -> Masks {
    Masks::draw(5, step, &[4, 9, 2, 7], 36, 0.75, &CPU).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The loss of a new model from a base, both as `amp` says.
fn tec_loss(model: &Tec, amp: Amp, step: u32) -> Tensor {
    let base = mae(Amp::None, 1).encoder_with_amp(amp).unwrap();
    let targets = base.targets(&images(), 2, 5).unwrap();
    model.losses(&images(), &targets, &masks(step)).unwrap().total
}

fn gradients(loss: &Tensor, params: &Params) -> HashMap<String, Vec<f32>> {
    let grads = ops::backward(loss).unwrap();
    let of = |(name, var): &(String, candle_core::Var)| (name.clone(), flat(grads.get(var).unwrap()));
    params.trainable().iter().map(of).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Rounding to 8 bits moves each value by 0.2 % at most, a few dozen times between a loss and the first layer's gradient: about
/// 2 % of a gradient's length, a cosine of 0.9998. The relation loss begins with the difference of two distributions that are
/// nearly equal in a fresh model, which makes each of their errors several times larger: 0.99.
#[test]
fn gradients_point_where_those_of_f32_do() {
    let of_mae = |amp| {
        let model = mae(amp, 3);
        let loss = model.loss(&images(), &masks(1)).unwrap();
        (flat(&loss)[0], gradients(&loss, model.params()))
    };
    let of_tec = |amp| {
        let model = tec(amp);
        let loss = tec_loss(&model, amp, 1);
        (flat(&loss)[0], gradients(&loss, model.params()))
    };
    for [exact, mixed] in [[Amp::None, Amp::Bf16].map(of_mae), [Amp::None, Amp::Bf16].map(of_tec)] {
        assert_ne!(exact.0, mixed.0);
        assert!((exact.0 - mixed.0).abs() < 2e-3 * exact.0, "{} {}", exact.0, mixed.0);
        for (name, exact) in &exact.1 {
            let cosine = cosine(exact, &mixed.1[name]);
            assert!(cosine > 0.99, "{name}: {cosine}");
            assert_ne!(exact, &mixed.1[name], "{name}");
        }
    }
}

#[test]
fn blocks_computed_again_give_the_same_gradients() {
    let [kept, again] = [false, true].map(|on| {
        let mut model = tec(Amp::Bf16);
        model.set_grad_checkpointing(on);
        gradients(&tec_loss(&model, Amp::Bf16, 1), model.params())
    });
    assert!(kept == again);
}

#[test]
fn runs_of_both_stay_together() {
    let config = AdamWConfig {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.05,
    };
    let [exact, mixed] = [Amp::None, Amp::Bf16].map(|amp| {
        let model = tec(amp);
        let mut optimizer = AdamW::new(model.params().trainable(), config);
        (0..24)
            .map(|step| {
                let loss = tec_loss(&model, amp, step);
                optimizer.step(&ops::backward(&loss).unwrap(), 1e-3, Some(1.0)).unwrap();
                flat(&loss)[0]
            })
            .collect::<Vec<_>>()
    });
    assert!(exact[23] < 0.9 * exact[0], "{exact:?}");
    for (exact, mixed) in exact.iter().zip(&mixed) {
        assert!((exact - mixed).abs() < 5e-3 * exact, "{exact} {mixed}");
    }
}

/// What is measured and exported does not depend on how it was trained, only on the weights.
#[test]
fn encoders_for_evaluation_are_f32() {
    let tokens = |encoder: tec_train::model::Vit| flat(&encoder.tokens(&images()).unwrap());
    let [exact, mixed] = [Amp::None, Amp::Bf16].map(|amp| tokens(mae(amp, 3).encoder().unwrap()));
    assert!(exact == mixed);
    assert!(exact != tokens(mae(Amp::None, 3).encoder_with_amp(Amp::Bf16).unwrap()));
    let [exact, mixed] = [Amp::None, Amp::Bf16].map(|amp| tokens(tec(amp).encoder().unwrap()));
    assert!(exact == mixed);
}
