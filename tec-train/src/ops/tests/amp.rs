//! Mixed precision: what is rounded, what is not, and how near the results are to f32 ones.

use candle_core::{DType, Tensor, Var};

use super::{CPU, close, flat, value_and_gradients, values};
use crate::ops::{self, Amp, BranchWeights, Middle, composed};

/// The nearest value with 8 significant bits, by the arithmetic of the numbers alone.
fn rounded(x: f32) -> f64 {
    let x = f64::from(x);
    if x == 0.0 {
        return 0.0;
    }
    let ulp = (x.abs().log2().floor() - 7.0).exp2();
    (x / ulp).round_ties_even() * ulp
}

fn matrix(x: &Tensor) -> Vec<Vec<f32>> {
    let width = x.dims().last().copied().unwrap();
    flat(x).chunks(width).map(<[f32]>::to_vec).collect()
}

/// `a b` of factors rounded here, summed in f64.
fn product(a: &Tensor, b: &Tensor) -> Tensor {
    let (a, b) = (matrix(a), matrix(b));
    let columns = b[0].len();
    let sum =
        |row: &[f32], column: usize| -> f64 { row.iter().zip(&b).map(|(a, b)| rounded(*a) * rounded(b[column])).sum() };
    let all: Vec<f32> = a
        .iter()
        .flat_map(|row| (0..columns).map(move |column| sum(row, column) as f32))
        .collect();
    Tensor::from_vec(all, (a.len(), columns), &CPU).unwrap()
}

#[test]
fn factors_are_rounded_and_sums_are_not() {
    let [x, weight, bias] = [&[9, 37][..], &[11, 37], &[11]].map(|shape| Var::from_tensor(&values(shape, 3)).unwrap());
    let y = ops::linear(&x, &weight, Some(&bias), Amp::Bf16).unwrap();
    let expected = product(&x, &weight.t().unwrap().contiguous().unwrap());
    close("result", &y, &expected.broadcast_add(&bias).unwrap(), 1e-6);

    let upstream = values(&[9, 11], 7);
    let grads = (y * &upstream).unwrap().sum_all().unwrap().backward().unwrap();
    let grad = |of: &Var| grads.get(of).unwrap();
    close("input gradient", grad(&x), &product(&upstream, &weight), 1e-6);
    let turned = upstream.t().unwrap().contiguous().unwrap();
    close("weight gradient", grad(&weight), &product(&turned, &x), 1e-6);
    close("bias gradient", grad(&bias), &upstream.sum(0).unwrap(), 1e-6);
}

#[test]
fn bf16_tensors_give_bf16_results() {
    let (x, weight) = (values(&[2, 9, 36], 1), values(&[36, 36], 2));
    let half = x.to_dtype(DType::BF16).unwrap();
    let back = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
    let exact = ops::linear(&x, &weight, None, Amp::Bf16).unwrap();
    let y = ops::linear(&half, &weight, None, Amp::None).unwrap();
    assert_eq!((exact.dtype(), y.dtype()), (DType::F32, DType::BF16));
    for (exact, y) in flat(&exact).into_iter().zip(flat(&back(&y))) {
        assert_eq!(rounded(exact), f64::from(y));
    }
    for (what, exact, y) in [
        ("gelu", ops::gelu(&back(&half)), ops::gelu(&half)),
        (
            "attention",
            ops::attention(&x, 3, Amp::Bf16),
            ops::attention(&half, 3, Amp::None),
        ),
    ] {
        let (exact, y) = (exact.unwrap(), y.unwrap());
        assert_eq!((exact.dtype(), y.dtype()), (DType::F32, DType::BF16), "{what}");
        for (exact, y) in flat(&exact).into_iter().zip(flat(&back(&y))) {
            assert_eq!(rounded(exact), f64::from(y), "{what}");
        }
    }
}

/// Rounding moves a factor by 1/512 at most, and errors of a sum's terms partly cancel.
#[test]
fn attention_is_near_that_of_f32() {
    let args = [values(&[2, 7, 24], 1), values(&[2, 30, 48], 2)];
    let of = |amp| value_and_gradients(|x| ops::attention_of(&x[0], &x[1], 3, amp), &args, false);
    let expected = value_and_gradients(|x| Ok(composed::attention_of(&x[0], &x[1], 3)?), &args, false);
    let actual = of(Amp::Bf16);
    assert_ne!(flat(&actual.0), flat(&of(Amp::None).0));
    close("result", &actual.0, &expected.0, 5e-3);
    for (actual, expected) in actual.1.iter().zip(&expected.1) {
        close("gradient", actual, expected, 5e-3);
    }
}

#[test]
fn branches_are_near_those_of_f32_and_their_gradients_f32() {
    for (name, middle, first, inner) in [
        ("attention", Middle::Attention { heads: 3 }, 72, 24),
        ("mlp", Middle::Gelu, 96, 96),
    ] {
        let shapes: [&[usize]; 7] = [&[3, 17, 24], &[24], &[24], &[first, 24], &[first], &[24, inner], &[24]];
        let args: Vec<Tensor> = shapes
            .iter()
            .zip(1..)
            .map(|(shape, seed)| values(shape, seed))
            .collect();
        let of = |amp, threads: usize, checkpoint| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let branch = |x: &[Tensor]| {
                let pair = |at: usize| [x[at].clone(), x[at + 1].clone()];
                let weights = BranchWeights {
                    norm: pair(1),
                    eps: 1e-6,
                    first: pair(3),
                    second: pair(5),
                    amp,
                };
                ops::branch(&x[0], &weights, middle, checkpoint)
            };
            let (y, grads) = pool.install(|| value_and_gradients(branch, &args, false));
            [y].into_iter().chain(grads).collect::<Vec<_>>()
        };
        let (exact, kept) = (of(Amp::None, 1, false), of(Amp::Bf16, 1, false));
        for (i, (kept, exact)) in kept.iter().zip(&exact).enumerate() {
            assert_eq!(kept.dtype(), DType::F32, "{name} {i}");
            // The second bias' gradient is a sum of what nothing has rounded.
            if i != 7 {
                assert_ne!(flat(kept), flat(exact), "{name} {i}");
            }
            close(&format!("{name} {i}"), kept, exact, 2e-2);
        }
        let bits = |all: &[Tensor]| all.iter().flat_map(flat).map(f32::to_bits).collect::<Vec<_>>();
        assert!(bits(&kept) == bits(&of(Amp::Bf16, 3, false)), "{name}: threads");
        assert!(bits(&kept) == bits(&of(Amp::Bf16, 2, true)), "{name}: computed again");
        let grad_bias = flat(&kept[7]);
        assert_eq!(grad_bias, flat(&exact[7]), "{name}: the second bias");
    }
}
