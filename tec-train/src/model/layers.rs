//! The layers of a vision transformer, made of [`crate::ops`], from named weights of any source.

use candle_core::Tensor;

use super::observer::{Observer, Site, Unobserved};
use super::variant::{Activation, Variant};
use crate::{
    Result,
    ops::{self, Amp, BranchWeights, Middle, RoundedWeight},
};

/// Layer norms of blocks, encoders and decoders; the encoder adapter alone uses PyTorch's 1e-5.
pub(crate) const NORM_EPS: f32 = 1e-6;

/// How a fresh parameter starts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Init {
    Zeros,
    Ones,
    /// Uniform within ±√(6 / (inputs + outputs)), the tensor seen as a matrix `[first dimension, rest]` (Glorot, 2010).
    Xavier,
    /// Normal with mean 0 and deviation 0.02.
    Token,
}

/// Where layers get their weights: fresh variables, or the tensors of a checkpoint.
pub(crate) trait Weights {
    fn take(&mut self, name: String, shape: &[usize], init: Init) -> Result<Tensor>;

    /// The arithmetic of the layers.
    fn amp(&self) -> Amp {
        Amp::None
    }
}

/// A place in the tree of names.
pub(crate) struct Scope<'a> {
    weights: &'a mut dyn Weights,
    prefix: String,
}

impl<'a> Scope<'a> {
    pub(crate) fn root(weights: &'a mut dyn Weights) -> Self {
        Self {
            weights,
            prefix: String::new(),
        }
    }

    pub(crate) fn child(&mut self, name: &str) -> Scope<'_> {
        Scope {
            prefix: format!("{}{name}.", self.prefix),
            weights: self.weights,
        }
    }

    pub(crate) fn take(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        self.weights.take(format!("{}{name}", self.prefix), shape, init)
    }

    fn amp(&self) -> Amp {
        self.weights.amp()
    }
}

/// `x Wᵀ + b`.
#[derive(Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
    amp: Amp,
    _rounded: [RoundedWeight; 2],
}

impl Linear {
    pub(crate) fn new(mut scope: Scope, inputs: usize, outputs: usize) -> Result<Self> {
        let weight = scope.take("weight", &[outputs, inputs], Init::Xavier)?;
        let bias = scope.take("bias", &[outputs], Init::Zeros)?;
        let amp = scope.amp();
        let rounded = |values: &Tensor| RoundedWeight::new(values, amp);
        Ok(Self {
            _rounded: [rounded(&weight)?, rounded(&bias)?],
            weight,
            bias,
            amp,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, Some(&self.bias), self.amp)
    }

    fn weights(&self) -> [Tensor; 2] {
        [self.weight.clone(), self.bias.clone()]
    }

    /// Only the outputs from number `start` on, `len` of them.
    pub(crate) fn some_outputs(&self, x: &Tensor, start: usize, len: usize) -> Result<Tensor> {
        let (weight, bias) = (self.weight.narrow(0, start, len)?, self.bias.narrow(0, start, len)?);
        ops::linear(x, &weight, Some(&bias), self.amp)
    }
}

/// Layer norm over the last dimension.
#[derive(Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    pub(crate) fn new(mut scope: Scope, dim: usize, eps: f32) -> Result<Self> {
        Ok(Self {
            weight: scope.take("weight", &[dim], Init::Ones)?,
            bias: scope.take("bias", &[dim], Init::Zeros)?,
            eps,
        })
    }

    fn weights(&self) -> [Tensor; 2] {
        [self.weight.clone(), self.bias.clone()]
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// Linear, exact GELU (or what a frozen base has), linear.
#[derive(Clone)]
pub(crate) struct Mlp {
    fc1: Linear,
    activation: Activation,
    fc2: Linear,
}

impl Mlp {
    pub(crate) fn new(scope: Scope, dim: usize, hidden: usize) -> Result<Self> {
        Self::with(scope, dim, hidden, Activation::Gelu)
    }

    fn with(mut scope: Scope, dim: usize, hidden: usize, activation: Activation) -> Result<Self> {
        Ok(Self {
            fc1: Linear::new(scope.child("fc1"), dim, activation.first_layer(hidden))?,
            activation,
            fc2: Linear::new(scope.child("fc2"), hidden, dim)?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.observed(x, 0, &mut Unobserved)
    }

    fn observed(&self, x: &Tensor, block: usize, observer: &mut dyn Observer) -> Result<Tensor> {
        let x = self.fc1.forward(x)?;
        observer.observe(Site::Fc1, block, &x)?;
        let x = match self.activation {
            Activation::Gelu => ops::gelu(&x)?,
            Activation::QuickGelu => ops::quick_gelu(&x)?,
            Activation::SwiGlu => ops::swiglu(&x)?,
        };
        observer.observe(Site::Hidden, block, &x)?;
        self.fc2.forward(&x)
    }
}

/// Multi-head self-attention with timm's joined queries, keys and values.
#[derive(Clone)]
struct Attention {
    heads: usize,
    amp: Amp,
    qkv: Linear,
    proj: Linear,
}

impl Attention {
    fn new(mut scope: Scope, dim: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            heads,
            amp: scope.amp(),
            qkv: Linear::new(scope.child("qkv"), dim, 3 * dim)?,
            proj: Linear::new(scope.child("proj"), dim, dim)?,
        })
    }

    fn observed(&self, x: &Tensor, block: usize, observer: &mut dyn Observer) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?;
        observer.observe(Site::Qkv, block, &qkv)?;
        let x = ops::attention(&qkv, self.heads, self.amp)?;
        observer.observe(Site::Attention, block, &x)?;
        self.proj.forward(&x)
    }
}

/// A pre-norm transformer block.
#[derive(Clone)]
pub(crate) struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
    /// See [`Block::set_grad_checkpointing`].
    checkpoint: bool,
}

impl Block {
    /// `depth` plain blocks under `scope`, named by number.
    pub(crate) fn stack(scope: Scope, depth: usize, dim: usize, heads: usize, hidden: usize) -> Result<Vec<Self>> {
        Self::stack_of(scope, depth, dim, heads, &Variant::plain(hidden))
    }

    /// The blocks of a variant.
    pub(crate) fn stack_of(
        mut scope: Scope,
        depth: usize,
        dim: usize,
        heads: usize,
        variant: &Variant,
    ) -> Result<Vec<Self>> {
        (0..depth)
            .map(|block| Self::new(scope.child(&block.to_string()), dim, heads, variant))
            .collect()
    }

    fn new(mut scope: Scope, dim: usize, heads: usize, variant: &Variant) -> Result<Self> {
        Ok(Self {
            norm1: LayerNorm::new(scope.child("norm1"), dim, variant.eps)?,
            attn: Attention::new(scope.child("attn"), dim, heads)?,
            norm2: LayerNorm::new(scope.child("norm2"), dim, variant.eps)?,
            mlp: Mlp::with(scope.child("mlp"), dim, variant.hidden, variant.activation)?,
            checkpoint: false,
        })
    }

    /// Whether the gradient of a block computes again what the block computes, instead of keeping it.
    pub(crate) fn set_grad_checkpointing(&mut self, on: bool) {
        self.checkpoint = on;
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.mlp_branch(&self.attention_branch(x)?)
    }

    /// `x + attn(norm1(x))`.
    fn attention_branch(&self, x: &Tensor) -> Result<Tensor> {
        let weights = BranchWeights {
            norm: self.norm1.weights(),
            eps: self.norm1.eps,
            first: self.attn.qkv.weights(),
            second: self.attn.proj.weights(),
            amp: self.attn.amp,
        };
        let heads = self.attn.heads;
        ops::branch(x, &weights, Middle::Attention { heads }, self.checkpoint)
    }

    /// `x + mlp(norm2(x))`.
    fn mlp_branch(&self, x: &Tensor) -> Result<Tensor> {
        match self.mlp.activation {
            Activation::Gelu => {
                let weights = BranchWeights {
                    norm: self.norm2.weights(),
                    eps: self.norm2.eps,
                    first: self.mlp.fc1.weights(),
                    second: self.mlp.fc2.weights(),
                    amp: self.mlp.fc2.amp,
                };
                ops::branch(x, &weights, Middle::Gelu, self.checkpoint)
            }
            Activation::QuickGelu | Activation::SwiGlu => ops::add(x, &self.mlp.forward(&self.norm2.forward(x)?)?),
        }
    }

    pub(crate) fn observed(&self, x: &Tensor, block: usize, observer: &mut dyn Observer) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        observer.observe(Site::Norm1, block, &normed)?;
        let x = ops::add(x, &self.attn.observed(&normed, block, observer)?)?;
        observer.observe(Site::Residual, block, &x)?;
        let normed = self.norm2.forward(&x)?;
        observer.observe(Site::Norm2, block, &normed)?;
        let x = ops::add(&x, &self.mlp.observed(&normed, block, observer)?)?;
        observer.observe(Site::Residual, block, &x)?;
        Ok(x)
    }

    /// The block's outputs for the tokens `wanted` (u32 `[B, R]`) alone, `[B, R, D]`; absent: for all.
    ///
    /// Other tokens are then needed for their keys and values only.
    pub(crate) fn decode(&self, tokens: &Tokens, wanted: Option<&Tensor>) -> Result<Tensor> {
        if let (Tokens::Whole(x), None) = (tokens, wanted) {
            return self.forward(x);
        }
        let (attn, dim) = (&self.attn, self.norm1.weight.elem_count());
        let whole = tokens.map(|x| Ok(x.clone()))?;
        let normed = tokens.each(|x| self.norm1.forward(x))?;
        let (x, attended) = match wanted {
            None => {
                let qkv = normed.map(|x| attn.qkv.forward(x))?;
                (whole, ops::attention(&qkv, attn.heads, attn.amp)?)
            }
            Some(wanted) => {
                let normed_wanted = ops::gather_tokens(&normed.map(|x| Ok(x.clone()))?, wanted)?;
                let q = attn.qkv.some_outputs(&normed_wanted, 0, dim)?;
                let kv = normed.map(|x| attn.qkv.some_outputs(x, dim, 2 * dim))?;
                (
                    ops::gather_tokens(&whole, wanted)?,
                    ops::attention_of(&q, &kv, attn.heads, attn.amp)?,
                )
            }
        };
        self.mlp_branch(&ops::add(&x, &attn.proj.forward(&attended)?)?)
    }
}

/// Tokens of whole images `[B, 1 + L, D]`.
pub(crate) enum Tokens {
    /// Each its own.
    Whole(Tensor),
    /// Removed patches are not known to differ between images yet: what is done to each token alone is done to them once.
    Masked {
        /// Class token and visible patches `[B, 1 + keep, D]`.
        visible: Tensor,
        /// What stands for each patch where it is removed `[L, D]`.
        masked: Tensor,
        /// Where each patch stands among the visible ones, u32 `[B, L]`.
        restore: Tensor,
    },
}

impl Tokens {
    /// `layer`, which treats every token alone, applied to the tokens.
    fn each(&self, layer: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::Whole(x) => Self::Whole(layer(x)?),
            Self::Masked {
                visible,
                masked,
                restore,
            } => Self::Masked {
                visible: layer(visible)?,
                masked: layer(masked)?,
                restore: restore.clone(),
            },
        })
    }

    /// As [`Tokens::each`], every token in its place in the end.
    fn map(&self, layer: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        match self.each(layer)? {
            Self::Whole(x) => Ok(x),
            Self::Masked {
                visible,
                masked,
                restore,
            } => ops::unmask(&visible, &masked, &restore),
        }
    }
}

/// The patch projection: a convolution whose stride is its size, which is a linear layer on patches.
#[derive(Clone)]
pub(crate) struct PatchEmbed {
    weight: Tensor,
    bias: Tensor,
    amp: Amp,
    _rounded: RoundedWeight,
}

impl PatchEmbed {
    /// `scope` is that of the model: the layer's name is `patch_embed.proj`.
    pub(crate) fn new(mut scope: Scope, channels: usize, patch: usize, dim: usize) -> Result<Self> {
        let mut scope = scope.child("proj");
        let weight = scope.take("weight", &[dim, channels, patch, patch], Init::Xavier)?;
        Ok(Self {
            _rounded: RoundedWeight::new(&weight, scope.amp())?,
            weight,
            bias: scope.take("bias", &[dim], Init::Zeros)?,
            amp: scope.amp(),
        })
    }

    /// Patches `[B, n, C·p·p]`, channels first → tokens `[B, n, D]`.
    pub(crate) fn forward(&self, patches: &Tensor) -> Result<Tensor> {
        ops::linear(patches, &self.weight.flatten_from(1)?, Some(&self.bias), self.amp)
    }
}
