//! Residual branches against their composition, and what they refuse.

use candle_core::{Result, Tensor, Var};

use super::{close, flat, value_and_gradients, values};
use crate::ops::{self, Amp, BranchWeights, Middle, composed};

/// A branch with attention or GELU in between, from (x, norm weight and bias, weights and biases of both layers).
fn branch(args: &[Tensor], middle: Middle, checkpoint: bool) -> crate::Result<Tensor> {
    let pair = |first: usize| [args[first].clone(), args[first + 1].clone()];
    let weights = BranchWeights {
        norm: pair(1),
        eps: 1e-6,
        first: pair(3),
        second: pair(5),
        amp: Amp::None,
    };
    ops::branch(&args[0], &weights, middle, checkpoint)
}

/// Arguments of [`branch`]: tokens `[batch, tokens, width]`, layers with `first` outputs and `middle` inputs.
fn branch_args([batch, tokens, width, first, middle]: [usize; 5]) -> Vec<Tensor> {
    let shapes: [&[usize]; 7] = [
        &[batch, tokens, width],
        &[width],
        &[width],
        &[first, width],
        &[first],
        &[width, middle],
        &[width],
    ];
    shapes
        .iter()
        .zip(1..)
        .map(|(shape, seed)| values(shape, seed))
        .collect()
}

#[test]
fn branches() {
    for (name, middle, shape) in [
        ("attention", Middle::Attention { heads: 3 }, [3, 17, 24, 72, 24]),
        ("mlp", Middle::Gelu, [2, 30, 40, 160, 160]),
        // The second layer is deeper than one block of the product.
        ("wide mlp", Middle::Gelu, [2, 50, 18, 700, 700]),
    ] {
        let args = branch_args(shape);
        let reference = |x: &[Tensor]| -> Result<Tensor> {
            let normed = composed::layer_norm(&x[0], &x[1], &x[2], 1e-6)?;
            let first = composed::linear(&normed, &x[3], Some(&x[4]))?;
            let inside = match middle {
                Middle::Attention { heads } => composed::attention(&first, heads)?,
                Middle::Gelu => first.gelu_erf()?,
            };
            &x[0] + composed::linear(&inside, &x[5], Some(&x[6]))?
        };
        let expected = value_and_gradients(|x| Ok(reference(x)?), &args, false);
        let of = |threads: usize, checkpoint: bool| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| value_and_gradients(|x| branch(x, middle, checkpoint), &args, false))
        };
        let bits = |(y, grads): &(Tensor, Vec<Tensor>)| -> Vec<u32> {
            [y].into_iter().chain(grads).flat_map(flat).map(f32::to_bits).collect()
        };
        let kept = of(1, false);
        close(name, &kept.0, &expected.0, 2e-6);
        for (i, (actual, expected)) in kept.1.iter().zip(&expected.1).enumerate() {
            close(&format!("{name}, gradient {i}"), actual, expected, 2e-5);
        }
        assert!(bits(&kept) == bits(&of(3, false)), "{name}: threads");
        assert!(bits(&kept) == bits(&of(2, true)), "{name}: computed again");
    }
}

/// A weight used by two branches has the sum of both gradients; constants have none.
#[test]
fn branches_share_weights() {
    let args = branch_args([2, 5, 8, 32, 32]);
    let weight = Var::from_tensor(&args[3]).unwrap();
    let with = |x: &Tensor| {
        let mut args = args.clone();
        (args[0], args[3]) = (x.clone(), weight.as_tensor().clone());
        args
    };
    let x = Var::from_tensor(&args[0]).unwrap();
    let once = branch(&with(&x), Middle::Gelu, false).unwrap();
    let twice = branch(&with(&once), Middle::Gelu, true).unwrap();
    let sum = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap();
    let grads = ops::backward(&sum(&twice)).unwrap();
    let grad = |loss: Tensor| ops::backward(&loss).unwrap().get(&weight).unwrap().clone();
    let apart = {
        // The same with two variables of the same value.
        let other = Var::from_tensor(&args[3]).unwrap();
        let mut second = with(&once);
        second[3] = other.as_tensor().clone();
        let grads = ops::backward(&sum(&branch(&second, Middle::Gelu, false).unwrap())).unwrap();
        (grads.get(&weight).unwrap() + grads.get(&other).unwrap()).unwrap()
    };
    assert_eq!(flat(grads.get(&weight).unwrap()), flat(&apart));
    assert_ne!(flat(&grad(sum(&once))), flat(&apart));
    assert!(grads.get(&args[4]).is_none());
}

#[test]
fn branches_refuse_what_would_lose_gradients() {
    let args = branch_args([2, 5, 8, 32, 32]);
    let x = Var::from_tensor(&args[0]).unwrap();
    let weight = Var::from_tensor(&args[3]).unwrap();
    let mut with = args.clone();
    (with[0], with[3]) = (x.as_tensor().clone(), weight.as_tensor().clone());
    let loss = branch(&with, Middle::Gelu, false).unwrap().sum_all().unwrap();
    let error = loss.backward().unwrap_err().to_string();
    assert!(error.contains("ops::backward"), "{error}");
    let mut alone = with.clone();
    alone[0] = args[0].clone();
    assert!(
        branch(&alone, Middle::Gelu, false).is_err(),
        "nothing that candle sees is a variable"
    );
    with[3] = (weight.as_tensor() * 2.0).unwrap();
    assert!(branch(&with, Middle::Gelu, false).is_err());
    with[3] = values(&[32, 9], 1);
    assert!(branch(&with, Middle::Gelu, false).is_err());
    with[3] = args[3].clone();
    with[5] = values(&[9, 32], 1);
    assert!(branch(&with, Middle::Gelu, false).is_err());
}
