//! Relation targets (Gao et al.: *Towards sustainable self-supervised learning*, 2022, section 3): the base's features
//! normalized over patches, and the attention rows of the queries that its class token attends to most.

use crate::error::{Error, Result, at_least, length, product};
use crate::lanes::{self, LANES};
use crate::mask::{build_heap, check_keys, count_up, precedes, sift_down, sort_by_rank};
use crate::softmax::softmax;

/// Added to the variance when features are normalized.
pub const FEATURE_EPS: f32 = 1e-6;

/// Normalizes one image's features `[patches, width]` over the patches, each channel by itself: zero mean, unit
/// unbiased variance, with [`FEATURE_EPS`] under the root.
///
/// # Errors
/// [`Error::TooFew`] for fewer than two patches, which have no unbiased variance; [`Error::Length`].
#[inline(always)]
pub fn normalize_features(features: &[f32], patches: usize, width: usize, out: &mut [f32]) -> Result<()> {
    at_least("patches", patches, 2)?;
    at_least("width", width, 1)?;
    length("features", features.len(), product(&[patches, width]))?;
    length("out", out.len(), features.len())?;
    for start in (0..width).step_by(LANES) {
        let mean = lanes::column_sums(features, width, start, |_, _, v| v).map(|sum| sum / patches as f32);
        let squares = lanes::column_sums(features, width, start, |_, channel, v| {
            let distance = v - mean.get(channel).copied().unwrap_or(0.0);
            distance * distance
        });
        let rstd = squares.map(|sum| 1.0 / libm::sqrtf(sum / (patches - 1) as f32 + FEATURE_EPS));
        for (row, out) in features.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let mut normal = lanes::eight(row, start);
            for ((value, mean), rstd) in normal.iter_mut().zip(mean).zip(rstd) {
                *value = (*value - mean) * rstd;
            }
            let out = out.get_mut(start..).unwrap_or(&mut []);
            match out.first_chunk_mut() {
                Some(out) => *out = normal,
                None => out.iter_mut().zip(normal).for_each(|(out, value)| *out = value),
            }
        }
    }
    Ok(())
}

/// The K patches that the class token attends to most, best first.
///
/// `class_logits` is [heads, patches]: the class token's row of the attention logits, before softmax, without class and
/// register columns. The rank of a patch is its mean over heads, in f32; of equal ones the lower patch number comes first.
/// `index` has K elements, `scratch` one a patch.
///
/// # Errors
/// [`Error::TooFew`] without heads, [`Error::TooMany`] for K above the number of patches, [`Error::NotANumber`] for a
/// patch whose mean is NaN, [`Error::Length`].
pub fn rank_queries(
    class_logits: &[f32],
    heads: usize,
    patches: usize,
    index: &mut [u32],
    scratch: &mut [f32],
) -> Result<()> {
    at_least("heads", heads, 1)?;
    at_least("patches", patches, 1)?;
    length("class_logits", class_logits.len(), product(&[heads, patches]))?;
    length("scratch", scratch.len(), patches)?;
    if index.len() > patches {
        return Err(Error::TooMany {
            what: "queries",
            most: patches,
            actual: index.len(),
        });
    }
    for (patch, mean) in scratch.iter_mut().enumerate() {
        let mut total = lanes::Accumulator::new();
        class_logits
            .iter()
            .skip(patch)
            .step_by(patches)
            .for_each(|&logit| total.push(logit));
        // Negated, so that ascending order is best first.
        *mean = -(total.total() / heads as f32);
    }
    check_keys("class_logits", scratch)?;

    // A heap of the best K so far, the worst of them on top.
    let before = |a, b| precedes(scratch, a, b);
    count_up(index);
    build_heap(index, before);
    for candidate in (0..patches as u32).skip(index.len()) {
        match index.first_mut() {
            Some(worst) if before(candidate, *worst) => {
                *worst = candidate;
                sift_down(index, 0, before);
            }
            _ => {}
        }
    }
    sort_by_rank(index, before);
    Ok(())
}

/// Picks the target rows from one image's attention logits.
///
/// `logits` is `[heads, 1 + patches, 1 + patches]` with the class token first; `picked` becomes [1 + K, heads, patches]: the
/// class token's row, then the rows of the K patches in `index`, all without the class column.
///
/// # Errors
/// [`Error::Index`] for a patch that does not exist, [`Error::Length`].
pub fn target_rows(logits: &[f32], heads: usize, patches: usize, index: &[u32], picked: &mut [f32]) -> Result<()> {
    at_least("heads", heads, 1)?;
    at_least("patches", patches, 1)?;
    let tokens = patches.saturating_add(1);
    length("logits", logits.len(), product(&[heads, tokens, tokens]))?;
    length(
        "picked",
        picked.len(),
        product(&[index.len().saturating_add(1), heads, patches]),
    )?;
    if let Some(&patch) = index.iter().find(|&&patch| patch as usize >= patches) {
        return Err(Error::Index {
            what: "patches",
            index: patch as usize,
            length: patches,
        });
    }
    let queries = core::iter::once(0).chain(index.iter().map(|&patch| patch as usize + 1));
    // Not zero, which the optimizer does not see.
    let (rows_len, head_len) = ((heads * patches).max(1), (tokens * tokens).max(1));
    for (query, rows) in queries.zip(picked.chunks_exact_mut(rows_len)) {
        for (logits, row) in logits.chunks_exact(head_len).zip(rows.chunks_exact_mut(patches)) {
            let columns = logits.iter().skip(query * tokens + 1);
            for (out, &logit) in row.iter_mut().zip(columns) {
                *out = logit;
            }
        }
    }
    Ok(())
}

/// softmax(x / τ) of every row of `patches`; `picked` and `out` are `[rows, patches]`.
///
/// # Errors
/// [`Error::Range`] unless τ is positive and finite, [`Error::NotMultiple`] where `picked` is not whole rows,
/// [`Error::Length`].
#[inline(always)]
pub fn tempered_target(picked: &[f32], patches: usize, tau: f32, out: &mut [f32]) -> Result<()> {
    at_least("patches", patches, 1)?;
    if !picked.len().is_multiple_of(patches) {
        return Err(Error::NotMultiple {
            what: "picked",
            of: patches,
            actual: picked.len(),
        });
    }
    length("out", out.len(), picked.len())?;
    if !(f32::MIN_POSITIVE..f32::INFINITY).contains(&tau) {
        let (least, below) = (f64::from(f32::MIN_POSITIVE), f64::INFINITY);
        return Err(Error::Range {
            what: "tau",
            least,
            below,
            actual: f64::from(tau),
        });
    }
    let scale = 1.0 / tau;
    for (row, out) in picked.chunks_exact(patches).zip(out.chunks_exact_mut(patches)) {
        softmax(row, scale, out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::{assert_close, values, wide};
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    #[test]
    fn features_are_normalized_over_patches() {
        for (patches, width) in [(2, 1), (9, 8), (49, 13), (16, 24)] {
            let features: Vec<f32> = values(1, patches * width, 3.0).iter().map(|v| v + 10.0).collect();
            let mut out = vec![0.0; features.len()];
            normalize_features(&features, patches, width, &mut out).unwrap();
            let x = wide(&features);
            let mut expected = vec![0.0; x.len()];
            for channel in 0..width {
                let column: Vec<f64> = x.iter().skip(channel).step_by(width).copied().collect();
                let mean = column.iter().sum::<f64>() / patches as f64;
                let variance = column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (patches - 1) as f64;
                for (patch, v) in column.iter().enumerate() {
                    expected[patch * width + channel] = (v - mean) / (variance + 1e-6).sqrt();
                }
            }
            assert_close(&out, &expected, 1e-5);
        }
        assert_eq!(
            normalize_features(&[1.0; 3], 1, 3, &mut [0.0; 3]),
            Err(Error::TooFew {
                what: "patches",
                least: 2,
                actual: 1
            })
        );
        assert!(normalize_features(&[1.0; 4], 2, 3, &mut [0.0; 4]).is_err());
        assert!(normalize_features(&[1.0; 4], usize::MAX, 2, &mut [0.0; 4]).is_err());
        assert!(normalize_features(&[], 2, 0, &mut []).is_err());
    }

    #[test]
    fn equal_channels_become_zero() {
        let mut out = [1.0; 6];
        normalize_features(&[4.0, 7.0, 4.0, 7.0, 4.0, 7.0], 3, 2, &mut out).unwrap();
        assert_eq!(out, [0.0; 6]);
    }

    #[test]
    fn queries_tie_by_patch_number() {
        // Means over two heads: 1, 3, 3, 0, 3.
        let logits = [0.0, 4.0, 3.0, -1.0, 5.0, 2.0, 2.0, 3.0, 1.0, 1.0];
        let (mut index, mut scratch) = ([9; 4], [0.0; 5]);
        rank_queries(&logits, 2, 5, &mut index, &mut scratch).unwrap();
        assert_eq!(index, [1, 2, 4, 0]);
        assert_eq!(
            rank_queries(&logits, 2, 5, &mut [0; 6], &mut scratch),
            Err(Error::TooMany {
                what: "queries",
                most: 5,
                actual: 6
            })
        );
        assert_eq!(rank_queries(&logits, 2, 5, &mut [], &mut scratch), Ok(()));
        let mut bad = logits;
        bad[7] = f32::NAN;
        assert_eq!(
            rank_queries(&bad, 2, 5, &mut index, &mut scratch),
            Err(Error::NotANumber {
                what: "class_logits",
                index: 2
            })
        );
        assert!(rank_queries(&logits, 0, 5, &mut index, &mut scratch).is_err());
        assert!(rank_queries(&logits, 2, 4, &mut index, &mut scratch[..4]).is_err());
        assert!(rank_queries(&logits, 2, 5, &mut index, &mut scratch[..4]).is_err());
    }

    #[test]
    fn rows_are_picked_without_the_class_column() {
        // logits[head][row][column] = 100 head + 10 row + column
        let logits: Vec<f32> = (0..2 * 16)
            .map(|n| (100 * (n / 16) + 10 * (n / 4 % 4) + n % 4) as f32)
            .collect();
        let mut picked = [0.0; 3 * 2 * 3];
        target_rows(&logits, 2, 3, &[2, 0], &mut picked).unwrap();
        let row = |head: u16, row: u16| [1, 2, 3].map(|column| f32::from(100 * head + 10 * row + column));
        let expected = [row(0, 0), row(1, 0), row(0, 3), row(1, 3), row(0, 1), row(1, 1)].concat();
        assert_eq!(picked[..], expected);
        assert_eq!(
            target_rows(&logits, 2, 3, &[2, 3], &mut picked),
            Err(Error::Index {
                what: "patches",
                index: 3,
                length: 3
            })
        );
        assert!(target_rows(&logits, 2, 3, &[2], &mut picked).is_err());
        assert!(target_rows(&logits[1..], 2, 3, &[2, 0], &mut picked).is_err());
        assert!(target_rows(&logits, usize::MAX, usize::MAX, &[2, 0], &mut picked).is_err());
    }

    #[test]
    fn temperature_must_be_positive() {
        let mut out = [0.0; 4];
        for tau in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40] {
            assert!(
                matches!(tempered_target(&[1.0; 4], 2, tau, &mut out), Err(Error::Range { .. })),
                "{tau}"
            );
        }
        assert!(tempered_target(&[1.0; 4], 3, 1.0, &mut out).is_err());
        tempered_target(&[0.0, 2.0, 5.0, 5.0], 2, 2.0, &mut out).unwrap();
        let p = 1.0 / (1.0 + 1.0f64.exp());
        assert_close(&out, &[p, 1.0 - p, 0.5, 0.5], 1e-6);
    }

    proptest! {
        #[test]
        fn queries_equal_a_full_sort(
            logits in prop::collection::vec((0u8..12).prop_map(f32::from), 3..240),
            heads in 1usize..4,
            share in 0.0f64..=1.0,
        ) {
            let patches = logits.len() / heads;
            let logits = &logits[..heads * patches];
            let mut index = vec![0; (patches as f64 * share) as usize];
            rank_queries(logits, heads, patches, &mut index, &mut vec![0.0; patches]).unwrap();
            // Small integers: a sum is exact in any order, and ranks as its mean does.
            let sum = |patch: u32| -> f32 { logits.iter().skip(patch as usize).step_by(patches).sum() };
            let mut order: Vec<u32> = (0..patches as u32).collect();
            order.sort_by(|&a, &b| sum(b).total_cmp(&sum(a)));
            prop_assert_eq!(&index[..], &order[..index.len()]);
        }
    }
}
