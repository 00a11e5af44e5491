//! Real numbers as the integers of the encoder file.

use tec_core::integer::NORM_BITS;

use crate::{Error, Result};

/// Multipliers that share one shift.
pub(super) struct Multipliers {
    pub(super) mantissas: Vec<i32>,
    pub(super) shift: u8,
}

const LARGEST_SHIFT: i32 = 62;

/// The finest mantissas, so that `mantissa * 2^-shift` is nearest to each real number.
pub(super) fn multipliers(what: &str, real: &[f64]) -> Result<Multipliers> {
    let shift = finest(what, real, LARGEST_SHIFT)?;
    if shift < 0 {
        return Err(out_of_range(what));
    }
    Ok(Multipliers {
        mantissas: scaled(real, shift),
        shift: shift as u8,
    })
}

/// Multipliers and offsets of a LayerNorm, and the fractional bits of their sum.
pub(super) struct Affine {
    pub(super) multipliers: Vec<i32>,
    pub(super) offsets: Vec<i32>,
    pub(super) bits: u8,
}

/// LayerNorm's last step as integers: `multiplier * normalized + offset` in steps of the output.
pub(super) fn affine(what: &str, multipliers: &[f64], offsets: &[f64]) -> Result<Affine> {
    let extra = NORM_BITS as i32;
    let bits = finest(what, multipliers, 45 - extra)? + extra;
    if bits < 16 || !offsets.iter().all(|o| o.abs() < 32_768.0) {
        return Err(out_of_range(what));
    }
    Ok(Affine {
        multipliers: scaled(multipliers, bits - extra),
        offsets: scaled(offsets, 16),
        bits: bits as u8,
    })
}

/// The largest power, at most `limit`, by which all numbers can be scaled up and still fit in 31 bits and a sign.
fn finest(what: &str, real: &[f64], limit: i32) -> Result<i32> {
    let largest = real.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    if !real.iter().all(|x| x.is_finite()) {
        return Err(out_of_range(what));
    }
    // One less than what could just fit, so that rounding cannot reach 2^31.
    let shift = if largest > 0.0 {
        30 - largest.log2().floor() as i32
    } else {
        limit
    };
    let shift = shift.min(limit);
    let fits = largest * 2f64.powi(shift) < 2f64.powi(31) - 1.0;
    Ok(if fits { shift } else { shift - 1 })
}

fn scaled(real: &[f64], shift: i32) -> Vec<i32> {
    real.iter().map(|x| (x * 2f64.powi(shift)).round() as i32).collect()
}

fn out_of_range(what: &str) -> Error {
    Error::Data(format!(
        "{what}: its scale cannot be written in the encoder file; are the weights finite, and were they trained?"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mantissas_are_normalized() {
        let m = multipliers("m", &[0.001, 0.25, 0.0]).unwrap();
        assert_eq!((m.shift, m.mantissas[1], m.mantissas[2]), (32, 1 << 30, 0));
        assert!((f64::from(m.mantissas[0]) * 2f64.powi(-32) - 0.001).abs() < 2e-10);
        let m = multipliers("m", &[2f64.powi(31) - 2.0]).unwrap();
        assert_eq!((m.shift, m.mantissas[0]), (0, i32::MAX - 1));
        assert!(multipliers("m", &[2f64.powi(31) - 0.25]).is_err());
    }

    #[test]
    fn mantissas_never_overflow() {
        for exponent in -70..30 {
            for fraction in [1.0, 1.5, 2.0 - 1e-12] {
                let real = fraction * 2f64.powi(exponent);
                let m = multipliers("m", &[real]).unwrap();
                assert!((0..i32::MAX).contains(&m.mantissas[0]), "{real}");
                let back = f64::from(m.mantissas[0]) * 2f64.powi(-i32::from(m.shift));
                assert!(
                    (back - real).abs() <= 0.5f64.powi(i32::from(m.shift)),
                    "{back} for {real}"
                );
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(multipliers("m", &[f64::NAN]).is_err());
        assert!(multipliers("m", &[2f64.powi(40)]).is_err());
        assert!(affine("a", &[1.0], &[40_000.0]).is_err());
        assert!(affine("a", &[1.0], &[f64::NAN]).is_err());
        let a = affine("a", &[1.0, -2.0], &[0.5, -3.0]).unwrap();
        assert_eq!((a.bits, a.offsets), (45, vec![1 << 15, -3 << 16]));
        assert_eq!(a.multipliers, vec![1 << 25, -1 << 26]);
    }
}
