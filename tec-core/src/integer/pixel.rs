//! Pixels: the encoder's input domain.

/// An image held a NaN, which stands for no pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotANumber;

/// A pixel as the first layer multiplies it: `pixel - 128`.
#[inline(always)]
pub const fn center_pixel(pixel: u8) -> i8 {
    (pixel ^ 0x80) as i8
}

/// The multiplier and offset of [`pixel_from_f32`] for a channel normalized as `(pixel / 255 - mean) / std`: one f32 product
/// each.
#[inline(always)]
pub const fn pixel_constants(mean: f32, std: f32) -> (f32, f32) {
    (255.0 * std, 255.0 * mean)
}

/// The pixel that a normalized value stands for: `value * multiplier + offset`, rounded half away from zero, saturated to
/// 0 ..= 255; infinities saturate.
///
/// `multiplier` and `offset` are [`pixel_constants`]. One multiplication, one addition, never fused: the same pixel on every
/// machine.
///
/// # Errors
/// [`NotANumber`] if the value, or the sum, is NaN.
#[inline(always)]
pub fn pixel_from_f32(value: f32, multiplier: f32, offset: f32) -> Result<u8, NotANumber> {
    let pixel = value * multiplier + offset;
    if pixel.is_nan() {
        return Err(NotANumber);
    }
    // The cast saturates and truncates; what it cut off is exact, so a half is seen as a half.
    let floor = pixel as u8;
    let up = pixel - f32::from(floor) >= 0.5;
    Ok(floor.saturating_add(u8::from(up)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centers_every_pixel() {
        for pixel in 0..=255u8 {
            assert_eq!(i32::from(center_pixel(pixel)), i32::from(pixel) - 128);
        }
    }

    #[test]
    fn recovers_every_pixel_from_its_normalization() {
        let (mean, std) = (0.485f32, 0.229f32);
        for pixel in 0..=255u8 {
            let value = (f32::from(pixel) / 255.0 - mean) / std;
            let (multiplier, offset) = pixel_constants(mean, std);
            assert_eq!(pixel_from_f32(value, multiplier, offset), Ok(pixel));
        }
    }

    #[test]
    fn rounds_half_away_and_saturates() {
        // The largest f32 below one half must not round up, as it would by adding one half.
        for (value, pixel) in [
            (0.5, 1),
            (0.499_999_97, 0),
            (1.5, 2),
            (2.5, 3),
            (254.5, 255),
            (-0.5, 0),
            (-3.0, 0),
            (300.0, 255),
        ] {
            assert_eq!(pixel_from_f32(value, 1.0, 0.0), Ok(pixel), "{value}");
        }
        assert_eq!(pixel_from_f32(f32::INFINITY, 1.0, 0.0), Ok(255));
        assert_eq!(pixel_from_f32(f32::NEG_INFINITY, 1.0, 0.0), Ok(0));
        assert_eq!(pixel_from_f32(f32::NAN, 1.0, 0.0), Err(NotANumber));
        assert_eq!(pixel_from_f32(f32::INFINITY, 0.0, 0.0), Err(NotANumber));
    }
}
