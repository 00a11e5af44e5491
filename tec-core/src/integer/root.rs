//! Integer square root and reciprocal: exact integer functions, the same bits everywhere.

/// The largest integer whose square is not above `value`.
///
/// Bit by bit, 32 steps of subtraction and shift: no division, no floating point.
#[inline]
pub const fn sqrt(value: u64) -> u32 {
    let mut rest = value;
    let mut root = 0u64;
    let mut bit = 1u64 << 62;
    while bit != 0 {
        let trial = root.wrapping_add(bit);
        root >>= 1;
        if rest >= trial {
            rest = rest.wrapping_sub(trial);
            root = root.wrapping_add(bit);
        }
        bit >>= 2;
    }
    root as u32
}

/// `mantissa * 2^-shift` is about one over a positive integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reciprocal {
    /// In 2^30 ..= 2^31.
    pub mantissa: i64,
    /// 30 plus the divisor's length in bits: 31 ..= 62.
    pub shift: u32,
}

/// One over `divisor`: with `n` its length in bits, `mantissa = floor((2^(30+n) + floor(divisor/2)) / divisor)`.
///
/// Zero is treated as one.
#[inline]
pub const fn reciprocal(divisor: u32) -> Reciprocal {
    let divisor = if divisor == 0 { 1 } else { divisor };
    let shift = 62 - divisor.leading_zeros();
    let divisor = divisor as u64;
    // At most 2^62 + 2^31, and at least half of 2^(30+n) is divided by less than 2^n.
    let mantissa = ((1u64 << shift) + divisor / 2) / divisor;
    Reciprocal {
        mantissa: mantissa as i64,
        shift,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn edges() {
        for (value, root) in [(0, 0), (1, 1), (3, 1), (4, 2), (u64::MAX, u32::MAX), (1 << 62, 1 << 31)] {
            assert_eq!(sqrt(value), root, "{value}");
        }
        assert_eq!(
            reciprocal(1),
            Reciprocal {
                mantissa: 1 << 31,
                shift: 31
            }
        );
        assert_eq!(
            reciprocal(2),
            Reciprocal {
                mantissa: 1 << 31,
                shift: 32
            }
        );
        assert_eq!(
            reciprocal(3),
            Reciprocal {
                mantissa: 1_431_655_765,
                shift: 32
            }
        );
        assert_eq!(reciprocal(u32::MAX).shift, 62);
        assert_eq!(reciprocal(0), reciprocal(1));
    }

    proptest! {
        #[test]
        fn root_is_the_floor(value: u64) {
            let root = u128::from(sqrt(value));
            prop_assert!(root * root <= u128::from(value));
            prop_assert!((root + 1) * (root + 1) > u128::from(value));
        }

        #[test]
        fn root_around_squares(root in 1u32..) {
            let square = u64::from(root) * u64::from(root);
            prop_assert_eq!(sqrt(square), root);
            prop_assert_eq!(sqrt(square - 1), root - 1);
        }

        #[test]
        fn reciprocal_is_the_nearest(divisor in 1u32.., narrow in 0u32..32) {
            let divisor = (divisor >> narrow).max(1);
            let r = reciprocal(divisor);
            prop_assert!((1 << 30..=1i64 << 31).contains(&r.mantissa));
            let error = i128::from(r.mantissa) * i128::from(divisor) - (1i128 << r.shift);
            prop_assert!(2 * error.abs() <= i128::from(divisor));
        }
    }
}
