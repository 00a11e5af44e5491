//! Helium, the vectors of Cortex-M55 and M85: sixteen products of 8 bits an instruction, added to a sum in a plain register (`VMLADAVA`).
//!
//! The sixteen must be inputs of one output, and in a panel four lie together, 64 bytes before the next four. So a gathering load takes
//! four words at once. Four rows share what it has loaded, and each load of theirs serves two outputs: 14 instructions for 128 products.
//! (A processor takes one cycle for each word of a gathering load; the eight of a step are as many cycles as the loads of the rows.)
//!
//! Loops are in assembly, for there are no intrinsics in stable Rust. None uses the predicate register, which could not be named as
//! overwritten: what is no whole vector is left to loops with tail predication. Where a register is named for an operand, the instruction
//! takes it, or one of the lowest eight, alone.

mod norm;
mod products;
mod softmax;

use core::arch::asm;
use core::mem::MaybeUninit;

use tec_core::integer::{GELU_TABLE_LEN, softmax_weights};

use self::norm::normalize;
use self::products::{products, weighted};
use self::softmax::softmax;
use super::{Kernel, Lanes, Needs, Scalar, narrow};
use crate::layers::Norm;
use crate::panel::{PANEL, QUAD};

/// Helium's integer instructions, which every target with this module has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Helium;

/// Rows of a group.
const ROWS: usize = Needs::HELIUM.rows;
/// Bytes from a quad of a panel to the next.
const QUAD_BYTES: usize = PANEL * QUAD;

impl Kernel for Helium {
    type Factor = i8;
    type Sums = [Lanes<i32>; ROWS];
    type Values = [Lanes<i16>; ROWS];
    const NEEDS: Needs = Needs::HELIUM;

    fn factor(self, q: i8) -> i8 {
        q
    }

    fn activation(self, factor: i8) -> i8 {
        factor
    }

    #[inline(always)]
    fn narrow(self, values: &Lanes<i16>) -> Lanes<i8> {
        let mut narrow = MaybeUninit::<Lanes<i8>>::uninit();
        // SAFETY: reads 16 numbers of 16 bits and writes as many of 8 bits, all of `narrow`.
        unsafe {
            asm!(
                "vldrh.u16 q0, [{values}]",
                "vldrh.u16 q1, [{values}, #16]",
                "vqmovnb.s16 q0, q0",
                "vqmovnb.s16 q1, q1",
                "vstrb.16 q0, [r0]",
                "vstrb.16 q1, [r0, #8]",
                values = in(reg) values,
                in("r0") narrow.as_mut_ptr(),
                out("d0") _, out("d1") _, out("d2") _, out("d3") _,
                options(nostack),
            );
            narrow.assume_init()
        }
    }

    #[inline(always)]
    fn put(self, values: &Lanes<i8>, row: &mut [i8], first: usize) {
        let row = row.get_mut(first..).unwrap_or_default();
        if row.len() < PANEL {
            return row.iter_mut().zip(values).for_each(|(slot, &value)| *slot = value);
        }
        // SAFETY: both have 16 bytes.
        unsafe {
            asm!(
                "vldrb.u8 q0, [{values}]",
                "vstrb.8 q0, [{row}]",
                values = in(reg) values,
                row = in(reg) row.as_mut_ptr(),
                out("d0") _, out("d1") _,
                options(nostack),
            )
        }
    }

    fn products(self, activations: &[i8], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
        let quads = panel.len() / QUAD_BYTES;
        if !panel.as_ptr().cast::<u32>().is_aligned() {
            return Scalar.products(activations, stride, panel, sums);
        }
        each_group(activations, stride, quads * QUAD, sums, |rows, sums| {
            products(rows, panel.as_ptr(), quads, sums);
        });
    }

    fn weighted(self, weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]) {
        let quads = values.len() / QUAD_BYTES;
        each_group(weights, stride, quads * QUAD, sums, |rows, sums| {
            weighted(rows, values.as_ptr(), quads, sums);
        });
    }

    fn requantize(
        self,
        sums: &[Lanes<i32>],
        bias: &Lanes<i32>,
        multiplier: &Lanes<i32>,
        shift: u32,
        values: &mut [Lanes<i16>],
    ) {
        match shift.checked_sub(32) {
            Some(rest @ 1..=30) => requantize(sums, bias, multiplier, rest, values),
            _ => narrow::requantize(sums, bias, multiplier, shift, values),
        }
    }

    fn norm(self, norm: &Norm<'_>, token: &[i16], out: &mut [i8]) {
        if normalize(norm, token, out).is_none() {
            Scalar.norm(norm, token, out);
        }
    }

    fn softmax(self, scores: &[i32], multiplier: i32, shift: u32, weights: &mut [i16]) -> u32 {
        match shift.checked_sub(32) {
            Some(rest @ 1..=30) if multiplier > 0 => softmax(scores, multiplier, rest, weights),
            _ => softmax_weights(scores, multiplier, shift, weights),
        }
    }

    #[inline(always)]
    fn gelu(self, table: &[i8; GELU_TABLE_LEN], values: &[Lanes<i16>], found: &mut [Lanes<i8>]) {
        for (found, values) in found.iter_mut().zip(values) {
            *found = entries(table, &self.narrow(values));
        }
    }
}

/// The table's entries for sixteen values.
#[inline(always)]
fn entries(table: &[i8; GELU_TABLE_LEN], values: &Lanes<i8>) -> Lanes<i8> {
    let mut found = MaybeUninit::<Lanes<i8>>::uninit();
    // SAFETY: reads 16 bytes, and one of 256 for each of them; writes 16, all of `found`.
    unsafe {
        asm!(
            "vldrb.u8 q0, [{values}]",
            "vmov.i8 q1, #0x80",
            "veor q0, q0, q1",
            "vldrb.u8 q1, [{table}, q0]",
            "vstrb.8 q1, [{found}]",
            values = in(reg) values,
            table = in(reg) table,
            found = in(reg) found.as_mut_ptr(),
            out("d0") _, out("d1") _, out("d2") _, out("d3") _,
            options(nostack),
        );
        found.assume_init()
    }
}

/// Calls `compute` with the rows, `len` long and `stride` apart, and their sums, a group at a time. Where a group is not full, its last row
/// takes the missing places and those sums are dropped.
#[inline(always)]
fn each_group<T>(
    all: &[T],
    stride: usize,
    len: usize,
    sums: &mut [Lanes<i32>],
    compute: impl Fn([*const T; ROWS], &mut [Lanes<i32>; ROWS]),
) {
    // Rows that are there in whole.
    let whole = match (all.len().checked_sub(len), stride) {
        (None, _) => 0,
        (Some(_), 0) => sums.len(),
        (Some(rest), stride) => rest / stride + 1,
    };
    let sums = sums.get_mut(..whole.min(sums.len())).unwrap_or_default();
    let mut first = all.as_ptr();
    for sums in sums.chunks_mut(ROWS) {
        let last = sums.len() - 1;
        let rows = [0, 1, 2, 3].map(|row: usize| first.wrapping_add(stride * row.min(last)));
        match sums.first_chunk_mut() {
            Some(sums) => compute(rows, sums),
            None => {
                let mut some = [[0; PANEL]; ROWS];
                some.iter_mut().zip(&*sums).for_each(|(some, sums)| *some = *sums);
                compute(rows, &mut some);
                sums.iter_mut().zip(some).for_each(|(sums, some)| *sums = some);
            }
        }
        first = first.wrapping_add(stride * ROWS);
    }
}

/// Drops 32 bits and `rest` more, from 1 to 30: what is left of the upper word of a product, rounded, is the product rounded.
#[inline(never)]
fn requantize(sums: &[Lanes<i32>], bias: &Lanes<i32>, multiplier: &Lanes<i32>, rest: u32, values: &mut [Lanes<i16>]) {
    let rows = sums.len().min(values.len());
    if rows == 0 {
        return;
    }
    let (sums, values) = (sums.as_ptr().cast::<i32>(), values.as_mut_ptr().cast::<i16>());
    for first in (0..PANEL).step_by(4) {
        // SAFETY: reads and writes four lanes of each row; both have as many.
        unsafe {
            asm!(
                "vldrw.u32 q1, [{bias}]",
                "vldrw.u32 q2, [{multiplier}]",
                "dls lr, {rows}",
                "2:",
                "vldrw.u32 q0, [{sums}], #64",
                "vadd.i32 q0, q0, q1",
                "vmulh.s32 q0, q0, q2",
                "vrshl.s32 q0, {drop}",
                "vqmovnb.s32 q0, q0",
                "vstrh.32 q0, [r0], #32",
                "le lr, 2b",
                bias = in(reg) bias.as_ptr().wrapping_add(first),
                multiplier = in(reg) multiplier.as_ptr().wrapping_add(first),
                rows = in(reg) rows,
                drop = in(reg) -(rest as i32),
                sums = inout(reg) sums.wrapping_add(first) => _,
                inout("r0") values.wrapping_add(first) => _,
                out("lr") _, out("d0") _, out("d1") _, out("d2") _, out("d3") _, out("d4") _, out("d5") _,
                options(nostack),
            )
        }
    }
}
