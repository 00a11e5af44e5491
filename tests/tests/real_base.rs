//! Real pretrained weights, where they are: they are too large to come with the project.

use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::npy::NpzTensors;
use tec_conformance::{goldens, max_error};
use tec_core::position::{Resample, resize_bicubic};
use tec_train::model::{LoadOptions, Vit, VitConfig};

/// The folder of the DINOv2 ViT-S/14 weights beside the repository, or `None` after saying that the test did not run.
fn folder(test: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/dinov2_vits14_imgfocus");
    if folder.is_dir() {
        return Some(folder);
    }
    println!("{test} did not run: there is no {}", folder.display());
    None
}

fn base(folder: &Path) -> Vit {
    Vit::load(
        &folder.join("vits14_224_timm_names.safetensors"),
        &LoadOptions::default(),
        &Device::Cpu,
    )
    .unwrap()
}

#[test]
fn tokens_match_the_golden_output() {
    let Some(folder) = folder("tokens_match_the_golden_output") else {
        return;
    };
    let base = base(&folder);
    let plain = VitConfig {
        image_size: 224,
        patch_size: 14,
        channels: 3,
        dim: 384,
        depth: 12,
        heads: 6,
        mlp_ratio: 4,
    };
    assert_eq!(*base.config(), plain);
    assert_eq!((base.report().matched.len(), base.report().ignored.len()), (150, 0));
    let golden = NpzTensors::new(folder.join("golden_io_seed0.npz")).unwrap();
    let tokens = base.tokens(&golden.get("x").unwrap().unwrap()).unwrap();
    let expected = golden.get("y").unwrap().unwrap();
    assert_eq!(tokens.dims(), expected.dims());
    let flat = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let error = max_error(&flat(&tokens), &flat(&expected));
    println!("error against the golden output: {error:e}");
    assert!(error <= 1e-3, "error {error:e}");
}

#[test]
fn it_is_a_base_at_another_grid() {
    let Some(folder) = folder("it_is_a_base_at_another_grid") else {
        return;
    };
    let golden = NpzTensors::new(folder.join("golden_io_seed0.npz")).unwrap();
    let image = golden.get("x").unwrap().unwrap();
    let base = base(&folder).resize(8).unwrap();
    assert_eq!(base.config().image_size, 8 * 14);
    let image = image
        .narrow(2, 0, 112)
        .unwrap()
        .narrow(3, 0, 112)
        .unwrap()
        .contiguous()
        .unwrap();
    let targets = base.targets(&image, 2, 15).unwrap();
    assert_eq!(targets.features.dims(), [1, 64, 384]);
    assert_eq!(targets.logits.dims(), [1, 16, 6, 64]);
    let index: Vec<u32> = targets.index.flatten_all().unwrap().to_vec1().unwrap();
    assert!(index.iter().all(|&patch| patch < 64));
    let features: Vec<f32> = targets.features.flatten_all().unwrap().to_vec1().unwrap();
    assert!(features.iter().all(|value| value.is_finite()));
}

#[test]
fn the_native_position_table_resizes_to_the_exporters() {
    let Some(folder) = folder("the_native_position_table_resizes_to_the_exporters") else {
        return;
    };
    let native = goldens::read(&folder.join("pos_embed_518px_37x37.safetensors")).unwrap();
    let patches = &native.f32("embeddings.position_embeddings").unwrap()[384..];
    let mut resized = vec![0.0; 16 * 16 * 384];
    resize_bicubic(patches, 37, 16, 384, Resample::Plain, &mut resized).unwrap();
    let base = base(&folder);
    let (_, exported) = base.weights().iter().find(|(name, _)| name == "pos_embed").unwrap();
    let exported: Vec<f32> = exported.flatten_all().unwrap().to_vec1().unwrap();
    let error = max_error(&resized, &exported[384..]);
    println!("error against the exporter's table: {error:e}");
    assert!(error <= 1e-5, "error {error:e}");
}
