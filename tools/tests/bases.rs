//! Bases from elsewhere, through the command: PyTorch files and Hugging Face folders.

mod command;

use std::path::Path;

use command::{Place, SMALL};
use serde_json::json;

const USAGE: i32 = 2;
const FAILURE: i32 = 1;

/// Copies a golden checkpoint's folder.
fn bring(place: &Place, case: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/goldens/bases")
        .join(case);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        place.write(&format!("{case}/{name}"), std::fs::read(&path).unwrap());
    }
}

#[test]
fn foreign_bases_are_inspected_trained_from_and_embedded_with() {
    let place = Place::new();
    place.images("photos", 0, 16);
    for case in ["ibot_full", "hf_dinov2_reg4", "refused"] {
        bring(&place, case);
    }

    let inspect = |args: &str| place.tec(&format!("inspect {args} --json")).ok().json().remove(0);
    let facts = inspect("hf_dinov2_reg4");
    for (key, value) in [
        ("family", json!("hf-dinov2")),
        ("registers", json!(4)),
        ("layer_scale", json!(true)),
        ("heads", json!(2)),
        ("can_be_base", json!(true)),
        ("normalization_from", json!("preprocessor_config.json")),
    ] {
        assert_eq!(facts[key], value, "{key}");
    }
    let facts = inspect("ibot_full/checkpoint.pth --heads 2");
    assert_eq!(
        (&facts["family"], &facts["prefix"]),
        (&json!("ibot"), &json!("teacher.backbone."))
    );
    assert_eq!((&facts["matched"], &facts["missing"]["count"]), (&json!(30), &json!(0)));
    let other = inspect("ibot_full/checkpoint.pth --heads 2 --prefix student.module.backbone");
    assert_eq!(other["prefix"], "student.module.backbone.");
    // For people: the first names of a list.
    let lines = place.tec("inspect ibot_full/checkpoint.pth --heads 2").ok().stdout;
    assert!(
        lines.contains("ibot_loss.center, ibot_loss.center2") && lines.contains(" more"),
        "{lines}"
    );
    place.refuses(
        "inspect refused/legacy.pth",
        FAILURE,
        &["legacy", "torch.load(", "torch.save("],
    );

    let small = SMALL
        .replace("model.patch_size=8", "model.patch_size=8 --set objective.top_k=4")
        .replace("--epochs 2", "--epochs 1");
    let train = |base: &str, out: &str| format!("pretrain --base {base} --data photos --batch 8 --out {out} {small}");
    place
        .tec(&format!(
            "{} --set base.heads=2",
            train("ibot_full/checkpoint.pth", "ibot")
        ))
        .ok();
    place.tec(&train("hf_dinov2_reg4", "dinov2")).ok();
    place.refuses(&train("ibot_full/checkpoint.pth", "none"), USAGE, &["base.heads"]);

    let embedded = place.tec("embed photos --encoder hf_dinov2_reg4 --json").ok().json();
    assert_eq!(embedded.len(), 16);
    assert_eq!(embedded[0]["embedding"].as_array().unwrap().len(), 8);
    place
        .tec("eval knn hf_dinov2_reg4 --train photos --test photos --k 3")
        .ok();
    place.refuses(
        "quantize hf_dinov2_reg4 --data photos",
        USAGE,
        &["4 register tokens", "base"],
    );
}

#[test]
fn every_verb_takes_what_the_file_does_not_say() {
    let place = Place::new();
    place.images("photos", 0, 12);
    for case in ["ibot_full", "timm_plain"] {
        bring(&place, case);
    }
    let ibot = "ibot_full/checkpoint.pth";
    let verbs = [
        format!("embed photos --encoder {ibot}"),
        format!("eval knn {ibot} --train photos --test photos --k 3"),
        format!("quantize {ibot} --data photos --out ibot.tec"),
    ];
    for verb in &verbs {
        place.refuses(
            verb,
            USAGE,
            &["ibot_full/checkpoint.pth", "attention heads", "`--heads`"],
        );
        place.refuses(
            &format!("{verb} --heads 3"),
            USAGE,
            &["ibot_full/checkpoint.pth", "heads"],
        );
        place.refuses(
            &format!("{verb} --heads 2 --activation swiglu"),
            USAGE,
            &["`--activation`", "no gates"],
        );
        place.refuses(
            &format!("{verb} --heads 2 --activation relu"),
            USAGE,
            &["gelu, quick_gelu, swiglu"],
        );
        place.tec(&format!("{verb} --heads 2")).ok();
    }

    // Inspecting reports what the others refuse.
    let inspect = |told: &str| {
        place
            .tec(&format!("inspect {ibot} {told} --json"))
            .ok()
            .json()
            .remove(0)
    };
    let reason = inspect("")["reason"].as_str().unwrap().to_string();
    assert!(reason.contains("`--heads`"), "{reason}");
    let facts = inspect("--heads 2 --activation quick_gelu");
    assert_eq!(
        (&facts["heads"], &facts["activation"]),
        (&json!(2), &json!("quick_gelu"))
    );

    // Each of the three changes what is computed.
    let embed = |told: &str| {
        let embedded = place.tec(&format!("{} {told}", verbs[0])).ok().stdout;
        assert_eq!(embedded.lines().count(), 12);
        embedded
    };
    let teacher = embed("--heads 2");
    assert_eq!(teacher, embed("--heads 2 --prefix teacher.backbone --activation gelu"));
    for other in [
        "--heads 1",
        "--heads 2 --prefix student.module.backbone",
        "--heads 2 --activation quick_gelu",
    ] {
        assert_ne!(teacher, embed(other), "{other}");
    }

    // What is quantized is the model with the heads that were given, and its file says so.
    place
        .tec("quantize timm_plain/plain.safetensors --data photos --heads 2")
        .ok();
    let device = "timm_plain/encoder.tec";
    let facts = place.tec(&format!("inspect {device} --json")).ok().json().remove(0);
    assert_eq!((&facts["precision"], &facts["heads"]), (&json!("int8"), &json!(2)));
    // Its classification head goes with it.
    assert_eq!((&facts["classes"], &facts["embedding"]), (&json!(3), &json!("class")));
    let without =
        "quantize timm_plain/plain.safetensors --data photos --heads 2 --no-head --pool mean --out without.tec";
    place.tec(without).ok();
    let facts = place.tec("inspect without.tec --json").ok().json().remove(0);
    assert_eq!((&facts["classes"], &facts["embedding"]), (&json!(0), &json!("mean")));
    // A fine-tuned model's norm is that of the mean.
    bring(&place, "mae_finetuned");
    let tuned = "mae_finetuned/mae_finetuned_vit_base.pth --heads 2";
    let made = place
        .tec(&format!("quantize {tuned} --data photos --out tuned.tec --json"))
        .ok()
        .json();
    assert!(
        made[0]["rows"][0]["cosine_mean"]["mean"].as_f64() > Some(0.99),
        "{made:?}"
    );
    let facts = place.tec("inspect tuned.tec --json").ok().json().remove(0);
    assert_eq!((&facts["fc_norm"], &facts["embedding"]), (&json!(true), &json!("mean")));
    place.tec(&format!("embed photos --encoder {device}")).ok();
    place.refuses(
        &format!("embed photos --encoder {device} --heads 2"),
        USAGE,
        &[device, "leave --heads"],
    );
}
