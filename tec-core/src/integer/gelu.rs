//! GELU as a table from i8 to i8.

/// Entries of a GELU table: one for each i8, −128 first.
pub const GELU_TABLE_LEN: usize = 256;

/// The table of the exact-erf GELU between two quantized ranges: entry `q + 128` holds
/// `round(gelu((q - input_zero) * input_scale) / output_scale) + output_zero`, halves away from zero, saturated to i8.
///
/// Made once, when an encoder is quantized, and stored in its file. A scale that is not positive and finite gives entries
/// that are saturated or `output_zero`.
pub fn gelu_table(input_scale: f64, input_zero: f64, output_scale: f64, output_zero: i32) -> [i8; GELU_TABLE_LEN] {
    core::array::from_fn(|i| {
        let x = (i as f64 - 128.0 - input_zero) * input_scale;
        let y = 0.5 * x * (1.0 + libm::erf(x * core::f64::consts::FRAC_1_SQRT_2));
        // `as` saturates and sends NaN to zero.
        let rounded = libm::round(y / output_scale) as i64;
        super::saturate_i8(rounded.saturating_add(i64::from(output_zero)))
    })
}

/// Looks `x` up in a table made by [`gelu_table`].
#[inline(always)]
pub fn gelu(table: &[i8; GELU_TABLE_LEN], x: i8) -> i8 {
    // Flipping the top bit is adding 128.
    table[usize::from(x as u8 ^ 0x80)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_points() {
        // gelu(0) = 0, gelu(1) = 0.841345, gelu(-1) = -0.158655, gelu(3) = 2.995950.
        let table = gelu_table(1.0, 0.0, 0.01, -100);
        assert_eq!(gelu(&table, 0), -100);
        assert_eq!(gelu(&table, 1), -16);
        assert_eq!(gelu(&table, -1), -116);
        assert_eq!(gelu(&table, 3), 127);
        assert_eq!(gelu(&table, -128), -100);
        gelu_table(f64::NAN, f64::INFINITY, 0.0, i32::MAX);
    }

    proptest! {
        #[test]
        fn within_half_a_step(q: i8, input_scale in 1e-3f64..0.2, input_zero in -128.0f64..127.0, output_scale in 1e-3f64..0.2, output_zero in -128i32..127) {
            let table = gelu_table(input_scale, input_zero, output_scale, output_zero);
            let x = (f64::from(q) - input_zero) * input_scale;
            // The tail of the normal distribution by its own series, not by the error function that made the table.
            let exact = x * normal_below(x);
            let wanted = (exact / output_scale + f64::from(output_zero)).clamp(-128.0, 127.0);
            prop_assert!((f64::from(gelu(&table, q)) - wanted).abs() <= 0.5 + 1e-6);
        }
    }

    /// Simpson's rule over the density.
    fn normal_below(x: f64) -> f64 {
        if x.abs() > 9.0 {
            return if x > 0.0 { 1.0 } else { 0.0 };
        }
        let steps = 2000;
        let width = x / f64::from(steps);
        let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * core::f64::consts::PI).sqrt();
        let mut sum = density(0.0) + density(x);
        for i in 1..steps {
            sum += density(f64::from(i) * width) * if i % 2 == 1 { 4.0 } else { 2.0 };
        }
        0.5 + sum * width / 3.0
    }
}
