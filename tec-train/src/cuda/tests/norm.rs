use candle_core::Var;

use super::super::{Float, norm as plan};
use super::*;
use crate::ops;

const EPS: f32 = 1e-6;
const TYPES: [Float; 2] = [Float::F32, Float::Bf16];

/// Rows whose mean is far from zero, so that a one-pass variance would show.
fn rows(seed: u64, n: usize) -> Vec<f32> {
    values(seed, n).iter().map(|v| 2.0 * v + 5.0).collect()
}

/// Rows, widths and elements that tensors are shifted by.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 0),
    (3, 7, 0),
    (19, 96, 0),
    (9, 96, 1),
    (50, 50, 2),
    (8, 1024, 0),
    (3, 1027, 0),
    (2, 9216, 4),
];

#[test]
fn layer_norm_of_any_width() {
    for (dtype, (n, width, skip)) in TYPES.into_iter().flat_map(|d| SHAPES.map(|s| (d, s))) {
        let (x, weight, bias) = (rows(1, n * width), values(2, width), values(3, width));
        let tensor = |values: &[f32]| Tensor::new(Float::F32, values, skip);
        let (dx, dweight, dbias) = (tensor(&x), tensor(&weight), tensor(&bias));
        let y = Tensor::out(dtype, n * width, skip);
        let launch = plan::layer_norm(dtype, dx.at(), dweight.at(), dbias.at(), y.at(), n, width, EPS);
        let [result] = twice(&[launch], [&y]);
        let expected = ops::layer_norm(&cpu(&x, (n, width)), &cpu(&weight, width), &cpu(&bias, width), EPS).unwrap();
        close(
            &format!("{dtype:?} {n} {width}"),
            &result,
            &flat(&expected),
            tolerance(dtype),
        );
    }
}

#[test]
fn layer_norm_gradients() {
    let many = [(300, 40, 0), (4103, 33, 0)];
    let shapes = SHAPES.into_iter().skip(1).chain(many);
    for (dtype, (n, width, skip)) in shapes.flat_map(|s| TYPES.map(|d| (d, s))) {
        let (x, weight) = (rows(4, n * width), values(5, width));
        let grad = Tensor::new(dtype, &values(6, n * width), skip);
        let residual = Tensor::new(Float::F32, &values(7, n * width), skip);
        let (dx, dweight) = (
            Tensor::new(Float::F32, &x, skip),
            Tensor::new(Float::F32, &weight, skip),
        );
        for with_residual in [false, true] {
            let what = format!("{dtype:?} {n} {width} {with_residual}");
            let out = |n| Tensor::out(Float::F32, n, skip);
            let (grad_x, grad_weight, grad_bias) = (out(n * width), out(width), out(width));
            let scratch = out(plan::layer_norm_gradient_scratch(n, width));
            let launches = plan::layer_norm_gradient(
                dtype,
                &plan::LayerNormGradient {
                    x: dx.at(),
                    weight: dweight.at(),
                    grad: grad.at(),
                    residual: if with_residual { residual.at() } else { 0 },
                    grad_x: grad_x.at(),
                    grad_weight: grad_weight.at(),
                    grad_bias: grad_bias.at(),
                    scratch: scratch.at(),
                    rows: n,
                    width,
                    eps: EPS,
                },
            );
            let results = twice(&launches, [&grad_x, &grad_weight, &grad_bias]);
            scratch.values();
            let shape = (n, width);
            let vars = [cpu(&x, shape), cpu(&weight, width), cpu(&vec![0.0; width], width)];
            let [vx, vweight, vbias] = vars.map(|tensor| Var::from_tensor(&tensor).unwrap());
            let y = ops::layer_norm(&vx, &vweight, &vbias, EPS).unwrap();
            let mut expected = gradients(&y, &grad.values(), &[&vx, &vweight, &vbias]);
            if with_residual {
                expected[0]
                    .iter_mut()
                    .zip(residual.values())
                    .for_each(|(v, more)| *v += more);
            }
            // One row's own values cancel where it is narrow.
            close(&what, &results[0], &expected[0], 2.0 * F32);
            close(&what, &results[1], &expected[1], 2.0 * F32);
            close(&what, &results[2], &expected[2], F32);
        }
    }
}

#[test]
fn column_sums_are_exact_of_integers() {
    for (dtype, n, width, skip) in [
        (Float::F32, 1, 1, 0),
        (Float::F32, 33, 31, 1),
        (Float::Bf16, 5000, 65, 1),
        (Float::F32, 4096, 32, 0),
        (Float::Bf16, 31, 130, 0),
    ] {
        let x: Vec<f32> = (0..n * width).map(|i| (i % 13) as f32 - (i % 7) as f32).collect();
        let (dx, sums) = (Tensor::new(dtype, &x, skip), Tensor::out(Float::F32, width, skip));
        let scratch = Tensor::out(Float::F32, plan::column_sums_scratch(n, width), 0);
        let launches = plan::column_sums(dtype, dx.at(), sums.at(), scratch.at(), n, width);
        let [result] = twice(&launches, [&sums]);
        scratch.values();
        let expected: Vec<f32> = (0..width).map(|c| x.iter().skip(c).step_by(width).sum()).collect();
        assert_eq!(result, expected, "{dtype:?} {n} {width}");
    }
}
