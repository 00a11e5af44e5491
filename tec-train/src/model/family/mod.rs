//! Families of checkpoints: how each is recognized and what its names mean.

mod names;
mod refusal;
mod tables;

pub(crate) use names::Naming;
pub(crate) use refusal::{refusal, stranger};

use std::collections::BTreeMap;

use super::variant::Activation;
use super::weights_file::Stored;

/// Pixels' mean and deviation, as fractions of 255.
pub(crate) type Colors = ([f32; 3], [f32; 3]);

pub(crate) const IMAGENET: Colors = (crate::data::IMAGENET_MEAN, crate::data::IMAGENET_STD);
pub(crate) const HALF: Colors = ([0.5; 3], [0.5; 3]);
pub(crate) const CLIP: Colors = (
    [0.481_454_66, 0.457_827_5, 0.408_210_73],
    [0.268_629_54, 0.261_302_6, 0.275_777_1],
);

/// One family.
#[derive(Debug)]
pub(crate) struct Family {
    /// Its name in reports.
    pub(crate) key: &'static str,
    /// What people know it as.
    pub(crate) title: &'static str,
    /// Whether a file is of this family; asked in the order of [`Family::ALL`].
    recognize: fn(&View) -> bool,
    /// What its names mean.
    pub(crate) naming: &'static Naming,
    /// Epsilon of its layer norms.
    pub(crate) eps: f32,
    /// Its MLPs' nonlinearity.
    pub(crate) activation: Activation,
    /// Normalization of its input.
    pub(crate) colors: Colors,
    /// What of these defaults others of the same names do not share, as a note; empty if nothing.
    pub(crate) unsure: &'static str,
    /// Heads that are not [`heads`]'s, as pairs (width, heads).
    pub(crate) heads: &'static [(usize, usize)],
}

/// The names of a file, seen from the prefix of its model.
pub(crate) struct View<'a> {
    pub(crate) tensors: &'a BTreeMap<String, Stored>,
    pub(crate) prefix: &'a str,
}

impl View<'_> {
    /// The names of the model, without the prefix.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        // Sorted: those with the prefix are neighbors.
        let from = self.tensors.range(self.prefix.to_string()..);
        from.map_while(|(name, _)| name.strip_prefix(self.prefix))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(&format!("{}{name}", self.prefix))
    }

    fn begins(&self, start: &str) -> bool {
        let start = format!("{}{start}", self.prefix);
        let next = self.tensors.range(start.clone()..).next();
        next.is_some_and(|(name, _)| name.starts_with(&start))
    }

    fn contains(&self, part: &str) -> bool {
        self.names().any(|name| name.contains(part))
    }

    /// A tensor beside the model: under the prefix without its last part.
    fn beside(&self, start: &str) -> bool {
        let parent = self
            .prefix
            .trim_end_matches('.')
            .rsplit_once('.')
            .map_or("", |(parent, _)| parent);
        let start = if parent.is_empty() {
            start.into()
        } else {
            format!("{parent}.{start}")
        };
        self.tensors.keys().any(|name| name.starts_with(&start))
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors
            .get(&format!("{}{name}", self.prefix))
            .map(|stored| stored.shape.as_slice())
    }
}

impl Family {
    /// The family of the model whose names `view` shows.
    pub(crate) fn of(view: &View) -> Option<&'static Self> {
        tables::ALL.iter().find(|family| (family.recognize)(view))
    }
}

/// Heads of a model of `dim`, by what the published models of that width have: 64 of width a head, but ViT-H, ViT-g and ViT-G
/// (MAE, CLIP) have 16 heads.
pub(crate) fn heads(dim: usize) -> Option<usize> {
    const HEAD_WIDTH: usize = 64;
    match dim {
        1280 | 1408 | 1664 => Some(16),
        _ => dim.is_multiple_of(HEAD_WIDTH).then_some(dim / HEAD_WIDTH),
    }
}

/// Names of patch projections: where one is, there is a model.
const PATCH_PROJECTIONS: [&str; 5] = [
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embedding.weight",
    "embeddings.patch_embeddings.weight",
    "conv1.weight",
];

/// The prefixes under which a file has models that look like vision transformers.
pub(crate) fn prefixes(tensors: &BTreeMap<String, Stored>) -> Vec<String> {
    let mut found: Vec<String> = tensors
        .keys()
        // An optimizer's moments are named as what they are moments of.
        .filter(|name| !name.starts_with("optim"))
        .filter_map(|name| {
            let prefix = PATCH_PROJECTIONS.iter().find_map(|end| name.strip_suffix(end))?;
            (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_string())
        })
        // Convolutional networks begin with `conv1` too.
        .filter(|prefix| {
            let view = View { tensors, prefix };
            !view.has("conv1.weight") || view.has("class_embedding")
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// How much a prefix is meant: the lowest is loaded. Teachers and averaged weights are what their authors evaluate.
pub(crate) fn rank(prefix: &str) -> usize {
    let has = |parts: &[&str]| prefix.split('.').any(|part| parts.contains(&part));
    if has(&[
        "teacher",
        "ema",
        "model_ema",
        "state_dict_ema",
        "ema_state_dict",
        "ema_model",
    ]) {
        0
    } else if has(&["student", "momentum_encoder"]) {
        2
    } else {
        1
    }
}
