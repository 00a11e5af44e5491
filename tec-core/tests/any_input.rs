//! No arguments make an f32 definition panic: sizes that fit nothing, overflow or are zero, values of every kind.
//!
//! Debug builds check overflow as well. Shapes are drawn small and near each other, so that many calls get past the checks.

use proptest::prelude::*;
use tec_core::adapter::{EncoderAdapter, Group, Mlp, encoder_adapter, groups, input_adapter};
use tec_core::norm::{RowStats, layer_norm, layer_norm_backward};
use tec_core::position::{Resample, resize_bicubic, sincos_2d};
use tec_core::{activation, linear, loss, mask, relation, softmax};

fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -4.0f32..4.0,
        1 => any::<u32>().prop_map(f32::from_bits),
        1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0]),
    ]
}

fn values() -> impl Strategy<Value = Vec<f32>> {
    (0usize..=36).prop_flat_map(|length| prop::collection::vec(value(), length))
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![12 => 0usize..=6, 1 => any::<usize>(), 1 => Just(usize::MAX)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn rows(x in values(), y in values(), same: bool, scale in value()) {
        let y = if same { x.clone() } else { y };
        let mut out = y.clone();
        let (mut second, mut third) = (y.clone(), x.clone());
        let _ = activation::gelu_slice(&x, &mut out);
        let _ = activation::gelu_backward_slice(&x, &y, &mut out);
        let _ = softmax::softmax(&x, scale, &mut out);
        let _ = softmax::softmax_backward(&x, &y, scale, &mut out);
        let _ = softmax::log_sum_exp(&x, scale);
        let _ = linear::dot(&x, &y);
        let _ = layer_norm(&x, &y, &x, scale, &mut out);
        let stats = RowStats { mean: scale, rstd: scale };
        let _ = layer_norm_backward(&x, &y, stats, &y, &mut out, &mut second, &mut third);
        let _ = loss::relation_loss(&x, &y);
        let _ = loss::relation_loss_backward(&x, &y, scale, &mut out);
        let _ = activation::erf(scale);
    }

    #[test]
    fn shapes(x in values(), y in values(), a in size(), b in size(), c in size(), scale in value()) {
        let fits = a.checked_mul(b).filter(|&n| n <= 36);
        let mut x = x;
        let mut out = y.clone();
        // Half of the time the first tensor is [a, b].
        if let Some(n) = fits.filter(|_| y.len() % 2 == 0) {
            x.resize(n, scale);
            out.resize(n, 0.0);
        }
        let _ = linear::linear(&x, b, &y, None, &mut out);
        let (mut grad_x, mut grad_weight) = (x.clone(), y.clone());
        let _ = linear::linear_backward(&x, b, &y, &out.clone(), &mut grad_x, &mut grad_weight, Some(&mut out));
        let _ = relation::normalize_features(&x, a, b, &mut out);
        let _ = relation::tempered_target(&x, b, scale, &mut out);
        let mut index = vec![0u32; c.min(8)];
        let _ = relation::rank_queries(&x, a, b, &mut index, &mut vec![0.0; b.min(8)]);
        let _ = relation::target_rows(&x, a, b, &index, &mut out);
        let removed = vec![scale; a.min(8)];
        let _ = loss::feature_loss(&x, &out.clone(), &removed, b);
        let _ = loss::feature_loss_backward(&x, &out.clone(), &removed, b, scale, &mut out);
        let _ = groups(c.min(1000));
    }

    #[test]
    fn masks(noise in values(), keep in size(), ratio: f64, patches in size(), length in 0usize..40) {
        let mut order = vec![7; noise.len()];
        let _ = mask::mask(&noise, keep, &mut order, &mut vec![7; noise.len()], &mut vec![0.0; noise.len()]);
        let _ = mask::mask(&noise, keep, &mut vec![7; length], &mut order, &mut vec![0.0; length]);
        let _ = mask::kept(patches, ratio);
        let _ = mask::kept(patches, ratio.fract().abs());
    }

    #[test]
    fn tables(x in values(), from in size(), to in size(), dim in size(), fit: bool) {
        let mut table = x;
        let mut out = table.clone();
        if fit && from.max(to).max(dim) <= 6 {
            table.resize(from * from * dim, 1.0);
            out.resize(to * to * dim, 1.0);
        }
        for resample in [Resample::Plain, Resample::Antialias] {
            let _ = resize_bicubic(&table, from, to, dim, resample, &mut out);
        }
        let _ = sincos_2d(dim, to, &mut out);
    }

    #[test]
    fn adapters(x in values(), y in values(), count in 0usize..4, width in 0usize..5, hidden in 0usize..5, fit: bool) {
        let mut scratch = y.clone();
        let mut out = vec![0.0; width];
        let part = x.len().checked_div(count).unwrap_or(0);
        let ones = vec![1.0; 200];
        let cut = |n: usize| if fit { &ones[..n.min(200)] } else { &y[..] };
        let mlp = Mlp {
            fc1_weight: cut(hidden * width),
            fc1_bias: cut(hidden),
            fc2_weight: cut(hidden * width),
            fc2_bias: cut(width),
        };
        let group = Group { fuse_weight: cut(width * part), fuse_bias: cut(width), mlp };
        let weights = EncoderAdapter {
            before_weight: cut(x.len()),
            before_bias: cut(x.len()),
            groups: &vec![group; count],
            after_weight: cut(width),
            after_bias: cut(width),
        };
        if fit {
            scratch.resize(weights.scratch_len(), f32::NAN);
        }
        let _ = encoder_adapter(&weights, &x, &mut scratch, &mut out);
        let _ = input_adapter(&x, mlp.fc1_weight, mlp.fc1_bias, mlp.fc2_weight, mlp.fc2_bias, &mut scratch, &mut out);
    }
}
