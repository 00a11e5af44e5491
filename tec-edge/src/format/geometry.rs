//! The shape of an encoder, and the largest shapes.

use crate::Error;

/// Most tokens of an image, the class token included: a grid of 64×64.
pub const MAX_TOKENS: u32 = 4_097;
/// Largest `dim * depth`, and so the largest `dim`.
pub const MAX_WIDTH_TIMES_DEPTH: u32 = 24_576;
/// Longest sum of products of a layer: a patch's values, or the hidden width. With biases of at most 2^30,
/// `65,536 · 127 · 128 + 2^30 < 2^31`.
pub const MAX_INNER: u32 = 65_536;

/// The shape of a vision transformer's encoder. Images are square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Geometry {
    /// Width and height of the image in pixels: a multiple of `patch_size`.
    pub image_size: u32,
    /// Width and height of a patch in pixels.
    pub patch_size: u32,
    /// Values of a pixel: 1 (grey) or 3 (red, green, blue).
    pub channels: u32,
    /// Width of a token, D.
    pub dim: u32,
    /// Number of blocks.
    pub depth: u32,
    /// Attention heads of a block: a divisor of `dim`.
    pub heads: u32,
    /// Hidden width of a block's MLP.
    pub hidden: u32,
}

impl Geometry {
    /// Whether an encoder can have this shape.
    ///
    /// # Errors
    /// [`Error::Header`] naming the first number that is out of range or does not fit the others.
    pub fn validate(&self) -> Result<(), Error> {
        let check = |what, value: u32, ok: bool| {
            if ok {
                Ok(())
            } else {
                Err(Error::Header {
                    what,
                    value: value.into(),
                })
            }
        };
        let product = |a: u32, b: u32| u64::from(a) * u64::from(b);
        check("channels", self.channels, matches!(self.channels, 1 | 3))?;
        check("patch_size", self.patch_size, (1..=256).contains(&self.patch_size))?;
        let patch_len = self.patch_size * self.patch_size * self.channels;
        check("patch_size", self.patch_size, patch_len <= MAX_INNER)?;
        check(
            "image_size",
            self.image_size,
            self.image_size >= 1 && self.image_size.is_multiple_of(self.patch_size),
        )?;
        let grid = self.image_size / self.patch_size;
        check(
            "image_size",
            self.image_size,
            product(grid, grid) < u64::from(MAX_TOKENS),
        )?;
        check("dim", self.dim, (1..=MAX_WIDTH_TIMES_DEPTH).contains(&self.dim))?;
        check(
            "depth",
            self.depth,
            self.depth >= 1 && product(self.depth, self.dim) <= u64::from(MAX_WIDTH_TIMES_DEPTH),
        )?;
        check(
            "heads",
            self.heads,
            self.heads >= 1 && self.dim.is_multiple_of(self.heads),
        )?;
        check("hidden", self.hidden, (1..=MAX_INNER).contains(&self.hidden))
    }

    /// Patches along one side of the image.
    pub const fn grid(&self) -> usize {
        match self.image_size.checked_div(self.patch_size) {
            Some(grid) => grid as usize,
            None => 0,
        }
    }

    /// Patches of the image, L.
    pub const fn patches(&self) -> usize {
        self.grid().saturating_mul(self.grid())
    }

    /// Tokens of the image: the class token and the patches.
    pub const fn tokens(&self) -> usize {
        self.patches().saturating_add(1)
    }

    /// Width of one head.
    pub const fn head_width(&self) -> usize {
        match self.dim.checked_div(self.heads) {
            Some(width) => width as usize,
            None => 0,
        }
    }

    /// Values of a patch.
    pub const fn patch_len(&self) -> usize {
        (self.patch_size as usize)
            .saturating_mul(self.patch_size as usize)
            .saturating_mul(self.channels as usize)
    }

    /// Values of an image.
    pub const fn image_len(&self) -> usize {
        (self.image_size as usize)
            .saturating_mul(self.image_size as usize)
            .saturating_mul(self.channels as usize)
    }
}
