//! Weights in mixed precision: a GPU keeps their rounded values beside them.

use std::sync::Arc;

use candle_core::{Tensor, Var};

use super::Amp;
#[cfg(feature = "cuda")]
use super::gpu;
use crate::Result;

/// Keeps the rounded values of a weight for the products it enters, as long as this or a clone of it lives. On a CPU, and without
/// mixed precision, there is nothing to keep.
#[derive(Debug, Clone, Default)]
pub struct RoundedWeight {
    #[cfg(feature = "cuda")]
    _kept: Option<Arc<gpu::Rounded>>,
    #[cfg(not(feature = "cuda"))]
    _kept: Option<Arc<()>>,
}

impl RoundedWeight {
    /// For an f32 weight that enters products as `amp` says. Only [`crate::optim::AdamW`] and [`replace`] may change it from
    /// now on.
    ///
    /// # Errors
    /// A GPU without room.
    pub fn new(weight: &Tensor, amp: Amp) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if amp == Amp::Bf16 {
            let _kept = gpu::Rounded::new(weight)?.map(Arc::new);
            return Ok(Self { _kept });
        }
        let _ = (weight, amp);
        Ok(Self::default())
    }
}

/// Sets a variable to other values, rounded ones included.
///
/// # Errors
/// Another shape or device.
pub fn replace(var: &Var, values: &Tensor) -> Result<()> {
    var.set(values)?;
    #[cfg(feature = "cuda")]
    gpu::refresh(var.as_tensor())?;
    Ok(())
}
