//! The golden vectors of masking, relation targets and losses, position tables and adapters, on `tec-core` alone.
//!
//! Integers must be equal; the error of a tensor must not exceed 1e-5, of a gradient 1e-4.

use std::path::Path;

use tec_core::adapter::{self, EncoderAdapter, Group, Mlp};
use tec_core::lanes::Accumulator;
use tec_core::position::{Resample, resize_bicubic, sincos_2d};
use tec_core::{loss, mask, relation};
use tec_tests::goldens::{Goldens, load, load_file, max_error};

const VALUES: f64 = 1e-5;
const GRADIENTS: f64 = 1e-4;

#[track_caller]
fn assert_near(name: &str, actual: &[f32], golden: &[f32], tolerance: f64) {
    let error = max_error(actual, golden);
    println!("{name}: error {error:.1e}");
    assert!(error <= tolerance, "{name}: error {error:e} above {tolerance:e}");
}

/// A metadata number that counts something.
fn count(value: &serde_json::Value) -> usize {
    value.as_u64().expect("a count in the metadata") as usize
}

#[test]
fn masking() {
    let goldens = load("masking");
    let cases = goldens.metadata("cases").as_array().expect("a list of cases").clone();
    assert_eq!(cases.len(), 6);
    for (number, case) in cases.iter().enumerate() {
        let patches = count(&case["patches"]);
        let keep = mask::kept(patches, case["mask_ratio"].as_f64().expect("a ratio")).unwrap();
        assert_eq!(keep, count(&case["keep"]), "case {number}");

        let (mut kept, mut all_restore, mut all_removed) = (vec![], vec![], vec![]);
        for noise in goldens.f32(&format!("{number}.noise")).chunks_exact(patches) {
            let (mut order, mut restore, mut removed) = (vec![0; patches], vec![0; patches], vec![9.0; patches]);
            mask::mask(noise, keep, &mut order, &mut restore, &mut removed).unwrap();
            kept.extend_from_slice(&order[..keep]);
            all_restore.extend(restore);
            all_removed.extend(removed);
        }
        assert_eq!(kept, goldens.u32(&format!("{number}.ids_keep")), "case {number}");
        assert_eq!(
            all_restore,
            goldens.u32(&format!("{number}.ids_restore")),
            "case {number}"
        );
        assert_eq!(all_removed, goldens.f32(&format!("{number}.mask")), "case {number}");
    }
}

/// The sizes of the relation file.
struct Relation {
    goldens: Goldens,
    images: usize,
    heads: usize,
    patches: usize,
    width: usize,
    queries: usize,
}

impl Relation {
    fn load() -> Self {
        let goldens = load("relation");
        let &[images, patches, width] = goldens.shape("features") else {
            panic!("features have three axes")
        };
        let heads = goldens.shape("attention_logits")[1];
        let queries = count(goldens.metadata("top_k"));
        Self {
            goldens,
            images,
            heads,
            patches,
            width,
            queries,
        }
    }
}

#[test]
fn relation_targets() {
    let Relation {
        goldens,
        images,
        heads,
        patches,
        width,
        queries,
    } = Relation::load();
    let tokens = patches + 1;
    let (mut indices, mut all_picked, mut all_targets, mut all_features) = (vec![], vec![], vec![], vec![]);
    for logits in goldens.f32("attention_logits").chunks_exact(heads * tokens * tokens) {
        let class_logits: Vec<f32> = logits
            .chunks_exact(tokens * tokens)
            .flat_map(|head| head[1..tokens].iter().copied())
            .collect();
        let mut index = vec![0; queries];
        relation::rank_queries(&class_logits, heads, patches, &mut index, &mut vec![0.0; patches]).unwrap();

        let mut picked = vec![0.0; (1 + queries) * heads * patches];
        relation::target_rows(logits, heads, patches, &index, &mut picked).unwrap();
        let mut target = vec![0.0; picked.len()];
        let tau = goldens.metadata("att_tau").as_f64().expect("a temperature") as f32;
        relation::tempered_target(&picked, patches, tau, &mut target).unwrap();
        indices.extend(index);
        all_picked.extend(picked);
        all_targets.extend(target);
    }
    for features in goldens.f32("features").chunks_exact(patches * width) {
        let mut normalized = vec![0.0; features.len()];
        relation::normalize_features(features, patches, width, &mut normalized).unwrap();
        all_features.extend(normalized);
    }
    assert_eq!(indices.len(), images * queries);
    assert_eq!(indices, goldens.u32("query_index"));
    // Picking copies, so the bits are the same.
    assert_eq!(all_picked, goldens.f32("picked_logits"));
    assert_near(
        "attention_target",
        &all_targets,
        goldens.f32("attention_target"),
        VALUES,
    );
    assert_near(
        "normalized_features",
        &all_features,
        goldens.f32("normalized_features"),
        VALUES,
    );
}

/// From raw features to the loss, as training computes it.
#[test]
fn feature_loss() {
    let Relation {
        goldens,
        images,
        patches,
        width,
        ..
    } = Relation::load();
    let image = patches * width;
    let mut targets = vec![0.0; images * image];
    for (features, target) in goldens
        .f32("features")
        .chunks_exact(image)
        .zip(targets.chunks_exact_mut(image))
    {
        relation::normalize_features(features, patches, width, target).unwrap();
    }
    let predictions = goldens.f32("pred_features");
    let masks = goldens.f32("mask");
    let batch = || {
        let values = predictions.chunks_exact(image).zip(targets.chunks_exact(image));
        values
            .zip(masks.chunks_exact(patches))
            .map(|((pred, target), removed)| (pred, target, removed))
    };

    let (mut errors, mut removed_patches) = (Accumulator::new(), Accumulator::new());
    for (pred, target, removed) in batch() {
        let (sum, count) = loss::feature_loss(pred, target, removed, width).unwrap();
        errors.push(sum);
        removed_patches.push(count);
    }
    let scale = loss::feature_scale(removed_patches.total()).unwrap();
    assert_near(
        "feature_loss",
        &[errors.total() * scale],
        goldens.f32("feature_loss"),
        VALUES,
    );

    let mut grad = vec![9.0; predictions.len()];
    for ((pred, target, removed), grad) in batch().zip(grad.chunks_exact_mut(image)) {
        loss::feature_loss_backward(pred, target, removed, width, scale, grad).unwrap();
    }
    assert_near(
        "grad_pred_features",
        &grad,
        goldens.f32("grad_pred_features"),
        GRADIENTS,
    );
}

/// From picked logits to the loss, as training computes it.
#[test]
fn relation_loss() {
    let Relation {
        goldens,
        images,
        heads,
        patches,
        queries,
        ..
    } = Relation::load();
    let tau = goldens.metadata("att_tau").as_f64().expect("a temperature") as f32;
    let picked = goldens.f32("picked_logits");
    let mut targets = vec![0.0; picked.len()];
    relation::tempered_target(picked, patches, tau, &mut targets).unwrap();

    let predictions = goldens.f32("pred_logits");
    let rows = images * (1 + queries) * heads;
    assert_eq!(predictions.len(), rows * patches);
    let mut total = Accumulator::new();
    let mut grad = vec![9.0; predictions.len()];
    let each = predictions.chunks_exact(patches).zip(targets.chunks_exact(patches));
    for ((pred, target), grad) in each.zip(grad.chunks_exact_mut(patches)) {
        total.push(loss::relation_loss(pred, target).unwrap());
        loss::relation_loss_backward(pred, target, 1.0 / rows as f32, grad).unwrap();
    }
    assert_near(
        "attention_loss",
        &[total.total() / rows as f32],
        goldens.f32("attention_loss"),
        VALUES,
    );
    assert_near("grad_pred_logits", &grad, goldens.f32("grad_pred_logits"), GRADIENTS);
}

#[test]
fn position_tables() {
    let goldens = load("pos_embed");
    assert_eq!(goldens.names().count(), 4);
    for name in goldens.names() {
        let (dim, grid) = name.split_once('x').expect("a name like 192x14");
        let (dim, grid): (usize, usize) = (dim.parse().unwrap(), grid.parse().unwrap());
        let mut table = vec![9.0; (1 + grid * grid) * dim];
        assert_eq!(goldens.shape(name), [1 + grid * grid, dim]);
        sincos_2d(dim, grid, &mut table).unwrap();
        // Both sides round f64 to f32, so near zero the error is relative to the value as well.
        for (a, b) in table.iter().zip(goldens.f32(name)) {
            assert!((a - b).abs() <= 1e-6 * b.abs() + 1e-12, "{name}: {a} {b}");
        }
    }
}

#[test]
fn input_adapter() {
    let goldens = load("adapters");
    let weight = |name: &str| goldens.f32(&format!("input.{name}"));
    let token = goldens.f32("token");
    let mut scratch = vec![f32::NAN; weight("fc1.bias").len()];
    let mut merged = vec![f32::NAN; token.len()];
    adapter::input_adapter(
        token,
        weight("fc1.weight"),
        weight("fc1.bias"),
        weight("fc2.weight"),
        weight("fc2.bias"),
        &mut scratch,
        &mut merged,
    )
    .unwrap();
    assert_near("merged_token", &merged, goldens.f32("merged_token"), VALUES);
}

#[test]
fn encoder_adapter() {
    let goldens = load("adapters");
    let weight = |name: &str| goldens.f32(&format!("encoder.{name}"));
    let width = weight("adap_after.weight").len();
    let joined = weight("adap_before.weight").len();
    assert_eq!(adapter::groups(joined / width), count(goldens.metadata("adapters")));
    let groups: Vec<Group<'_>> = (0..adapter::groups(joined / width))
        .map(|number| Group {
            fuse_weight: weight(&format!("fuse_fcs.{number}.weight")),
            fuse_bias: weight(&format!("fuse_fcs.{number}.bias")),
            mlp: Mlp {
                fc1_weight: weight(&format!("adap_mlps.{number}.fc1.weight")),
                fc1_bias: weight(&format!("adap_mlps.{number}.fc1.bias")),
                fc2_weight: weight(&format!("adap_mlps.{number}.fc2.weight")),
                fc2_bias: weight(&format!("adap_mlps.{number}.fc2.bias")),
            },
        })
        .collect();
    let weights = EncoderAdapter {
        before_weight: weight("adap_before.weight"),
        before_bias: weight("adap_before.bias"),
        groups: &groups,
        after_weight: weight("adap_after.weight"),
        after_bias: weight("adap_after.bias"),
    };
    let levels = goldens.f32("levels");
    let mut scratch = vec![f32::NAN; weights.scratch_len()];
    let mut adapted = vec![f32::NAN; levels.len() / joined * width];
    for (levels, out) in levels.chunks_exact(joined).zip(adapted.chunks_exact_mut(width)) {
        adapter::encoder_adapter(&weights, levels, &mut scratch, out).unwrap();
    }
    assert_near("adapted", &adapted, goldens.f32("adapted"), VALUES);
}

/// A real model's position table, 37×37, beside the 16×16 one that its publisher's exporter (PyTorch) made of it.
#[test]
fn resized_table_of_a_real_model() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/dinov2_vits14_imgfocus");
    let native = directory.join("pos_embed_518px_37x37.safetensors");
    let resized = directory.join("vits14_224_timm_names.safetensors");
    if !native.is_file() || !resized.is_file() {
        println!("not run: {} is not there", directory.display());
        return;
    }
    let (native, resized) = (load_file(&native), load_file(&resized));
    let (table, expected) = (native.f32("embeddings.position_embeddings"), resized.f32("pos_embed"));
    let dim = 384;
    let mut out = vec![f32::NAN; 16 * 16 * dim];
    resize_bicubic(&table[dim..], 37, 16, dim, Resample::Plain, &mut out).unwrap();
    assert_near("pos_embed", &out, &expected[dim..], VALUES);
}
