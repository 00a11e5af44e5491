//! The candle path on the golden vectors: targets, encoder, losses, every gradient, ten optimizer steps.
//!
//! Errors are max|a − b| / max|b| of a tensor, as the goldens' README defines them.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use serde_json::Value;
use tec_tests::goldens::{self, Goldens, max_error};
use tec_train::model::{
    BaseConfig, DecoderConfig, LoadOptions, Mae, MaeConfig, Masks, Params, Targets, Tec, TecConfig, Vit, VitConfig,
};
use tec_train::optim::{AdamW, AdamWConfig};

const VALUES: f64 = 1e-5;
const GRADIENTS: f64 = 1e-4;
const FINAL_WEIGHTS: f64 = 5e-4;

fn integer(value: &Value, key: &str) -> usize {
    value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value}")) as usize
}

fn encoder_config(config: &Value, part: &str) -> VitConfig {
    VitConfig {
        image_size: integer(config, "image_size"),
        patch_size: integer(config, "patch_size"),
        channels: integer(config, "channels"),
        dim: integer(&config[part], "dim"),
        depth: integer(&config[part], "depth"),
        heads: integer(&config[part], "heads"),
        mlp_ratio: integer(config, "mlp_ratio"),
    }
}

fn decoder_config(config: &Value) -> DecoderConfig {
    let decoder = &config["decoder"];
    DecoderConfig {
        dim: integer(decoder, "dim"),
        depth: integer(decoder, "depth"),
        heads: integer(decoder, "heads"),
    }
}

fn tensor(goldens: &Goldens, name: &str) -> Tensor {
    Tensor::from_slice(goldens.f32(name), goldens.shape(name), &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn integers(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn check(what: &str, actual: &Tensor, goldens: &Goldens, name: &str, bound: f64) {
    assert_eq!(actual.dims(), goldens.shape(name), "{what}");
    let error = max_error(&values(actual), goldens.f32(name));
    println!("{what}: error {error:e}");
    assert!(error <= bound, "{what}: error {error:e}, bound {bound:e}");
}

fn masks(goldens: &Goldens, config: &Value) -> Masks {
    let shape = goldens.shape("noise");
    let ratio = config["mask_ratio"].as_f64().unwrap();
    Masks::from_noise(goldens.f32("noise"), shape[0], shape[1], ratio, &Device::Cpu).unwrap()
}

/// Key biases move every logit of a row alike, which softmax does not see: their gradient is rounding noise.
fn without_key_bias(name: &str, mut values: Vec<f32>) -> Vec<f32> {
    let length = values.len();
    let keys = if name.ends_with("qkv.bias") {
        length / 3..2 * length / 3
    } else if name.ends_with("decoder_qk.bias") {
        length / 2..length
    } else {
        0..0
    };
    values[keys].fill(0.0);
    values
}

fn load(params: &Params, goldens: &Goldens, prefix: &str) {
    let state: HashMap<String, Tensor> = goldens
        .names()
        .filter_map(|name| Some((name.strip_prefix(prefix)?.to_string(), tensor(goldens, name))))
        .collect();
    let report = params.load_state(state, &goldens::directory()).unwrap();
    assert!(report.unexpected.is_empty() && report.missing.is_empty());
}

fn check_gradients(params: &Params, grads: &GradStore, goldens: &Goldens) {
    let (mut compared, mut worst) = (0, 0.0f64);
    for (name, var) in params.trainable() {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
        let golden = format!("grad.{name}");
        assert_eq!(grad.dims(), goldens.shape(&golden), "{name}");
        let error = max_error(
            &without_key_bias(name, values(grad)),
            &without_key_bias(name, goldens.f32(&golden).to_vec()),
        );
        assert!(error <= GRADIENTS, "gradient of {name}: error {error:e}");
        compared += 1;
        worst = worst.max(error);
    }
    println!("{compared} gradients: error {worst:e}");
    assert_eq!(
        compared,
        goldens.names().filter(|name| name.starts_with("grad.")).count()
    );
}

fn tec(goldens: &Goldens) -> (Tec, Value) {
    let config = goldens.metadata("config").clone();
    let base = &config["base"];
    let tec = TecConfig {
        encoder: encoder_config(&config, "student"),
        base: BaseConfig {
            dim: integer(base, "dim"),
            heads: integer(base, "heads"),
        },
        decoder: decoder_config(&config),
        adapters: None,
        temperature: config["att_tau"].as_f64().unwrap(),
    };
    assert_eq!(tec.groups(), integer(&config, "adapters"));
    let tec = Tec::new(tec, 0, &Device::Cpu).unwrap();
    load(tec.params(), goldens, "student.");
    (tec, config)
}

fn base(config: &Value) -> Vit {
    // The golden file holds the base in timm's names behind a prefix, as a checkpoint may.
    let path = goldens::directory().join("tec_step.safetensors");
    let options = LoadOptions {
        heads: Some(integer(&config["base"], "heads")),
        prefix: Some("base.".into()),
    };
    let base = Vit::load(&path, &options, &Device::Cpu).unwrap();
    assert_eq!(*base.config(), encoder_config(config, "base"));
    base
}

fn targets(goldens: &Goldens, config: &Value) -> Targets {
    base(config)
        .targets(
            &tensor(goldens, "images"),
            integer(config, "last_layers"),
            integer(config, "top_k"),
        )
        .unwrap()
}

#[test]
fn masks_are_exact() {
    let goldens = goldens::load("tec_step");
    let masks = masks(&goldens, goldens.metadata("config"));
    assert_eq!(integers(&masks.keep), goldens.u32("ids_keep"));
    assert_eq!(integers(&masks.restore), goldens.u32("ids_restore"));
    assert_eq!(values(&masks.removed), goldens.f32("mask"));
}

#[test]
fn base_targets() {
    let goldens = goldens::load("tec_step");
    let targets = targets(&goldens, goldens.metadata("config"));
    assert_eq!(integers(&targets.index), goldens.u32("target_index"));
    check("features", &targets.features, &goldens, "target_features", VALUES);
    check("logits", &targets.logits, &goldens, "target_logits", VALUES);
}

#[test]
fn encoder_levels_and_tokens() {
    let goldens = goldens::load("tec_step");
    let (tec, config) = tec(&goldens);
    let images = tensor(&goldens, "images");
    let levels = tec.encode(&images, &masks(&goldens, &config)).unwrap();
    check("levels", &levels, &goldens, "encoder_levels", VALUES);

    let (batch, patches, dim) = (
        images.dim(0).unwrap(),
        tec.config().encoder.patches(),
        tec.config().encoder.dim,
    );
    let in_order: Vec<f32> = (0..batch * patches).map(|n| (n % patches) as f32).collect();
    let whole = Masks::from_noise(&in_order, batch, patches, 0.0, &Device::Cpu).unwrap();
    let levels = tec.encode(&images, &whole).unwrap();
    let tokens = levels
        .narrow(2, levels.dim(2).unwrap() - dim, dim)
        .unwrap()
        .contiguous()
        .unwrap();
    check(
        "tokens of whole images",
        &tokens,
        &goldens,
        "encoder_tokens_unmasked",
        VALUES,
    );
    let exported = tec.encoder().unwrap().tokens(&images).unwrap();
    check(
        "tokens of the exported encoder",
        &exported,
        &goldens,
        "encoder_tokens_unmasked",
        VALUES,
    );
}

#[test]
fn tec_losses_and_gradients() {
    let goldens = goldens::load("tec_step");
    let (tec, config) = tec(&goldens);
    let images = tensor(&goldens, "images");
    let losses = tec
        .losses(&images, &targets(&goldens, &config), &masks(&goldens, &config))
        .unwrap();
    check("feature loss", &losses.feature, &goldens, "feature_loss", VALUES);
    check("relation loss", &losses.relation, &goldens, "attention_loss", VALUES);
    check_gradients(tec.params(), &losses.total.backward().unwrap(), &goldens);
}

#[test]
fn mae_loss_and_gradients() {
    let goldens = goldens::load("mae_step");
    let config = goldens.metadata("config");
    let mae = MaeConfig {
        encoder: encoder_config(config, "encoder"),
        decoder: decoder_config(config),
        norm_pix: config["norm_pix"].as_bool().unwrap(),
    };
    let mae = Mae::new(mae, 0, &Device::Cpu).unwrap();
    load(mae.params(), &goldens, "mae.");
    let loss = mae.loss(&tensor(&goldens, "images"), &masks(&goldens, config)).unwrap();
    check("loss", &loss, &goldens, "loss", VALUES);
    check_gradients(mae.params(), &loss.backward().unwrap(), &goldens);
}

#[test]
fn ten_optimizer_steps() {
    let start = goldens::load("tec_step");
    let goldens = goldens::load("train_steps");
    let (tec, config) = tec(&start);
    let (images, targets) = (tensor(&start, "images"), targets(&start, &config));
    let optimizer = goldens.metadata("optimizer");
    let number = |value: &Value| value.as_f64().unwrap();
    let mut adamw = AdamW::new(
        tec.params().trainable(),
        AdamWConfig {
            beta1: number(&optimizer["betas"][0]),
            beta2: number(&optimizer["betas"][1]),
            eps: number(&optimizer["eps"]),
            weight_decay: number(&optimizer["weight_decay"]),
        },
    );
    let &[steps, batch, patches] = goldens.shape("noises") else {
        panic!("noises have three dimensions")
    };
    let noises = goldens.f32("noises").chunks(batch * patches);
    let rows = noises
        .zip(goldens.f32("learning_rates"))
        .zip(goldens.f32("losses").chunks(2));
    let mut taken = 0;
    for (step, ((noise, &lr), expected)) in rows.enumerate() {
        let ratio = number(&config["mask_ratio"]);
        let masks = Masks::from_noise(noise, batch, patches, ratio, &Device::Cpu).unwrap();
        let losses = tec.losses(&images, &targets, &masks).unwrap();
        for (what, loss, expected) in [
            ("feature", &losses.feature, expected[0]),
            ("relation", &losses.relation, expected[1]),
        ] {
            let error = max_error(&values(loss), &[expected]);
            assert!(error <= VALUES, "{what} loss of step {step}: error {error:e}");
        }
        adamw.step(&losses.total.backward().unwrap(), f64::from(lr)).unwrap();
        taken += 1;
    }
    assert_eq!(taken, steps);
    let mut largest = 0.0f64;
    for (name, var) in tec.params().trainable() {
        let golden = goldens.f32(&format!("final.{name}")).to_vec();
        let actual = without_key_bias(name, values(var.as_tensor()));
        let pairs = actual.iter().zip(without_key_bias(name, golden));
        let worst = pairs
            .map(|(a, b)| (f64::from(*a) - f64::from(b)).abs())
            .fold(0.0, f64::max);
        assert!(worst <= FINAL_WEIGHTS, "{name} after ten steps: off by {worst:e}");
        largest = largest.max(worst);
    }
    println!("weights after {taken} steps: off by {largest:e}");
}
