//! The f32 operations of `tec-core`, and masking.

use tec_core::adapter::{self, EncoderAdapter, Group, Mlp};
use tec_core::philox::{Noise, Stream};
use tec_core::position::{Resample, resize_bicubic, sincos_2d};
use tec_core::{activation, linear, loss, mask, norm, relation, softmax};

use crate::operation::Operation;
use crate::refusal::Refusal;
use crate::tensors::{Results, Tensors, product};

pub(crate) fn run(operation: Operation, arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    match operation {
        Operation::Noise => noise(arguments, results),
        Operation::Kept => kept(arguments, results),
        Operation::Mask => masking(arguments, results),
        Operation::SinCos => sincos(arguments, results),
        Operation::Resize => resize(arguments, results),
        Operation::NormalizeFeatures => normalize_features(arguments, results),
        Operation::RankQueries => rank_queries(arguments, results),
        Operation::TargetRows => target_rows(arguments, results),
        Operation::TemperedTarget => tempered_target(arguments, results),
        Operation::FeatureLoss => feature_loss(arguments, results),
        Operation::RelationLoss => relation_loss(arguments, results),
        Operation::InputAdapter => input_adapter(arguments, results),
        Operation::EncoderAdapter => encoder_adapter(arguments, results),
        Operation::LayerNorm => layer_norm(arguments, results),
        Operation::Softmax => soft_max(arguments, results),
        Operation::Gelu => gelu(arguments, results),
        Operation::Linear => linear_layer(arguments, results),
        _ => Err(Refusal::Unknown),
    }
}

fn noise(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let [seed] = arguments.numbers::<u64, 1>()?;
    let [epoch, sample, stream, count] = arguments.numbers::<u32, 4>()?;
    let stream = match stream {
        0 => Stream::Mask,
        1 => Stream::Augment,
        2 => Stream::Order,
        3 => Stream::Init,
        _ => return Err(Refusal::Malformed("there is no such stream of noise")),
    };
    let noise = Noise {
        seed,
        epoch,
        sample,
        stream,
    };
    for (index, word) in (0..count).zip(results.tensor(count as usize)?) {
        *word = noise.bits(index);
    }
    noise.fill(results.tensor(count as usize)?);
    Ok(())
}

fn kept(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let [ratio] = arguments.numbers::<f64, 1>()?;
    let [patches] = arguments.sizes()?;
    results.put(&[mask::kept(patches, ratio)? as u32])
}

fn masking(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let noise = arguments.take::<f32>()?;
    let [keep] = arguments.sizes()?;
    let (order, restore) = (results.tensor(noise.len())?, results.tensor(noise.len())?);
    Ok(mask::mask(noise, keep, order, restore, results.tensor(noise.len())?)?)
}

fn sincos(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let [dim, grid] = arguments.sizes()?;
    let rows = product(&[grid, grid]).saturating_add(1);
    Ok(sincos_2d(dim, grid, results.tensor(product(&[rows, dim]))?)?)
}

fn resize(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let table = arguments.take::<f32>()?;
    let [from, to, dim, antialias] = arguments.sizes()?;
    let resample = match antialias {
        0 => Resample::Plain,
        _ => Resample::Antialias,
    };
    let out = results.tensor(product(&[to, to, dim]))?;
    Ok(resize_bicubic(table, from, to, dim, resample, out)?)
}

fn normalize_features(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let features = arguments.take::<f32>()?;
    let [patches, width] = arguments.sizes()?;
    let out = results.tensor(features.len())?;
    Ok(relation::normalize_features(features, patches, width, out)?)
}

fn rank_queries(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let logits = arguments.take::<f32>()?;
    let [heads, patches, queries] = arguments.sizes()?;
    let scratch = results.scratch(patches)?;
    let index = results.tensor(queries)?;
    Ok(relation::rank_queries(logits, heads, patches, index, scratch)?)
}

fn target_rows(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let logits = arguments.take::<f32>()?;
    let [heads, patches] = arguments.sizes()?;
    let index = arguments.take::<u32>()?;
    let picked = results.tensor(product(&[index.len().saturating_add(1), heads, patches]))?;
    Ok(relation::target_rows(logits, heads, patches, index, picked)?)
}

fn tempered_target(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let picked = arguments.take::<f32>()?;
    let [patches] = arguments.sizes()?;
    let [temperature] = arguments.numbers::<f32, 1>()?;
    let out = results.tensor(picked.len())?;
    Ok(relation::tempered_target(picked, patches, temperature, out)?)
}

fn feature_loss(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let (prediction, target) = (arguments.take::<f32>()?, arguments.take::<f32>()?);
    let removed = arguments.take::<f32>()?;
    let [width] = arguments.sizes()?;
    let [scale] = arguments.numbers::<f32, 1>()?;
    let (sum, count) = loss::feature_loss(prediction, target, removed, width)?;
    results.put(&[sum, count])?;
    let gradient = results.tensor(prediction.len())?;
    Ok(loss::feature_loss_backward(
        prediction, target, removed, width, scale, gradient,
    )?)
}

fn relation_loss(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let (prediction, target) = (arguments.take::<f32>()?, arguments.take::<f32>()?);
    let [patches] = arguments.sizes()?;
    let [scale] = arguments.numbers::<f32, 1>()?;
    let patches = patches.max(1);
    let losses = results.tensor(prediction.len() / patches)?;
    let gradient = results.tensor(prediction.len())?;
    let rows = prediction.chunks_exact(patches).zip(target.chunks_exact(patches));
    for ((prediction, target), (slot, gradient)) in rows.zip(losses.iter_mut().zip(gradient.chunks_exact_mut(patches)))
    {
        *slot = loss::relation_loss(prediction, target)?;
        loss::relation_loss_backward(prediction, target, scale, gradient)?;
    }
    Ok(())
}

fn mlp<'a>(arguments: &mut Tensors<'a>) -> Result<Mlp<'a>, Refusal> {
    Ok(Mlp {
        fc1_weight: arguments.take()?,
        fc1_bias: arguments.take()?,
        fc2_weight: arguments.take()?,
        fc2_bias: arguments.take()?,
    })
}

fn input_adapter(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let token = arguments.take::<f32>()?;
    let mlp = mlp(&mut arguments)?;
    let scratch = results.scratch(mlp.hidden())?;
    Ok(adapter::input_adapter(
        token,
        mlp.fc1_weight,
        mlp.fc1_bias,
        mlp.fc2_weight,
        mlp.fc2_bias,
        scratch,
        results.tensor(token.len())?,
    )?)
}

/// More groups than any recipe makes: the largest divisor of a depth of 32 that is not above a third of it is 8.
const MOST_GROUPS: usize = 16;

fn encoder_adapter(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let levels = arguments.take::<f32>()?;
    let (before_weight, before_bias) = (arguments.take::<f32>()?, arguments.take::<f32>()?);
    let (after_weight, after_bias) = (arguments.take::<f32>()?, arguments.take::<f32>()?);
    let none = Mlp {
        fc1_weight: &[],
        fc1_bias: &[],
        fc2_weight: &[],
        fc2_bias: &[],
    };
    let mut groups = [Group {
        fuse_weight: &[],
        fuse_bias: &[],
        mlp: none,
    }; MOST_GROUPS];
    let mut count = 0;
    while !arguments.is_empty() {
        let slot = groups.get_mut(count).ok_or(Refusal::Malformed("more than 16 groups"))?;
        *slot = Group {
            fuse_weight: arguments.take()?,
            fuse_bias: arguments.take()?,
            mlp: mlp(&mut arguments)?,
        };
        count += 1;
    }
    let weights = EncoderAdapter {
        before_weight,
        before_bias,
        groups: groups.get(..count).unwrap_or(&[]),
        after_weight,
        after_bias,
    };
    let (joined, width) = (before_weight.len().max(1), after_weight.len().max(1));
    let scratch = results.scratch(weights.scratch_len())?;
    let out = results.tensor(product(&[levels.len() / joined, width]))?;
    for (levels, out) in levels.chunks_exact(joined).zip(out.chunks_exact_mut(width)) {
        adapter::encoder_adapter(&weights, levels, scratch, out)?;
    }
    Ok(())
}

fn layer_norm(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let x = arguments.take::<f32>()?;
    let (weight, bias) = (arguments.take::<f32>()?, arguments.take::<f32>()?);
    let [epsilon] = arguments.numbers::<f32, 1>()?;
    let grad_out = arguments.take::<f32>()?;
    let width = weight.len();
    let (out, grad_x) = (results.tensor(x.len())?, results.tensor(x.len())?);
    let (grad_weight, grad_bias) = (results.tensor(width)?, results.tensor(width)?);
    let width = width.max(1);
    let rows = x.chunks_exact(width).zip(grad_out.chunks_exact(width));
    let slots = out.chunks_exact_mut(width).zip(grad_x.chunks_exact_mut(width));
    for ((x, grad_out), (out, grad_x)) in rows.zip(slots) {
        let stats = norm::layer_norm(x, weight, bias, epsilon, out)?;
        norm::layer_norm_backward(x, weight, stats, grad_out, grad_x, grad_weight, grad_bias)?;
    }
    Ok(())
}

fn soft_max(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let x = arguments.take::<f32>()?;
    let [width] = arguments.sizes()?;
    let [scale] = arguments.numbers::<f32, 1>()?;
    let grad = arguments.take::<f32>()?;
    let width = width.max(1);
    let (out, grad_x) = (results.tensor(x.len())?, results.tensor(x.len())?);
    let log_sums = results.tensor(x.len() / width)?;
    let rows = x.chunks_exact(width).zip(grad.chunks_exact(width));
    let slots = out.chunks_exact_mut(width).zip(grad_x.chunks_exact_mut(width));
    for (((x, grad), (out, grad_x)), log_sum) in rows.zip(slots).zip(log_sums) {
        softmax::softmax(x, scale, out)?;
        softmax::softmax_backward(out, grad, scale, grad_x)?;
        *log_sum = softmax::log_sum_exp(x, scale);
    }
    Ok(())
}

fn gelu(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let (x, grad) = (arguments.take::<f32>()?, arguments.take::<f32>()?);
    activation::gelu_slice(x, results.tensor(x.len())?)?;
    activation::gelu_backward_slice(x, grad, results.tensor(x.len())?)?;
    for f in [activation::exp, activation::erf] {
        for (slot, &x) in results.tensor(x.len())?.iter_mut().zip(x) {
            *slot = f(x);
        }
    }
    Ok(())
}

fn linear_layer(mut arguments: Tensors<'_>, results: &mut Results<'_>) -> Result<(), Refusal> {
    let x = arguments.take::<f32>()?;
    let [width] = arguments.sizes()?;
    let (weight, bias) = (arguments.take::<f32>()?, arguments.take::<f32>()?);
    let grad_out = arguments.take::<f32>()?;
    let out = results.tensor(product(&[x.len() / width.max(1), bias.len()]))?;
    linear::linear(x, width, weight, Some(bias), out)?;
    let (grad_x, grad_weight) = (results.tensor(x.len())?, results.tensor(weight.len())?);
    let grad_bias = Some(results.tensor(bias.len())?);
    Ok(linear::linear_backward(
        x,
        width,
        weight,
        grad_out,
        grad_x,
        grad_weight,
        grad_bias,
    )?)
}
