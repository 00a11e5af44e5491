//! Watching a frozen encoder from the inside, for calibration and for pictures.

use candle_core::Tensor;

use crate::Result;

/// A place inside a vision transformer whose values can be observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// The patch projection's output, without class token and positions `[B, L, D]`; block 0.
    PatchEmbed,
    /// The residual stream `[B, 1+L, D]`: once after the embedding (block 0), then after each of a block's two additions.
    Residual,
    /// A block's first layer norm `[B, 1+L, D]`.
    Norm1,
    /// Queries, keys and values, joined `[B, 1+L, 3D]`.
    Qkv,
    /// The heads' outputs, joined, before the output projection `[B, 1+L, D]`.
    Attention,
    /// A block's second layer norm `[B, 1+L, D]`.
    Norm2,
    /// The MLP's first layer, before GELU `[B, 1+L, hidden]`.
    Fc1,
    /// The MLP's first layer, after GELU `[B, 1+L, hidden]`.
    Hidden,
    /// The final layer norm `[B, 1+L, D]`; block 0.
    FinalNorm,
}

/// Sees the values at every [`Site`] in the order they are computed.
pub trait Observer {
    /// Called with a site, the number of its block and its values.
    ///
    /// # Errors
    /// An error ends the forward pass and is handed to its caller.
    fn observe(&mut self, site: Site, block: usize, values: &Tensor) -> Result<()>;
}

/// Looks away: the observer of ordinary forward passes.
pub(crate) struct Unobserved;

impl Observer for Unobserved {
    fn observe(&mut self, _: Site, _: usize, _: &Tensor) -> Result<()> {
        Ok(())
    }
}

/// Keeps the last values seen at one site.
pub(crate) struct Capture {
    pub(crate) site: Site,
    pub(crate) values: Option<Tensor>,
}

impl Observer for Capture {
    fn observe(&mut self, site: Site, _: usize, values: &Tensor) -> Result<()> {
        if site == self.site {
            self.values = Some(values.clone());
        }
        Ok(())
    }
}
