//! What kernels share that find the softmax weights of several scores at a time.

use tec_core::integer::{EXP_TABLE_LEN, softmax_weights};

/// A row of scores by their distances from the largest one.
pub(super) struct Distances {
    /// The largest score.
    pub(super) max: i32,
    /// From this distance on the index into the table of exponentials is the last; no distance is more than u32 holds.
    pub(super) limit: i32,
    /// Positive.
    pub(super) multiplier: i32,
    /// Bits that are dropped of a distance's product with the multiplier, to give the index.
    pub(super) shift: u32,
    /// What is added to the product before.
    pub(super) half: i64,
}

impl Distances {
    /// `None` where products of limited distances may reach 2^62: that is left to [`softmax_weights`].
    #[inline(always)]
    pub(super) fn new(scores: &[i32], multiplier: i32, shift: u32) -> Option<Self> {
        const MOST_SHIFT: u32 = 50;
        if shift > MOST_SHIFT || multiplier <= 0 {
            return None;
        }
        let limit = ((EXP_TABLE_LEN as u64) << shift) / multiplier as u64 + 1;
        Some(Self {
            max: scores.iter().copied().fold(i32::MIN, i32::max),
            limit: limit.min(i32::MAX as u64) as i32,
            multiplier,
            shift,
            half: if shift == 0 { 0 } else { 1 << (shift - 1) },
        })
    }

    /// The weights of scores that fill no vector, one by one; returns their sum.
    #[inline(always)]
    pub(super) fn rest(&self, scores: &[i32], weights: &mut [i16]) -> u32 {
        let mut sum = 0;
        for (slot, &score) in weights.iter_mut().zip(scores) {
            let pair = &mut [0; 2];
            softmax_weights(&[self.max, score], self.multiplier, self.shift, pair);
            *slot = pair[1];
            sum += *slot as u32;
        }
        sum
    }
}
