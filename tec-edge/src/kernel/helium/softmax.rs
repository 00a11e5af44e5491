//! Softmax weights, four scores at a time.

use core::arch::asm;

use tec_core::integer::{EXP_TABLE, EXP_TABLE_LEN};

/// As [`softmax_weights`](tec_core::integer::softmax_weights) for a positive multiplier and a shift of `32 + rest`, from 33 to 62.
#[inline(never)]
pub(super) fn softmax(scores: &[i32], multiplier: i32, rest: u32, weights: &mut [i16]) -> u32 {
    let count = scores.len().min(weights.len());
    if count == 0 {
        return 0;
    }
    let mut max = i32::MIN;
    // SAFETY: reads as many scores as there are.
    unsafe {
        asm!(
            "dlstp.32 lr, {count}",
            "2:",
            "vldrw.u32 q0, [{scores}], #16",
            "vmaxv.s32 {max}, q0",
            "letp lr, 2b",
            count = in(reg) scores.len(),
            scores = inout(reg) scores.as_ptr() => _,
            max = inout(reg) max,
            out("lr") _, out("d0") _, out("d1") _,
            options(nostack, readonly),
        )
    }
    let sum: u32;
    // SAFETY: reads and writes as many scores and weights as both have; every index is limited to the table.
    unsafe {
        asm!(
            "vdup.32 q1, {max}",
            "vdup.32 q2, {multiplier}",
            "vdup.32 q3, {last}",
            "dlstp.32 lr, {count}",
            "2:",
            "vldrw.u32 q0, [{scores}], #16",
            // No distance is more than a word holds.
            "vqsub.s32 q0, q1, q0",
            "vmulh.u32 q0, q0, q2",
            "vrshl.u32 q0, {drop}",
            "vmin.u32 q0, q0, q3",
            "vldrh.u32 q4, [{table}, q0, uxtw #1]",
            "vstrh.32 q4, [r1], #8",
            "vaddva.u32 r0, q4",
            "letp lr, 2b",
            max = in(reg) max,
            multiplier = in(reg) multiplier,
            last = in(reg) EXP_TABLE_LEN - 1,
            count = in(reg) count,
            drop = in(reg) -(rest as i32),
            table = in(reg) &EXP_TABLE,
            scores = inout(reg) scores.as_ptr() => _,
            inout("r1") weights.as_mut_ptr() => _,
            inout("r0") 0 => sum,
            out("lr") _, out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            out("d8") _, out("d9") _,
            options(nostack),
        )
    }
    sum
}
