//! Softmax weights: eight indexes into the table of exponentials at a time.

use core::arch::aarch64::*;

use bytemuck::cast;
use tec_core::integer::{EXP_TABLE, EXP_TABLE_LEN, softmax_weights};

use crate::kernel::distances::Distances;

/// As [`softmax_weights`].
#[target_feature(enable = "neon")]
#[inline(never)]
pub(super) fn softmax(scores: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
    let Some(distances) = Distances::new(scores, multiplier, shift) else {
        return softmax_weights(scores, multiplier, shift, weights);
    };
    let limit = vdupq_n_u32(distances.limit as u32);
    let drop = vdupq_n_s64(-i64::from(shift));
    let last = vdupq_n_u32(EXP_TABLE_LEN as u32 - 1);
    let multipliers = vdup_n_u32(multiplier as u32);
    let indexes = |scores: [i32; 4]| {
        let distance = vsubq_u32(vdupq_n_u32(distances.max as u32), cast(scores));
        let distance = vminq_u32(distance, limit);
        let first = vrshlq_u64(vmull_u32(vget_low_u32(distance), multipliers), drop);
        let second = vrshlq_u64(vmull_u32(vget_high_u32(distance), multipliers), drop);
        cast::<_, [u32; 4]>(vminq_u32(vcombine_u32(vmovn_u64(first), vmovn_u64(second)), last))
    };
    let (fours, rest) = scores.as_chunks::<4>();
    let (slots, rest_slots) = weights.split_at_mut((4 * fours.len()).min(weights.len()));
    let mut sum = 0;
    for (&scores, slots) in fours.iter().zip(slots.as_chunks_mut::<4>().0) {
        for (slot, index) in slots.iter_mut().zip(indexes(scores)) {
            *slot = EXP_TABLE.get(index as usize).copied().unwrap_or(0);
            sum += *slot as u32;
        }
    }
    sum + distances.rest(rest, rest_slots)
}
