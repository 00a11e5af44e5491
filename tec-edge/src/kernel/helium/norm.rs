//! LayerNorm, four channels at a time, in products of 32 by 32 bits of which the upper word is kept.

use core::arch::asm;

use tec_core::integer::{AFFINE_OFFSET_BITS, NormRow};

use crate::kernel::narrow;
use crate::layers::Norm;

/// The most channels of a norm whose sum fits a word.
const MOST_CHANNELS: usize = 32_768;

/// Puts a token's values, each rounded and limited to i8, into `out`. `None` where numbers would not fit 32 bits, or constants do not lie at
/// the boundary of a word; `out` is then to be computed otherwise.
#[inline(never)]
pub(super) fn normalize(norm: &Norm<'_>, token: &[i16], out: &mut [i8]) -> Option<()> {
    let count = token.len();
    let multipliers: &[i32] = bytemuck::try_cast_slice(norm.multiplier.part(0, count).0).ok()?;
    let offsets: &[i32] = bytemuck::try_cast_slice(norm.offset.part(0, count).0).ok()?;
    let enough = [multipliers.len(), offsets.len(), out.len()]
        .iter()
        .all(|&len| len >= count);
    // The affine's bits that neither an offset nor the value has.
    let below @ 1..=29 = norm.bits.checked_sub(AFFINE_OFFSET_BITS)? else {
        return None;
    };
    if !enough || count == 0 || count > MOST_CHANNELS {
        return None;
    }
    let (sum, squares) = sums(token);
    let row = NormRow::from_sums(count, sum.into(), squares, norm.epsilon);
    let words = narrow::Words::new(norm, &row)?;
    // A normalized value is below 2^28 and a mantissa at least 2^30, so a centered value is below 2^(shift - 2): moved up so far that
    // 33 bits are to be dropped, it still fits, and what is left of the upper word of its product, rounded, is the product rounded.
    let up = 33u32.saturating_sub(row.shift);
    let drop = row.shift.max(33) - 32;
    let largest: u32;
    // SAFETY: reads and writes as many channels as the token has, and all others were found to have.
    unsafe {
        asm!(
            "vdup.32 q1, {largest}",
            "mov {largest}, #0",
            "dlstp.32 lr, lr",
            "2:",
            "vldrh.s32 q0, [r0], #8",
            "vmul.i32 q0, q0, {width}",
            "vsub.i32 q0, q0, {sum}",
            "vmulh.s32 q0, q0, q1",
            "vrshl.s32 q0, {drop}",
            // The product with the multiplier without its lowest bits, if it then fits a word: `largest` says so in the end.
            "vldrw.u32 q2, [{multipliers}], #16",
            "vmulh.s32 q3, q0, q2",
            "vmul.i32 q0, q0, q2",
            "vmaxav.s32 {largest}, q3",
            "vshl.s32 q3, {above}",
            "vshl.u32 q0, {below}",
            "vorr q0, q0, q3",
            "vldrw.u32 q2, [{offsets}], #16",
            "vqadd.s32 q0, q0, q2",
            "vrshr.s32 q0, q0, #16",
            "vqmovnb.s32 q0, q0",
            "vqmovnb.s16 q0, q0",
            "vstrb.32 q0, [r1], #4",
            "letp lr, 2b",
            inout("r0") token.as_ptr() => _,
            multipliers = inout(reg) multipliers.as_ptr() => _,
            offsets = inout(reg) offsets.as_ptr() => _,
            inout("r1") out.as_mut_ptr() => _,
            width = in(reg) words.width << up,
            sum = in(reg) words.sum << up,
            drop = in(reg) -(drop as i32),
            above = in(reg) 32 - below,
            below = in(reg) -(below as i32),
            // The mantissa on the way in.
            largest = inout(reg) words.mantissa => largest,
            inout("lr") count => _, out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            options(nostack),
        )
    }
    (largest < 1 << (below - 1)).then_some(())
}

/// The sum of a row, of [`MOST_CHANNELS`] at most, and that of its squares.
fn sums(token: &[i16]) -> (i32, i64) {
    let (sum, low, high): (i32, u32, u32);
    // SAFETY: reads as many channels as there are.
    unsafe {
        asm!(
            "dlstp.16 lr, {count}",
            "2:",
            "vldrh.u16 q0, [{token}], #16",
            "vaddva.s16 r0, q0",
            "vmlaldava.s16 r2, r3, q0, q0",
            "letp lr, 2b",
            count = in(reg) token.len(),
            token = inout(reg) token.as_ptr() => _,
            inout("r0") 0 => sum,
            inout("r2") 0 => low,
            inout("r3") 0 => high,
            out("lr") _, out("d0") _, out("d1") _,
            options(nostack, readonly),
        )
    }
    (sum, (u64::from(high) << 32 | u64::from(low)) as i64)
}
