//! Ranks that train together make sure that they have the same before them, and still do later.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::{learner::Learner, setup::Setup};
use crate::{Error, Result, data::Source, ranks::Ranks, recipe::Recipe};

/// What must be the same on every rank.
#[derive(Serialize, Deserialize)]
struct Beginning {
    program: String,
    recipe: Recipe,
    images: usize,
    /// CRC-32 of the images' names in their order, of the base's weights, and of the weights to train.
    names: u32,
    base: u32,
    weights: u32,
    step: usize,
    updates: u64,
    max_steps: Option<usize>,
}

/// Compares every rank's beginning with rank 0's: program, recipe, images, base, weights and step.
///
/// # Errors
/// [`Error::Usage`] naming the first rank that has something else, and what.
pub fn check(ranks: &Ranks, setup: &Setup, learner: &Learner, step: usize, max_steps: Option<usize>) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let base = setup.base.as_ref().map(|base| base.vit.weights()).unwrap_or_default();
    let all = ranks.exchange(Beginning {
        program: env!("CARGO_PKG_VERSION").into(),
        recipe: setup.recipe.clone(),
        images: setup.source.len(),
        names: names(&*setup.source),
        base: weights(base.iter().map(|(_, tensor)| tensor))?,
        weights: digest(learner)?,
        step,
        updates: learner.updates(),
        max_steps,
    })?;
    let Some((first, others)) = all.split_first() else {
        return Ok(());
    };
    for (number, other) in others.iter().enumerate() {
        if let Some(what) = difference(first, other)? {
            return Err(Error::Usage(format!(
                "rank {} does not train what rank 0 trains: {what}; start every process with the same command, data and base",
                number + 1
            )));
        }
    }
    Ok(())
}

/// Compares every rank's weights with rank 0's after `step` steps.
///
/// # Errors
/// [`Error::Data`] naming the first rank that has others.
pub fn check_weights(ranks: &Ranks, learner: &Learner, step: usize) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let all = ranks.exchange(digest(learner)?)?;
    match all.iter().position(|other| *other != all[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Data(format!(
            "rank {rank} has other weights than rank 0 after step {step}, though all compute the same: the hardware of one is at \
             fault; go on from the last checkpoint on other machines"
        ))),
    }
}

/// What `other` has that differs from `first`, in words.
fn difference(first: &Beginning, other: &Beginning) -> Result<Option<String>> {
    let keys = first.recipe.differences(&other.recipe)?;
    let differs = [
        (
            first.program != other.program,
            format!("tec {} instead of {}", other.program, first.program),
        ),
        (
            first.images != other.images,
            format!("{} images instead of {}", other.images, first.images),
        ),
        (
            first.names != other.names,
            "its images have other names, or another order".into(),
        ),
        (
            !keys.is_empty(),
            keys.join(", ")
                .replace(" in the run", " on rank 0")
                .replace(" now)", " there)"),
        ),
        (first.base != other.base, "its base has other weights".into()),
        (
            (first.step, first.updates) != (other.step, other.updates),
            format!("it would go on after step {} instead of {}", other.step, first.step),
        ),
        (first.weights != other.weights, "it starts from other weights".into()),
        (
            first.max_steps != other.max_steps,
            format!("--max-steps is {:?} instead of {:?}", other.max_steps, first.max_steps),
        ),
    ];
    Ok(differs.into_iter().find(|(differs, _)| *differs).map(|(_, what)| what))
}

fn names(source: &dyn Source) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for index in 0..source.len() {
        crc.update(source.name(index).as_bytes());
        crc.update(&[0]);
    }
    crc.finalize()
}

/// Of the weights to train.
fn digest(learner: &Learner) -> Result<u32> {
    weights(learner.params().trainable().iter().map(|(_, var)| var.as_tensor()))
}

fn weights<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<u32> {
    let mut crc = crc32fast::Hasher::new();
    for tensor in tensors {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        crc.update(bytemuck::cast_slice(&values));
    }
    Ok(crc.finalize())
}
