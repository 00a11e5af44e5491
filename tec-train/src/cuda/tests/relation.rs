use candle_core::Var;

use super::super::{Float, relation as plan};
use super::*;
use crate::ops;

/// The base's queries, keys and values.
fn base(dtype: Float, qkv: u64, [batch, prefix, patches, width, heads]: [usize; 5]) -> plan::Base {
    plan::Base {
        dtype,
        qkv,
        batch,
        prefix,
        patches,
        width,
        heads,
    }
}

#[test]
fn the_bases_targets() {
    for (sizes, top_k, skip) in [
        ([2, 1, 49, 48, 3], 9, 0),
        ([1, 5, 16, 20, 2], 16, 1),
        ([3, 1, 1, 7, 1], 1, 0),
        ([1, 1, 196, 64, 1], 1, 0),
        ([2, 2, 67, 120, 2], 20, 0),
    ] {
        let [batch, prefix, patches, width, heads] = sizes;
        for dtype in [Float::F32, Float::Bf16] {
            let n = batch * (prefix + patches) * 3 * width;
            let qkv = Tensor::new(dtype, &values(1, n), skip);
            let base = base(dtype, qkv.at(), sizes);
            let index = Buffer::<u32>::poisoned(batch * top_k);
            let picked = Tensor::out(Float::F32, batch * (1 + top_k) * heads * patches, skip);
            let launches = [
                plan::rank_queries(&base, index.address(0), top_k),
                plan::picked_logits(&base, index.address(0), picked.at(), top_k),
            ];
            let [result] = twice(&launches, [&picked]);
            let host = cpu(&qkv.values(), (batch, prefix + patches, 3 * width));
            let (expected, expected_index) = ops::base_relation(&host, heads, prefix, top_k).unwrap();
            let expected_index: Vec<u32> = expected_index.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(index.values(), expected_index, "{sizes:?} {dtype:?}");
            close(&format!("{sizes:?} {dtype:?}"), &result, &flat(&expected), F32);
        }
    }
}

#[test]
fn of_equal_patches_the_lower_comes_first_and_nan_is_flagged() {
    let (patches, width) = (12, 4);
    let mut qkv = vec![0.0; 2 * (1 + patches) * 3 * width];
    for image in qkv.chunks_mut((1 + patches) * 3 * width) {
        image[..width].fill(1.0);
        for patch in 0..patches {
            image[(1 + patch) * 3 * width + width] = (patch % 3) as f32;
        }
    }
    // One NaN among the second image's keys.
    qkv[(1 + patches) * 3 * width + 5 * 3 * width + width] = f32::NAN;
    let qkv = Tensor::f32(&qkv);
    let index = Buffer::<u32>::poisoned(2 * 6);
    let base = base(Float::F32, qkv.at(), [2, 1, patches, width, 2]);
    run(&plan::rank_queries(&base, index.address(0), 6));
    assert_eq!(index.values()[..6], [2, 5, 8, 11, 1, 4]);
    assert_eq!(index.values()[6..], [plan::NO_PATCH; 6]);
    let picked = Tensor::out(Float::F32, 2 * 7 * 2 * patches, 0);
    run(&plan::picked_logits(&base, index.address(0), picked.at(), 6));
    let picked = picked.values();
    assert!(picked[..7 * 2 * patches].iter().all(|v| v.is_finite()));
    assert!(picked[8 * 2 * patches..].iter().all(|v| v.is_nan()));
}

#[test]
fn relation_logits_and_gradients() {
    for (batch, queries, patches, width, heads) in [
        (2, 10, 49, 48, 3),
        (1, 1, 1, 5, 1),
        (3, 17, 65, 64, 2),
        (1, 50, 196, 96, 1),
    ] {
        for (dtype, skip) in [(Float::F32, 0), (Float::F32, 1), (Float::Bf16, 1)] {
            let what = format!("{batch} {queries} {patches} {width} {heads} {dtype:?}");
            let q = Tensor::new(dtype, &values(1, batch * queries * width), skip);
            let k = Tensor::new(dtype, &values(2, batch * (1 + patches) * width), skip);
            let logits = Tensor::out(Float::F32, batch * queries * heads * patches, skip);
            let of = plan::Relation {
                dtype,
                q: q.at(),
                k: k.at(),
                batch,
                queries,
                patches,
                width,
                heads,
                scale: 0.37,
            };
            let [result] = twice(&[plan::relation_logits(&of, logits.at())], [&logits]);
            let hosts = [
                cpu(&q.values(), (batch, queries, width)),
                cpu(&k.values(), (batch, 1 + patches, width)),
            ];
            let [vq, vk] = hosts.map(|tensor| Var::from_tensor(&tensor).unwrap());
            let expected = ops::relation_logits(&vq, &vk, heads, 0.37).unwrap();
            close(&what, &result, &flat(&expected), F32);

            let grad = values(3, logits.values().len());
            let dgrad = Tensor::new(Float::F32, &grad, skip);
            let grad_q = Tensor::out(Float::F32, batch * queries * width, skip);
            let grad_k = Tensor::out(Float::F32, batch * (1 + patches) * width, skip);
            let launches = plan::relation_gradients(&of, dgrad.at(), grad_q.at(), grad_k.at());
            let results = twice(&launches, [&grad_q, &grad_k]);
            let wanted = gradients(&expected, &grad, &[&vq, &vk]);
            close(&what, &results[0], &wanted[0], F32);
            close(&what, &results[1], &wanted[1], F32);
        }
    }
}

#[test]
fn tempered_targets_and_normalized_features() {
    for (rows, patches, skip) in [(1, 1, 0), (9, 49, 1), (16, 196, 0), (3, 33, 0)] {
        let x: Vec<f32> = values(1, rows * patches).iter().map(|v| 9.0 * v).collect();
        let (dx, y) = (
            Tensor::new(Float::F32, &x, skip),
            Tensor::out(Float::F32, x.len(), skip),
        );
        run(&plan::tempered_target(dx.at(), y.at(), rows, patches, 1.8));
        let expected = ops::tempered_target(&cpu(&x, (rows, patches)), 1.8).unwrap();
        close(&format!("{rows} {patches}"), &y.values(), &flat(&expected), F32);
    }
    for (shape, skip) in [([2, 49, 96], 0), ([1, 2, 1], 1), ([3, 17, 33], 1), ([1, 8, 64], 0)] {
        let x: Vec<f32> = values(2, shape.iter().product()).iter().map(|v| v + 3.0).collect();
        let (dx, y) = (
            Tensor::new(Float::F32, &x, skip),
            Tensor::out(Float::F32, x.len(), skip),
        );
        let [result] = twice(&[plan::normalize_features(dx.at(), y.at(), shape)], [&y]);
        let expected = ops::normalize_features(&cpu(&x, shape.to_vec())).unwrap();
        close(&format!("{shape:?}"), &result, &flat(&expected), F32);
    }
}
