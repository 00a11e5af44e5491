//! Generated images, a listener, and a folder with a base for runs.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::Device;

use crate::{
    Result,
    checkpoint::{self, Checkpoint},
    data::{Pixels, Source},
    model::{DecoderConfig, EncoderMetadata, Mae, MaeConfig, Pool},
    pretrain::{Job, Plan, Progress, Summary, run},
    ranks::OneProcess,
    recipe::{Method, Recipe, RecipeBuilder},
    run_dir::{Existing, StepMetrics},
};

/// Generated images in three classes, of which some cannot be read and one may make its thread panic.
pub(super) struct Generated {
    pub images: usize,
    pub broken: BTreeSet<usize>,
    pub panics: Arc<AtomicUsize>,
    pub classes: Vec<String>,
}

pub(super) const NONE: usize = usize::MAX;

pub(super) fn generated(images: usize, broken: &[usize]) -> Generated {
    Generated {
        images,
        broken: broken.iter().copied().collect(),
        panics: Arc::new(AtomicUsize::new(NONE)),
        classes: ["a", "b", "c"].map(String::from).to_vec(),
    }
}

impl Source for Generated {
    fn len(&self) -> usize {
        self.images
    }
    fn name(&self, index: usize) -> String {
        format!("image-{index}")
    }
    fn label(&self, index: usize) -> Option<u32> {
        Some(index as u32 % 3)
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn load(&self, index: usize) -> Result<Pixels, String> {
        assert_ne!(
            index,
            self.panics.load(Ordering::SeqCst),
            "this image was told to panic"
        );
        if self.broken.contains(&index) {
            return Err("cut short".into());
        }
        let value = |at: usize| ((at * (3 + index % 3) * 7 + index * 31 + at / 20 * 11) % 251) as u8;
        Ok(Pixels {
            width: 20,
            height: 18,
            channels: 3,
            data: (0..20 * 18 * 3).map(value).collect(),
        })
    }
}

/// What a run says, and whether it is asked to stop after some step.
#[derive(Default)]
pub(super) struct Listener {
    pub notes: Vec<String>,
    pub metrics: Vec<StepMetrics>,
    pub stop_after: Option<usize>,
}

impl Progress for Listener {
    fn begin(&mut self, _: &Plan) {}
    fn step(&mut self, metrics: &StepMetrics, _: &Plan) {
        self.metrics.push(*metrics);
    }
    fn note(&mut self, text: &str) {
        self.notes.push(text.into());
    }
    fn end(&mut self) {}
    fn stop_requested(&self) -> bool {
        self.stop_after.is_some_and(|n| self.metrics.len() >= n)
    }
}

pub(super) const GEOMETRY: &str = "
    seed = 5
    [data]
    image_size = 16
    [model]
    patch_size = 4
    dim = 16
    depth = 2
    heads = 2
    [decoder]
    dim = 16
    depth = 1
    heads = 2
    [objective]
    top_k = 3
    [optimizer]
    lr = 2e-3
    epochs = 2
";

/// A folder for runs with a base in it.
pub(super) fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let mut recipe = RecipeBuilder::from_text(GEOMETRY, "test").unwrap().build().unwrap();
    recipe.method = Method::Mae;
    let encoder = recipe.resolve(None).unwrap();
    let config = MaeConfig {
        encoder: encoder.clone(),
        decoder: DecoderConfig {
            dim: 16,
            depth: 1,
            heads: 2,
        },
        norm_pix: true,
    };
    let metadata = EncoderMetadata {
        config: encoder,
        mean: vec![0.5; 3],
        std: vec![0.25; 3],
        pool: Pool::Mean,
    };
    let mae = Mae::new(config, 3, &Device::Cpu).unwrap();
    mae.encoder()
        .unwrap()
        .save(&place.path().join("base.safetensors"), &metadata)
        .unwrap();
    place
}

pub(super) fn recipe(place: &Path, settings: &[&str]) -> Recipe {
    let mut builder = RecipeBuilder::from_text(GEOMETRY, "test").unwrap();
    builder.set("base.path", place.join("base.safetensors").display().to_string());
    builder.set("probe.every_epochs", 0);
    for setting in settings {
        builder.set_argument(setting).unwrap();
    }
    builder.build().unwrap()
}

pub(super) fn go(
    place: &Path,
    out: &str,
    source: Generated,
    settings: &[&str],
    listener: &mut Listener,
) -> Result<Summary> {
    go_on(place, out, Arc::new(source), settings, None, listener)
}

pub(super) fn go_on(
    place: &Path,
    out: &str,
    source: Arc<dyn Source>,
    settings: &[&str],
    max_steps: Option<usize>,
    listener: &mut Listener,
) -> Result<Summary> {
    let out = place.join(out);
    let existing = match out.exists() {
        true => Existing::Resume,
        false => Existing::Refuse,
    };
    let job = Job {
        recipe: recipe(place, settings),
        out,
        existing,
        source: Some(source),
        max_steps,
        device: Default::default(),
    };
    run(job, &OneProcess, listener)
}

pub(super) fn encoder_of(place: &Path, out: &str) -> Vec<u8> {
    std::fs::read(place.join(out).join("encoder.safetensors")).unwrap()
}

pub(super) fn newest(place: &Path, out: &str) -> Checkpoint {
    checkpoint::newest(&place.join(out).join("checkpoints"))
        .unwrap()
        .unwrap()
        .0
}
