//! From the tensors of a checkpoint to those of a plain vision transformer: which are meant, what geometry they have.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};

use super::config::{EncoderMetadata, VitConfig};
use super::load::hint;
use super::params::finite;
use crate::{Error, Result};

/// Published checkpoints, and timm's convention for plain models, give every head this width.
const HEAD_WIDTH: usize = 64;

const PATCH_WEIGHT: &str = "patch_embed.proj.weight";
const ADAPTER: &str = "cls_token_mlp.";

/// Parts that come with an encoder but are none of it: classifiers, decoders, what is used in pretraining only.
const NOT_ENCODER: [&str; 6] = [
    "head.",
    "fc_norm.",
    "decoder_",
    "encoder_adaptor.",
    "forward_fea_decoder.",
    "forward_att_decoder.",
];

/// The tensors under `prefix`, their names without it, and the names of those left out.
///
/// Without a prefix given, `model.` is taken if only that leads to a patch projection.
pub(crate) fn select(tensors: HashMap<String, Tensor>, prefix: Option<&str>) -> (HashMap<String, Tensor>, Vec<String>) {
    let nested = !tensors.contains_key(PATCH_WEIGHT) && tensors.contains_key(&format!("model.{PATCH_WEIGHT}"));
    let prefix = prefix.unwrap_or(if nested { "model." } else { "" });
    let mut selected = HashMap::new();
    let mut ignored = Vec::new();
    for (name, tensor) in tensors {
        match name.strip_prefix(prefix) {
            Some(own) if own != "mask_token" && !NOT_ENCODER.iter().any(|part| own.starts_with(part)) => {
                selected.insert(own.to_string(), tensor);
            }
            _ => ignored.push(name),
        }
    }
    (selected, ignored)
}

/// Replaces the class token and the input adapter of a TEC checkpoint by the token the adapter makes of it.
pub(crate) fn fold_input_adapter(tensors: &mut HashMap<String, Tensor>, source: &Path) -> Result<()> {
    if !tensors.keys().any(|name| name.starts_with(ADAPTER)) {
        return Ok(());
    }
    let refused = |reason: String| Error::File {
        path: source.into(),
        reason,
    };
    let mut values = |name: &str| -> Result<Vec<f32>> {
        let tensor = tensors
            .remove(name)
            .ok_or_else(|| refused(format!("has an input adapter, but no `{name}`")))?;
        Ok(finite(&tensor, name, source)?.flatten_all()?.to_vec1()?)
    };
    let token = values("cls_token")?;
    let fc1_weight = values("cls_token_mlp.fc1.weight")?;
    let fc1_bias = values("cls_token_mlp.fc1.bias")?;
    let fc2_weight = values("cls_token_mlp.fc2.weight")?;
    let fc2_bias = values("cls_token_mlp.fc2.bias")?;
    let dim = token.len();
    let mut hidden = vec![0.0; fc1_bias.len()];
    let mut folded = vec![0.0; dim];
    tec_core::adapter::input_adapter(
        &token,
        &fc1_weight,
        &fc1_bias,
        &fc2_weight,
        &fc2_bias,
        &mut hidden,
        &mut folded,
    )
    .map_err(|error| {
        refused(format!(
            "its input adapter `cls_token_mlp` does not fit its class token: {error}"
        ))
    })?;
    tensors.insert("cls_token".into(), Tensor::from_vec(folded, (1, 1, dim), &Device::Cpu)?);
    Ok(())
}

/// The metadata of an encoder of this project.
pub(crate) fn metadata(json: &str, source: &Path) -> Result<EncoderMetadata> {
    let refused = |reason: String| Error::File {
        path: source.into(),
        reason: format!("its metadata `{}` cannot be used: {reason}", EncoderMetadata::KEY),
    };
    let metadata: EncoderMetadata = serde_json::from_str(json).map_err(|error| refused(error.to_string()))?;
    metadata.validate().map_err(|error| refused(error.to_string()))?;
    Ok(metadata)
}

/// The geometry that shapes show; heads from `heads`, the metadata, or the convention of 64 of width a head.
pub(crate) fn infer(
    tensors: &HashMap<String, Tensor>,
    heads: Option<usize>,
    metadata: Option<&EncoderMetadata>,
    source: &Path,
) -> Result<VitConfig> {
    let refused = |reason: String| Error::File {
        path: source.into(),
        reason: format!("{reason}{}", hint(tensors.keys())),
    };
    let shape = |name: &str| -> Result<&[usize]> {
        let found = tensors.get(name).map(Tensor::dims);
        found.ok_or_else(|| {
            refused(format!(
                "is no plain vision transformer: it has no `{name}` ({})",
                sample(tensors)
            ))
        })
    };
    let &[dim, channels, patch_size, patch_width] = shape(PATCH_WEIGHT)? else {
        return Err(refused(format!(
            "`{PATCH_WEIGHT}` has the shape {:?}, not [dim, channels, patch, patch]",
            shape(PATCH_WEIGHT)?
        )));
    };
    if patch_size != patch_width {
        return Err(refused(format!(
            "its patches are {patch_size}×{patch_width}; only square ones are supported"
        )));
    }
    let positions = shape("pos_embed")?;
    let grid = match positions {
        &[1, tokens, width] if tokens > 1 && width == dim => (tokens - 1).isqrt(),
        _ => 0,
    };
    if grid == 0 || positions.get(1) != Some(&(1 + grid * grid)) {
        return Err(refused(format!(
            "`pos_embed` has the shape {positions:?}, not [1, 1 + grid · grid, {dim}] for a class token and a square grid"
        )));
    }
    let blocks: BTreeSet<&str> = tensors
        .keys()
        .filter_map(|name| name.strip_prefix("blocks.")?.split_once('.').map(|(number, _)| number))
        .collect();
    let hidden = match shape("blocks.0.mlp.fc1.weight")? {
        &[hidden, width] if width == dim && hidden.is_multiple_of(dim) => hidden,
        other => {
            return Err(refused(format!(
                "`blocks.0.mlp.fc1.weight` has the shape {other:?}, not [a multiple of {dim}, {dim}]"
            )));
        }
    };
    let convention = || dim.is_multiple_of(HEAD_WIDTH).then_some(dim / HEAD_WIDTH);
    let heads = heads.or_else(|| metadata.map(|m| m.config.heads)).or_else(convention).ok_or_else(|| {
        Error::Usage(format!(
            "{}: weights do not show the number of attention heads, and a width of {dim} is no multiple of {HEAD_WIDTH}: \
             give the number as `heads`",
            source.display()
        ))
    })?;
    let config = VitConfig {
        image_size: grid * patch_size,
        patch_size,
        channels,
        dim,
        depth: blocks.len(),
        heads,
        mlp_ratio: hidden / dim,
    };
    config
        .validate()
        .map_err(|error| Error::Usage(format!("{}: {error}", source.display())))?;
    match metadata {
        Some(said)
            if (VitConfig {
                heads,
                ..said.config.clone()
            }) != config =>
        {
            Err(refused(format!(
                "its metadata describes {:?}, but its weights {config:?}",
                said.config
            )))
        }
        _ => Ok(config),
    }
}

/// A few names, to show what a file holds instead.
fn sample(tensors: &HashMap<String, Tensor>) -> String {
    let names: BTreeSet<&str> = tensors.keys().map(String::as_str).collect();
    match names.len() {
        0 => "it holds no tensors of a model".into(),
        count => format!(
            "it holds {count} tensors: {} …",
            names.into_iter().take(4).collect::<Vec<_>>().join(", ")
        ),
    }
}
