//! What cannot be a base, by the names that show it, and why.

use std::collections::BTreeMap;

use super::super::weights_file::Stored;
use super::View;

/// Parts of names, and what a model that has them is.
const SIGNS: [(&[&str], &str); 8] = [
    (
        &["dist_token", "distillation_token"],
        "it has a second class token, for distillation (DeiT): TEC's relations have a row for one class token only",
    ),
    (
        &["rope", "rotary", "freqs_cis"],
        "its positions are rotary (as in DINOv3, EVA-02): the base must have a position table",
    ),
    (
        &["relative_position", "rel_pos"],
        "its attention has relative positions (as in BEiT, Swin, SAM): the base must have a position table",
    ),
    (
        &["attn_pool.latent", "head.probe"],
        "it has no class token (SigLIP pools by attention): TEC's relations begin with the class token's",
    ),
    (
        &["q_norm.", "k_norm.", "attn.ln_q", "attn.q_ln"],
        "its attention normalizes queries and keys, which is not supported",
    ),
    (
        &["patch_embed.backbone.", "patch_embed.proj.0.", "patch_embed.proj.1."],
        "its patches come from several convolutions (hybrid or convolutional stem), and one projection is supported",
    ),
    (
        &["mlp.fc1_g.", "mlp.w1.", "mlp.fc_g."],
        "its MLPs are gated in another way than DINOv2's (EVA-02), which is not supported",
    ),
    (
        &["attn.q_bias", "attn.v_bias"],
        "its queries and values have biases of their own (BEiT, data2vec), which is not supported",
    ),
];

/// Why the model of `view` cannot be a base, if its names tell.
pub(crate) fn refusal(view: &View) -> Option<String> {
    let sign = SIGNS
        .iter()
        .find(|(parts, _)| view.names().any(|name| parts.iter().any(|part| name.contains(part))));
    if let Some((_, reason)) = sign {
        return Some((*reason).to_string());
    }
    if let Some(shape) = view.shape("patch_embed.proj.weight")
        && shape.len() == 5
    {
        return Some("its patches have a time axis (a video model), and images have none".into());
    }
    let any = |names: &[&str]| names.iter().any(|name| view.has(name));
    if view.has("embeddings.patch_embeddings.weight") && view.has("embeddings.register_tokens") {
        return Some("its positions are rotary (DINOv3): the base must have a position table".into());
    }
    if !any(&[
        "cls_token",
        "embeddings.cls_token",
        "embeddings.class_embedding",
        "class_embedding",
    ]) {
        return Some(
            "it has no class token (as SigLIP, I-JEPA and models pooled by attention): TEC's relations begin with the class \
             token's"
                .into(),
        );
    }
    if !any(&[
        "pos_embed",
        "embeddings.position_embeddings",
        "embeddings.position_embedding.weight",
        "positional_embedding",
    ]) {
        return Some(
            "it has no position table (its positions may be rotary, as in DINOv3): the base must have one".into(),
        );
    }
    None
}

/// What a file is in which no vision transformer was found.
pub(crate) fn stranger(tensors: &BTreeMap<String, Stored>) -> String {
    let contains = |parts: &[&str]| tensors.keys().any(|name| parts.iter().any(|part| name.contains(part)));
    if let Some((_, reason)) = SIGNS.iter().find(|(parts, _)| contains(parts)) {
        return format!("{reason} ({})", sample(tensors));
    }
    let what = if contains(&["layer1.0.conv1", "stages.0.blocks", "features.0.", "bn1.running_mean"]) {
        "it is a convolutional or hierarchical network"
    } else {
        "its names are none of a family that is known"
    };
    format!(
        "is no vision transformer that can be a base: {what} ({})",
        sample(tensors)
    )
}

/// A few names, to show what a file holds instead.
fn sample(tensors: &BTreeMap<String, Stored>) -> String {
    match tensors.len() {
        0 => "it holds no tensors of a model".into(),
        count => format!(
            "it holds {count} tensors: {} …",
            tensors
                .keys()
                .take(4)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}
