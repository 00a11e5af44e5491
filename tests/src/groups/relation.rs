//! Targets from a base's features and attention logits, and both losses with their gradients.

use tec_core::lanes::Accumulator;
use tec_core::loss;
use tec_device::Operation;

use super::session::Results;
use super::{GRADIENTS, Session, VALUES};
use crate::error::Result;
use crate::goldens::Goldens;
use crate::tensor::Data;

/// The sizes of the file.
struct Sizes {
    images: usize,
    heads: usize,
    patches: usize,
    width: usize,
    queries: usize,
    temperature: f32,
}

impl Sizes {
    fn of(goldens: &Goldens) -> Result<Self> {
        let [images, patches, width] = goldens.axes("features")?;
        let [_, heads, tokens, _] = goldens.axes("attention_logits")?;
        let queries = goldens.count(&["top_k"])?;
        if tokens != patches + 1 || [images, heads, patches, width].contains(&0) {
            return Err(goldens.error("features and attention_logits do not fit each other".into()));
        }
        Ok(Self {
            images,
            heads,
            patches,
            width,
            queries,
            temperature: goldens.number(&["att_tau"])? as f32,
        })
    }
}

pub(super) fn check(session: &mut Session<'_>) -> Result<()> {
    let goldens = session.goldens()?;
    let sizes = Sizes::of(&goldens)?;
    relation_targets(session, &goldens, &sizes)?;
    feature_targets_and_loss(session, &goldens, &sizes)?;
    relation_loss(session, &goldens, &sizes)
}

fn sizes_of(values: &[usize]) -> Data {
    Data::from(values.iter().map(|&value| value as u32).collect::<Vec<_>>())
}

/// Ranks queries, picks their rows, tempers them.
fn relation_targets(session: &mut Session<'_>, goldens: &Goldens, sizes: &Sizes) -> Result<()> {
    let &Sizes {
        heads,
        patches,
        queries,
        temperature,
        ..
    } = sizes;
    let tokens = patches + 1;
    let (mut index, mut picked, mut targets) = (vec![], vec![], vec![]);
    for (image, logits) in goldens
        .f32("attention_logits")?
        .chunks_exact(heads * tokens * tokens)
        .enumerate()
    {
        let case = format!("image {image}");
        let class_rows = logits.chunks_exact(tokens * tokens);
        let class_logits: Vec<f32> = class_rows.flat_map(|head| head[1..tokens].iter().copied()).collect();
        let arguments = [Data::from(class_logits), sizes_of(&[heads, patches, queries])];
        let Some(ranked) = session.floats(&case, Operation::RankQueries, &arguments) else {
            continue;
        };
        let ranked = Results(ranked.iter()).indices();
        let arguments = [
            Data::from(logits),
            sizes_of(&[heads, patches]),
            Data::from(ranked.clone()),
        ];
        let Some(rows) = session.floats(&case, Operation::TargetRows, &arguments) else {
            continue;
        };
        let rows = Results(rows.iter()).floats();
        let arguments = [
            Data::from(rows.clone()),
            sizes_of(&[patches]),
            Data::from(vec![temperature]),
        ];
        let Some(target) = session.floats(&case, Operation::TemperedTarget, &arguments) else {
            continue;
        };
        session.record.case();
        index.extend(ranked);
        picked.extend(rows);
        targets.extend(Results(target.iter()).floats());
    }
    if index.is_empty() {
        return Ok(());
    }
    let record = &mut session.record;
    record.same(
        "targets",
        "query_index",
        &Data::from(index),
        &Data::from(goldens.u32("query_index")?),
    );
    // Picking copies, so the bits are the same.
    record.same(
        "targets",
        "picked_logits",
        &Data::from(picked),
        goldens.data("picked_logits")?,
    );
    record.near(
        "targets",
        "attention_target",
        &targets,
        goldens.f32("attention_target")?,
        VALUES,
    );
    Ok(())
}

/// From raw features to the loss, as training computes it.
fn feature_targets_and_loss(session: &mut Session<'_>, goldens: &Goldens, sizes: &Sizes) -> Result<()> {
    let (patches, width) = (sizes.patches, sizes.width);
    let mut targets = vec![];
    for (image, features) in goldens.f32("features")?.chunks_exact(patches * width).enumerate() {
        let arguments = [Data::from(features), sizes_of(&[patches, width])];
        let case = format!("features of image {image}");
        let Some(normalized) = session.floats(&case, Operation::NormalizeFeatures, &arguments) else {
            return Ok(());
        };
        session.record.case();
        targets.push(Results(normalized.iter()).floats());
    }
    let normalized = goldens.f32("normalized_features")?;
    session
        .record
        .near("features", "normalized_features", &targets.concat(), normalized, VALUES);

    let (masks, predictions) = (goldens.f32("mask")?, goldens.f32("pred_features")?);
    let scale = loss::feature_scale(masks.iter().sum()).map_err(|e| goldens.error(e.to_string()))?;
    let (mut errors, mut gradients) = (Accumulator::new(), vec![]);
    let images = predictions
        .chunks_exact(patches * width)
        .zip(masks.chunks_exact(patches));
    for (image, ((prediction, mask), target)) in images.zip(&targets).enumerate() {
        let case = format!("feature loss of image {image}");
        let removed = mask;
        let [prediction, target, mask] = [prediction, target, mask].map(Data::from);
        let arguments = [prediction, target, mask, sizes_of(&[width]), Data::from(vec![scale])];
        let Some(results) = session.floats(&case, Operation::FeatureLoss, &arguments) else {
            return Ok(());
        };
        session.record.case();
        let mut results = Results(results.iter());
        let sum_and_count = results.floats();
        errors.push(sum_and_count.first().copied().unwrap_or(f32::NAN));
        let count = Data::from(sum_and_count.get(1..).unwrap_or_default());
        session.record.same(
            &case,
            "removed patches",
            &count,
            &Data::from(vec![removed.iter().sum::<f32>()]),
        );
        gradients.extend(results.floats());
    }
    let total = errors.total() * scale;
    let record = &mut session.record;
    record.near(
        "feature loss",
        "feature_loss",
        &[total],
        goldens.f32("feature_loss")?,
        VALUES,
    );
    let golden = goldens.f32("grad_pred_features")?;
    record.near("feature loss", "grad_pred_features", &gradients, golden, GRADIENTS);
    Ok(())
}

/// From picked logits to the loss, as training computes it.
fn relation_loss(session: &mut Session<'_>, goldens: &Goldens, sizes: &Sizes) -> Result<()> {
    let Sizes {
        images,
        heads,
        patches,
        queries,
        temperature,
        ..
    } = *sizes;
    let (picked, predictions) = (
        goldens.data("picked_logits")?.clone(),
        goldens.data("pred_logits")?.clone(),
    );
    let arguments = [picked, sizes_of(&[patches]), Data::from(vec![temperature])];
    let Some(targets) = session.floats("relation loss", Operation::TemperedTarget, &arguments) else {
        return Ok(());
    };
    let rows = images * (1 + queries) * heads;
    let scale = Data::from(vec![1.0 / rows as f32]);
    let arguments = [predictions, Results(targets.iter()).next(), sizes_of(&[patches]), scale];
    let Some(results) = session.floats("relation loss", Operation::RelationLoss, &arguments) else {
        return Ok(());
    };
    session.record.case();
    let mut results = Results(results.iter());
    let mut total = Accumulator::new();
    results.floats().iter().for_each(|&loss| total.push(loss));
    let mean = total.total() / rows as f32;
    let record = &mut session.record;
    record.near(
        "relation loss",
        "attention_loss",
        &[mean],
        goldens.f32("attention_loss")?,
        VALUES,
    );
    let golden = goldens.f32("grad_pred_logits")?;
    record.near(
        "relation loss",
        "grad_pred_logits",
        &results.floats(),
        golden,
        GRADIENTS,
    );
    Ok(())
}
