//! Files that PyTorch itself wrote (`tests/goldens/bases/make_bases.py`).

use std::io::Cursor;
use std::path::{Path, PathBuf};

use tec_pth::{DType, Error, Refused, TensorFile};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/goldens/bases")
        .join(name)
}

fn open(name: &str) -> TensorFile {
    TensorFile::open(&golden(name)).unwrap()
}

#[test]
fn nested_checkpoints_name_tensors_by_their_path() {
    let file = open("mae_full/mae_pretrain_vit_base_full.pth");
    let names: Vec<&str> = file.tensors().keys().map(String::as_str).collect();
    assert!(names.contains(&"model.blocks.1.attn.qkv.weight"), "{names:?}");
    assert!(names.contains(&"optimizer.state.0.exp_avg"), "{names:?}");
    assert!(
        names
            .iter()
            .all(|name| name.starts_with("model.") || name.starts_with("optimizer.state.0.")),
        "the namespace beside them holds no tensors: {names:?}"
    );
    let qkv = &file.tensors()["model.blocks.1.attn.qkv.weight"];
    assert_eq!((qkv.dtype, qkv.shape.as_slice()), (DType::F32, &[24, 8][..]));
}

#[test]
fn a_dictionary_referred_to_twice_is_whole_under_both_names() {
    let file = open("pth_shared/twice.pth");
    let under = |prefix: &str| -> Vec<_> {
        let all = file.tensors().iter();
        all.filter_map(|(name, info)| Some((name.strip_prefix(prefix)?, info)))
            .collect()
    };
    let (one, other) = (under("model."), under("model_without_ddp."));
    assert_eq!(one.len(), 30);
    assert_eq!(one, other);
    assert!(one.iter().zip(&other).all(|((_, a), (_, b))| a.same_data(b)));
}

#[test]
fn views_and_types_have_the_values_of_plain_tensors() {
    let mut plain = open("pth_shared/twice.pth");
    let names: Vec<String> = plain.tensors().keys().cloned().collect();
    let mut views = open("pth_views/views.pth");
    let mut types = open("pth_types/types.pth");
    let mut kinds = Vec::new();
    for name in names.iter().filter_map(|name| name.strip_prefix("model.")) {
        let expected = plain.read(&format!("model.{name}")).unwrap();
        assert!(expected.iter().any(|value| *value != 0.0), "{name}");
        assert_eq!(
            views.read(&format!("state_dict.module.backbone.{name}")).unwrap(),
            expected,
            "{name}"
        );
        kinds.push(types.tensors()[name].dtype);
        assert_eq!(types.read(name).unwrap(), expected, "{name}");
    }
    for kind in [DType::F16, DType::F32, DType::F64] {
        assert!(kinds.contains(&kind), "{kind:?}");
    }
}

#[test]
fn numbers_that_are_no_floats_are_listed_and_not_read() {
    let mut file = open("pth_types/types.pth");
    for name in ["flag", "num_batches_tracked"] {
        assert_eq!(file.tensors()[name].dtype, DType::Other);
        assert!(file.read(name).unwrap_err().to_string().contains(name));
    }
    assert!(
        file.read("no such tensor")
            .unwrap_err()
            .to_string()
            .contains("no such tensor")
    );
}

#[test]
fn what_is_not_read_is_named_with_two_lines_that_convert_it() {
    for (name, kind, words) in [
        (
            "legacy.pth",
            Refused::Legacy,
            ["legacy", "torch.load(", "torch.save(state,"],
        ),
        (
            "protocol4.pth",
            Refused::Protocol(4),
            ["protocol 4", "weights_only=False", "torch.save(state,"],
        ),
        (
            "torchscript.pt",
            Refused::TorchScript,
            ["TorchScript", "torch.jit.load(", "torch.save(state.state_dict(),"],
        ),
        (
            "module.pth",
            Refused::WholeModel,
            ["whole model", "torch.load(", "torch.save(state.state_dict(),"],
        ),
    ] {
        let path = golden("refused").join(name);
        let error = TensorFile::open(&path).unwrap_err();
        assert!(
            matches!(error, Error::Refused(refused) if refused == kind),
            "{name}: {error}"
        );
        let advice = error.advice(Path::new(name));
        assert_eq!(advice.lines().count(), 3, "{advice}");
        for word in words.iter().chain(&[name]) {
            assert!(advice.contains(word), "{advice}");
        }
    }
}

#[test]
fn foreign_files_are_told_apart() {
    let reason = |bytes: &[u8]| TensorFile::new(Cursor::new(bytes.to_vec())).unwrap_err().to_string();
    assert!(reason(b"").contains("empty"));
    assert!(reason(b"<html><body>404").contains("web page"));
    assert!(reason(b"version https://git-lfs.github.com/spec/v1").contains("git lfs pull"));
    assert!(reason(b"something else").contains("first bytes"));
    assert!(reason(b"PK\x03\x04 and no archive").contains("zip archive"));
}

#[test]
fn damage_is_noticed_wherever_it_is_read() {
    let whole = std::fs::read(golden("dino_backbone/dino_deitsmall16_pretrain.pth")).unwrap();
    for length in (0..whole.len()).step_by(997) {
        assert!(
            TensorFile::new(Cursor::new(whole[..length].to_vec())).is_err(),
            "{length}"
        );
    }
    // A flipped bit in a weight is the archive's checksum's.
    let mut file = TensorFile::new(Cursor::new(whole.clone())).unwrap();
    let name = "blocks.0.mlp.fc1.weight";
    let bytes: Vec<u8> = file
        .read(name)
        .unwrap()
        .iter()
        .flat_map(|value| half::f16::from_f32(*value).to_le_bytes())
        .collect();
    let at = whole.windows(bytes.len()).position(|window| window == bytes).unwrap();
    let mut damaged = whole;
    damaged[at + 7] ^= 1;
    let error = TensorFile::new(Cursor::new(damaged)).unwrap().read(name).unwrap_err();
    assert!(matches!(error, Error::Damaged(_)), "{error}");
}
