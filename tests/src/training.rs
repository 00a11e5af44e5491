//! Training through candle on the golden vectors: targets, encoder, losses, every gradient, ten optimizer steps.
//!
//! One set of checks for each device that candle computes on.

use std::collections::HashMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use serde_json::Value;
use tec_train::model::{
    BaseConfig, DecoderConfig, LoadOptions, Mae, MaeConfig, Masks, Params, Targets, Tec, TecConfig, Vit, VitConfig,
};
use tec_train::ops;
use tec_train::optim::{AdamW, AdamWConfig};

use crate::error::{Error, Result};
use crate::goldens::{self, Goldens, max_error};
use crate::groups::{GRADIENTS, VALUES};
use crate::record::{Record, Row};
use crate::tensor::Data;

/// Bound of the weights after ten steps, absolute: Adam divides small gradients by themselves.
const FINAL_WEIGHTS: f64 = 5e-4;

type Check = fn(&mut Record, &Path, &Device) -> Result<()>;

/// The checks, and the file that each needs.
const CHECKS: &[(&str, &str, Check)] = &[
    ("tec_step masks", "tec_step", masks_are_exact),
    ("tec_step targets", "tec_step", base_targets),
    ("tec_step encoder", "tec_step", encoder),
    ("tec_step gradients", "tec_step", tec_losses_and_gradients),
    ("train_steps", "train_steps", optimizer_steps),
    ("mae_step", "mae_step", mae_loss_and_gradients),
];

/// Checks training on a device with the vectors of a directory; `each` sees a row as soon as it is done. Files that the
/// directory lacks are left out.
pub fn run(provider: &str, device: &Device, directory: &Path, mut each: impl FnMut(&Row)) -> Vec<Row> {
    let mut rows = Vec::new();
    for (group, file, check) in CHECKS {
        if !file_of(directory, file).is_file() {
            continue;
        }
        let mut record = Record::new(provider, group);
        if let Err(error) = check(&mut record, directory, device) {
            record.fail("vectors", &error.to_string());
        }
        let row = record.finish();
        each(&row);
        rows.push(row);
    }
    rows
}

fn file_of(directory: &Path, name: &str) -> std::path::PathBuf {
    directory.join(format!("{name}.safetensors"))
}

/// Where candle or tec-train cannot do what the vectors ask for.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Device {
            device: "training".into(),
            reason: error.to_string(),
        }
    }
}

impl From<tec_train::Error> for Error {
    fn from(error: tec_train::Error) -> Self {
        Self::Device {
            device: "training".into(),
            reason: error.to_string(),
        }
    }
}

fn encoder_config(goldens: &Goldens, part: &str) -> Result<VitConfig> {
    let shared = |key| goldens.count(&["config", key]);
    let own = |key| goldens.count(&["config", part, key]);
    Ok(VitConfig {
        image_size: shared("image_size")?,
        patch_size: shared("patch_size")?,
        channels: shared("channels")?,
        dim: own("dim")?,
        depth: own("depth")?,
        heads: own("heads")?,
        mlp_ratio: shared("mlp_ratio")?,
    })
}

fn decoder_config(goldens: &Goldens) -> Result<DecoderConfig> {
    let own = |key| goldens.count(&["config", "decoder", key]);
    Ok(DecoderConfig {
        dim: own("dim")?,
        depth: own("depth")?,
        heads: own("heads")?,
    })
}

fn tensor(goldens: &Goldens, name: &str, device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_slice(goldens.f32(name)?, goldens.shape(name)?, device)?)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

fn near(record: &mut Record, goldens: &Goldens, name: &str, actual: &Tensor) -> Result<()> {
    record.case();
    if actual.dims() != goldens.shape(name)? {
        record.fail(
            name,
            &format!("has shape {:?}, expected {:?}", actual.dims(), goldens.shape(name)?),
        );
    }
    record.near(name, "values", &values(actual)?, goldens.f32(name)?, VALUES);
    Ok(())
}

fn same_indices(record: &mut Record, goldens: &Goldens, name: &str, actual: &Tensor) -> Result<()> {
    let actual: Vec<u32> = actual.flatten_all()?.to_vec1()?;
    record.case();
    record.same(name, "indices", &Data::from(actual), &Data::from(goldens.u32(name)?));
    Ok(())
}

fn masks(goldens: &Goldens, device: &Device) -> Result<Masks> {
    let [images, patches] = goldens.axes("noise")?;
    let ratio = goldens.number(&["config", "mask_ratio"])?;
    Ok(Masks::from_noise(
        goldens.f32("noise")?,
        images,
        patches,
        ratio,
        device,
    )?)
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

fn load(params: &Params, goldens: &Goldens, prefix: &str, device: &Device) -> Result<()> {
    let mut state = HashMap::new();
    for name in goldens.names() {
        if let Some(own) = name.strip_prefix(prefix) {
            state.insert(own.to_string(), tensor(goldens, name, device)?);
        }
    }
    let report = params.load_state(state, goldens.path())?;
    if !report.unexpected.is_empty() || !report.missing.is_empty() {
        let (missing, unexpected) = (report.missing.join(", "), report.unexpected.join(", "));
        return Err(goldens.error(format!(
            "{prefix} lacks [{missing}] and has [{unexpected}] that the model does not"
        )));
    }
    Ok(())
}

fn gradients(record: &mut Record, params: &Params, grads: &GradStore, goldens: &Goldens) -> Result<()> {
    let mut compared = 0;
    for (name, var) in params.trainable() {
        compared += 1;
        record.case();
        let golden = format!("grad.{name}");
        let Some(grad) = grads.get(var) else {
            record.fail(name, "has no gradient");
            continue;
        };
        let expected = without_key_bias(name, goldens.f32(&golden)?.to_vec());
        record.near(
            name,
            "gradient",
            &without_key_bias(name, values(grad)?),
            &expected,
            GRADIENTS,
        );
    }
    let all = goldens.names().filter(|name| name.starts_with("grad.")).count();
    if compared != all {
        record.fail("gradients", &format!("{compared} were compared, the file has {all}"));
    }
    Ok(())
}

fn tec(goldens: &Goldens, device: &Device) -> Result<Tec> {
    let config = TecConfig {
        encoder: encoder_config(goldens, "student")?,
        base: BaseConfig {
            dim: goldens.count(&["config", "base", "dim"])?,
            heads: goldens.count(&["config", "base", "heads"])?,
        },
        decoder: decoder_config(goldens)?,
        adapters: Some(goldens.count(&["config", "adapters"])?),
        temperature: goldens.number(&["config", "att_tau"])?,
    };
    let tec = Tec::new(config, 0, device)?;
    load(tec.params(), goldens, "student.", device)?;
    Ok(tec)
}

fn targets(goldens: &Goldens, device: &Device) -> Result<Targets> {
    // The golden file holds the base in timm's names behind a prefix, as a checkpoint may.
    let options = LoadOptions {
        heads: Some(goldens.count(&["config", "base", "heads"])?),
        prefix: Some("base.".into()),
        ..LoadOptions::default()
    };
    let base = Vit::load(goldens.path(), &options, device)?;
    if *base.config() != encoder_config(goldens, "base")? {
        return Err(goldens.error(format!("the base is {:?}, not as the metadata says", base.config())));
    }
    let (last, queries) = (
        goldens.count(&["config", "last_layers"])?,
        goldens.count(&["config", "top_k"])?,
    );
    Ok(base.targets(&tensor(goldens, "images", device)?, last, queries)?)
}

fn masks_are_exact(record: &mut Record, directory: &Path, device: &Device) -> Result<()> {
    let goldens = goldens::read(&file_of(directory, "tec_step"))?;
    let masks = masks(&goldens, device)?;
    same_indices(record, &goldens, "ids_keep", &masks.keep)?;
    same_indices(record, &goldens, "ids_restore", &masks.restore)?;
    record.same(
        "mask",
        "removed",
        &Data::from(values(&masks.removed)?),
        goldens.data("mask")?,
    );
    Ok(())
}

fn base_targets(record: &mut Record, directory: &Path, device: &Device) -> Result<()> {
    let goldens = goldens::read(&file_of(directory, "tec_step"))?;
    let targets = targets(&goldens, device)?;
    same_indices(record, &goldens, "target_index", &targets.index)?;
    near(record, &goldens, "target_features", &targets.features)?;
    near(record, &goldens, "target_logits", &targets.logits)
}

fn encoder(record: &mut Record, directory: &Path, device: &Device) -> Result<()> {
    let goldens = goldens::read(&file_of(directory, "tec_step"))?;
    let tec = tec(&goldens, device)?;
    let images = tensor(&goldens, "images", device)?;
    let levels = tec.encode(&images, &masks(&goldens, device)?)?;
    near(record, &goldens, "encoder_levels", &levels)?;

    let (batch, patches, dim) = (images.dim(0)?, tec.config().encoder.patches(), tec.config().encoder.dim);
    let in_order: Vec<f32> = (0..batch * patches).map(|n| (n % patches) as f32).collect();
    let whole = Masks::from_noise(&in_order, batch, patches, 0.0, device)?;
    let levels = tec.encode(&images, &whole)?;
    let tokens = levels.narrow(2, levels.dim(2)? - dim, dim)?.contiguous()?;
    near(record, &goldens, "encoder_tokens_unmasked", &tokens)?;
    // The exported encoder, its input adapter folded.
    near(
        record,
        &goldens,
        "encoder_tokens_unmasked",
        &tec.encoder()?.tokens(&images)?,
    )
}

fn tec_losses_and_gradients(record: &mut Record, directory: &Path, device: &Device) -> Result<()> {
    let goldens = goldens::read(&file_of(directory, "tec_step"))?;
    let tec = tec(&goldens, device)?;
    let images = tensor(&goldens, "images", device)?;
    let losses = tec.losses(&images, &targets(&goldens, device)?, &masks(&goldens, device)?)?;
    near(record, &goldens, "feature_loss", &losses.feature)?;
    near(record, &goldens, "attention_loss", &losses.relation)?;
    gradients(record, tec.params(), &ops::backward(&losses.total)?, &goldens)
}

fn mae_loss_and_gradients(record: &mut Record, directory: &Path, device: &Device) -> Result<()> {
    let goldens = goldens::read(&file_of(directory, "mae_step"))?;
    let config = goldens.metadata("config")?;
    let config = MaeConfig {
        encoder: encoder_config(&goldens, "encoder")?,
        decoder: decoder_config(&goldens)?,
        norm_pix: config["norm_pix"] == Value::Bool(true),
    };
    let mae = Mae::new(config, 0, device)?;
    load(mae.params(), &goldens, "mae.", device)?;
    let loss = mae.loss(&tensor(&goldens, "images", device)?, &masks(&goldens, device)?)?;
    near(record, &goldens, "loss", &loss)?;
    gradients(record, mae.params(), &ops::backward(&loss)?, &goldens)
}

fn optimizer_steps(record: &mut Record, directory: &Path, device: &Device) -> Result<()> {
    let start = goldens::read(&file_of(directory, "tec_step"))?;
    let goldens = goldens::read(&file_of(directory, "train_steps"))?;
    let tec = tec(&start, device)?;
    let (images, targets) = (tensor(&start, "images", device)?, targets(&start, device)?);
    let mut adamw = AdamW::new(
        tec.params().trainable(),
        AdamWConfig {
            beta1: goldens.number(&["optimizer", "betas", "0"])?,
            beta2: goldens.number(&["optimizer", "betas", "1"])?,
            eps: goldens.number(&["optimizer", "eps"])?,
            weight_decay: goldens.number(&["optimizer", "weight_decay"])?,
        },
    );
    let [_, batch, patches] = goldens.axes("noises")?;
    let noises = goldens.f32("noises")?.chunks((batch * patches).max(1));
    let rows = noises
        .zip(goldens.f32("learning_rates")?)
        .zip(goldens.f32("losses")?.chunks(2));
    let ratio = start.number(&["config", "mask_ratio"])?;
    for (step, ((noise, &lr), expected)) in rows.enumerate() {
        let case = format!("step {step}");
        let masks = Masks::from_noise(noise, batch, patches, ratio, device)?;
        let losses = tec.losses(&images, &targets, &masks)?;
        let both = [values(&losses.feature)?, values(&losses.relation)?];
        for ((what, loss), expected) in ["feature loss", "relation loss"].iter().zip(&both).zip(expected) {
            record.error(&case, what, max_error(loss, &[*expected]), 1, VALUES);
        }
        record.case();
        adamw.step(&ops::backward(&losses.total)?, f64::from(lr), None)?;
    }
    for (name, var) in tec.params().trainable() {
        let golden = without_key_bias(name, goldens.f32(&format!("final.{name}"))?.to_vec());
        let actual = without_key_bias(name, values(var.as_tensor())?);
        let differences = actual
            .iter()
            .zip(&golden)
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
        let worst = if actual.len() == golden.len() {
            differences.fold(0.0, f64::max)
        } else {
            f64::INFINITY
        };
        record.error("after all steps", name, worst, golden.len(), FINAL_WEIGHTS);
    }
    Ok(())
}
