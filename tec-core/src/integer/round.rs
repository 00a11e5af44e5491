//! The one rounding rule, and saturation.

/// `(product + half) >> shift` in unbounded precision, where `half = 2^(shift-1)`, or 0 when `shift` is 0: to nearest,
/// ties towards plus infinity.
///
/// This is the only way in which the integer encoder rounds. A `shift` of 64 or more gives 0.
#[inline(always)]
pub const fn round_shift(product: i64, shift: u32) -> i64 {
    // `product + half` may not fit in an i64; the last bit shifted out says the same without the addition.
    match shift {
        0 => product,
        1..=63 => (product >> shift) + ((product >> (shift - 1)) & 1),
        _ => 0,
    }
}

/// `value` times the real number `mantissa * 2^-shift`, rounded by [`round_shift`]: product in i64, one shift.
#[inline(always)]
pub const fn scale(value: i32, mantissa: i32, shift: u32) -> i64 {
    round_shift(value as i64 * mantissa as i64, shift)
}

/// The nearest i8.
#[inline(always)]
pub const fn saturate_i8(value: i64) -> i8 {
    if value < i8::MIN as i64 {
        i8::MIN
    } else if value > i8::MAX as i64 {
        i8::MAX
    } else {
        value as i8
    }
}

/// The nearest i16.
#[inline(always)]
pub const fn saturate_i16(value: i64) -> i16 {
    if value < i16::MIN as i64 {
        i16::MIN
    } else if value > i16::MAX as i64 {
        i16::MAX
    } else {
        value as i16
    }
}

/// The nearest i32.
#[inline(always)]
pub const fn saturate_i32(value: i64) -> i32 {
    if value < i32::MIN as i64 {
        i32::MIN
    } else if value > i32::MAX as i64 {
        i32::MAX
    } else {
        value as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_towards_plus_infinity() {
        let halves: [(i64, i64); 6] = [(-5, -2), (-3, -1), (-1, 0), (1, 1), (3, 2), (5, 3)];
        for (product, expected) in halves {
            assert_eq!(round_shift(product, 1), expected, "{product} / 2");
        }
        assert_eq!(round_shift(-6, 2), -1);
        assert_eq!(round_shift(6, 2), 2);
        assert_eq!(round_shift(7, 0), 7);
    }

    #[test]
    fn saturation_is_at_the_ends() {
        assert_eq!(
            (saturate_i8(127), saturate_i8(128), saturate_i8(-128), saturate_i8(-129)),
            (127, 127, -128, -128)
        );
        assert_eq!((saturate_i16(32768), saturate_i16(-32769)), (32767, -32768));
        assert_eq!((saturate_i32(i64::MAX), saturate_i32(i64::MIN)), (i32::MAX, i32::MIN));
    }

    proptest! {
        #[test]
        fn equals_the_definition_in_wider_integers(product: i64, shift in 0u32..80) {
            let half = if shift == 0 { 0 } else { 1i128 << (shift - 1) };
            prop_assert_eq!(i128::from(round_shift(product, shift)), (i128::from(product) + half) >> shift);
        }

        #[test]
        fn scale_is_the_nearest(value: i32, mantissa: i32, shift in 1u32..63) {
            let exact = i128::from(value) * i128::from(mantissa);
            let error = (i128::from(scale(value, mantissa, shift)) << shift) - exact;
            prop_assert!(2 * error.abs() <= 1i128 << shift);
        }
    }
}
