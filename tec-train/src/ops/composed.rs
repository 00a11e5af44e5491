//! The operations written with candle's own differentiable operations, slow and easy to check.

use candle_core::{D, DType, Tensor};

use super::PatchOrder;

type Result<T> = candle_core::Result<T>;

pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let y = x.reshape(((), inputs))?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    y.reshape(shape)
}

pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let std = (centered.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    centered.broadcast_div(&std)?.broadcast_mul(weight)?.broadcast_add(bias)
}

pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    x.broadcast_sub(&x.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// One of the `parts` in a `[B, N, parts * D]` product of a projection, as `[B, heads, N, D / heads]`.
fn part(x: &Tensor, parts: usize, which: usize, heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    x.reshape((batch, tokens, parts, heads, width / parts / heads))?
        .narrow(2, which, 1)?
        .squeeze(2)?
        .transpose(1, 2)?
        .contiguous()
}

pub fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = qkv.dims3()?;
    let [q, k, v] = [
        part(qkv, 3, 0, heads)?,
        part(qkv, 3, 1, heads)?,
        part(qkv, 3, 2, heads)?,
    ];
    let scale = 1.0 / ((width / 3 / heads) as f64).sqrt();
    let logits = (q.matmul(&k.t()?)? * scale)?;
    softmax(&logits)?
        .matmul(&v)?
        .transpose(1, 2)?
        .reshape((batch, tokens, width / 3))
}

pub fn patchify(images: &Tensor, patch: usize, order: PatchOrder) -> Result<Tensor> {
    let (batch, channels, height, width) = images.dims4()?;
    let (rows, columns) = (height / patch, width / patch);
    let x = images.reshape(&[batch, channels, rows, patch, columns, patch][..])?;
    let x = match order {
        PatchOrder::ChannelsFirst => x.permute(vec![0, 2, 4, 1, 3, 5])?,
        PatchOrder::ChannelsLast => x.permute(vec![0, 2, 4, 3, 5, 1])?,
    };
    x.reshape((batch, rows * columns, patch * patch * channels))
}

pub fn gather_tokens(x: &Tensor, index: &Tensor) -> Result<Tensor> {
    let (batch, n) = index.dims2()?;
    let index = index.unsqueeze(2)?.broadcast_as((batch, n, x.dim(2)?))?.contiguous()?;
    x.contiguous()?.gather(&index, 1)
}

pub fn unmask(x: &Tensor, mask_tokens: &Tensor, restore: &Tensor) -> Result<Tensor> {
    let (batch, visible, width) = x.dims3()?;
    let patches = restore.dim(1)?;
    // What each place is filled with from the visible patches, the last one standing in where none is.
    let last = (visible - 2) as f64;
    let places = restore.to_dtype(DType::F32)?.minimum(last)?.to_dtype(DType::U32)?;
    let filled = gather_tokens(&x.narrow(1, 1, visible - 1)?, &places)?;
    let removed = restore
        .to_dtype(DType::F32)?
        .gt(last)?
        .to_dtype(DType::F32)?
        .unsqueeze(2)?;
    let tokens = mask_tokens.unsqueeze(0)?.broadcast_as((batch, patches, width))?;
    let patches = (filled.broadcast_mul(&(1.0 - &removed)?)? + tokens.broadcast_mul(&removed)?)?;
    Tensor::cat(&[&x.narrow(1, 0, 1)?, &patches], 1)
}

pub fn feature_loss(pred: &Tensor, target: &Tensor, removed: &Tensor) -> Result<Tensor> {
    let per_patch = (pred - target)?.sqr()?.mean(D::Minus1)?;
    (per_patch * removed)?.sum_all()?.div(&removed.sum_all()?)
}

pub fn relation_logits(q: &Tensor, k: &Tensor, heads: usize, scale: f32) -> Result<Tensor> {
    let (q, k) = (part(q, 1, 0, heads)?, part(k, 1, 0, heads)?);
    let logits = (q.matmul(&k.t()?)? * f64::from(scale))?;
    logits.narrow(3, 1, k.dim(2)? - 1)?.transpose(1, 2)?.contiguous()
}

pub fn attention_of(q: &Tensor, kv: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let [q, k, v] = [part(q, 1, 0, heads)?, part(kv, 2, 0, heads)?, part(kv, 2, 1, heads)?];
    let logits = (q.matmul(&k.t()?)? / ((width / heads) as f64).sqrt())?;
    softmax(&logits)?
        .matmul(&v)?
        .transpose(1, 2)?
        .reshape((batch, queries, width))
}

pub fn relation_loss(pred: &Tensor, target: &Tensor) -> Result<Tensor> {
    (target * log_softmax(pred)?)?.sum(D::Minus1)?.neg()?.mean_all()
}

pub fn base_relation(qkv: &Tensor, heads: usize, prefix: usize, top_k: usize) -> Result<(Tensor, Tensor)> {
    let (batch, tokens, width) = qkv.dims3()?;
    let (q, k) = (part(qkv, 3, 0, heads)?, part(qkv, 3, 1, heads)?);
    let scale = 1.0 / ((width / 3 / heads) as f64).sqrt();
    let logits = (q.matmul(&k.t()?)? * scale)?.narrow(3, prefix, tokens - prefix)?;
    let ranks: Vec<Vec<f32>> = logits
        .narrow(2, 0, 1)?
        .squeeze(2)?
        .mean(1)?
        .to_dtype(DType::F32)?
        .to_vec2()?;
    let mut index = Vec::new();
    for rank in &ranks {
        let mut order: Vec<u32> = (0..rank.len() as u32).collect();
        order.sort_by(|&a, &b| rank[b as usize].total_cmp(&rank[a as usize]));
        index.extend_from_slice(&order[..top_k]);
    }
    let rows: Vec<u32> = index
        .chunks(top_k.max(1))
        .flat_map(|image| std::iter::once(0).chain(image.iter().map(|&patch| patch + prefix as u32)))
        .collect();
    let rows = Tensor::from_vec(rows, (batch, 1, 1 + top_k, 1), qkv.device())?
        .broadcast_as((batch, heads, 1 + top_k, tokens - prefix))?
        .contiguous()?;
    let picked = logits.contiguous()?.gather(&rows, 2)?.transpose(1, 2)?.contiguous()?;
    Ok((picked, Tensor::from_vec(index, (batch, top_k), qkv.device())?))
}

pub fn tempered_target(picked: &Tensor, tau: f32) -> Result<Tensor> {
    softmax(&(picked / f64::from(tau))?)
}

pub fn normalize_features(x: &Tensor) -> Result<Tensor> {
    let patches = x.dim(1)?;
    let centered = x.broadcast_sub(&x.mean_keepdim(1)?)?;
    let variance = (centered.sqr()?.sum_keepdim(1)? / (patches as f64 - 1.0))?;
    centered.broadcast_div(&(variance + 1e-6)?.sqrt()?)
}
