//! The shape of an encoder, and the largest shapes.

use crate::Error;

/// Most tokens of an image, the class token included: a grid of 64×64.
pub const MAX_TOKENS: usize = 4_097;
/// Largest `dim * depth`, and so the largest `dim`.
pub const MAX_WIDTH_TIMES_DEPTH: usize = 24_576;
/// Longest sum of products of a layer: a patch's values, or the hidden width. With biases of at most 2^30,
/// `65,536 · 127 · 128 + 2^30 < 2^31`.
pub const MAX_INNER: usize = 65_536;

/// The shape of a vision transformer's encoder. Images are square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Geometry {
    /// Width and height of the image in pixels: a multiple of `patch_size`.
    pub image_size: usize,
    /// Width and height of a patch in pixels.
    pub patch_size: usize,
    /// Values of a pixel: 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// Width of a token, D.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of a block: a divisor of `dim`.
    pub heads: usize,
    /// Hidden width of a block's MLP.
    pub hidden: usize,
}

impl Geometry {
    /// Whether an encoder can have this shape.
    ///
    /// # Errors
    /// [`Error::Header`] naming the first number that is out of range or does not fit the others.
    pub fn validate(&self) -> Result<(), Error> {
        let check = |what, value: usize, ok: bool| {
            let value = value as u64;
            if ok { Ok(()) } else { Err(Error::Header { what, value }) }
        };
        check("channels", self.channels, matches!(self.channels, 1 | 3))?;
        check("patch_size", self.patch_size, (1..=256).contains(&self.patch_size))?;
        check("patch_size", self.patch_size, self.patch_len() <= MAX_INNER)?;
        let whole = self.image_size >= 1 && self.image_size.is_multiple_of(self.patch_size);
        check("image_size", self.image_size, whole && self.tokens() <= MAX_TOKENS)?;
        check("dim", self.dim, (1..=MAX_WIDTH_TIMES_DEPTH).contains(&self.dim))?;
        let joined = self.depth.saturating_mul(self.dim);
        check("depth", self.depth, self.depth >= 1 && joined <= MAX_WIDTH_TIMES_DEPTH)?;
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
            Some(grid) => grid,
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
            Some(width) => width,
            None => 0,
        }
    }

    /// Values of a patch.
    pub const fn patch_len(&self) -> usize {
        self.patch_size
            .saturating_mul(self.patch_size)
            .saturating_mul(self.channels)
    }

    /// Values of an image.
    pub const fn image_len(&self) -> usize {
        self.image_size
            .saturating_mul(self.image_size)
            .saturating_mul(self.channels)
    }
}
