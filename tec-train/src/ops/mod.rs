//! The differentiable operations of training, on candle tensors.
//!
//! B images, N tokens, L patches, D width, T base width, K selected queries. Tensors are f32, or inside residual branches what
//! [`Amp`] says; indices are u32, all on one device.
//! Each operation is one candle custom operation with its gradient: on the CPU it runs the functions of `tec-core` on all
//! threads of the current rayon pool, over pieces of work whose size does not depend on the number of threads, so that
//! results do not either. Gradients are custom operations too, so that another device implements both in the same way.

mod activation;
mod amp;
mod attention;
mod branch;
#[cfg(test)]
mod composed;
mod cpu;
mod gemm;
#[cfg(feature = "cuda")]
pub(crate) mod gpu;
mod linear;
mod loss;
mod norm;
#[cfg(feature = "cuda")]
mod pixels;
mod relation;
mod rounded;
mod sigmoid;
mod simd;
#[cfg(test)]
mod tests;
mod tokens;

pub use activation::{add, gelu};
pub use amp::Amp;
pub use attention::{attention, attention_of};
pub use branch::{BranchWeights, Middle, backward, branch};
pub use linear::linear;
pub use loss::{feature_loss, relation_loss};
pub use norm::layer_norm;
#[cfg(feature = "cuda")]
pub(crate) use pixels::images_from_pixels;
pub use relation::{base_relation, normalize_features, relation_logits, tempered_target};
pub(crate) use rounded::{RoundedWeight, replace};
pub use sigmoid::{quick_gelu, swiglu};
pub use tokens::{gather_tokens, patchify, unmask};

/// The order of values within one flattened patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchOrder {
    /// Channel, row, column: the order of a patch convolution's weight.
    ChannelsFirst,
    /// Row, column, channel: the order of the masked autoencoder's pixel targets.
    ChannelsLast,
}
