//! Softmax weights: four indexes into the table of exponentials at a time.

use core::arch::wasm32::*;

use bytemuck::cast;
use tec_core::integer::{EXP_TABLE, EXP_TABLE_LEN, softmax_weights};

use super::norm::lower_words;
use crate::kernel::distances::Distances;

/// As [`softmax_weights`].
#[inline(never)]
pub(super) fn softmax(scores: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
    let Some(distances) = Distances::new(scores, multiplier, shift) else {
        return softmax_weights(scores, multiplier, shift, weights);
    };
    let limit = u32x4_splat(distances.limit as u32);
    let half = i64x2_splat(distances.half);
    let last = u32x4_splat(EXP_TABLE_LEN as u32 - 1);
    let multipliers = i32x4_splat(multiplier);
    let indexes = |scores: [i32; 4]| {
        let distance = u32x4_min(i32x4_sub(i32x4_splat(distances.max), cast(scores)), limit);
        let scaled = |product| u64x2_shr(i64x2_add(product, half), shift);
        let index = lower_words(
            scaled(u64x2_extmul_low_u32x4(distance, multipliers)),
            scaled(u64x2_extmul_high_u32x4(distance, multipliers)),
        );
        cast::<_, [u32; 4]>(u32x4_min(index, last))
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
