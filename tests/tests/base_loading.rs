//! What can be a base: this project's own files and plain models from elsewhere, and nothing else without a clear message.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tec_conformance::max_error;
use tec_train::model::{
    BaseConfig, Checkpoint, DecoderConfig, EncoderMetadata, LoadOptions, Mae, MaeConfig, Masks, Observer, Pool, Site,
    Tec, TecConfig, Vit, VitConfig, inspect,
};

const CPU: Device = Device::Cpu;

fn encoder() -> VitConfig {
    VitConfig {
        image_size: 16,
        patch_size: 4,
        channels: 3,
        dim: 24,
        depth: 2,
        heads: 3,
        mlp_ratio: 2,
    }
}

fn decoder() -> DecoderConfig {
    DecoderConfig {
        dim: 16,
        depth: 1,
        heads: 2,
    }
}

fn mae() -> Mae {
    Mae::new(
        MaeConfig {
            encoder: encoder(),
            decoder: decoder(),
            norm_pix: true,
        },
        1,
        &CPU,
    )
    .unwrap()
}

fn tec() -> Tec {
    let base = BaseConfig { dim: 32, heads: 4 };
    let config = TecConfig {
        encoder: encoder(),
        base,
        decoder: decoder(),
        adapters: None,
        temperature: 1.0,
    };
    Tec::new(config, 2, &CPU).unwrap()
}

fn metadata(config: VitConfig) -> EncoderMetadata {
    EncoderMetadata {
        config,
        mean: vec![0.5, 0.4, 0.3],
        std: vec![0.25; 3],
        pool: Pool::Mean,
    }
}

fn images(size: usize) -> Tensor {
    let values: Vec<f32> = (0..2 * 3 * size * size).map(|n| (n as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, (2, 3, size, size), &CPU).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn tokens(vit: &Vit) -> Vec<f32> {
    flat(&vit.tokens(&images(vit.config().image_size)).unwrap())
}

fn heads(heads: usize) -> LoadOptions {
    LoadOptions {
        heads: Some(heads),
        ..LoadOptions::default()
    }
}

/// A file of the given tensors in a folder that lives as long as the test needs it.
fn file(tensors: HashMap<String, Tensor>, metadata: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.safetensors");
    let metadata = metadata
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    Checkpoint { tensors, metadata }.write(&path).unwrap();
    (folder, path)
}

fn encoder_tensors() -> HashMap<String, Tensor> {
    mae().encoder().unwrap().weights().iter().cloned().collect()
}

/// The message of loading `tensors` with three heads, which must fail and name the file.
fn refusal(tensors: HashMap<String, Tensor>) -> String {
    let (_folder, path) = file(tensors, &[]);
    let message = Vit::load(&path, &heads(3), &CPU).unwrap_err().to_string();
    assert!(message.contains("base.safetensors"), "{message}");
    message
}

#[test]
fn an_exported_encoder_says_everything_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("encoder.safetensors");
    let exported = tec().encoder().unwrap();
    exported.save(&path, &metadata(encoder())).unwrap();
    let loaded = Vit::load(&path, &LoadOptions::default(), &CPU).unwrap();
    assert_eq!(*loaded.config(), encoder());
    assert_eq!(loaded.metadata(), Some(&metadata(encoder())));
    assert!(loaded.report().ignored.is_empty());
    assert_eq!(tokens(&loaded), tokens(&exported));
    let names: Vec<&str> = loaded.weights().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), 4 + 2 * 12 + 2);
    assert_eq!(
        names[..4],
        [
            "cls_token",
            "pos_embed",
            "patch_embed.proj.weight",
            "patch_embed.proj.bias"
        ]
    );
    let other = VitConfig { heads: 2, ..encoder() };
    assert!(
        exported.save(&path, &metadata(other)).is_err(),
        "metadata about another encoder"
    );
}

#[test]
fn training_does_not_change_what_was_exported() {
    let tec = tec();
    let exported = tec.encoder().unwrap();
    let before = tokens(&exported);
    for (_, var) in tec.params().trainable() {
        var.set(&(var.as_tensor() * 1.5).unwrap()).unwrap();
    }
    assert_eq!(tokens(&exported), before);
    assert_ne!(tokens(&tec.encoder().unwrap()), before);
}

#[test]
fn training_checkpoints_are_bases() {
    let folder = tempfile::tempdir().unwrap();
    let (mae, tec) = (mae(), tec());
    for (params, exported, adapted) in [
        (mae.params(), mae.encoder().unwrap(), false),
        (tec.params(), tec.encoder().unwrap(), true),
    ] {
        let path = folder.path().join("checkpoint.safetensors");
        params.save(&path, HashMap::new()).unwrap();
        let loaded = Vit::load(&path, &heads(3), &CPU).unwrap();
        assert_eq!(tokens(&loaded), tokens(&exported));
        let ignored = &loaded.report().ignored;
        assert!(ignored.iter().any(|name| name == "decoder_pos_embed"), "{ignored:?}");
        assert_eq!(ignored.iter().any(|name| name.starts_with("encoder_adaptor.")), adapted);
        assert!(!ignored.iter().any(|name| name.starts_with("blocks.")), "{ignored:?}");
    }
}

#[test]
fn the_folded_class_token_is_what_the_input_adapter_makes() {
    let tec = tec();
    let get = |name: &str| tec.params().get(name).unwrap().as_detached_tensor();
    let linear = |x: &Tensor, layer: &str| {
        let weight = get(&format!("cls_token_mlp.{layer}.weight"));
        x.matmul(&weight.t().unwrap())
            .unwrap()
            .broadcast_add(&get(&format!("cls_token_mlp.{layer}.bias")))
            .unwrap()
    };
    let token = get("cls_token").reshape((1, 24)).unwrap();
    let expected = linear(&linear(&token, "fc1").gelu_erf().unwrap(), "fc2");
    let exported = tec.encoder().unwrap();
    let (name, folded) = &exported.weights()[0];
    assert_eq!(name, "cls_token");
    assert!(max_error(&flat(folded), &flat(&expected)) < 1e-5);
    assert!(
        max_error(&flat(folded), &flat(&token)) > 0.1,
        "the token itself would pass as folded"
    );
}

#[test]
fn a_run_with_prefix_and_optimizer_state_is_a_base() {
    let mut tensors = HashMap::new();
    for (name, tensor) in mae().params().state() {
        tensors.insert(format!("optimizer.first.{name}"), tensor.zeros_like().unwrap());
        tensors.insert(format!("model.{name}"), tensor);
    }
    let json = serde_json::to_string(&metadata(encoder())).unwrap();
    let (_folder, path) = file(tensors, &[("tec", &json)]);
    let loaded = Vit::load(&path, &LoadOptions::default(), &CPU).unwrap();
    assert_eq!(loaded.config().heads, 3, "from the metadata");
    assert_eq!(tokens(&loaded), tokens(&mae().encoder().unwrap()));
    let wrong = LoadOptions {
        prefix: Some("teacher.".into()),
        ..heads(3)
    };
    let message = Vit::load(&path, &wrong, &CPU).unwrap_err().to_string();
    assert!(
        message.contains("model.blocks.0") || message.contains("class token"),
        "{message}"
    );
}

#[test]
fn half_precision_is_read() {
    let half = |(name, tensor): (String, Tensor)| (name, tensor.to_dtype(DType::F16).unwrap());
    let (_folder, path) = file(encoder_tensors().into_iter().map(half).collect(), &[]);
    let loaded = Vit::load(&path, &heads(3), &CPU).unwrap();
    assert!(max_error(&tokens(&loaded), &tokens(&mae().encoder().unwrap())) < 0.01);
}

#[test]
fn misfits_are_listed_by_name() {
    let change = |change: fn(&mut HashMap<String, Tensor>)| {
        let mut tensors = encoder_tensors();
        change(&mut tensors);
        refusal(tensors)
    };
    for (message, words) in [
        (change(|t| drop(t.remove("norm.bias"))), vec!["1 missing", "norm.bias"]),
        (
            change(|t| drop(t.remove("blocks.1.attn.qkv.bias"))),
            vec!["1 missing", "blocks.1.attn.qkv.bias"],
        ),
        (
            change(|t| add(t, "blocks.0.ls1.gamma", &[24])),
            vec!["3 missing", "blocks.0.ls2.gamma", "blocks.1.ls1.gamma"],
        ),
        (
            change(|t| add(t, "reg_token", &[1, 4, 23])),
            vec!["reg_token", "[1, registers, 24]"],
        ),
        (
            change(|t| add(t, "blocks.0.attn.proj.weight", &[24, 12])),
            vec!["blocks.0.attn.proj.weight", "expected [24, 24]", "found [24, 12]"],
        ),
        (
            change(|t| add(t, "pos_embed", &[1, 15, 24])),
            vec!["pos_embed", "[1, 15, 24]", "class token"],
        ),
        (
            change(|t| add(t, "patch_embed.proj.weight", &[24, 3, 4, 2])),
            vec!["4×2"],
        ),
        (
            change(|t| add(t, "blocks.0.mlp.fc1.weight", &[50, 24])),
            vec!["blocks.0.mlp.fc1.weight", "[50, 24]"],
        ),
        (
            change(|t| add(t, "cls_token_mlp.fc1.weight", &[48, 24])),
            vec!["cls_token_mlp.fc1.bias"],
        ),
        (
            change(|t| drop(t.remove("patch_embed.proj.weight"))),
            vec!["no vision transformer", "29 tensors"],
        ),
        (
            change(|t| t.retain(|name, _| name == "none")),
            vec!["no vision transformer", "no tensors"],
        ),
    ] {
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}

fn add(tensors: &mut HashMap<String, Tensor>, name: &str, shape: &[usize]) {
    tensors.insert(name.into(), Tensor::ones(shape, DType::F32, &CPU).unwrap());
}

#[test]
fn heads_must_be_known_and_possible() {
    let (_folder, path) = file(encoder_tensors(), &[]);
    let message = Vit::load(&path, &LoadOptions::default(), &CPU).unwrap_err().to_string();
    assert!(message.contains("`base.heads`") && message.contains("24"), "{message}");
    let message = Vit::load(&path, &heads(5), &CPU).unwrap_err().to_string();
    assert!(message.contains("`heads` 5"), "{message}");
}

#[test]
fn metadata_that_lies_is_refused() {
    let other = metadata(VitConfig {
        image_size: 32,
        ..encoder()
    });
    for (json, words) in [
        (serde_json::to_string(&other).unwrap(), "metadata describes"),
        ("{".into(), "`tec` cannot be used"),
        (
            serde_json::to_string(&EncoderMetadata {
                std: vec![0.0; 3],
                ..metadata(encoder())
            })
            .unwrap(),
            "`std`",
        ),
    ] {
        let (_folder, path) = file(encoder_tensors(), &[("tec", &json)]);
        let message = Vit::load(&path, &LoadOptions::default(), &CPU).unwrap_err().to_string();
        assert!(
            message.contains(words) && message.contains("base.safetensors"),
            "{message}"
        );
    }
}

#[test]
fn wrong_images_and_targets_are_refused() {
    let vit = mae().encoder().unwrap();
    let message = vit.tokens(&images(20)).unwrap_err().to_string();
    assert!(
        message.contains("[2, 3, 20, 20]") && message.contains("`image_size`"),
        "{message}"
    );
    let message = vit.targets(&images(16), 3, 4).unwrap_err().to_string();
    assert!(message.contains("`last_layers` 3"), "{message}");
    let message = vit.targets(&images(16), 1, 17).unwrap_err().to_string();
    assert!(message.contains("`top_k` 17"), "{message}");
}

#[test]
fn losses_need_removed_patches() {
    let whole = Masks::draw(1, 0, &[0, 1], 16, 0.0, &CPU).unwrap();
    let message = mae().loss(&images(16), &whole).unwrap_err().to_string();
    assert!(message.contains("`mask_ratio`"), "{message}");
    let base = Tec::new(
        TecConfig {
            base: BaseConfig { dim: 24, heads: 3 },
            ..tec().config().clone()
        },
        0,
        &CPU,
    )
    .unwrap();
    let targets = mae().encoder().unwrap().targets(&images(16), 1, 4).unwrap();
    let message = base.losses(&images(16), &targets, &whole).unwrap_err().to_string();
    assert!(message.contains("`mask_ratio`"), "{message}");
    let masks = Masks::draw(1, 0, &[0, 1], 16, 0.75, &CPU).unwrap();
    let message = tec().losses(&images(16), &targets, &masks).unwrap_err().to_string();
    assert!(message.contains("width 32 and 4 heads"), "{message}");
}

#[test]
fn resizing_keeps_the_class_token_and_interpolates_patches() {
    let vit = mae().encoder().unwrap();
    let table = |vit: &Vit| {
        let (_, table) = vit.weights().iter().find(|(name, _)| name == "pos_embed").unwrap();
        table.squeeze(0).unwrap().to_vec2::<f32>().unwrap()
    };
    let before = table(&vit);
    assert_eq!(table(&vit.clone().resize(4).unwrap()), before);
    let larger = vit.resize(8).unwrap();
    assert_eq!((larger.config().image_size, larger.config().grid()), (32, 8));
    let after = table(&larger);
    assert_eq!(after.len(), 65);
    assert_eq!(after[0], before[0]);
    // Between the centers of the old patches (1, 1) and (2, 1): a table that varies slowly is met in between.
    let (low, high) = (
        before[1 + 5][6].min(before[1 + 6][6]),
        before[1 + 5][6].max(before[1 + 6][6]),
    );
    assert!(
        (low..=high).contains(&after[1 + 3 * 8 + 3][6]),
        "{low} {high} {}",
        after[1 + 3 * 8 + 3][6]
    );
    assert_eq!(larger.tokens(&images(32)).unwrap().dims(), [2, 65, 24]);
}

#[test]
fn observers_see_every_site_in_order() {
    #[derive(Default)]
    struct Seen(Vec<(Site, usize, Vec<usize>)>);
    impl Observer for Seen {
        fn observe(&mut self, site: Site, block: usize, values: &Tensor) -> tec_train::Result<()> {
            self.0.push((site, block, values.dims().to_vec()));
            Ok(())
        }
    }
    let vit = mae().encoder().unwrap();
    let mut seen = Seen::default();
    let tokens = vit.observe(&images(16), &mut seen).unwrap();
    assert_eq!(flat(&tokens), flat(&vit.tokens(&images(16)).unwrap()));
    let wide = |width: usize| vec![2, 17, width];
    let mut expected = vec![(Site::PatchEmbed, 0, vec![2, 16, 24]), (Site::Residual, 0, wide(24))];
    for block in 0..2 {
        for (site, width) in [
            (Site::Norm1, 24),
            (Site::Qkv, 72),
            (Site::Attention, 24),
            (Site::Residual, 24),
            (Site::Norm2, 24),
            (Site::Fc1, 48),
            (Site::Hidden, 48),
            (Site::Residual, 24),
        ] {
            expected.push((site, block, wide(width)));
        }
    }
    expected.push((Site::FinalNorm, 0, wide(24)));
    assert_eq!(seen.0, expected);
}

/// Names and shapes of published checkpoints as their libraries list them.
#[test]
fn published_names_are_recognized_or_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/checkpoint_names");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!(
            "published_names_are_recognized_or_refused did not run: there is no {}",
            folder.display()
        );
        return;
    };
    let refused = [
        ("timm_vit_base_patch16_siglip_224", "no class token"),
        ("timm_vit_small_patch16_dinov3", "no position table"),
    ];
    let mut seen = 0;
    for entry in entries {
        let path = entry.unwrap().path();
        let kind = path.file_stem().unwrap().to_string_lossy().into_owned();
        let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        // Names and shapes are all that inspecting reads: a file with holes holds the rest.
        let mut end = 0u64;
        let header: serde_json::Map<String, Value> = json["parameters"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, shape)| {
                let values: u64 = shape
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|size| size.as_u64().unwrap())
                    .product();
                let begin = end;
                end += 4 * values;
                let info = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]});
                (name.clone(), info)
            })
            .collect();
        let header = serde_json::to_string(&header).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names.safetensors");
        let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(&path, &start).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(start.len() as u64 + end).unwrap();
        let found = inspect(&path, &LoadOptions::default()).unwrap();
        seen += 1;
        match refused.iter().find(|(name, _)| *name == kind) {
            Some((_, words)) => assert!(found.refusal.as_ref().unwrap().contains(words), "{kind}: {found:?}"),
            None => {
                assert_eq!(found.refusal, None, "{kind}");
                let encoder = found.encoder.unwrap();
                println!("{kind}: {} {:?}", encoder.origin.family, encoder.config);
                assert_eq!(encoder.config.dim / encoder.config.heads, 64, "{kind}");
            }
        }
    }
    assert!(seen >= 21, "{seen}");
}
