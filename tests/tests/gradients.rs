//! Every trainable parameter of every model gets a finite, non-zero gradient.
//!
//! Operations of candle that detach their result without an error made this test necessary. The exceptions are key
//! biases: they move every logit of a row alike, which softmax does not see, so their gradient is zero.

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use tec_core::philox::{Noise, Stream};
use tec_train::model::{BaseConfig, DecoderConfig, Mae, MaeConfig, Masks, Params, Tec, TecConfig, VitConfig};
use tec_train::ops;

const BATCH: usize = 2;

fn vit(image_size: usize, patch_size: usize, channels: usize, dim: usize, depth: usize, heads: usize) -> VitConfig {
    VitConfig {
        image_size,
        patch_size,
        channels,
        dim,
        depth,
        heads,
        mlp_ratio: 4,
    }
}

fn decoder(dim: usize, depth: usize, heads: usize) -> DecoderConfig {
    DecoderConfig { dim, depth, heads }
}

fn images(config: &VitConfig) -> Tensor {
    let shape = (BATCH, config.channels, config.image_size, config.image_size);
    let mut values = vec![0.0; shape.0 * shape.1 * shape.2 * shape.3];
    Noise {
        seed: 1,
        epoch: 0,
        sample: 0,
        stream: Stream::Augment,
    }
    .fill(&mut values);
    values.iter_mut().for_each(|value| *value = 4.0 * *value - 2.0);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn masks(config: &VitConfig) -> Masks {
    Masks::draw(5, 0, &[0, 1], config.patches(), 0.75, &Device::Cpu).unwrap()
}

/// Names of the parameters, or of their parts, that get no gradient, one that is zero, or one that is not finite.
fn without_gradient(params: &Params, grads: &GradStore) -> Vec<String> {
    let mut found = Vec::new();
    for (name, var) in params.trainable() {
        let Some(grad) = grads.get(var) else {
            found.push(name.clone());
            continue;
        };
        assert_eq!(grad.dims(), var.dims(), "{name}");
        let grad: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
        let parts: &[&str] = match name {
            name if name.ends_with("qkv.bias") => &["queries", "keys", "values"],
            name if name.ends_with("decoder_qk.bias") => &["queries", "keys"],
            _ => &[""],
        };
        let largest = |values: &[f32]| values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        for (part, values) in parts.iter().zip(grad.chunks(grad.len() / parts.len())) {
            let finite = values.iter().all(|value| value.is_finite());
            // Rounding leaves something of a key bias' zero, far below the other parts of the same bias.
            let negligible = *part == "keys" && largest(values) <= 1e-3 * largest(&grad);
            if !finite || largest(values) == 0.0 || negligible {
                found.push(format!("{name} {part}").trim().to_string());
            }
        }
    }
    found
}

fn key_biases(params: &Params) -> Vec<String> {
    let is_key = |name: &str| name.ends_with("qkv.bias") || name.ends_with("decoder_qk.bias");
    params
        .trainable()
        .iter()
        .filter(|(name, _)| is_key(name))
        .map(|(name, _)| format!("{name} keys"))
        .collect()
}

fn mae(encoder: VitConfig, norm_pix: bool) -> Mae {
    Mae::new(
        MaeConfig {
            encoder,
            decoder: decoder(32, 2, 4),
            norm_pix,
        },
        7,
        &Device::Cpu,
    )
    .unwrap()
}

/// A new model beside a base of another geometry, brought to the same grid.
fn tec_and_grads(
    encoder: VitConfig,
    base: VitConfig,
    decoder: DecoderConfig,
    top_k: usize,
) -> (Tec, GradStore, GradStore) {
    let base = mae(base, true).encoder().unwrap().resize(encoder.grid()).unwrap();
    let targets = base.targets(&images(base.config()), 1, top_k).unwrap();
    let widths = BaseConfig {
        dim: base.config().dim,
        heads: base.config().heads,
    };
    let config = TecConfig {
        encoder: encoder.clone(),
        base: widths,
        decoder,
        adapters: None,
        temperature: 1.8,
    };
    let tec = Tec::new(config, 3, &Device::Cpu).unwrap();
    let losses = tec.losses(&images(&encoder), &targets, &masks(&encoder)).unwrap();
    let grads = ops::backward(&losses.total).unwrap();
    let of_features = ops::backward(&losses.feature).unwrap();
    (tec, grads, of_features)
}

fn check_tec(encoder: VitConfig, base: VitConfig, decoder: DecoderConfig, top_k: usize) {
    let (tec, grads, _) = tec_and_grads(encoder, base, decoder, top_k);
    assert_eq!(
        without_gradient(tec.params(), &grads),
        key_biases(tec.params()),
        "{tec:?}"
    );
}

fn check_mae(encoder: VitConfig, norm_pix: bool) {
    let (images, masks) = (images(&encoder), masks(&encoder));
    let mae = mae(encoder, norm_pix);
    let grads = ops::backward(&mae.loss(&images, &masks).unwrap()).unwrap();
    assert_eq!(
        without_gradient(mae.params(), &grads),
        key_biases(mae.params()),
        "{mae:?}"
    );
}

#[test]
fn new_model_of_the_base_size() {
    check_tec(vit(32, 4, 3, 64, 4, 4), vit(32, 4, 3, 64, 4, 4), decoder(32, 2, 4), 9);
}

#[test]
fn new_model_narrower_and_shallower_than_the_base() {
    check_tec(vit(32, 4, 3, 36, 3, 3), vit(32, 4, 3, 80, 5, 5), decoder(24, 1, 2), 15);
}

#[test]
fn new_model_of_one_block() {
    check_tec(vit(32, 8, 3, 48, 1, 4), vit(32, 8, 3, 64, 2, 4), decoder(32, 1, 4), 4);
}

#[test]
fn new_model_on_grey_28_pixels() {
    check_tec(vit(28, 4, 1, 48, 8, 4), vit(28, 4, 1, 64, 3, 4), decoder(32, 2, 4), 49);
}

#[test]
fn new_model_on_224_pixels_from_a_base_with_other_patches() {
    check_tec(
        vit(224, 16, 3, 48, 3, 3),
        vit(112, 14, 3, 64, 2, 2),
        decoder(32, 2, 4),
        15,
    );
}

#[test]
fn masked_autoencoders() {
    check_mae(vit(32, 4, 3, 64, 4, 4), true);
    check_mae(vit(28, 4, 1, 48, 3, 3), true);
    check_mae(vit(32, 4, 3, 36, 1, 3), false);
    check_mae(vit(224, 16, 3, 48, 2, 3), true);
}

#[test]
fn a_head_outside_the_loss_is_noticed() {
    let (tec, _, of_features) = tec_and_grads(vit(32, 8, 3, 48, 2, 4), vit(32, 8, 3, 64, 2, 4), decoder(32, 1, 4), 4);
    let mut expected: Vec<String> = tec.params().trainable().iter().map(|(name, _)| name.clone()).collect();
    expected.retain(|name| name.starts_with("forward_att_decoder."));
    assert_eq!(expected.len(), 7);
    expected.extend(
        key_biases(tec.params())
            .into_iter()
            .filter(|name| !name.starts_with("forward_att_decoder.")),
    );
    let mut found = without_gradient(tec.params(), &of_features);
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}
