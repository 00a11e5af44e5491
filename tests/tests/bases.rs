//! Frozen bases of every family: small checkpoints in the families' own names and files, written by PyTorch, timm, transformers and
//! OpenCLIP (`goldens/bases/make_bases.py`), and what those libraries compute from them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tec_conformance::goldens::{self, Goldens};
use tec_conformance::max_error;
use tec_train::model::{Activation, Checkpoint, EncoderMetadata, LoadOptions, Pool, Vit, in_folder, inspect};

const CPU: Device = Device::Cpu;
/// Float32 against float64 over two blocks.
const TOLERANCE: f64 = 1e-5;

fn folder() -> PathBuf {
    goldens::directory().join("bases")
}

fn expected() -> Goldens {
    goldens::read(&folder().join("expected.safetensors")).unwrap()
}

/// Every case and what is known of it.
fn cases(expected: &Goldens) -> Vec<(String, Value)> {
    let cases = expected.metadata("cases").unwrap().as_object().unwrap();
    assert!(cases.len() > 40, "{}", cases.len());
    cases
        .iter()
        .map(|(name, facts)| (name.clone(), facts.clone()))
        .collect()
}

/// What a user would name: the folder if it is one of Hugging Face, else the file in it.
fn path(case: &str) -> PathBuf {
    let folder = folder().join(case);
    if in_folder(&folder).is_some() {
        return folder;
    }
    let mut files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let file = files.next().unwrap();
    assert!(files.next().is_none(), "{case} has several files");
    file
}

/// Heads are given where nothing in the folder says them.
fn options(path: &Path) -> LoadOptions {
    let said = path.join("preprocessor_config.json").exists() || path.join("open_clip_config.json").exists();
    LoadOptions {
        heads: (!said).then_some(2),
        ..LoadOptions::default()
    }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn images(expected: &Goldens) -> Tensor {
    Tensor::from_vec(expected.f32("images").unwrap().to_vec(), (2, 3, 8, 8), &CPU).unwrap()
}

/// Compares tokens and targets with the golden `values`; returns the largest error.
fn compare(vit: &Vit, expected: &Goldens, values: &str) -> f64 {
    let images = images(expected);
    let golden = |key: &str| expected.f32(&format!("{values}.{key}")).unwrap();
    let targets = vit.targets(&images, 2, 3).unwrap();
    let index = flat_u32(&targets.index);
    assert_eq!(
        index,
        expected.u32(&format!("{values}.index")).unwrap(),
        "{values}: query patches"
    );
    [
        (vit.tokens(&images).unwrap(), "tokens"),
        (targets.features, "features"),
        (targets.logits, "logits"),
    ]
    .into_iter()
    .map(|(tensor, key)| max_error(&flat(&tensor), golden(key)))
    .fold(0.0, f64::max)
}

fn flat_u32(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_family_computes_what_its_library_does() {
    let expected = expected();
    let mut failures = Vec::new();
    for (case, facts) in cases(&expected) {
        let path = path(&case);
        let vit = match Vit::load(&path, &options(&path), &CPU) {
            Ok(vit) => vit,
            Err(error) => {
                failures.push(format!("{case}: {error}"));
                continue;
            }
        };
        let error = compare(&vit, &expected, facts["values"].as_str().unwrap());
        println!("{case:<28} {:<14} {error:.1e}", vit.origin().family);
        if error > TOLERANCE {
            failures.push(format!("{case}: error {error:e}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn facts_that_weights_do_not_show_are_the_familys_or_the_files() {
    let expected = expected();
    for (case, facts) in cases(&expected) {
        let path = path(&case);
        let found = inspect(&path, &options(&path)).unwrap();
        assert_eq!(found.refusal, None, "{case}");
        let encoder = found.encoder.unwrap();
        let (variant, origin) = (&encoder.variant, &encoder.origin);
        let text = |key: &str, default: &str| facts[key].as_str().unwrap_or(default).to_string();
        assert_eq!(origin.family, text("family", ""), "{case}");
        assert_eq!(variant.activation.name(), text("activation", "gelu"), "{case}");
        assert_eq!(
            variant.layer_scale,
            facts["layer_scale"].as_bool().unwrap_or(false),
            "{case}"
        );
        assert_eq!(
            variant.registers as u64,
            facts["registers"].as_u64().unwrap_or(0),
            "{case}"
        );
        assert_eq!(variant.hidden as u64, facts["hidden"].as_u64().unwrap_or(16), "{case}");
        assert_eq!(
            variant.pooled_norm,
            facts["final_norm"].as_bool() == Some(false),
            "{case}"
        );
        let eps = facts["eps"].as_f64().unwrap_or(1e-6) as f32;
        assert_eq!(variant.eps, eps, "{case}");
        let report = &encoder.report;
        assert!(report.missing.is_empty() && report.unexpected.is_empty() && report.mis_shaped.is_empty());
        assert_eq!(
            report.matched.len() + report.ignored.len(),
            found.tensors,
            "{case}: {report}"
        );
        assert!(encoder.parameters > 1_000, "{case}");
        // What is in no file is said to be assumed.
        let mean = &origin.normalization.as_ref().unwrap().mean;
        let written = path.join("preprocessor_config.json").exists() || path.with_file_name("config.json").exists();
        let key = if written || path.join("config.json").exists() {
            "mean"
        } else {
            "assumed_mean"
        };
        let openclip = origin.family == "openclip";
        if let Some(said) = facts[key].as_array() {
            let said: Vec<f32> = said.iter().map(|value| value.as_f64().unwrap() as f32).collect();
            assert_eq!(*mean, said, "{case}");
        } else if !openclip && !case.ends_with("_5") {
            assert_eq!(*mean, [0.485, 0.456, 0.406], "{case}");
        }
    }
}

#[test]
fn of_several_models_the_teacher_is_meant_and_another_can_be_named() {
    let expected = expected();
    let path = path("ibot_full");
    let teacher = Vit::load(&path, &options(&path), &CPU).unwrap();
    assert_eq!(teacher.origin().prefix, "teacher.backbone.");
    for prefix in ["student.module.backbone", "student.module.backbone."] {
        let named = LoadOptions {
            prefix: Some(prefix.into()),
            ..options(&path)
        };
        let student = Vit::load(&path, &named, &CPU).unwrap();
        assert!(compare(&student, &expected, "ibot_student") <= TOLERANCE);
    }
    let ignored = &teacher.report().ignored;
    for name in [
        "student.module.backbone.cls_token",
        "teacher.head.last_layer.weight_v",
        "teacher.backbone.masked_embed",
        "ibot_loss.center",
        "optimizer.state.0.exp_avg",
    ] {
        assert!(ignored.iter().any(|other| other == name), "{name}: {ignored:?}");
    }
    let moco = self::path("moco_v3");
    let moco = Vit::load(&moco, &options(&moco), &CPU).unwrap();
    assert_eq!(moco.origin().prefix, "state_dict.module.base_encoder.");
}

/// A file of the tensors of `case`, changed.
fn changed(case: &str, change: impl Fn(&mut HashMap<String, Tensor>)) -> (tempfile::TempDir, PathBuf) {
    let from = self::path(case);
    let from = in_folder(&from).unwrap_or(from);
    let mut tensors = Checkpoint::read(&from, &CPU).unwrap().tensors;
    change(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.safetensors");
    let metadata = HashMap::new();
    Checkpoint { tensors, metadata }.write(&path).unwrap();
    (folder, path)
}

fn add(tensors: &mut HashMap<String, Tensor>, name: &str, shape: &[usize]) {
    tensors.insert(name.into(), Tensor::ones(shape, DType::F32, &CPU).unwrap());
}

fn heads() -> LoadOptions {
    LoadOptions {
        heads: Some(2),
        ..LoadOptions::default()
    }
}

#[test]
fn misfits_are_listed_in_the_familys_own_names() {
    let (_folder, path) = changed("hf_dinov2", |tensors| {
        tensors.remove("encoder.layer.1.attention.attention.key.bias");
        tensors.remove("encoder.layer.0.layer_scale2.lambda1");
        add(tensors, "encoder.layer.0.mlp.fc2.bias", &[9]);
        add(tensors, "encoder.layer.0.attention.bias_table", &[9]);
    });
    let message = Vit::load(&path, &heads(), &CPU).unwrap_err().to_string();
    for words in [
        "changed.safetensors",
        "encoder.layer.1.attention.attention.key.bias",
        "encoder.layer.0.layer_scale2.lambda1",
        "encoder.layer.0.mlp.fc2.bias (expected [8], found [9])",
        "1 unexpected: encoder.layer.0.attention.bias_table",
    ] {
        assert!(message.contains(words), "{words}: {message}");
    }
    let found = inspect(&path, &heads()).unwrap();
    assert_eq!(found.encoder.unwrap().report.missing.len(), 2);
    assert!(message.contains(&found.refusal.unwrap()));
}

#[test]
fn what_cannot_be_a_base_is_refused_with_its_reason() {
    let refusal = |case: &str, change: fn(&mut HashMap<String, Tensor>)| {
        let (_folder, path) = changed(case, change);
        let message = Vit::load(&path, &heads(), &CPU).unwrap_err().to_string();
        let found = inspect(&path, &heads()).unwrap();
        assert!(
            found.encoder.is_none() && message.contains(&found.refusal.unwrap()),
            "{message}"
        );
        message
    };
    for (message, words) in [
        (
            refusal("timm_plain", |t| {
                t.remove("cls_token");
                add(t, "attn_pool.latent", &[1, 1, 8]);
            }),
            "no class token (SigLIP",
        ),
        (refusal("timm_plain", |t| drop(t.remove("cls_token"))), "no class token"),
        (
            refusal("hf_clip_vision", |t| drop(t.remove("embeddings.class_embedding"))),
            "no class token",
        ),
        (
            refusal("timm_dinov2_reg4", |t| drop(t.remove("pos_embed"))),
            "no position table (its positions may be rotary, as in DINOv3)",
        ),
        (refusal("timm_plain", |t| add(t, "rope.freqs", &[4])), "rotary"),
        (
            refusal("timm_plain", |t| add(t, "dist_token", &[1, 1, 8])),
            "second class token",
        ),
        (
            refusal("hf_vit", |t| add(t, "embeddings.distillation_token", &[1, 1, 8])),
            "second class token",
        ),
        (
            refusal("timm_plain", |t| {
                add(t, "blocks.0.attn.relative_position_bias_table", &[9, 2])
            }),
            "relative positions",
        ),
        (
            refusal("timm_plain", |t| add(t, "blocks.0.attn.q_norm.weight", &[4])),
            "normalizes queries and keys",
        ),
        (
            refusal("timm_plain", |t| {
                t.remove("patch_embed.proj.weight");
                add(t, "patch_embed.proj.0.weight", &[8, 3, 3, 3]);
            }),
            "several convolutions",
        ),
        (
            refusal("timm_plain", |t| add(t, "patch_embed.proj.weight", &[8, 3, 2, 2, 2])),
            "time axis",
        ),
        (
            refusal("timm_plain", |t| {
                t.clear();
                add(t, "layer1.0.conv1.weight", &[8, 8, 3, 3]);
                add(t, "conv1.weight", &[8, 3, 7, 7]);
            }),
            "convolutional or hierarchical network",
        ),
        (
            refusal("timm_plain", |t| {
                t.clear();
                add(t, "lm_head.weight", &[8, 8]);
            }),
            "none of a family that is known (it holds 1 tensors: lm_head.weight",
        ),
        (
            refusal("timm_plain", |t| add(t, "blocks.0.mlp.fc1.weight", &[20, 8])),
            "[20, 8]",
        ),
        (
            refusal("timm_plain", |t| add(t, "pos_embed", &[1, 19, 8])),
            "not [1, grid · grid, 8] of a square grid",
        ),
    ] {
        assert!(message.contains(words), "{words}: {message}");
    }
    for (file, words) in [
        ("legacy.pth", "torch.save(state,"),
        ("protocol4.pth", "protocol 4"),
        ("torchscript.pt", "torch.jit.load("),
        ("module.pth", "state.state_dict()"),
    ] {
        let message = Vit::load(&folder().join("refused").join(file), &heads(), &CPU)
            .unwrap_err()
            .to_string();
        assert!(message.contains(words) && message.contains(file), "{message}");
    }
}

#[test]
fn two_models_of_one_rank_must_be_told_apart() {
    let (_folder, path) = changed("timm_plain", |tensors| {
        for (name, tensor) in std::mem::take(tensors) {
            tensors.insert(format!("left.{name}"), tensor.clone());
            tensors.insert(format!("right.{name}"), tensor);
        }
    });
    let message = Vit::load(&path, &heads(), &CPU).unwrap_err().to_string();
    assert!(
        ["`left.`", "`right.`", "`base.prefix`"]
            .iter()
            .all(|words| message.contains(words)),
        "{message}"
    );
}

#[test]
fn the_options_decide_where_a_file_does_not_say() {
    let expected = expected();
    let quick = path("openclip_quickgelu").join("open_clip_model.safetensors");
    let folder = tempfile::tempdir().unwrap();
    // Away from its configuration the file alone says neither heads nor activation.
    let alone = folder.path().join("weights.safetensors");
    std::fs::copy(&quick, &alone).unwrap();
    let vit = Vit::load(&alone, &heads(), &CPU).unwrap();
    assert_eq!(vit.variant().activation, Activation::Gelu);
    let note = vit.origin().notes.join(" ");
    assert!(note.contains("quick_gelu"), "{note}");
    assert!(
        compare_tokens(&vit, &expected, "openclip_quickgelu") > 1e-3,
        "the activation matters"
    );
    let told = LoadOptions {
        activation: Some(Activation::QuickGelu),
        ..heads()
    };
    let vit = Vit::load(&alone, &told, &CPU).unwrap();
    assert!(compare(&vit, &expected, "openclip_quickgelu") <= TOLERANCE);
    let impossible = LoadOptions {
        activation: Some(Activation::SwiGlu),
        ..heads()
    };
    let message = Vit::load(&alone, &impossible, &CPU).unwrap_err().to_string();
    assert!(message.contains("no gates"), "{message}");
    let unknown = Vit::load(&alone, &LoadOptions::default(), &CPU)
        .unwrap_err()
        .to_string();
    assert!(unknown.contains("`base.heads`"), "{unknown}");
}

fn compare_tokens(vit: &Vit, expected: &Goldens, values: &str) -> f64 {
    let tokens = vit.tokens(&images(expected)).unwrap();
    max_error(&flat(&tokens), expected.f32(&format!("{values}.tokens")).unwrap())
}

#[test]
fn a_configuration_of_another_model_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    std::fs::copy(path("timm_plain"), &file).unwrap();
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"hidden_size": 768, "num_attention_heads": 4}"#,
    )
    .unwrap();
    let vit = Vit::load(&file, &heads(), &CPU).unwrap();
    assert_eq!(vit.config().heads, 2);
    assert!(vit.origin().notes.iter().any(|note| note.contains("another model")));
}

#[test]
fn a_model_in_pieces_is_one_model() {
    let expected = expected();
    let tensors = Checkpoint::read(&path("timm_plain"), &CPU).unwrap().tensors;
    let folder = tempfile::tempdir().unwrap();
    let mut map = serde_json::Map::new();
    for (number, half) in [(1, true), (2, false)] {
        let name = format!("model-0000{number}-of-00002.safetensors");
        let part = |tensor: &str| tensor < "blocks.1";
        let tensors: HashMap<String, Tensor> = tensors
            .iter()
            .filter(|(tensor, _)| part(tensor) == half)
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        map.extend(tensors.keys().map(|tensor| (tensor.clone(), Value::from(name.clone()))));
        let metadata = HashMap::new();
        Checkpoint { tensors, metadata }
            .write(&folder.path().join(name))
            .unwrap();
    }
    let index = serde_json::json!({"weight_map": map});
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let vit = Vit::load(folder.path(), &heads(), &CPU).unwrap();
    assert!(compare(&vit, &expected, "timm_plain") <= TOLERANCE);
    let elsewhere = serde_json::json!({"weight_map": {"cls_token": "../other.safetensors"}});
    std::fs::write(
        folder.path().join("model.safetensors.index.json"),
        elsewhere.to_string(),
    )
    .unwrap();
    let message = Vit::load(folder.path(), &heads(), &CPU).unwrap_err().to_string();
    assert!(message.contains("../other.safetensors"), "{message}");
}

#[test]
fn pooled_norms_and_other_grids() {
    let expected = expected();
    let path = path("mae_finetuned");
    let vit = Vit::load(&path, &heads(), &CPU).unwrap();
    let tokens = vit.tokens(&images(&expected)).unwrap();
    let embedded = vit.pool(&tokens, Pool::Mean).unwrap().to_vec2::<f32>().unwrap();
    let norm = |name: &str| flat(&vit.weights().iter().find(|(other, _)| other == name).unwrap().1);
    let (weight, bias) = (norm("fc_norm.weight"), norm("fc_norm.bias"));
    for (image, embedded) in tokens.to_vec3::<f32>().unwrap().iter().zip(embedded) {
        let patches = &image[1..];
        let mean: Vec<f64> = (0..8)
            .map(|d| patches.iter().map(|token| f64::from(token[d])).sum::<f64>() / patches.len() as f64)
            .collect();
        let center = mean.iter().sum::<f64>() / 8.0;
        let deviation = (mean.iter().map(|m| (m - center).powi(2)).sum::<f64>() / 8.0 + 1e-6).sqrt();
        for d in 0..8 {
            let value = (mean[d] - center) / deviation * f64::from(weight[d]) + f64::from(bias[d]);
            assert!((value - f64::from(embedded[d])).abs() < 1e-5, "{value} {}", embedded[d]);
        }
    }
    for case in ["hf_dinov2_reg4", "timm_deit3", "hf_clip"] {
        let path = self::path(case);
        let vit = Vit::load(&path, &options(&path), &CPU).unwrap().resize(3).unwrap();
        let images = Tensor::ones((1, 3, 6, 6), DType::F32, &CPU).unwrap();
        let targets = vit.targets(&images, 2, 3).unwrap();
        assert_eq!(
            (targets.features.dims(), targets.logits.dims()),
            (&[1, 9, 8][..], &[1, 4, 2, 9][..])
        );
        assert_eq!(vit.tokens(&images).unwrap().dims(), [1, 10, 8]);
    }
}

#[test]
fn only_plain_encoders_become_encoder_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("encoder.safetensors");
    for (case, words) in [
        ("hf_dinov2_reg4", "4 register tokens"),
        ("openclip", "a norm before the first block"),
        ("hf_dinov2_giant", "the activation swiglu"),
        ("hf_vit", "eps 1e-12"),
        ("mae_finetuned", "after pooling"),
    ] {
        let path = path(case);
        let vit = Vit::load(&path, &options(&path), &CPU).unwrap();
        let message = vit.save(&file, &metadata(&vit)).unwrap_err().to_string();
        assert!(message.contains(words), "{words}: {message}");
    }
    // Folded LayerScale and positions leave a plain encoder.
    let expected = expected();
    for case in ["timm_deit3", "dinov2_original"] {
        let path = path(case);
        let vit = Vit::load(&path, &options(&path), &CPU).unwrap();
        vit.save(&file, &metadata(&vit)).unwrap();
        let saved = Vit::load(&file, &LoadOptions::default(), &CPU).unwrap();
        assert!(compare(&saved, &expected, case) <= TOLERANCE);
    }
}

fn metadata(vit: &Vit) -> EncoderMetadata {
    let colors = vit.normalization().unwrap();
    EncoderMetadata {
        config: vit.config().clone(),
        mean: colors.mean.clone(),
        std: colors.std.clone(),
        pool: Pool::Mean,
    }
}
