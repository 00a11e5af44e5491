use candle_core::Var;

use super::super::attention::{self as plan, Attention, Projections};
use super::*;
use crate::ops;

/// How tensors are stored, and in what products are computed.
const F32_ONLY: [(Float, Float); 1] = [(Float::F32, Float::F32)];
const TENSOR_CORES: [(Float, Float); 2] = [(Float::Bf16, Float::Bf16), (Float::F32, Float::Bf16)];
/// Tokens, heads, width of a head.
const SIZES: [(usize, usize, usize); 15] = [
    (1, 1, 16),
    (2, 2, 7),
    (5, 3, 16),
    (50, 2, 64),
    (50, 3, 32),
    (33, 1, 48),
    (64, 1, 80),
    (65, 2, 33),
    (17, 1, 96),
    (64, 2, 64),
    (47, 1, 128),
    (80, 1, 120),
    (129, 1, 128),
    (197, 1, 64),
    (577, 1, 20),
];

fn sizes(modes: &[(Float, Float)]) -> impl Iterator<Item = (Float, Float, usize, usize, usize)> {
    modes
        .iter()
        .flat_map(|&(dtype, compute)| SIZES.map(|(tokens, heads, width)| (dtype, compute, tokens, heads, width)))
}

fn tolerance_of(compute: Float) -> f32 {
    match compute {
        // Sums over up to 577 tokens of differences that nearly cancel.
        Float::F32 => 2.0 * F32,
        Float::Bf16 => BF16,
    }
}

/// Scores that differ enough for softmax to prefer some tokens.
fn projections(seed: u64, n: usize) -> Vec<f32> {
    values(seed, n).iter().map(|v| 2.0 * v).collect()
}

fn joined(modes: &[(Float, Float)]) {
    for (dtype, compute, tokens, heads, head_width) in sizes(modes) {
        let (batch, width) = (if tokens < 60 { 2 } else { 1 }, heads * head_width);
        let skip = tokens % 3;
        let what = format!("{dtype:?} {compute:?} {tokens} {heads} {head_width}");
        let of = Attention {
            dtype,
            compute,
            batch,
            heads,
            queries: tokens,
            tokens,
            head_width,
        };
        let n = batch * tokens * width;
        let qkv = Tensor::new(dtype, &projections(1, 3 * n), skip);
        let grad = Tensor::new(dtype, &values(2, n), skip);
        let (out, grad_qkv) = (Tensor::out(dtype, n, skip), Tensor::out(dtype, 3 * n, skip));
        let scratch = Tensor::out(Float::F32, plan::attention_gradient_scratch(&of), 0);
        let inputs = Projections::Joined(qkv.at());
        let into = Projections::Joined(grad_qkv.at());
        let [result] = twice(&[plan::attention(&of, inputs, out.at())], [&out]);
        let launches = plan::attention_gradient(&of, inputs, grad.at(), into, scratch.at());
        let [grad_result] = twice(&launches, [&grad_qkv]);
        let used = scratch.values().iter().filter(|v| v.is_finite()).count();
        let unused = compute == Float::Bf16 && tokens <= 64;
        assert_eq!(used, if unused { 0 } else { scratch.values().len() }, "{what}");

        let var = Var::from_tensor(&cpu(&qkv.values(), (batch, tokens, 3 * width))).unwrap();
        let expected = ops::attention(&var, heads, ops::Amp::None).unwrap();
        close(&what, &result, &flat(&expected), tolerance_of(compute));
        let wanted = gradients(&expected, &grad.values(), &[&var]);
        close(&what, &grad_result, &wanted[0], tolerance_of(compute));
    }
}

fn apart(modes: &[(Float, Float)]) {
    for (dtype, compute, tokens, heads, head_width) in sizes(modes).filter(|sizes| sizes.2 < 200) {
        let (batch, width) = (2, heads * head_width);
        // Fewer queries than tokens, and more.
        let queries = if tokens == 33 { 70 } else { tokens.div_ceil(4) };
        let what = format!("{dtype:?} {compute:?} {queries} {tokens} {heads} {head_width}");
        let of = Attention {
            dtype,
            compute,
            batch,
            heads,
            queries,
            tokens,
            head_width,
        };
        let (nq, nkv) = (batch * queries * width, 2 * batch * tokens * width);
        let q = Tensor::new(dtype, &projections(1, nq), 0);
        let kv = Tensor::new(dtype, &projections(2, nkv), 1);
        let grad = Tensor::new(dtype, &values(3, nq), 0);
        let (out, grad_q, grad_kv) = (
            Tensor::out(dtype, nq, 0),
            Tensor::out(dtype, nq, 0),
            Tensor::out(dtype, nkv, 0),
        );
        let scratch = Tensor::out(Float::F32, plan::attention_gradient_scratch(&of), 0);
        let inputs = Projections::Apart { q: q.at(), kv: kv.at() };
        let into = Projections::Apart {
            q: grad_q.at(),
            kv: grad_kv.at(),
        };
        let [result] = twice(&[plan::attention(&of, inputs, out.at())], [&out]);
        let launches = plan::attention_gradient(&of, inputs, grad.at(), into, scratch.at());
        let grads = twice(&launches, [&grad_q, &grad_kv]);

        let hosts = [
            cpu(&q.values(), (batch, queries, width)),
            cpu(&kv.values(), (batch, tokens, 2 * width)),
        ];
        let [vq, vkv] = hosts.map(|tensor| Var::from_tensor(&tensor).unwrap());
        let expected = ops::attention_of(&vq, &vkv, heads, ops::Amp::None).unwrap();
        close(&what, &result, &flat(&expected), tolerance_of(compute));
        let wanted = gradients(&expected, &grad.values(), &[&vq, &vkv]);
        // One token's probability is 1: its queries and keys have no gradient, which is no largest value to compare with.
        if tokens > 1 {
            close(&what, &grads[0], &wanted[0], tolerance_of(compute));
        }
        close(&what, &grads[1], &wanted[1], tolerance_of(compute));
    }
}

#[test]
fn joined_in_f32() {
    joined(&F32_ONLY);
}

#[test]
fn apart_in_f32() {
    apart(&F32_ONLY);
}

#[test]
fn joined_on_tensor_cores() {
    joined(&TENSOR_CORES);
}

#[test]
fn apart_on_tensor_cores() {
    apart(&TENSOR_CORES);
}
