//! The two adapters of TEC (Gao et al., 2022, section 3) as plain arithmetic, for one token at a time.

use crate::activation::gelu;
use crate::error::{Error, Result, at_least, length, product};
use crate::linear::linear;
use crate::norm::layer_norm;

/// Epsilon of the encoder adapter's two norms, unlike the encoder's 1e-6.
pub const ADAPTER_EPS: f32 = 1e-5;

/// Groups of consecutive levels that the encoder adapter makes of `depth` blocks: the largest divisor of `depth` not
/// above depth / 3, at least 1. The published sizes: 12 → 4, 24 → 8.
pub fn groups(depth: usize) -> usize {
    (1..=depth / 3)
        .rev()
        .find(|group| depth.is_multiple_of(*group))
        .unwrap_or(1)
}

/// Two linear layers with a GELU between them; the weights are `[hidden, width]` and `[width, hidden]`.
#[derive(Debug, Clone, Copy)]
pub struct Mlp<'a> {
    /// First layer, `[hidden, width]`.
    pub fc1_weight: &'a [f32],
    /// Its bias, `[hidden]`.
    pub fc1_bias: &'a [f32],
    /// Second layer, `[width, hidden]`.
    pub fc2_weight: &'a [f32],
    /// Its bias, `[width]`.
    pub fc2_bias: &'a [f32],
}

impl Mlp<'_> {
    /// Width between the two layers.
    pub fn hidden(&self) -> usize {
        self.fc1_bias.len()
    }

    /// `out = fc2(gelu(fc1(x)))` for one token; `scratch` has `hidden` elements.
    ///
    /// # Errors
    /// [`Error::Length`] where a weight, the scratch or the output does not fit `x`; [`Error::TooFew`] for an empty layer.
    pub fn apply(&self, x: &[f32], scratch: &mut [f32], out: &mut [f32]) -> Result<()> {
        let (width, hidden) = (x.len(), self.hidden());
        length("fc1_weight", self.fc1_weight.len(), product(&[hidden, width]))?;
        length("fc2_weight", self.fc2_weight.len(), product(&[out.len(), hidden]))?;
        length("scratch", scratch.len(), hidden)?;
        linear(x, width, self.fc1_weight, Some(self.fc1_bias), scratch)?;
        for value in scratch.iter_mut() {
            *value = gelu(*value);
        }
        linear(scratch, hidden, self.fc2_weight, Some(self.fc2_bias), out)
    }
}

/// The input adapter: the class token becomes MLP(token), without a residual.
///
/// `fc1_w` is `[hidden, D]`, `fc2_w` `[D, hidden]`, `scratch` `[hidden]`, `token` and `out` `[D]`. The result is a constant, so
/// an export stores it as the class token.
///
/// # Errors
/// Those of [`Mlp::apply`].
pub fn input_adapter(
    token: &[f32],
    fc1_w: &[f32],
    fc1_b: &[f32],
    fc2_w: &[f32],
    fc2_b: &[f32],
    scratch: &mut [f32],
    out: &mut [f32],
) -> Result<()> {
    let mlp = Mlp {
        fc1_weight: fc1_w,
        fc1_bias: fc1_b,
        fc2_weight: fc2_w,
        fc2_bias: fc2_b,
    };
    mlp.apply(token, scratch, out)
}

/// One group of the encoder adapter: consecutive levels are fused into one token of width D, then `y + mlp(y)`.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// Fusing layer, `[D, D · depth / groups]`.
    pub fuse_weight: &'a [f32],
    /// Its bias, `[D]`.
    pub fuse_bias: &'a [f32],
    /// The MLP with a residual after it.
    pub mlp: Mlp<'a>,
}

/// The weights of the encoder adapter; the number of groups is the length of `groups`.
#[derive(Debug, Clone, Copy)]
pub struct EncoderAdapter<'a> {
    /// Norm over all levels joined, `[D · depth]`.
    pub before_weight: &'a [f32],
    /// Its bias, `[D · depth]`.
    pub before_bias: &'a [f32],
    /// The groups, the first levels first.
    pub groups: &'a [Group<'a>],
    /// Norm of the sum, `[D]`.
    pub after_weight: &'a [f32],
    /// Its bias, `[D]`.
    pub after_bias: &'a [f32],
}

impl EncoderAdapter<'_> {
    /// Elements of scratch that [`encoder_adapter`] needs.
    pub fn scratch_len(&self) -> usize {
        let hidden = self.groups.iter().map(|group| group.mlp.hidden()).max().unwrap_or(0);
        let width = self.after_weight.len();
        self.before_weight
            .len()
            .saturating_add(width.saturating_mul(3))
            .saturating_add(hidden)
    }
}

/// The encoder adapter on one token's levels `[D · depth]`, the first block's output first; `out` is `[D]`.
///
/// LayerNorm over all levels, each group's `y + mlp(y)` with `y` its fused levels, their sum in the order of the groups,
/// LayerNorm. `scratch` has [`EncoderAdapter::scratch_len`] elements.
///
/// # Errors
/// [`Error::TooFew`] without groups, [`Error::NotMultiple`] where the levels do not divide among them, [`Error::Length`]
/// where a weight does not fit.
pub fn encoder_adapter(
    weights: &EncoderAdapter<'_>,
    levels: &[f32],
    scratch: &mut [f32],
    out: &mut [f32],
) -> Result<()> {
    let (joined, width) = (levels.len(), out.len());
    at_least("groups", weights.groups.len(), 1)?;
    at_least("levels", joined, 1)?;
    if !joined.is_multiple_of(weights.groups.len()) {
        return Err(Error::NotMultiple {
            what: "levels",
            of: weights.groups.len(),
            actual: joined,
        });
    }
    length("before_weight", weights.before_weight.len(), joined)?;
    length("after_weight", weights.after_weight.len(), width)?;
    let needed = weights.scratch_len();
    length("scratch", scratch.len(), needed)?;

    let mut rest = scratch;
    let normal = take(&mut rest, joined)?;
    let total = take(&mut rest, width)?;
    let fused = take(&mut rest, width)?;
    let mixed = take(&mut rest, width)?;

    layer_norm(levels, weights.before_weight, weights.before_bias, ADAPTER_EPS, normal)?;
    total.fill(0.0);
    // Not zero, which the optimizer does not see.
    let part_width = (joined / weights.groups.len()).max(1);
    for (group, part) in weights.groups.iter().zip(normal.chunks_exact(part_width)) {
        length("fuse_weight", group.fuse_weight.len(), product(&[width, part_width]))?;
        linear(part, part_width, group.fuse_weight, Some(group.fuse_bias), fused)?;
        let hidden = group.mlp.hidden();
        let hidden = rest.get_mut(..hidden).ok_or(Error::TooFew {
            what: "scratch",
            least: hidden,
            actual: 0,
        })?;
        group.mlp.apply(fused, hidden, mixed)?;
        for ((total, &fused), &mixed) in total.iter_mut().zip(fused.iter()).zip(mixed.iter()) {
            *total = (*total + fused) + mixed;
        }
    }
    layer_norm(total, weights.after_weight, weights.after_bias, ADAPTER_EPS, out)?;
    Ok(())
}

/// Splits `count` elements off the front of a buffer.
fn take<'a>(rest: &mut &'a mut [f32], count: usize) -> Result<&'a mut [f32]> {
    let whole = core::mem::take(rest);
    let actual = whole.len();
    let (front, back) = whole.split_at_mut_checked(count).ok_or(Error::TooFew {
        what: "scratch",
        least: count,
        actual,
    })?;
    *rest = back;
    Ok(front)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::values;
    use std::{vec, vec::Vec};

    #[test]
    fn groups_of_common_depths() {
        let expected = [
            (12, 4),
            (24, 8),
            (32, 8),
            (8, 2),
            (6, 2),
            (9, 3),
            (7, 1),
            (4, 1),
            (3, 1),
            (2, 1),
            (1, 1),
            (0, 1),
        ];
        for (depth, count) in expected {
            assert_eq!(groups(depth), count, "depth {depth}");
        }
    }

    /// With MLPs of zero and fusing matrices that select the first level of a group, the sum of those levels is left.
    #[test]
    fn zero_mlps_leave_the_fused_levels() {
        let (width, depth, hidden) = (8, 6, 16);
        let part = 3 * width;
        let mut select = vec![0.0; width * part];
        for channel in 0..width {
            select[channel * part + channel] = 1.0;
        }
        let zeros = vec![0.0; part * hidden];
        let mlp = Mlp {
            fc1_weight: &zeros[..hidden * width],
            fc1_bias: &zeros[..hidden],
            fc2_weight: &zeros[..hidden * width],
            fc2_bias: &zeros[..width],
        };
        let group = Group {
            fuse_weight: &select,
            fuse_bias: &zeros[..width],
            mlp,
        };
        let ones = vec![1.0; width * depth];
        let weights = EncoderAdapter {
            before_weight: &ones,
            before_bias: &zeros[..width * depth],
            groups: &[group, group],
            after_weight: &ones[..width],
            after_bias: &zeros[..width],
        };
        let levels = values(7, width * depth, 2.0);
        let mut scratch = vec![f32::NAN; weights.scratch_len()];
        let mut out = vec![0.0; width];
        encoder_adapter(&weights, &levels, &mut scratch, &mut out).unwrap();

        let mut normal = vec![0.0; width * depth];
        layer_norm(&levels, &ones, &zeros[..width * depth], ADAPTER_EPS, &mut normal).unwrap();
        let sum: Vec<f32> = (0..width)
            .map(|channel| normal[channel] + normal[part + channel])
            .collect();
        let mut expected = vec![0.0; width];
        layer_norm(&sum, &ones[..width], &zeros[..width], ADAPTER_EPS, &mut expected).unwrap();
        assert_eq!(out, expected);

        assert!(encoder_adapter(&weights, &levels[1..], &mut scratch, &mut out).is_err());
        assert!(encoder_adapter(&weights, &levels, &mut scratch[1..], &mut out).is_err());
        assert!(encoder_adapter(&weights, &levels, &mut scratch, &mut out[1..]).is_err());
        let none = EncoderAdapter { groups: &[], ..weights };
        assert!(encoder_adapter(&none, &levels, &mut scratch, &mut out).is_err());
        let wrong = Group {
            fuse_weight: &select[1..],
            ..group
        };
        let wrong = EncoderAdapter {
            groups: &[group, wrong],
            ..weights
        };
        assert!(encoder_adapter(&wrong, &levels, &mut scratch, &mut out).is_err());
    }

    #[test]
    fn input_adapter_has_no_residual() {
        let (mut scratch, mut out) = ([0.0; 2], [9.0; 3]);
        let zeros = [0.0; 6];
        let bias = [1.0, -2.0, 3.0];
        input_adapter(&[5.0; 3], &zeros, &zeros[..2], &zeros, &bias, &mut scratch, &mut out).unwrap();
        assert_eq!(out, bias);
        assert!(
            input_adapter(
                &[5.0; 3],
                &zeros[1..],
                &zeros[..2],
                &zeros,
                &bias,
                &mut scratch,
                &mut out
            )
            .is_err()
        );
        assert!(input_adapter(&[5.0; 3], &zeros, &zeros[..2], &zeros, &bias, &mut [0.0; 3], &mut out).is_err());
        assert!(input_adapter(&[], &[], &[], &[], &[], &mut [], &mut []).is_err());
    }
}
