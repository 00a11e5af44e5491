//! Recipes: everything that decides what a training run computes, as a TOML file.
//!
//! A recipe file may leave keys out; the run directory keeps the resolved recipe with every value spelled out.
//! Unknown keys are errors. `--set section.key=value` overrides a key.

mod builder;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    model::{Activation, VitConfig},
};

pub use builder::RecipeBuilder;

/// How a new model is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// TEC: from a frozen base's features and relations (Gao et al., 2022).
    Tec,
    /// Masked autoencoder: from the pixels alone (He et al., 2022). Makes a base.
    Mae,
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tec => "tec",
            Self::Mae => "mae",
        })
    }
}

/// A whole training recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// `tec` or `mae`.
    pub method: Method,
    /// Seeds the weights, the masks, the augmentation and the sample order.
    pub seed: u64,
    /// The frozen base (method `tec`).
    pub base: BaseSection,
    /// Weights to start from.
    pub init: InitSection,
    /// Where images come from and how they are cropped.
    pub data: DataSection,
    /// The new model's encoder.
    pub model: ModelSection,
    /// The decoder used in pretraining only.
    pub decoder: DecoderSection,
    /// Masking, targets and losses.
    pub objective: ObjectiveSection,
    /// AdamW and its schedule.
    pub optimizer: OptimizerSection,
    /// When training state is written.
    pub checkpoint: CheckpointSection,
}

/// `[base]`: the frozen base model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BaseSection {
    /// A checkpoint file, a run directory, or the name of a run under `runs/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Attention heads, where the checkpoint does not say (default: those of published models of its width).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// What the names of the base's parameters begin with, where a file holds several models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Nonlinearity of its MLPs, where the checkpoint does not say (default: its family's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
}

/// `[init]`: weights to start from instead of random ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InitSection {
    /// A run directory or one of its checkpoints. Every parameter of the encoder must be there in the same shape; decoder
    /// and adapters are taken where name and shape agree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// `[data]`: images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// A folder of JPEG and PNG images, or an IDX file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Side of the square crop the new model sees, in pixels; absent: the base's, else 224.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// 3 for RGB, 1 for grey; absent: the base's, else 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// Random resized crop: smallest and largest share of the image's area.
    pub scale: [f64; 2],
    /// Horizontal flip with probability one half.
    pub flip: bool,
    /// Per-channel mean of pixels in 0..1 subtracted from the input; absent: the base's, else ImageNet's (grey: measured on the data).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f32>>,
    /// Per-channel standard deviation the input is divided by; goes with `mean`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f32>>,
    /// Decode threads. Changes speed only.
    pub threads: usize,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            path: None,
            image_size: None,
            channels: None,
            scale: [0.2, 1.0],
            flip: true,
            mean: None,
            std: None,
            threads: 2,
        }
    }
}

/// `[model]`: the new model's encoder; an absent key is taken from the base (method `tec`) or from ViT-Tiny (method `mae`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// Side of a patch in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_size: Option<usize>,
    /// Width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim: Option<usize>,
    /// Blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Attention heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Hidden width of the MLPs over the width.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_ratio: Option<usize>,
}

/// `[decoder]`: dropped after pretraining. Absent keys take the published values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecoderSection {
    /// Width.
    pub dim: usize,
    /// Blocks; absent: 2 for `tec`, 8 for `mae`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Attention heads.
    pub heads: usize,
}

impl Default for DecoderSection {
    fn default() -> Self {
        Self {
            dim: 512,
            depth: None,
            heads: 16,
        }
    }
}

/// `[objective]`: what is removed and what is predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveSection {
    /// Share of the patches removed.
    pub mask_ratio: f64,
    /// TEC: base blocks averaged into the feature target (n).
    pub last_layers: usize,
    /// TEC: patches whose attention rows become targets (K).
    pub top_k: usize,
    /// TEC: temperature on the base's attention logits (τ).
    pub att_tau: f32,
    /// TEC: groups of the encoder adapter; absent: the largest divisor of the depth not above depth/3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapters: Option<usize>,
    /// MAE: predict pixels normalized within each patch.
    pub norm_pix_loss: bool,
}

impl Default for ObjectiveSection {
    fn default() -> Self {
        Self {
            mask_ratio: 0.75,
            last_layers: 2,
            top_k: 15,
            att_tau: 1.8,
            adapters: None,
            norm_pix_loss: true,
        }
    }
}

/// `[optimizer]`: AdamW with linear warm-up and cosine decay, both per step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSection {
    /// Images a step.
    pub batch: usize,
    /// Passes over the data.
    pub epochs: usize,
    /// Base learning rate: the peak is `blr · batch / 256`.
    pub blr: f64,
    /// Peak learning rate; absent: from `blr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Learning rate at the end of the schedule.
    pub min_lr: f64,
    /// Epochs of linear warm-up from 0; absent: a tenth of `epochs`, at most 40.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_epochs: Option<f64>,
    /// Decay of matrices and tokens; vectors and biases have none.
    pub weight_decay: f64,
    /// AdamW's β₁ and β₂.
    pub betas: [f64; 2],
    /// AdamW's ε.
    pub eps: f64,
}

impl Default for OptimizerSection {
    fn default() -> Self {
        Self {
            batch: 256,
            epochs: 100,
            blr: 1.5e-4,
            lr: None,
            min_lr: 0.0,
            warmup_epochs: None,
            weight_decay: 0.05,
            betas: [0.9, 0.95],
            eps: 1e-8,
        }
    }
}

impl OptimizerSection {
    /// The peak learning rate.
    pub fn peak_lr(&self) -> f64 {
        self.lr.unwrap_or(self.blr * self.batch as f64 / 256.0)
    }

    /// Epochs of warm-up.
    pub fn warmup(&self) -> f64 {
        self.warmup_epochs.unwrap_or((self.epochs as f64 / 10.0).min(40.0))
    }
}

/// `[checkpoint]`: training state on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Steps between two checkpoints; 0: one an epoch. The last step always writes one.
    pub every_steps: usize,
    /// How many of the newest are kept.
    pub keep: usize,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self {
            every_steps: 0,
            keep: 2,
        }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            method: Method::Tec,
            seed: 0,
            base: BaseSection::default(),
            init: InitSection::default(),
            data: DataSection::default(),
            model: ModelSection::default(),
            decoder: DecoderSection::default(),
            objective: ObjectiveSection::default(),
            optimizer: OptimizerSection::default(),
            checkpoint: CheckpointSection::default(),
        }
    }
}

impl Recipe {
    /// The recipe as a TOML file.
    ///
    /// # Errors
    /// A value TOML cannot express (none of this type's).
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::Usage(format!("recipe: {e}")))
    }

    /// Checks every value's range; shapes are checked when the models are built.
    fn check(&self) -> Result<()> {
        let require = |ok: bool, key: &str, value: &dyn std::fmt::Display, what: &str| {
            if ok {
                Ok(())
            } else {
                Err(Error::Usage(format!("{key} = {value}: must be {what}")))
            }
        };
        let (d, o, j) = (&self.data, &self.optimizer, &self.objective);
        if let Some(size) = d.image_size {
            require(
                (1..=4096).contains(&size),
                "data.image_size",
                &size,
                "between 1 and 4096",
            )?;
        }
        if let Some(channels) = d.channels {
            require(
                channels == 1 || channels == 3,
                "data.channels",
                &channels,
                "1 (grey) or 3 (RGB)",
            )?;
        }
        let scale = format!("[{}, {}]", d.scale[0], d.scale[1]);
        require(
            0.0 < d.scale[0] && d.scale[0] <= d.scale[1] && d.scale[1] <= 1.0,
            "data.scale",
            &scale,
            "two rising numbers in (0, 1]",
        )?;
        require(
            (1..=256).contains(&d.threads),
            "data.threads",
            &d.threads,
            "between 1 and 256",
        )?;
        require(
            d.mean.is_some() == d.std.is_some(),
            "data.mean and data.std",
            &"only one of them",
            "given together or not at all",
        )?;
        for (key, values) in [("data.mean", &d.mean), ("data.std", &d.std)] {
            let Some(values) = values else { continue };
            let fits = values.len() == d.channels.unwrap_or(values.len());
            require(fits, key, &format!("{values:?}"), "one number a channel")?;
            let positive = key == "data.mean" || values.iter().all(|v| *v > 0.0);
            require(
                positive && values.iter().all(|v| v.is_finite()),
                key,
                &format!("{values:?}"),
                "finite (std: above 0)",
            )?;
        }
        require(
            0.0 < j.mask_ratio && j.mask_ratio < 1.0,
            "objective.mask_ratio",
            &j.mask_ratio,
            "above 0 and below 1",
        )?;
        require(
            j.last_layers >= 1,
            "objective.last_layers",
            &j.last_layers,
            "at least 1",
        )?;
        require(j.top_k >= 1, "objective.top_k", &j.top_k, "at least 1")?;
        require(
            j.att_tau > 0.0 && j.att_tau.is_finite(),
            "objective.att_tau",
            &j.att_tau,
            "above 0",
        )?;
        require(o.batch >= 1, "optimizer.batch", &o.batch, "at least 1")?;
        require(o.epochs >= 1, "optimizer.epochs", &o.epochs, "at least 1")?;
        let peak = o.peak_lr();
        require(peak > 0.0 && peak.is_finite(), "optimizer.lr", &peak, "above 0")?;
        require(
            (0.0..=peak).contains(&o.min_lr),
            "optimizer.min_lr",
            &o.min_lr,
            "between 0 and the peak learning rate",
        )?;
        require(
            (0.0..=o.epochs as f64).contains(&o.warmup()),
            "optimizer.warmup_epochs",
            &o.warmup(),
            "between 0 and optimizer.epochs",
        )?;
        require(
            (0.0..1.0).contains(&o.weight_decay),
            "optimizer.weight_decay",
            &o.weight_decay,
            "in [0, 1)",
        )?;
        for beta in o.betas {
            require((0.0..1.0).contains(&beta), "optimizer.betas", &beta, "in [0, 1)")?;
        }
        require(o.eps > 0.0, "optimizer.eps", &o.eps, "above 0")?;
        require(
            self.checkpoint.keep >= 1,
            "checkpoint.keep",
            &self.checkpoint.keep,
            "at least 1",
        )
    }

    /// Fills every absent key: geometry from the base (same grid, same width) or else ViT-Tiny/16 at 224, the published
    /// decoder depths (TEC 2, MAE 8), the schedule. `data.mean` and `data.std` are left to the caller, who has the data.
    ///
    /// # Errors
    /// Sizes that do not fit together; the message names the key.
    pub fn resolve(&mut self, base: Option<&VitConfig>) -> Result<VitConfig> {
        let image_size = *self.data.image_size.get_or_insert(base.map_or(224, |b| b.image_size));
        let channels = *self.data.channels.get_or_insert(base.map_or(3, |b| b.channels));
        let m = &mut self.model;
        // One grid for base and new model, so the new model's patch follows from the crop.
        let same_grid = base
            .filter(|b| image_size.is_multiple_of(b.grid()))
            .map(|b| image_size / b.grid());
        let dim = *m.dim.get_or_insert(base.map_or(192, |b| b.dim));
        let same_width = base.filter(|b| b.dim == dim);
        let config = VitConfig {
            image_size,
            patch_size: *m.patch_size.get_or_insert(same_grid.unwrap_or(16)),
            channels,
            dim,
            depth: *m.depth.get_or_insert(base.map_or(12, |b| b.depth)),
            heads: *m.heads.get_or_insert(same_width.map_or((dim / 64).max(1), |b| b.heads)),
            mlp_ratio: *m.mlp_ratio.get_or_insert(4),
        };
        config.validate()?;
        self.decoder.depth.get_or_insert(match self.method {
            Method::Tec => 2,
            Method::Mae => 8,
        });
        if self.method == Method::Tec {
            self.objective
                .adapters
                .get_or_insert(tec_core::adapter::groups(config.depth));
        }
        let o = &mut self.optimizer;
        o.lr = Some(o.peak_lr());
        o.warmup_epochs = Some(o.warmup());
        self.check()?;
        Ok(config)
    }

    /// Keys whose values differ between this run's recipe and the one given now, apart from those that cannot change a result
    /// (paths, `data.threads`, `checkpoint.*`).
    ///
    /// # Errors
    /// As [`Self::to_toml`].
    pub fn differences(&self, other: &Recipe) -> Result<Vec<String>> {
        let (a, b) = (flatten(self)?, flatten(other)?);
        let free = |key: &str| {
            matches!(key, "data.path" | "data.threads" | "base.path" | "init.path") || key.starts_with("checkpoint.")
        };
        let absent = || "absent".to_string();
        let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
        keys.sort();
        keys.dedup();
        Ok(keys
            .into_iter()
            .filter(|k| a.get(*k) != b.get(*k) && !free(k))
            .map(|k| {
                let [x, y] = [&a, &b].map(|m| m.get(k).cloned().unwrap_or_else(absent));
                format!("{k} ({x} in the run, {y} now)")
            })
            .collect())
    }
}

fn flatten(recipe: &Recipe) -> Result<std::collections::BTreeMap<String, String>> {
    fn walk(prefix: &str, table: &toml::Table, out: &mut std::collections::BTreeMap<String, String>) {
        for (key, value) in table {
            let key = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            match value {
                toml::Value::Table(inner) => walk(&key, inner, out),
                other => drop(out.insert(key, other.to_string())),
            }
        }
    }
    let table = toml::Table::try_from(recipe).map_err(|e| Error::Usage(format!("recipe: {e}")))?;
    let mut out = std::collections::BTreeMap::new();
    walk("", &table, &mut out);
    Ok(out)
}
