//! What a run's report shows: losses, masked images, attention maps, facts.

use std::path::{Path, PathBuf};

use candle_core::{D, Tensor};

use super::{Summary, learner::Learner, setup::Setup};
use crate::{
    Result,
    checkpoint::{self, State},
    data::{Augment, Loader, LoaderConfig, Order},
    model::Masks,
    report::{self, AttentionMaps, MaskedImage, Picture, Plot, Report, Scale, Series},
    run_dir::RunDir,
};

/// Images shown.
const IMAGES: usize = 8;
/// Images whose attention is shown, and queries of each beside the class token.
const ATTENTION_IMAGES: usize = 4;
const QUERIES: usize = 5;

/// Pictures of what a run trained on.
#[derive(Debug, Clone, Default)]
pub struct Pictures {
    /// Some images as the encoder saw them.
    pub masked: Vec<MaskedImage>,
    /// The base's attention beside the new model's (method `tec`).
    pub attention: Vec<AttentionMaps>,
}

impl Pictures {
    /// Pictures of the first readable images of the data set, whole and masked as in epoch 0.
    ///
    /// # Errors
    /// Images or tensors that fail.
    pub fn take(setup: &Setup, learner: &Learner) -> Result<Self> {
        let config = LoaderConfig {
            batch_size: IMAGES.min(setup.source.len()),
            augment: Augment::Eval,
            // Not the first ones: those are often of one class.
            order: Order::Shuffled { drop_last: true },
            group: 1,
            ..setup.loader_config()
        };
        let mut batches = Loader::new(setup.source.clone(), config)?.batches(0, 0, 1)?;
        let batch = loop {
            match batches.next().transpose()? {
                Some(batch) if batch.is_empty() => {}
                Some(batch) => break batch,
                None => return Ok(Self::default()),
            }
        };
        let encoder = &setup.encoder;
        let ratio = setup.recipe.objective.mask_ratio;
        let masks = Masks::draw(
            setup.recipe.seed,
            0,
            &batch.samples,
            encoder.patches(),
            ratio,
            &setup.device,
        )?;
        let removed: Vec<Vec<f32>> = masks.removed.to_vec2()?;
        let size = encoder.image_size;
        let pictures = batch.pixels.chunks_exact(size * size * encoder.channels);
        let pictures: Vec<Picture> = pictures
            .map(|p| Picture::new(size, size, encoder.channels, p.to_vec()))
            .collect::<Result<_>>()?;
        let names = batch.labels.iter().zip(&batch.samples).map(|(label, sample)| {
            let class = label.and_then(|l| setup.source.classes().get(l as usize).cloned());
            class.unwrap_or_else(|| setup.source.name(*sample as usize))
        });
        let named: Vec<(String, Picture)> = names.zip(pictures).collect();
        let masked = named
            .iter()
            .zip(&removed)
            .map(|((name, picture), removed)| MaskedImage {
                name: name.clone(),
                picture: picture.clone(),
                patch_size: encoder.patch_size,
                removed: removed.iter().map(|r| *r > 0.5).collect(),
            });
        let masked = masked.collect();
        let Some(shown) = learner.attention(setup, &batch.into(), &masks)? else {
            return Ok(Self {
                masked,
                attention: Vec::new(),
            });
        };
        let base = heads_averaged(&shown.base)?;
        let new = heads_averaged(&shown.new_model)?;
        let index: Vec<Vec<u32>> = shown.index.to_vec2()?;
        let attention = named
            .into_iter()
            .zip(index)
            .zip(base.into_iter().zip(new))
            .take(ATTENTION_IMAGES);
        let attention = attention.map(|(((name, picture), index), (mut base, mut new_model))| {
            base.truncate(1 + QUERIES);
            new_model.truncate(1 + QUERIES);
            let queries = index.into_iter().take(QUERIES).map(|q| q as usize).collect();
            AttentionMaps {
                name,
                picture,
                patch_size: encoder.patch_size,
                queries,
                base,
                new_model,
            }
        });
        Ok(Self {
            masked,
            attention: attention.collect(),
        })
    }
}

/// Logits `[B, 1+K, H, L]` → probabilities averaged over heads, `[B][1+K][L]`.
fn heads_averaged(logits: &Tensor) -> Result<Vec<Vec<Vec<f32>>>> {
    let exp = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
    let probabilities = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
    Ok(probabilities.mean(2)?.to_vec3()?)
}

/// The losses of a run over its epochs.
///
/// # Errors
/// Metrics that cannot be read.
pub fn loss_plot(title: &str, run: &RunDir) -> Result<Plot> {
    let metrics = run.metrics()?;
    let mut plot = Plot::new(title, "epoch").series(Series::new("total", metrics.iter().map(|m| (m.epoch, m.loss))));
    if metrics.iter().any(|m| m.loss_relation.is_some()) {
        plot = plot.series(Series::new(
            "feature",
            metrics.iter().map(|m| (m.epoch, m.loss_feature)),
        ));
        let relation = metrics.iter().filter_map(|m| Some((m.epoch, m.loss_relation?)));
        plot = plot.series(Series::new("relation", relation));
    }
    Ok(plot)
}

/// Writes `report/index.html` of a run.
///
/// # Errors
/// A report folder that cannot be written.
pub fn write_report(setup: &Setup, summary: &Summary) -> Result<PathBuf> {
    let run = &summary.run;
    let name = run
        .root()
        .file_name()
        .map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned());
    let method = setup.recipe.method;
    let mut page = Report::new(
        format!("{name}: pretraining by {method}"),
        format!(
            "{} steps on {} images, last loss {:.4}.",
            summary.step,
            setup.source.len(),
            summary.loss
        ),
    );
    let metrics = run.metrics()?;
    let rate = Plot::new("Learning rate", "epoch").small();
    let rate = rate.series(Series::new("learning rate", metrics.iter().map(|m| (m.epoch, m.lr))));
    let losses = loss_plot("Loss", run)?.to_html().then(rate.to_html());
    page.section("Losses", "Each step's loss and its running mean.", losses);
    if let Some(probe) = &setup.probe {
        let probed = metrics.iter().filter_map(|m| Some((m.epoch, 100.0 * m.knn_top1?)));
        let plot = Plot::new("k-NN top-1, %", "epoch").small().scale(Scale::Linear);
        let what = format!(
            "How many of some labelled images the encoder can tell, while it trains: {}.",
            probe.summary()
        );
        page.section(
            "k-NN probe",
            &what,
            plot.series(Series::new("k-NN top-1", probed)).to_html(),
        );
    }
    let seen = "What the encoder gets to see; removed patches are grey.";
    page.section("Masked images", seen, report::masked_images(&summary.pictures.masked)?);
    if !summary.pictures.attention.is_empty() {
        page.section(
            "Attention of the selected queries",
            "Where the class token and the highest-ranked patches look: the base on the whole image (the target), and what \
             the new model's relation head predicts from the masked one.",
            report::attention_maps(&summary.pictures.attention)?,
        );
    }
    let (e, o) = (&setup.encoder, &setup.recipe.optimizer);
    let best = match checkpoint::best(&run.checkpoints())? {
        Some((path, state)) => best_checkpoint(&path, &state),
        None => "none".into(),
    };
    let facts = [
        ("Method", method.to_string()),
        (
            "Encoder",
            format!(
                "{} blocks, width {}, {} heads, patch {}",
                e.depth, e.dim, e.heads, e.patch_size
            ),
        ),
        (
            "Images",
            format!(
                "{} of {}×{} pixels, {} channels",
                setup.source.len(),
                e.image_size,
                e.image_size,
                e.channels
            ),
        ),
        ("Damaged images", summary.damaged.to_string()),
        ("Seed", setup.recipe.seed.to_string()),
        ("Images a step", images_a_step(setup)),
        ("Gradient clipping", or_none(o.clip_grad)),
        ("Average of the weights", or_none(o.ema)),
        ("Seconds", seconds(summary)),
        ("Best checkpoint", best),
        ("Recipe", run.recipe_path().display().to_string()),
    ];
    page.section(
        "Run",
        "",
        report::facts(facts).then(report::skipped_images(&run.skipped()?)),
    );
    page.write(&run.report())
}

fn images_a_step(setup: &Setup) -> String {
    let o = &setup.recipe.optimizer;
    match o.accumulate {
        1 => o.batch.to_string(),
        parts => format!("{} in {parts} parts of {}", o.batch, o.batch / parts),
    }
}

fn or_none(value: Option<f64>) -> String {
    value.map_or_else(|| "none".into(), |v| v.to_string())
}

fn seconds(summary: &Summary) -> String {
    let waited = format!("{:.1} % of the steps' waiting for images", 100.0 * summary.data_wait());
    match summary.probe_seconds {
        0.0 => format!("{:.0}; {waited}", summary.seconds),
        probe => format!(
            "{:.0}, of them {probe:.1} for the k-NN probe; {waited}",
            summary.seconds
        ),
    }
}

fn best_checkpoint(path: &Path, state: &State) -> String {
    let name = path
        .file_name()
        .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    match (state.knn_top1, state.mean_loss) {
        (Some(accuracy), _) => format!("{name}: k-NN {:.2} %", 100.0 * accuracy),
        (None, Some(loss)) => format!("{name}: mean loss {loss:.4}"),
        (None, None) => name,
    }
}
