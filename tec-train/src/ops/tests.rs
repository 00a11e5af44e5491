//! Every operation against candle's own differentiable operations, values and gradients.

mod amp;
mod branch;

use candle_core::{Device, Result, Tensor, Var};

use super::{Amp, PatchOrder, composed};

const CPU: Device = Device::Cpu;

/// Values in -1..1 that depend on the seed only.
fn values(shape: &[usize], seed: u64) -> Tensor {
    let noise = tec_core::philox::Noise {
        seed,
        epoch: 0,
        sample: 0,
        stream: tec_core::philox::Stream::Init,
    };
    let n = shape.iter().product::<usize>() as u32;
    let values: Vec<f32> = (0..n).map(|i| 2.0 * noise.uniform(i) - 1.0).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap()
}

/// Indices below `end`; distinct within a row when the row is not longer than `end`.
fn index(rows: usize, n: usize, end: usize) -> Tensor {
    let values: Vec<u32> = (0..rows * n).map(|i| ((i * 5 + i / n) % end) as u32).collect();
    Tensor::from_vec(values, (rows, n), &CPU).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// max|a - b| / max|b| is at most `tolerance`.
fn close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let (a, b) = (flat(actual), flat(expected));
    let largest = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(largest > 0.0, "{what}: everything expected is zero");
    let error = a.iter().zip(&b).fold(0.0f32, |m, (a, b)| {
        if a.is_nan() {
            f32::INFINITY
        } else {
            m.max((a - b).abs())
        }
    });
    assert!(error <= tolerance * largest, "{what}: {error} of {largest}");
}

/// A slice out of the middle of a larger tensor with the values of `x`, not contiguous where `x` has two axes or more.
fn sliced(x: &Tensor) -> Tensor {
    let padded = x
        .dims()
        .iter()
        .enumerate()
        .fold(x.clone(), |x, (axis, _)| x.pad_with_zeros(axis, 1, 2).unwrap());
    x.dims()
        .iter()
        .enumerate()
        .fold(padded, |x, (axis, &len)| x.narrow(axis, 1, len).unwrap())
}

/// The value and the gradients of a weighted sum of `op`'s result.
fn value_and_gradients(
    op: impl Fn(&[Tensor]) -> crate::Result<Tensor>,
    inputs: &[Tensor],
    slice: bool,
) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let args: Vec<Tensor> = vars
        .iter()
        .map(|x| if slice { sliced(x) } else { x.as_tensor().clone() })
        .collect();
    let y = op(&args).unwrap();
    // Multiplied the other way round, so that the operation gets a gradient that is not contiguous.
    let upstream = values(&y.dims().iter().rev().copied().collect::<Vec<_>>(), 99);
    let turned = y.permute((0..y.rank()).rev().collect::<Vec<_>>()).unwrap();
    let grads = super::backward(&(turned * upstream).unwrap().sum_all().unwrap()).unwrap();
    let grads = vars
        .iter()
        .map(|x| grads.get(x).expect("a gradient for every input").clone())
        .collect();
    (y, grads)
}

/// Compares an operation with its composition: contiguous and sliced inputs, one and three threads.
fn compare(
    what: &str,
    inputs: &[Tensor],
    op: impl Fn(&[Tensor]) -> crate::Result<Tensor> + Sync,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let (y, grads) = value_and_gradients(|x| Ok(reference(x)?), inputs, false);
    let on_threads = |n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| value_and_gradients(&op, inputs, false))
    };
    let bits = |(y, grads): &(Tensor, Vec<Tensor>)| -> Vec<u32> {
        std::iter::once(y)
            .chain(grads)
            .flat_map(flat)
            .map(f32::to_bits)
            .collect()
    };
    let one = on_threads(1);
    close(what, &one.0, &y, 2e-6);
    for (i, (actual, expected)) in one.1.iter().zip(&grads).enumerate() {
        close(&format!("{what}, gradient {i}"), actual, expected, 1e-5);
    }
    assert!(
        bits(&one) == bits(&on_threads(3)),
        "{what}: results depend on the number of threads"
    );
    let slices = value_and_gradients(&op, inputs, true);
    assert!(bits(&one) == bits(&slices), "{what}: sliced inputs give other results");
}

#[test]
fn linear() {
    for (shape, outputs) in [
        (vec![3, 50, 24], 40),
        (vec![7, 13], 5),
        (vec![1, 1, 8], 3),
        (vec![8, 65, 96], 288),
    ] {
        let inputs = shape[shape.len() - 1];
        let args = [values(&shape, 1), values(&[outputs, inputs], 2), values(&[outputs], 3)];
        compare(
            "linear",
            &args,
            |x| super::linear(&x[0], &x[1], Some(&x[2]), Amp::None),
            |x| composed::linear(&x[0], &x[1], Some(&x[2])),
        );
        compare(
            "linear without bias",
            &args[..2],
            |x| super::linear(&x[0], &x[1], None, Amp::None),
            |x| composed::linear(&x[0], &x[1], None),
        );
    }
}

#[test]
fn linear_agrees_with_core() {
    let (x, w, b) = (values(&[5, 37], 1), values(&[11, 37], 2), values(&[11], 3));
    let mut expected = vec![0.0; 55];
    tec_core::linear::linear(&flat(&x), 37, &flat(&w), Some(&flat(&b)), &mut expected).unwrap();
    let expected = Tensor::from_vec(expected, (5, 11), &CPU).unwrap();
    close(
        "linear",
        &super::linear(&x, &w, Some(&b), Amp::None).unwrap(),
        &expected,
        1e-6,
    );
}

#[test]
fn linear_refuses_other_shapes() {
    let (x, w, b) = (values(&[5, 37], 1), values(&[11, 36], 2), values(&[11], 3));
    assert!(super::linear(&x, &w, Some(&b), Amp::None).is_err());
    assert!(super::linear(&x, &values(&[11, 37], 1), Some(&values(&[10], 1)), Amp::None).is_err());
}

#[test]
fn linear_gives_no_gradient_to_constants() {
    let weight = Var::from_tensor(&values(&[4, 6], 1)).unwrap();
    let x = values(&[3, 6], 2);
    let grads = super::linear(&x, &weight, None, Amp::None)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    assert!(grads.get(&weight).is_some());
    assert!(grads.get(&x).is_none());
}

#[test]
fn layer_norm() {
    for shape in [vec![3, 50, 24], vec![400, 61], vec![2, 1, 8]] {
        let width = shape[shape.len() - 1];
        let args = [values(&shape, 1), values(&[width], 2), values(&[width], 3)];
        compare(
            "layer_norm",
            &args,
            |x| super::layer_norm(&x[0], &x[1], &x[2], 1e-5),
            |x| composed::layer_norm(&x[0], &x[1], &x[2], 1e-5),
        );
    }
    assert!(super::layer_norm(&values(&[2, 3], 1), &values(&[4], 1), &values(&[4], 1), 1e-6).is_err());
}

#[test]
fn gelu() {
    let x = [(values(&[5, 50, 200], 1) * 4.0).unwrap()];
    compare("gelu", &x, |x| super::gelu(&x[0]), |x| x[0].gelu_erf());
}

#[test]
fn add() {
    let args = [values(&[5, 50, 100], 1), values(&[5, 50, 100], 2)];
    compare("add", &args, |x| super::add(&x[0], &x[1]), |x| &x[0] + &x[1]);
    assert!(super::add(&args[0], &values(&[100], 3)).is_err());
}

#[test]
fn attention() {
    for (batch, tokens, heads, head) in [
        (4, 50, 3, 16),
        (2, 13, 4, 5),
        (3, 65, 2, 32),
        (1, 1, 1, 4),
        (2, 257, 1, 24),
    ] {
        // Large enough for peaked rows.
        let qkv = [(values(&[batch, tokens, 3 * heads * head], 1) * 3.0).unwrap()];
        if tokens == 1 {
            // Queries and keys of a single token have no gradient, values do.
            let (_, grads) = value_and_gradients(|x| super::attention(&x[0], heads, Amp::None), &qkv, false);
            let grad = flat(&grads[0]);
            assert!(grad[..8].iter().all(|&v| v == 0.0) && grad[8..].iter().all(|&v| v != 0.0));
            continue;
        }
        compare(
            "attention",
            &qkv,
            |x| super::attention(&x[0], heads, Amp::None),
            |x| composed::attention(&x[0], heads),
        );
    }
    assert!(super::attention(&values(&[1, 2, 12], 1), 3, Amp::None).is_err());
    assert!(super::attention(&values(&[1, 2, 12], 1), 0, Amp::None).is_err());
}

#[test]
fn attention_of_some_queries() {
    for (batch, queries, tokens, heads, head) in [(4, 7, 50, 3, 16), (2, 13, 5, 4, 5), (1, 1, 3, 1, 4)] {
        let args = [
            (values(&[batch, queries, heads * head], 1) * 3.0).unwrap(),
            (values(&[batch, tokens, 2 * heads * head], 2) * 3.0).unwrap(),
        ];
        compare(
            "attention_of",
            &args,
            |x| super::attention_of(&x[0], &x[1], heads, Amp::None),
            |x| composed::attention_of(&x[0], &x[1], heads),
        );
    }
    let (q, kv) = (values(&[2, 5, 12], 1), values(&[2, 7, 24], 2));
    assert!(super::attention_of(&q, &kv, 5, Amp::None).is_err());
    assert!(super::attention_of(&q, &q, 3, Amp::None).is_err());
    assert!(super::attention_of(&q, &values(&[1, 7, 24], 2), 3, Amp::None).is_err());
}

#[test]
fn attention_gradient_agrees_with_differences() {
    let qkv = values(&[1, 5, 12], 7);
    let upstream = values(&[1, 5, 4], 8);
    let weighted = |qkv: &Tensor| {
        (super::attention(qkv, 2, Amp::None).unwrap() * &upstream)
            .unwrap()
            .sum_all()
            .unwrap()
    };
    let var = Var::from_tensor(&qkv).unwrap();
    let grads = weighted(&var).backward().unwrap();
    let (grad, x, step) = (flat(grads.get(&var).unwrap()), flat(&qkv), 1e-2);
    for i in 0..x.len() {
        let at = |delta: f32| {
            let mut x = x.clone();
            x[i] += delta;
            weighted(&Tensor::from_vec(x, (1, 5, 12), &CPU).unwrap())
                .to_scalar::<f32>()
                .unwrap()
        };
        let difference = (at(step) - at(-step)) / (2.0 * step);
        assert!((difference - grad[i]).abs() < 1e-3, "{i}: {difference} and {}", grad[i]);
    }
}

#[test]
fn patchify() {
    let images = values(&[3, 2, 8, 12], 1);
    for order in [PatchOrder::ChannelsFirst, PatchOrder::ChannelsLast] {
        for images in [images.clone(), sliced(&images)] {
            let patches = super::patchify(&images, 4, order).unwrap();
            assert_eq!(flat(&patches), flat(&composed::patchify(&images, 4, order).unwrap()));
            assert_eq!(patches.dims(), [3, 6, 32]);
        }
    }
    assert!(super::patchify(&images, 5, PatchOrder::ChannelsLast).is_err());
    assert!(super::patchify(&images, 0, PatchOrder::ChannelsLast).is_err());
}

#[test]
fn gather_tokens() {
    // Once distinct, once repeated.
    for n in [4, 20] {
        let index = index(3, n, 9);
        compare(
            "gather_tokens",
            &[values(&[3, 9, 5], 1)],
            |x| super::gather_tokens(&x[0], &index),
            |x| composed::gather_tokens(&x[0], &index),
        );
    }
    assert!(super::gather_tokens(&values(&[3, 9, 5], 1), &index(3, 4, 11)).is_err());
    assert!(super::gather_tokens(&values(&[3, 9, 5], 1), &index(2, 4, 9)).is_err());
}

/// For every image a permutation of the patches.
fn restore(batch: usize, patches: usize) -> Tensor {
    let values: Vec<u32> = (0..batch * patches)
        .map(|i| ((i % patches * 7 + i / patches) % patches) as u32)
        .collect();
    Tensor::from_vec(values, (batch, patches), &CPU).unwrap()
}

#[test]
fn unmask() {
    let restore = restore(5, 9);
    let args = [values(&[5, 4, 6], 1), values(&[9, 6], 2)];
    compare(
        "unmask",
        &args,
        |x| super::unmask(&x[0], &x[1], &restore),
        |x| composed::unmask(&x[0], &x[1], &restore),
    );
    let whole = values(&[5, 10, 6], 3);
    let unmasked = super::unmask(&whole, &args[1], &restore).unwrap();
    close(
        "nothing removed",
        &unmasked,
        &composed::unmask(&whole, &args[1], &restore).unwrap(),
        0.0,
    );
    assert!(super::unmask(&values(&[5, 11, 6], 1), &args[1], &restore).is_err());
    assert!(super::unmask(&args[0], &args[1], &index(5, 9, 10)).is_err());
}

#[test]
fn feature_loss() {
    let target = values(&[4, 9, 30], 2);
    let removed = Tensor::from_vec(
        (0..36).map(|i| (i % 3 != 0) as u8 as f32).collect::<Vec<_>>(),
        (4, 9),
        &CPU,
    )
    .unwrap();
    compare(
        "feature_loss",
        &[values(&[4, 9, 30], 1)],
        |x| super::feature_loss(&x[0], &target, &removed),
        |x| composed::feature_loss(&x[0], &target, &removed),
    );
    let nothing = removed.zeros_like().unwrap();
    assert!(super::feature_loss(&target, &target, &nothing).is_err());
    assert!(super::feature_loss(&target, &target, &removed.t().unwrap()).is_err());
}

#[test]
fn relation_logits() {
    let args = [values(&[4, 6, 12], 1), values(&[4, 10, 12], 2)];
    compare(
        "relation_logits",
        &args,
        |x| super::relation_logits(&x[0], &x[1], 3, 0.3),
        |x| composed::relation_logits(&x[0], &x[1], 3, 0.3),
    );
    assert!(super::relation_logits(&args[0], &values(&[4, 10, 15], 1), 3, 0.3).is_err());
    assert!(super::relation_logits(&args[0], &values(&[3, 10, 12], 1), 3, 0.3).is_err());
    assert!(super::relation_logits(&args[0], &args[1], 5, 0.3).is_err());
}

#[test]
fn relation_loss() {
    let target = composed::softmax(&values(&[6, 5, 3, 49], 2)).unwrap();
    compare(
        "relation_loss",
        &[values(&[6, 5, 3, 49], 1)],
        |x| super::relation_loss(&x[0], &target),
        |x| composed::relation_loss(&x[0], &target),
    );
    assert!(super::relation_loss(&target.narrow(3, 0, 4).unwrap(), &target).is_err());
}

#[test]
fn base_relation() {
    for prefix in [1, 5] {
        let qkv = values(&[3, prefix + 9, 3 * 12], 1);
        let (picked, index) = super::base_relation(&sliced(&qkv), 3, prefix, 4).unwrap();
        let (expected, expected_index) = composed::base_relation(&qkv, 3, prefix, 4).unwrap();
        assert_eq!(
            index.to_vec2::<u32>().unwrap(),
            expected_index.to_vec2::<u32>().unwrap()
        );
        close("picked", &picked, &expected, 2e-6);
        let (class, none) = super::base_relation(&qkv, 3, prefix, 0).unwrap();
        assert_eq!(none.dims(), [3, 0]);
        close("class token", &class, &expected.narrow(1, 0, 1).unwrap(), 2e-6);
    }
    assert!(super::base_relation(&values(&[3, 10, 36], 1), 3, 1, 10).is_err());
    assert!(super::base_relation(&(values(&[3, 10, 36], 1) * f64::NAN).unwrap(), 3, 1, 4).is_err());
}

#[test]
fn targets_without_gradient() {
    let logits = (values(&[3, 5, 2, 49], 1) * 5.0).unwrap();
    let target = super::tempered_target(&sliced(&logits), 1.8).unwrap();
    close(
        "tempered_target",
        &target,
        &composed::tempered_target(&logits, 1.8).unwrap(),
        2e-6,
    );
    assert!(super::tempered_target(&logits, 0.0).is_err());
    let features = values(&[3, 49, 20], 2);
    let normalized = super::normalize_features(&sliced(&features)).unwrap();
    close(
        "normalize_features",
        &normalized,
        &composed::normalize_features(&features).unwrap(),
        2e-6,
    );
    assert!(super::normalize_features(&values(&[3, 1, 20], 1)).is_err());
    let var = Var::from_tensor(&logits).unwrap();
    assert!(!super::tempered_target(&var, 1.0).unwrap().track_op());
}
