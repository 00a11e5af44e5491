//! Mixed precision: which values are rounded to bf16.

use std::{fmt, str::FromStr};

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};
use serde::{Deserialize, Serialize};

use super::cpu::{floats, tensor_of};
#[cfg(feature = "cuda")]
use super::gpu;
use crate::Error;
#[cfg(feature = "cuda")]
use crate::cuda::{Float, elementwise};

/// The arithmetic of the products of linear layers and attention, and the type of what is inside residual branches.
///
/// Parameters and their gradients, the residual stream, statistics, softmax and losses are f32 either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Amp {
    /// Everything in f32.
    #[default]
    None,
    /// Factors rounded to bf16, sums in f32; what is inside residual branches is stored as bf16.
    Bf16,
}

impl Amp {
    /// Both.
    pub const ALL: [Self; 2] = [Self::None, Self::Bf16];

    /// Its name in recipes and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bf16 => "bf16",
        }
    }

    /// The type of what is inside residual branches.
    pub(super) fn dtype(self) -> DType {
        match self {
            Self::None => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// The arithmetic of a product where this was asked for and a factor is stored as `dtype`: bf16 ones stay as they are.
    pub(super) fn of(self, dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Self::Bf16,
            _ => self,
        }
    }

    /// The type of the products' factors.
    #[cfg(feature = "cuda")]
    pub(super) fn float(self) -> Float {
        match self {
            Self::None => Float::F32,
            Self::Bf16 => Float::Bf16,
        }
    }

    /// An f32 tensor in the type of what is inside residual branches; without gradient.
    pub(super) fn rounded(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Bf16 => x.apply_op1_no_bwd(&Round),
        }
    }
}

impl fmt::Display for Amp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Amp {
    type Err = Error;

    /// What [`Amp::name`] gives.
    fn from_str(name: &str) -> std::result::Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|amp| amp.name() == name);
        found.ok_or_else(|| Error::Usage(format!("`{name}` is no mixed precision; give none or bf16")))
    }
}

/// f32 values as bf16, to the nearest, of two equally near ones to the even one.
struct Round;

impl CustomOp1 for Round {
    fn name(&self) -> &'static str {
        "round"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(self.name(), storage, layout)?;
        tensor_of(DType::BF16, x.to_vec(), layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let x = gpu::floats(self.name(), storage, layout)?;
        let (device, n) = (storage.device(), layout.shape().elem_count());
        let y = gpu::Output::new(device, Float::Bf16, n)?;
        gpu::launch(device, &elementwise::cast(Float::F32, x, y.address(device), n))?;
        y.tensor(device, layout.shape())
    }
}
