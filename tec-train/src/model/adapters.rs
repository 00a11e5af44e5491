//! The encoder adapter: from every level of the encoder to the decoder's input.

use candle_core::Tensor;

use super::layers::{LayerNorm, Linear, Mlp, Scope};
use crate::{Result, ops};

/// PyTorch's default, which the published model has here alone.
const EPS: f32 = 1e-5;

/// Layer norm over all levels, then groups of consecutive levels, each fused and adapted, summed and normalized.
#[derive(Clone)]
pub(crate) struct EncoderAdapter {
    before: LayerNorm,
    groups: Vec<(Linear, Mlp)>,
    /// Width of one group's input.
    group_dim: usize,
    after: LayerNorm,
}

impl EncoderAdapter {
    pub(crate) fn new(mut scope: Scope, dim: usize, depth: usize, groups: usize, hidden: usize) -> Result<Self> {
        let group_dim = dim * (depth / groups);
        let before = LayerNorm::new(scope.child("adap_before"), dim * depth, EPS)?;
        let fuse = (0..groups)
            .map(|group| Linear::new(scope.child("fuse_fcs").child(&group.to_string()), group_dim, dim))
            .collect::<Result<Vec<_>>>()?;
        let mlps = (0..groups)
            .map(|group| Mlp::new(scope.child("adap_mlps").child(&group.to_string()), dim, hidden))
            .collect::<Result<Vec<_>>>()?;
        let after = LayerNorm::new(scope.child("adap_after"), dim, EPS)?;
        Ok(Self {
            before,
            groups: fuse.into_iter().zip(mlps).collect(),
            group_dim,
            after,
        })
    }

    /// Levels joined on channels `[B, n, D·depth]` → `[B, n, D]`.
    pub(crate) fn forward(&self, levels: &Tensor) -> Result<Tensor> {
        let levels = self.before.forward(levels)?;
        let mut sum: Option<Tensor> = None;
        for (group, (fuse, mlp)) in self.groups.iter().enumerate() {
            let part = levels.narrow(2, group * self.group_dim, self.group_dim)?.contiguous()?;
            let fused = fuse.forward(&part)?;
            let adapted = ops::add(&fused, &mlp.forward(&fused)?)?;
            sum = Some(match sum {
                Some(sum) => ops::add(&sum, &adapted)?,
                None => adapted,
            });
        }
        self.after.forward(&sum.unwrap_or(levels))
    }
}
