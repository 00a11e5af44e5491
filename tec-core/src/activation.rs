//! Exponential, error function and exact GELU (Hendrycks, Gimpel: *Gaussian error linear units*, 2016) as polynomials
//! without branches, so that loops over slices become vector code and give the same bits everywhere.
//!
//! The polynomials were fitted for this crate, close to the least maximal relative error; the tests measure them against f64.

use crate::error::{Result, length};

/// e^x to 1 ulp (0.99 measured; normal results).
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

/// The error function; absolute error below 1.5e-7, odd, erf(±∞) = ±1, NaN gives NaN.
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

/// x · Φ(x), with the error function, not the tanh approximation; absolute error below 1e-6.
///
/// As the formula says, −∞ gives NaN (−∞ · 0), ∞ gives ∞.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x * normal(x).0
}

/// The derivative of [`gelu`]: Φ(x) + x · φ(x); absolute error below 1e-6, NaN at infinities.
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
