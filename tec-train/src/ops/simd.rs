//! `tec-core`'s row functions and a few plain loops, compiled twice: for the baseline CPU and for AVX2.
//!
//! Neither uses fused multiply-adds and the sums have one order, so both give the same bits; AVX2 is only faster.

use tec_core::{Error, activation, norm, relation, softmax};

/// Whether to take the AVX2 versions.
#[cfg(target_arch = "x86_64")]
fn wide() -> bool {
    #[cfg(test)]
    if tests::BASELINE.get() {
        return false;
    }
    is_x86_feature_detected!("avx2")
}

/// Defines a function whose body is compiled for the baseline and for AVX2, and chosen when called.
macro_rules! twice {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn plain($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                if wide() {
                    // SAFETY: the CPU was just asked and has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    )*};
}

twice! {
    /// GELU of every element.
    fn gelu(x: &[f32], out: &mut [f32]) -> Result<(), Error> {
        activation::gelu_slice(x, out)
    }

    /// The gradient of [`gelu`].
    fn gelu_backward(x: &[f32], grad: &[f32], grad_x: &mut [f32]) -> Result<(), Error> {
        activation::gelu_backward_slice(x, grad, grad_x)
    }

    /// Layer normalization of rows as wide as `weight`, which is not empty.
    fn layer_norm_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) -> Result<(), Error> {
        let width = weight.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            norm::layer_norm(x, weight, bias, eps, out)?;
        }
        Ok(())
    }

    /// The gradient of [`layer_norm_rows`]; the parameters' gradients are added to.
    fn layer_norm_backward_rows(
        x: &[f32],
        weight: &[f32],
        eps: f32,
        grad: &[f32],
        grad_x: &mut [f32],
        grad_weight: &mut [f32],
        grad_bias: &mut [f32],
    ) -> Result<(), Error> {
        let width = weight.len();
        for ((x, grad), grad_x) in x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(grad_x.chunks_exact_mut(width)) {
            // Only the statistics are wanted; the gradient overwrites the normalized row.
            let stats = norm::layer_norm(x, weight, weight, eps, grad_x)?;
            norm::layer_norm_backward(x, weight, stats, grad, grad_x, grad_weight, grad_bias)?;
        }
        Ok(())
    }

    /// softmax(scale x) of rows of `width` elements, not 0.
    fn softmax_rows(x: &[f32], width: usize, scale: f32, out: &mut [f32]) -> Result<(), Error> {
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            softmax::softmax(x, scale, out)?;
        }
        Ok(())
    }

    /// The gradient of [`softmax_rows`] from the probabilities `p`.
    fn softmax_backward_rows(p: &[f32], grad_p: &[f32], width: usize, scale: f32, grad_x: &mut [f32]) -> Result<(), Error> {
        for ((p, grad_p), grad_x) in p.chunks_exact(width).zip(grad_p.chunks_exact(width)).zip(grad_x.chunks_exact_mut(width)) {
            softmax::softmax_backward(p, grad_p, scale, grad_x)?;
        }
        Ok(())
    }

    /// [`relation::tempered_target`].
    fn tempered_target(picked: &[f32], patches: usize, tau: f32, out: &mut [f32]) -> Result<(), Error> {
        relation::tempered_target(picked, patches, tau, out)
    }

    /// [`relation::normalize_features`].
    fn normalize_features(features: &[f32], patches: usize, width: usize, out: &mut [f32]) -> Result<(), Error> {
        relation::normalize_features(features, patches, width, out)
    }

    /// `sum = x + y`, as far as the shortest goes.
    fn add(x: &[f32], y: &[f32], sum: &mut [f32]) {
        for ((sum, &x), &y) in sum.iter_mut().zip(x).zip(y) {
            *sum = x + y;
        }
    }

    /// Adds every row of `x`, as wide as `sums`, which is not empty, to `sums`, in the order of the rows.
    fn add_rows(x: &[f32], sums: &mut [f32]) {
        for row in x.chunks_exact(sums.len()) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// Takes the baseline versions on this thread.
        pub static BASELINE: Cell<bool> = const { Cell::new(false) };
    }

    #[test]
    fn baseline_and_avx2_give_the_same_bits() {
        let values = |seed: u64| -> Vec<f32> {
            let noise = tec_core::philox::Noise {
                seed,
                epoch: 0,
                sample: 0,
                stream: tec_core::philox::Stream::Init,
            };
            (0..7 * 53).map(|i| 8.0 * noise.uniform(i) - 4.0).collect()
        };
        let (x, y, z) = (values(1), values(2), values(3));
        let (width, eps) = (53, 1e-6);
        let run = |baseline| {
            BASELINE.set(baseline);
            let mut results = vec![vec![0.5; x.len()]; 9];
            let [a, b, c, d, e, f, g, h, i] = &mut results[..] else {
                unreachable!("nine")
            };
            gelu(&x, a).unwrap();
            gelu_backward(&x, &y, b).unwrap();
            layer_norm_rows(&x, &y[..width], &z[..width], eps, c).unwrap();
            let (weight, bias) = i.split_at_mut(width);
            layer_norm_backward_rows(&x, &y[..width], eps, &z, d, weight, &mut bias[..width]).unwrap();
            softmax_rows(&x, width, 0.7, e).unwrap();
            softmax_backward_rows(e, &y, width, 0.7, f).unwrap();
            add(&x, &y, g);
            add_rows(&x, &mut h[..width]);
            BASELINE.set(false);
            results.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let (baseline, fast) = (run(true), run(false));
        assert!(
            baseline.iter().filter(|&&bits| bits == 0.5f32.to_bits()).count() < x.len() * 3,
            "something was written"
        );
        assert_eq!(baseline, fast);
    }
}
