//! What `tec inspect` says of an encoder for devices.

use std::fmt::Write;

use serde_json::{Map, Value, json};
use tec_edge::format::{BLOCK_SECTIONS, sections};
use tec_edge::{BackEnd, OutputKind, Outputs, Pool, Precision, ScratchUsage};
use tec_train::{Error, Result, quantize::EdgeEncoder};

/// Outputs of an encoder by the names that constants have.
const OUTPUTS: [(&str, OutputKind, Outputs); 4] = [
    ("CLASS", OutputKind::Class, Outputs::CLASS),
    ("MEAN", OutputKind::Mean, Outputs::MEAN),
    ("PATCHES", OutputKind::Patches, Outputs::PATCHES),
    ("LOGITS", OutputKind::Logits, Outputs::LOGITS),
];

/// Shapes, bytes of the file layer by layer, and what the scratch memory is used for.
pub fn facts(edge: &EdgeEncoder) -> Result<Value> {
    let encoder = edge.encoder()?;
    let (g, header) = (encoder.geometry(), encoder.header());
    let mut layers: Vec<(String, u64)> = Vec::new();
    for placed in sections(header) {
        let layer = match BLOCK_SECTIONS.contains(&placed.section) {
            true => format!("blocks.{}", placed.block),
            false => "outside the blocks".into(),
        };
        match layers.iter_mut().find(|(name, _)| *name == layer) {
            Some((_, bytes)) => *bytes += placed.len,
            None => layers.push((layer, placed.len)),
        }
    }
    let scratch = |name: &str| encoder.scratch_usage(name, Outputs::ALL);
    let usage = scratch("scalar").ok_or_else(unknown)?;
    let by_back_end = BackEnd::ALL_NAMES
        .iter()
        .filter_map(|name| Some((name.to_string(), json!(scratch(name)?.total()))));
    let ScratchUsage { tile, .. } = usage;
    Ok(json!({
        "kind": "encoder", "name": encoder.name(),
        "precision": match header.precision {
            Precision::Int8 => "int8".to_string(),
            Precision::Int4 { group } => format!("int4, groups of {group}"),
        },
        "image_size": g.image_size, "patch_size": g.patch_size, "channels": g.channels, "dim": g.dim, "depth": g.depth,
        "heads": g.heads, "hidden": g.hidden, "classes": header.classes(), "fc_norm": header.fc_norm,
        "embedding": match encoder.pool() {
            Pool::Class => "class",
            Pool::Mean => "mean",
        },
        "mean": &header.normalization.mean[..g.channels], "std": &header.normalization.std[..g.channels],
        "bytes": edge.file_bytes(), "layer_bytes": layers.into_iter().map(|(name, n)| (name, json!(n))).collect::<Map<_, _>>(),
        "scratch_bytes": edge.scratch_bytes(),
        "scratch_plan": {
            "tokens": usage.tokens, "keys_and_values_of_a_block": usage.keys_and_values, "rows_of_a_tile": usage.tile_rows,
            "tile_of_embedding": tile.embedding, "tile_of_keys_and_values": tile.keys_and_values,
            "tile_of_attention": tile.attention, "tile_of_mlp": tile.mlp, "tile_of_outputs": tile.outputs,
        },
        "scratch_bytes_by_back_end": by_back_end.collect::<Map<_, _>>(),
    }))
}

/// Sizes as constants, to reserve memory with: `language` is `rust` or `c`.
pub fn constants(edge: &EdgeEncoder, language: &str) -> Result<String> {
    let encoder = edge.encoder()?;
    let g = encoder.geometry();
    let mut text = String::new();
    let comment = "Sizes of an encoder, written by `tec inspect --constants`.";
    let mut put = |name: &str, value: usize, what: &str| {
        // Writing to a String cannot fail.
        let _ = match language {
            "rust" => writeln!(text, "/// {what}\npub const {name}: usize = {value};"),
            _ => writeln!(text, "/* {what} */\n#define TEC_{name} {value}u"),
        };
    };
    put("FILE_LEN", edge.file_bytes(), "Bytes of the encoder's file.");
    put("IMAGE_LEN", g.image_len(), "Values of an image.");
    for (name, kind, _) in OUTPUTS {
        let len = encoder.output_len(kind);
        if len > 0 {
            put(&format!("{name}_LEN"), len, "Values of this output.");
        }
    }
    for back_end in BackEnd::ALL_NAMES {
        let suffix = back_end.to_uppercase().replace('-', "_");
        for (name, kind, outputs) in OUTPUTS {
            if encoder.output_len(kind) == 0 {
                continue;
            }
            let usage = encoder.scratch_usage(back_end, outputs).ok_or_else(unknown)?;
            let what = format!("Least scratch memory for this output by the back end {back_end}, in bytes.");
            put(&format!("{name}_SCRATCH_LEN_{suffix}"), usage.total(), &what);
        }
    }
    Ok(match language {
        "rust" => format!("//! {comment}\n\n{text}"),
        _ => format!("/* {comment} */\n#ifndef TEC_ENCODER_SIZES_H\n#define TEC_ENCODER_SIZES_H\n\n{text}\n#endif\n"),
    })
}

fn unknown() -> Error {
    Error::Data("this program does not know one of its own back ends".into())
}
