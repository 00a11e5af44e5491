//! Recipes: everything that decides what a training run computes, as a TOML file.
//!
//! A recipe file may leave keys out; the run directory keeps the resolved recipe with every value spelled out.
//! Unknown keys are errors. `--set section.key=value` overrides a key.

mod builder;
mod check;
pub mod named;
mod sections;
mod size;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, model::VitConfig};

pub use builder::RecipeBuilder;
pub use sections::{
    BaseSection, CheckpointSection, DataSection, DecoderSection, InitSection, ModelSection, ObjectiveSection,
    OptimizerSection, ProbeSection,
};
pub use size::{Geometry, Size};

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
    /// The k-NN probe during training.
    pub probe: ProbeSection,
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
            probe: ProbeSection::default(),
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

    /// Fills every absent key: geometry from `model.size`, else from the base (same grid, same width), or else ViT-Tiny/16 at 224, the published
    /// decoder depths (TEC 2, MAE 8), the schedule. `data.mean` and `data.std` are left to the caller, who has the data.
    ///
    /// # Errors
    /// Sizes that do not fit together; the message names the key.
    pub fn resolve(&mut self, base: Option<&VitConfig>) -> Result<VitConfig> {
        let image_size = *self.data.image_size.get_or_insert(base.map_or(224, |b| b.image_size));
        let channels = *self.data.channels.get_or_insert(base.map_or(3, |b| b.channels));
        let m = &mut self.model;
        let size = m.size.map(Size::geometry);
        // One grid for base and new model, so the new model's patch follows from the crop.
        let same_grid = base
            .filter(|b| image_size.is_multiple_of(b.grid()))
            .map(|b| image_size / b.grid());
        let dim = *m.dim.get_or_insert(size.map_or(base.map_or(192, |b| b.dim), |s| s.dim));
        let same_width = base.filter(|b| b.dim == dim);
        let named_heads = size.filter(|s| s.dim == dim).map(|s| s.heads);
        let plain_heads = same_width.map_or((dim / 64).max(1), |b| b.heads);
        let config = VitConfig {
            image_size,
            patch_size: *m
                .patch_size
                .get_or_insert(same_grid.unwrap_or(size.map_or(16, |s| s.patch_size))),
            channels,
            dim,
            depth: *m
                .depth
                .get_or_insert(size.map_or(base.map_or(12, |b| b.depth), |s| s.depth)),
            heads: *m.heads.get_or_insert(named_heads.unwrap_or(plain_heads)),
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
    /// (paths, `data.threads`, `data.max_unreadable`, `checkpoint.*`, `probe.*`).
    ///
    /// # Errors
    /// As [`Self::to_toml`].
    pub fn differences(&self, other: &Recipe) -> Result<Vec<String>> {
        let (a, b) = (flatten(self)?, flatten(other)?);
        let free = |key: &str| {
            let named = [
                "data.path",
                "data.threads",
                "data.max_unreadable",
                "base.path",
                "init.path",
            ];
            named.contains(&key) || key.starts_with("checkpoint.") || key.starts_with("probe.")
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

/// Every key of a recipe as `section.key`, with its value in TOML.
fn flatten(recipe: &Recipe) -> Result<BTreeMap<String, String>> {
    let table = toml::Table::try_from(recipe).map_err(|e| Error::Usage(format!("recipe: {e}")))?;
    Ok(flatten_table(&table))
}

fn flatten_table(table: &toml::Table) -> BTreeMap<String, String> {
    fn walk(prefix: &str, table: &toml::Table, out: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(inner) => walk(&format!("{prefix}{key}."), inner, out),
                other => drop(out.insert(format!("{prefix}{key}"), other.to_string())),
            }
        }
    }
    let mut out = BTreeMap::new();
    walk("", table, &mut out);
    out
}
