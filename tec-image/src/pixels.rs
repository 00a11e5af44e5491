//! A decoded image: 8-bit grey or RGB pixels.

/// A decoded image, rows top-down, channels interleaved: `data[(y * width + x) * channels + c]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// `height * width * channels` values.
    pub data: Vec<u8>,
}

impl Pixels {
    /// An image of the given geometry.
    ///
    /// # Errors
    /// A reason when a side is zero, `channels` is neither 1 nor 3, or `data` has another length.
    pub fn new(width: usize, height: usize, channels: usize, data: Vec<u8>) -> Result<Self, String> {
        if width == 0 || height == 0 {
            return Err(format!("the image is empty: {width}x{height} pixels"));
        }
        check_channels(channels)?;
        let expected = width.checked_mul(height).and_then(|area| area.checked_mul(channels));
        if expected != Some(data.len()) {
            return Err(format!(
                "{width}x{height} pixels of {channels} channels cannot be {} bytes",
                data.len()
            ));
        }
        Ok(Self {
            width,
            height,
            channels,
            data,
        })
    }

    /// The same image with 1 or 3 channels: grey is repeated, RGB becomes grey by ITU-R 601-2 luma in 16-bit fixed point,
    /// `(19595 R + 38470 G + 7471 B + 32768) >> 16`, as PIL's `convert("L")`.
    ///
    /// # Errors
    /// A reason when `channels` is neither 1 nor 3.
    pub fn into_channels(self, channels: usize) -> Result<Self, String> {
        check_channels(channels)?;
        let data = match (self.channels, channels) {
            (1, 3) => self.data.iter().flat_map(|&grey| [grey; 3]).collect(),
            (3, 1) => self
                .data
                .chunks_exact(3)
                .map(|rgb| luma([rgb[0], rgb[1], rgb[2]]))
                .collect(),
            _ => return Ok(self),
        };
        Ok(Self { channels, data, ..self })
    }
}

/// Whether images have this many channels.
///
/// # Errors
/// A reason when it is neither 1 nor 3.
pub fn check_channels(channels: usize) -> Result<(), String> {
    match channels {
        1 | 3 => Ok(()),
        other => Err(format!("images have 1 (grey) or 3 (RGB) channels, not {other}")),
    }
}

fn luma([red, green, blue]: [u8; 3]) -> u8 {
    let sum = 19595 * u32::from(red) + 38470 * u32::from(green) + 7471 * u32::from(blue) + 0x8000;
    // The weights add up to 65536, so the largest sum is below 256 << 16.
    (sum >> 16) as u8
}

/// Mirrors an interleaved image of `width` columns left to right, in place.
pub fn flip_horizontal(data: &mut [u8], width: usize, channels: usize) {
    for row in data.chunks_exact_mut(width * channels) {
        for x in 0..width / 2 {
            for c in 0..channels {
                row.swap(x * channels + c, (width - 1 - x) * channels + c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_becomes_rgb_by_repetition() {
        let grey = Pixels::new(2, 1, 1, vec![7, 200]).unwrap();
        assert_eq!(grey.into_channels(3).unwrap().data, [7, 7, 7, 200, 200, 200]);
    }

    /// Values from PIL: `Image.new("RGB", (1, 1), rgb).convert("L").getpixel((0, 0))`.
    #[test]
    fn rgb_becomes_grey_as_pil_does() {
        let cases = [
            ([255, 0, 0], 76),
            ([0, 255, 0], 150),
            ([0, 0, 255], 29),
            ([255, 255, 255], 255),
            ([1, 2, 3], 2),
            ([10, 200, 77], 129),
            ([123, 45, 67], 71),
        ];
        for (rgb, expected) in cases {
            let grey = Pixels::new(1, 1, 3, rgb.to_vec()).unwrap().into_channels(1).unwrap();
            assert_eq!(grey.data, [expected], "{rgb:?}");
        }
    }

    #[test]
    fn wrong_geometry_is_refused() {
        assert!(Pixels::new(0, 1, 1, vec![]).is_err());
        assert!(Pixels::new(1, 1, 2, vec![0, 0]).unwrap_err().contains("not 2"));
        assert!(Pixels::new(2, 2, 3, vec![0; 11]).unwrap_err().contains("11 bytes"));
        assert!(Pixels::new(usize::MAX, 2, 3, vec![0; 11]).is_err());
    }

    #[test]
    fn flipping_mirrors_pixels_not_channels() {
        let mut data = vec![1, 2, 3, 4, 5, 6, 7, 8, 9];
        flip_horizontal(&mut data, 3, 3);
        assert_eq!(data, [7, 8, 9, 4, 5, 6, 1, 2, 3]);
        let mut rows = vec![1, 2, 3, 4];
        flip_horizontal(&mut rows, 2, 1);
        assert_eq!(rows, [2, 1, 4, 3]);
    }
}
