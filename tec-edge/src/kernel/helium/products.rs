//! The loops over products of four rows with two outputs of a panel.

use core::arch::asm;

use super::ROWS;
use crate::kernel::Lanes;
use crate::panel::{PANEL, QUAD};

/// Inputs of a step of [`products`].
const STEP: usize = 16;

/// What a loop over pairs of outputs is given, in the order in which it loads it into registers.
#[repr(C)]
struct Work<T> {
    /// Offset 0.
    rows: [*const T; ROWS],
    /// Offset 16: turns of the inner loop.
    turns: usize,
    /// Offset 20: the weights of the next two outputs.
    panel: *const i8,
    /// Offset 24: whether inputs are left behind the last turn.
    rest: usize,
    /// Offset 28: the next two sums of the first row; those of the other rows are 64 bytes apart.
    sums: *mut i32,
    /// Offset 32: the end of that row.
    end: *mut i32,
}

impl<T> Work<T> {
    fn new(rows: [*const T; ROWS], panel: *const i8, turns: usize, rest: usize, sums: &mut [Lanes<i32>; ROWS]) -> Self {
        let sums = sums.as_mut_ptr().cast::<i32>();
        Self {
            rows,
            turns,
            panel,
            rest,
            sums,
            end: sums.wrapping_add(PANEL),
        }
    }
}

/// Sixteen products of four rows (registers 1, 3, 5, 7 point to them and move on) with two outputs; `q7` points to their last quads and moves on.
macro_rules! step {
    () => {
        "vldrw.u32 q0, [q7, #256]!
        vldrw.u32 q1, [q7, #4]
        vldrb.u8 q2, [r1], #16
        vmladava.s8 r0, q0, q2
        vldrb.u8 q3, [r3], #16
        vmladava.s8 r2, q1, q2
        vldrb.u8 q4, [r5], #16
        vmladava.s8 r4, q0, q3
        vldrb.u8 q5, [r7], #16
        vmladava.s8 r6, q1, q3
        vmladava.s8 r8, q0, q4
        vmladava.s8 r10, q1, q4
        vmladava.s8 r12, q0, q5
        vmladava.s8 lr, q1, q5
        "
    };
}

/// Four rows of `4 · quads` activations with a panel, at the boundary of a word, of as many inputs.
#[inline(never)]
pub(super) fn products(rows: [*const i8; ROWS], panel: *const i8, quads: usize, sums: &mut [Lanes<i32>; ROWS]) {
    let steps = quads / (STEP / QUAD);
    let mut work = Work::new(rows, panel, steps / 2, steps % 2, sums);
    // SAFETY: the caller gives as many activations and weights as there are in these steps, and 16 sums of four rows. The registers 6 and
    // 7, which the compiler keeps for itself, are restored, and the stack is in order again behind it.
    unsafe {
        asm!(
            "push {{r6, r7}}",
            // The quads of a step, one step before the panel.
            "vidup.u32 q6, r0, #1",
            "vshl.i32 q6, q6, #6",
            "sub r1, #256",
            "vadd.i32 q6, q6, r1",
            "2:",
            "ldm r11, {{r1, r3, r5, r7, r9}}",
            "vmov q7, q6",
            "movs r0, #0",
            "movs r2, #0",
            "movs r4, #0",
            "movs r6, #0",
            "mov r8, #0",
            "mov r10, #0",
            "mov r12, #0",
            "mov lr, #0",
            "cmp r9, #0",
            "beq 4f",
            "3:",
            step!(),
            step!(),
            "subs r9, #1",
            "bne 3b",
            "4:",
            "ldr r9, [r11, #24]",
            "cmp r9, #0",
            "beq 5f",
            step!(),
            "5:",
            "ldrd r1, r3, [r11, #28]",
            "strd r0, r2, [r1]",
            "strd r4, r6, [r1, #64]",
            "strd r8, r10, [r1, #128]",
            "strd r12, lr, [r1, #192]",
            "adds r1, #8",
            "str r1, [r11, #28]",
            "movs r0, #8",
            "vadd.i32 q6, q6, r0",
            "cmp r1, r3",
            "bne 2b",
            "pop {{r6, r7}}",
            inout("r0") 0 => _,
            inout("r1") panel => _,
            in("r11") &mut work,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _, out("r8") _, out("r9") _, out("r10") _, out("r12") _, out("lr") _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            out("d8") _, out("d9") _, out("d10") _, out("d11") _, out("d12") _, out("d13") _, out("d14") _, out("d15") _,
        )
    }
    let left = quads % (STEP / QUAD) * QUAD;
    if left > 0 {
        let done = steps * STEP;
        let rows = rows.map(|row| row.wrapping_add(done));
        last_products(rows, panel.wrapping_add(done * PANEL), left, sums);
    }
}

/// Adds the products of the inputs behind the last whole step, `left` of them.
#[inline(never)]
fn last_products(rows: [*const i8; ROWS], panel: *const i8, left: usize, sums: &mut [Lanes<i32>; ROWS]) {
    // SAFETY: the caller gives as many activations and weights, and 16 sums of four rows. Loads of lanes behind the last are left out.
    unsafe {
        asm!(
            "vidup.u32 q6, r0, #1",
            "vshl.i32 q6, q6, #6",
            "vadd.i32 q6, q6, r1",
            "add r1, r9, #64",
            "2:",
            "ldr r0, [r9]",
            "ldr r2, [r9, #64]",
            "ldr r4, [r9, #128]",
            "ldr r8, [r9, #192]",
            "dlstp.8 lr, r12",
            "3:",
            "vldrw.u32 q0, [q6]",
            "vldrb.u8 q1, [r3]",
            "vmladava.s8 r0, q0, q1",
            "vldrb.u8 q1, [r5]",
            "vmladava.s8 r2, q0, q1",
            "vldrb.u8 q1, [r10]",
            "vmladava.s8 r4, q0, q1",
            "vldrb.u8 q1, [r11]",
            "vmladava.s8 r8, q0, q1",
            "letp lr, 3b",
            "str r2, [r9, #64]",
            "str r4, [r9, #128]",
            "str r8, [r9, #192]",
            "str r0, [r9], #4",
            "movs r0, #4",
            "vadd.i32 q6, q6, r0",
            "cmp r9, r1",
            "bne 2b",
            inout("r0") 0 => _,
            inout("r1") panel => _,
            in("r3") rows[0],
            in("r5") rows[1],
            in("r10") rows[2],
            in("r11") rows[3],
            inout("r9") sums.as_mut_ptr() => _,
            in("r12") left,
            out("r2") _, out("r4") _, out("r8") _, out("lr") _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d12") _, out("d13") _,
            options(nostack),
        )
    }
}

/// Where the weights of one output for two quads of inputs lie.
static TWO_QUADS: [u16; 8] = [0, 1, 2, 3, 64, 65, 66, 67];

/// Adds the products of four rows of `4 · quads` softmax weights with a panel of values of as many tokens: eight products of 16 bits an
/// instruction.
#[inline(never)]
pub(super) fn weighted(rows: [*const i16; ROWS], values: *const i8, quads: usize, sums: &mut [Lanes<i32>; ROWS]) {
    let mut work = Work::new(rows, values, quads / 2, quads % 2, sums);
    // SAFETY: as in `products`; the offsets of a gathering load stay within the quads that it is for.
    unsafe {
        asm!(
            "push {{r6, r7, r11}}",
            "vldrh.u16 q6, [r1]",
            "vidup.u32 q4, r0, #1",
            "movs r2, #4",
            "vadd.i16 q7, q6, r2",
            "vadd.i32 q5, q4, r2",
            "2:",
            "ldr r11, [sp, #8]",
            "ldr r9, [r11, #28]",
            "ldrd r0, r2, [r9]",
            "ldrd r4, r6, [r9, #64]",
            "ldrd r8, r10, [r9, #128]",
            "ldrd r12, lr, [r9, #192]",
            "ldm r11, {{r1, r3, r5, r7, r9}}",
            "ldr r11, [r11, #20]",
            "cmp r9, #0",
            "beq 4f",
            "3:",
            "vldrb.s16 q0, [r11, q6]",
            "vldrb.s16 q1, [r11, q7]",
            "vldrh.u16 q2, [r1], #16",
            "vmladava.s16 r0, q0, q2",
            "vldrh.u16 q3, [r3], #16",
            "vmladava.s16 r2, q1, q2",
            "vldrh.u16 q2, [r5], #16",
            "vmladava.s16 r4, q0, q3",
            "vmladava.s16 r6, q1, q3",
            "vldrh.u16 q3, [r7], #16",
            "vmladava.s16 r8, q0, q2",
            "vmladava.s16 r10, q1, q2",
            "add r11, #128",
            "vmladava.s16 r12, q0, q3",
            "vmladava.s16 lr, q1, q3",
            "subs r9, #1",
            "bne 3b",
            "4:",
            "ldr r9, [sp, #8]",
            "ldr r9, [r9, #24]",
            "cmp r9, #0",
            "beq 5f",
            "vldrb.s32 q0, [r11, q4]",
            "vldrb.s32 q1, [r11, q5]",
            "vldrh.s32 q2, [r1]",
            "vmladava.s32 r0, q0, q2",
            "vmladava.s32 r2, q1, q2",
            "vldrh.s32 q2, [r3]",
            "vmladava.s32 r4, q0, q2",
            "vmladava.s32 r6, q1, q2",
            "vldrh.s32 q2, [r5]",
            "vmladava.s32 r8, q0, q2",
            "vmladava.s32 r10, q1, q2",
            "vldrh.s32 q2, [r7]",
            "vmladava.s32 r12, q0, q2",
            "vmladava.s32 lr, q1, q2",
            "5:",
            "ldr r11, [sp, #8]",
            "ldrd r1, r3, [r11, #28]",
            "strd r0, r2, [r1]",
            "strd r4, r6, [r1, #64]",
            "strd r8, r10, [r1, #128]",
            "strd r12, lr, [r1, #192]",
            "adds r1, #8",
            "str r1, [r11, #28]",
            "ldr r5, [r11, #20]",
            "adds r5, #8",
            "str r5, [r11, #20]",
            "cmp r1, r3",
            "bne 2b",
            "pop {{r6, r7, r11}}",
            inout("r0") 0 => _,
            inout("r1") &TWO_QUADS => _,
            in("r11") &mut work,
            out("r2") _, out("r3") _, out("r4") _, out("r5") _, out("r8") _, out("r9") _, out("r10") _, out("r12") _, out("lr") _,
            out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _, out("d6") _, out("d7") _,
            out("d8") _, out("d9") _, out("d10") _, out("d11") _, out("d12") _, out("d13") _, out("d14") _, out("d15") _,
        )
    }
}
