//! What sets a frozen base apart from the plain vision transformer that is trained here.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::layers::NORM_EPS;
use crate::Error;

/// The nonlinearity of a block's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GELU with the exact error function.
    Gelu,
    /// `x · sigmoid(1.702 x)`, of OpenAI's CLIP.
    QuickGelu,
    /// A gated MLP, `silu(gate) · value`, of DINOv2's largest model; shapes show it.
    #[serde(rename = "swiglu")]
    SwiGlu,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gelu, Self::QuickGelu, Self::SwiGlu];

    /// Its name in recipes and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::QuickGelu => "quick_gelu",
            Self::SwiGlu => "swiglu",
        }
    }

    /// Outputs of an MLP's first layer of which `hidden` values remain.
    pub(crate) fn first_layer(self, hidden: usize) -> usize {
        match self {
            Self::SwiGlu => 2 * hidden,
            _ => hidden,
        }
    }
}

impl FromStr for Activation {
    type Err = Error;

    /// The activation of that name, see [`Activation::name`].
    fn from_str(name: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|activation| activation.name() == name);
        found.ok_or_else(|| {
            Error::Usage(format!(
                "`{name}` is no activation; give {}",
                Self::ALL.map(Self::name).join(", ")
            ))
        })
    }
}

/// Architectural variant of a vision transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Whether the file scales each block's outputs (LayerScale). Loading folds that into the layers before, exactly.
    pub layer_scale: bool,
    /// Register tokens, which stand between class token and patches.
    pub registers: usize,
    /// Whether the position table has a row for the class token.
    pub class_position: bool,
    /// Whether the embedded tokens are normalized before the first block (`norm_pre`).
    pub pre_norm: bool,
    /// Whether the patch projection has a bias.
    pub patch_bias: bool,
    /// The MLPs' nonlinearity.
    pub activation: Activation,
    /// Values of the MLPs' second layer's input.
    pub hidden: usize,
    /// Epsilon of the blocks' layer norms and of the final one.
    pub eps: f32,
    /// Whether the final norm belongs to the mean of the patches (`fc_norm` of fine-tuned models) instead of to every token.
    pub pooled_norm: bool,
}

impl Variant {
    /// The plain vision transformer, which is also what training makes.
    pub(crate) fn plain(hidden: usize) -> Self {
        Self {
            layer_scale: false,
            registers: 0,
            class_position: true,
            pre_norm: false,
            patch_bias: true,
            activation: Activation::Gelu,
            hidden,
            eps: NORM_EPS,
            pooled_norm: false,
        }
    }

    /// Tokens before the first patch: the class token and the registers.
    pub(crate) fn prefix(&self) -> usize {
        1 + self.registers
    }

    /// What of it a file of a plain encoder of `dim` cannot say, as words; `None` if nothing. Folded LayerScale and absent biases
    /// and positions leave no trace.
    pub(crate) fn beyond_plain(&self, dim: usize) -> Option<String> {
        let mut parts = Vec::new();
        if self.registers > 0 {
            parts.push(format!("{} register tokens", self.registers));
        }
        if self.pre_norm {
            parts.push("a norm before the first block".into());
        }
        if self.activation != Activation::Gelu {
            parts.push(format!("the activation {}", self.activation.name()));
        }
        if !self.hidden.is_multiple_of(dim) {
            parts.push(format!("MLPs of {} values", self.hidden));
        }
        if self.eps != NORM_EPS {
            parts.push(format!("layer norms with eps {:e}", self.eps));
        }
        if self.pooled_norm {
            parts.push("a final norm after pooling".into());
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}
