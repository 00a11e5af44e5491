//! The geometry and variant that shapes show.

use std::collections::{BTreeMap, BTreeSet};

use super::config::VitConfig;
use super::variant::{Activation, Variant};

/// A model's tensors by their common names: the name in the file, and the shape.
pub(crate) type Common<'a> = BTreeMap<String, (String, &'a [usize])>;

pub(crate) const PATCH_WEIGHT: &str = "patch_embed.proj.weight";

/// What shapes show; the heads are not among it and stay 1, epsilon is the plain model's.
///
/// # Errors
/// The tensor whose shape makes no vision transformer, in the words of the file.
pub(crate) fn infer(tensors: &Common) -> Result<(VitConfig, Variant), String> {
    let entry = |name: &str| tensors.get(name).map(|(own, shape)| (own.as_str(), *shape));
    let need = |name: &str| entry(name).ok_or_else(|| format!("has no `{name}`, or nothing that stands for it"));
    let (own, shape) = need(PATCH_WEIGHT)?;
    let &[dim, channels, patch_size, patch_width] = shape else {
        return Err(format!(
            "`{own}` has the shape {shape:?}, not [dim, channels, patch, patch]"
        ));
    };
    if patch_size != patch_width {
        return Err(format!(
            "its patches are {patch_size}×{patch_width}; only square ones are supported"
        ));
    }
    let (own, shape) = need("pos_embed")?;
    let positions = rows(shape, dim).unwrap_or(0);
    let is_square = |count: usize| count > 0 && count.isqrt().pow(2) == count;
    let class_position = is_square(positions.saturating_sub(1));
    if !class_position && !is_square(positions) {
        return Err(format!(
            "`{own}` has the shape {shape:?}, not [1, grid · grid, {dim}] of a square grid, with one row more for the class token \
             or without"
        ));
    }
    let grid = (positions - usize::from(class_position)).isqrt();
    let registers = match entry("reg_token") {
        None => 0,
        Some((own, shape)) => {
            rows(shape, dim).ok_or_else(|| format!("`{own}` has the shape {shape:?}, not [1, registers, {dim}]"))?
        }
    };
    let blocks: BTreeSet<&str> = tensors
        .keys()
        .filter_map(|name| name.strip_prefix("blocks.")?.split_once('.').map(|(number, _)| number))
        .collect();
    let (second, shape) = need("blocks.0.mlp.fc2.weight")?;
    let &[_, hidden] = shape else {
        return Err(format!("`{second}` has the shape {shape:?}, not [{dim}, hidden]"));
    };
    let activation = match entry("blocks.0.mlp.gate.weight").map_or_else(|| need("blocks.0.mlp.fc1.weight"), Ok)? {
        (_, &[rows, _]) if entry("blocks.0.mlp.gate.weight").is_some() && rows == hidden => Activation::SwiGlu,
        (_, &[rows, _]) if rows == hidden => Activation::Gelu,
        (_, &[rows, _]) if rows == 2 * hidden => Activation::SwiGlu,
        (own, shape) => {
            return Err(format!(
                "`{own}` has the shape {shape:?}, but `{second}` takes {hidden} values: neither as many nor half of them"
            ));
        }
    };
    let config = VitConfig {
        image_size: grid * patch_size,
        patch_size,
        channels,
        dim,
        depth: blocks.len(),
        heads: 1,
        // Exact for plain models; a base's own hidden width is its variant's.
        mlp_ratio: ((hidden + dim / 2) / dim.max(1)).max(1),
    };
    let variant = Variant {
        layer_scale: tensors
            .keys()
            .any(|name| name.ends_with(".ls1.gamma") || name.ends_with(".ls2.gamma")),
        registers,
        class_position,
        pre_norm: tensors.contains_key("norm_pre.weight"),
        patch_bias: tensors.contains_key("patch_embed.proj.bias"),
        activation,
        // Fine-tuned models may have a norm after pooling instead of the final one.
        pooled_norm: tensors.contains_key("fc_norm.weight") && !tensors.contains_key("norm.weight"),
        ..Variant::plain(hidden)
    };
    Ok((config, variant))
}

/// The rows of a table `[rows, dim]`, whatever ones stand before.
fn rows(shape: &[usize], dim: usize) -> Option<usize> {
    match shape {
        [rows, width] if *width == dim => Some(*rows),
        [1, rest @ ..] => rows_of(rest, dim),
        _ => None,
    }
}

fn rows_of(shape: &[usize], dim: usize) -> Option<usize> {
    match shape {
        [rows, width] if *width == dim => Some(*rows),
        _ => None,
    }
}

/// The parameters of a frozen encoder in the order it takes them, with their shapes.
pub(crate) fn parameters(config: &VitConfig, variant: &Variant) -> Vec<(String, Vec<usize>)> {
    let (dim, patch) = (config.dim, config.patch_size);
    let mut all: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: &str, shape: &[usize]| all.push((name.to_string(), shape.to_vec()));
    add("cls_token", &[1, 1, dim]);
    if variant.registers > 0 {
        add("reg_token", &[1, variant.registers, dim]);
    }
    add("pos_embed", &[1, 1 + config.patches(), dim]);
    add(PATCH_WEIGHT, &[dim, config.channels, patch, patch]);
    add("patch_embed.proj.bias", &[dim]);
    let mut layer = |name: &str, inputs: Option<usize>, outputs: usize| {
        let weight: Vec<usize> = std::iter::once(outputs).chain(inputs).collect();
        add(&format!("{name}.weight"), &weight);
        add(&format!("{name}.bias"), &[outputs]);
    };
    if variant.pre_norm {
        layer("norm_pre", None, dim);
    }
    let first = variant.activation.first_layer(variant.hidden);
    for block in 0..config.depth {
        let mut layer = |name: &str, inputs, outputs| layer(&format!("blocks.{block}.{name}"), inputs, outputs);
        layer("norm1", None, dim);
        layer("attn.qkv", Some(dim), 3 * dim);
        layer("attn.proj", Some(dim), dim);
        layer("norm2", None, dim);
        layer("mlp.fc1", Some(dim), first);
        layer("mlp.fc2", Some(variant.hidden), dim);
    }
    layer(if variant.pooled_norm { "fc_norm" } else { "norm" }, None, dim);
    all
}
