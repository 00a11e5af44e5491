use tec_core::activation::{gelu, gelu_grad};

use super::super::{Float, elementwise as plan};
use super::*;

const SIZES: [usize; 6] = [1, 7, 2047, 2048, 2049, 6151];
const TYPES: [Float; 2] = [Float::F32, Float::Bf16];

/// Values over the range in which activations bend, as `dtype` stores them.
fn wide(dtype: Float, seed: u64, n: usize) -> Vec<f32> {
    let x: Vec<f32> = values(seed, n).iter().map(|v| 6.0 * v).collect();
    Tensor::new(dtype, &x, 0).values()
}

#[test]
fn activations_of_any_size_and_alignment() {
    for (dtype, n, skip) in TYPES
        .into_iter()
        .flat_map(|d| SIZES.into_iter().flat_map(move |n| [0, 1, 4].map(|s| (d, n, s))))
    {
        let what = format!("{dtype:?} {n} {skip}");
        let (x, grad) = (wide(dtype, 1, n), wide(dtype, 2, n));
        let (dx, dgrad) = (Tensor::new(dtype, &x, skip), Tensor::new(dtype, &grad, skip));
        let result = |launch: &dyn Fn(u64) -> Launch| {
            let y = Tensor::out(dtype, n, skip);
            run(&launch(y.at()));
            y.values()
        };
        let expected: Vec<f32> = x.iter().map(|&x| gelu(x)).collect();
        close(
            &what,
            &result(&|y| plan::gelu(dtype, dx.at(), y, n)),
            &expected,
            tolerance(dtype),
        );
        let expected: Vec<f32> = x.iter().zip(&grad).map(|(&x, g)| g * gelu_grad(x)).collect();
        let actual = result(&|y| plan::gelu_gradient(dtype, dx.at(), dgrad.at(), y, n));
        close(&what, &actual, &expected, tolerance(dtype));
        let expected = flat(&crate::ops::quick_gelu(&cpu(&x, n)).unwrap());
        close(
            &what,
            &result(&|y| plan::quick_gelu(dtype, dx.at(), y, n)),
            &expected,
            tolerance(dtype),
        );
    }
}

#[test]
fn casts_round_to_nearest_even_as_the_half_crate_does() {
    for (n, skip) in SIZES.into_iter().flat_map(|n| [(n, 0), (n, 3)]) {
        let mut x = wide(Float::F32, 3, n);
        // Halfway between two bf16, above an even and above an odd one; infinity; the largest float, which rounds to infinity.
        let special = [0x3f80_8000, 0x3f81_8000, 0x7f80_0000, 0x7f7f_ffff, 0x0000_8001].map(f32::from_bits);
        x.iter_mut().zip(special).for_each(|(x, special)| *x = special);
        let (from, to) = (Tensor::new(Float::F32, &x, skip), Tensor::out(Float::Bf16, n, skip));
        run(&plan::cast(Float::F32, from.at(), to.at(), n));
        let rounded: Vec<f32> = x.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
        assert_eq!(bits(&to.values()), bits(&rounded));
        let back = Tensor::out(Float::F32, n, skip);
        run(&plan::cast(Float::Bf16, to.at(), back.at(), n));
        assert_eq!(bits(&back.values()), bits(&rounded));
    }
}

#[test]
fn sums_are_exact() {
    for (dtype, n, skip) in [
        (Float::F32, 4099, 0),
        (Float::F32, 2051, 1),
        (Float::Bf16, 4099, 0),
        (Float::Bf16, 9, 2),
    ] {
        let (a, b) = (wide(Float::F32, 4, n), wide(dtype, 5, n));
        let (da, db) = (Tensor::new(Float::F32, &a, skip), Tensor::new(dtype, &b, skip));
        let y = Tensor::out(Float::F32, n, skip);
        run(&plan::add(dtype, da.at(), db.at(), y.at(), n));
        let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        assert_eq!(bits(&y.values()), bits(&expected));
        run(&plan::add(dtype, da.at(), db.at(), da.at(), n));
        assert_eq!(bits(&da.values()), bits(&expected), "in place");
    }
}

#[test]
fn swiglu_gates() {
    for (dtype, rows, hidden, skip) in [
        (Float::F32, 3, 1365, 0),
        (Float::F32, 2, 1028, 0),
        (Float::F32, 5, 12, 1),
        (Float::Bf16, 3, 64, 0),
        (Float::Bf16, 3, 64, 2),
        (Float::Bf16, 1, 1031, 1),
    ] {
        let x = wide(dtype, 6, 2 * rows * hidden);
        let (dx, y) = (Tensor::new(dtype, &x, skip), Tensor::out(dtype, rows * hidden, skip));
        run(&plan::swiglu(dtype, dx.at(), y.at(), rows, hidden));
        let expected = flat(&crate::ops::swiglu(&cpu(&x, (rows, 2 * hidden))).unwrap());
        close(
            &format!("{dtype:?} {rows} {hidden}"),
            &y.values(),
            &expected,
            tolerance(dtype),
        );
    }
}
