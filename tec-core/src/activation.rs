//! Exponential, error function and exact GELU (Hendrycks, Gimpel: *Gaussian error linear units*, 2016) as polynomials
//! without branches, so that loops over slices become vector code and give the same bits everywhere.
//!
//! The polynomials were fitted for this crate, close to the least maximal relative error; the tests measure them against f64.

use crate::error::{Result, length};

/// e^x to 1 ulp (0.96 measured against f64 over the whole range).
///
/// Overflow gives infinity, underflow rounds through the subnormals to zero, e^−∞ = 0, e^∞ = ∞, NaN gives NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to an integer, which then stands in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    // ln 2 in two parts; the upper one has few bits, so its product with an exponent is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;

    // Beyond these the result is 0 or infinity anyway. A NaN stays one.
    let x = x.clamp(-104.0, 89.0);
    let shifted = x * core::f32::consts::LOG2_E + ROUNDER;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    let n = shifted - ROUNDER;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // (e^r − 1 − r) / r² on |r| ≤ ln 2 / 2
    let p = 1.381_458_2e-3;
    let p = p * r + 8.368_725e-3;
    let p = p * r + 4.166_839e-2;
    let p = p * r + 1.666_652_1e-1;
    let p = p * r + 4.999_999_3e-1;
    let e = (p * (r * r) + r) + 1.0;
    // In two factors, since 2^128 and the powers below 2^-126 are no normal floats; the first product is exact.
    let half = exponent >> 1;
    (e * power_of_two(half)) * power_of_two(exponent.wrapping_sub(half))
}

/// 2^n for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// The error function; absolute error below 2e-7 (1.8e-7 measured), odd, erf(±∞) = ±1, NaN gives NaN.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let (tail, _) = upper_tail(x.abs() * core::f32::consts::SQRT_2);
    let far = (1.0 - 2.0 * tail).copysign(x);
    // The series near zero, where the difference above would cancel.
    let s = x * x;
    let p = 1.0 / 9360.0;
    let p = p * s - 1.0 / 1320.0;
    let p = p * s + 1.0 / 216.0;
    let p = p * s - 1.0 / 42.0;
    let p = p * s + 1.0 / 10.0;
    let p = p * s - 1.0 / 3.0;
    let near = (x + x * (s * p)) * core::f32::consts::FRAC_2_SQRT_PI;
    // A NaN takes the series' branch.
    if s >= 0.25 { far } else { near }
}

/// For a ≥ 0 of the standard normal distribution: the probability of more than `a`, and e^(−a²/2).
#[inline(always)]
fn upper_tail(a: f32) -> (f32, f32) {
    const K: f32 = 3.5;
    let e = exp(-0.5 * (a * a));
    // The tail over e is t times a smooth function of t; u runs over [-1, 1].
    let t = K / (K + a);
    let u = 2.0 * t - 1.0;
    let p = -3.162_554_3e-5;
    let p = p * u + 1.205_422_4e-4;
    let p = p * u + 1.414_124_8e-4;
    let p = p * u - 9.072_317e-4;
    let p = p * u - 1.855_176e-3;
    let p = p * u + 4.973_251e-3;
    let p = p * u + 3.315_801e-2;
    let p = p * u + 9.012_144e-2;
    let p = p * u + 1.615_890_7e-1;
    let p = p * u + 2.126_903_1e-1;
    (e * (t * p), e)
}

/// The standard normal distribution: the probability of at most `x`, and the density at `x`.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    const INVERSE_SQRT_TAU: f32 = 0.398_942_3;
    let (tail, e) = upper_tail(x.abs());
    let below = if x < 0.0 { tail } else { 1.0 - tail };
    (below, e * INVERSE_SQRT_TAU)
}

/// x · Φ(x), with the error function, not the tanh approximation; error below 2e-7 · max(1, |x|) (1.0e-7 measured).
///
/// As the formula says, −∞ gives NaN (−∞ · 0), ∞ gives ∞.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x * normal(x).0
}

/// The derivative of [`gelu`]: Φ(x) + x · φ(x); absolute error below 2e-7 (1.5e-7 measured), NaN at infinities.
#[inline(always)]
pub fn gelu_grad(x: f32) -> f32 {
    let (below, density) = normal(x);
    below + x * density
}

/// [`gelu`] of every element.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) where the lengths differ.
#[inline(always)]
pub fn gelu_slice(x: &[f32], out: &mut [f32]) -> Result<()> {
    length("out", out.len(), x.len())?;
    for (out, &x) in out.iter_mut().zip(x) {
        *out = gelu(x);
    }
    Ok(())
}

/// The gradient of [`gelu_slice`]: `grad_x = grad_out · gelu'(x)`, element by element.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) where the lengths differ.
#[inline(always)]
pub fn gelu_backward_slice(x: &[f32], grad_out: &[f32], grad_x: &mut [f32]) -> Result<()> {
    length("grad_out", grad_out.len(), x.len())?;
    length("grad_x", grad_x.len(), x.len())?;
    for ((grad_x, &x), &grad_out) in grad_x.iter_mut().zip(x).zip(grad_out) {
        *grad_x = grad_out * gelu_grad(x);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::println;

    /// The error of a result in units of the last place of the exact value.
    fn ulps(actual: f32, exact: f64) -> f64 {
        let exponent = exact.abs().log2().floor().max(-126.0) as i32;
        (f64::from(actual) - exact).abs() / 2f64.powi(exponent - 23)
    }

    /// Values from `from` to `to` in steps of `step`.
    fn sweep(from: f64, to: f64, step: f64) -> impl Iterator<Item = f32> {
        (0..)
            .map(move |i| from + step * f64::from(i))
            .take_while(move |&x| x <= to)
            .map(|x| x as f32)
    }

    #[test]
    fn exp_is_within_an_ulp() {
        // Every exponent down to where e^x is 1, both signs, and a dense sweep of the whole range.
        let tiny = (0..0x42b2_0000u32)
            .step_by(997)
            .map(f32::from_bits)
            .flat_map(|x| [x, -x]);
        let worst = tiny
            .chain(sweep(-104.0, 88.72, 1e-4))
            .filter(|&x| (-104.0..88.72).contains(&x))
            .map(|x| (ulps(exp(x), f64::from(x).exp()), x))
            .fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a });
        println!("exp: {:.3} ulp at most, at {}", worst.0, worst.1);
        assert!(worst.0 <= 1.0, "{worst:?}");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(88.73), f32::INFINITY);
        assert_eq!(exp(f32::MAX), f32::INFINITY);
        assert!(exp(88.72).is_finite());
        assert_eq!(exp(-103.98), 0.0);
        assert_eq!(exp(f32::MIN), 0.0);
        assert_eq!(exp(-103.2), f32::from_bits(1));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_against_f64() {
        let worst = sweep(-6.0, 6.0, 1e-4)
            .map(|x| (f64::from(erf(x)) - libm::erf(f64::from(x))).abs())
            .fold(0.0, f64::max);
        println!("erf: {worst:.2e} at most");
        assert!(worst <= 2e-7, "{worst:e}");
        for x in [0.0, 1e-20, 0.1, 0.7, 3.0, f32::INFINITY] {
            assert_eq!(erf(-x), -erf(x));
        }
        assert_eq!(erf(f32::INFINITY), 1.0);
        assert!(erf(f32::NAN).is_nan());
        assert!((f64::from(erf(1e-20)) / libm::erf(f64::from(1e-20f32)) - 1.0).abs() < 2e-7);
    }

    /// Φ and φ in f64.
    fn normal_f64(x: f64) -> (f64, f64) {
        use core::f64::consts::{FRAC_1_SQRT_2, PI};
        (
            0.5 * libm::erfc(-x * FRAC_1_SQRT_2),
            (-0.5 * x * x).exp() / (2.0 * PI).sqrt(),
        )
    }

    #[test]
    fn gelu_against_f64() {
        let (mut value, mut gradient, mut tail) = (0.0f64, 0.0f64, 0.0f64);
        for x in sweep(-12.0, 12.0, 1e-4) {
            let wide = f64::from(x);
            let (below, density) = normal_f64(wide);
            let error = (f64::from(gelu(x)) - wide * below).abs();
            value = value.max(error / wide.abs().max(1.0));
            gradient = gradient.max((f64::from(gelu_grad(x)) - (below + wide * density)).abs());
            if (-6.0..0.0).contains(&x) {
                tail = tail.max(error / (wide * below).abs());
            }
        }
        println!("gelu: {value:.2e} of max(1, |x|), {tail:.2e} relative below zero; gradient {gradient:.2e}");
        // Above about 8 half a unit in the last place of x is already 4.8e-7.
        assert!(value <= 2e-7, "{value:e}");
        assert!(gradient <= 2e-7, "{gradient:e}");
        assert!(tail <= 3e-6, "{tail:e}");
    }

    #[test]
    fn gelu_at_the_edges() {
        assert_eq!(gelu(0.0), 0.0);
        assert_eq!(gelu(1e30), 1e30);
        assert_eq!(gelu(-1e30), 0.0);
        assert_eq!(gelu(f32::INFINITY), f32::INFINITY);
        assert!(gelu(f32::NEG_INFINITY).is_nan());
        assert!(gelu(f32::NAN).is_nan());
        assert!(gelu_grad(f32::NAN).is_nan());
        assert_eq!((gelu_grad(1e10), gelu_grad(-1e10)), (1.0, 0.0));
    }

    #[test]
    fn slices_equal_elements() {
        let x: [f32; 37] = core::array::from_fn(|i| i as f32 * 0.3 - 5.0);
        let up: [f32; 37] = core::array::from_fn(|i| 1.0 - i as f32 * 0.1);
        let (mut out, mut grad) = ([0.0; 37], [0.0; 37]);
        gelu_slice(&x, &mut out).unwrap();
        gelu_backward_slice(&x, &up, &mut grad).unwrap();
        assert_eq!(out, x.map(gelu));
        assert!(grad.iter().zip(x).zip(up).all(|((&g, x), up)| g == up * gelu_grad(x)));
        assert!(gelu_slice(&x, &mut out[1..]).is_err());
        assert!(gelu_backward_slice(&x, &up[1..], &mut grad).is_err());
        assert!(gelu_backward_slice(&x, &up, &mut grad[1..]).is_err());
    }
}
