//! The matrix products of Armv8.6: two rows by two outputs, sums of eight products each (`SMMLA`). Two quads of a panel, interleaved by
//! words, are two outputs with eight inputs a vector. A pair of quads and four rows are sixteen instructions for 512 products, their sums
//! in as many registers.

use core::arch::aarch64::*;
use core::arch::asm;

use bytemuck::cast;

use super::{Dotprod, Products, ROWS, Weights};
use crate::kernel::Lanes;
use crate::panel::{PANEL, QUAD};

/// Proof that the processor has the instructions for matrix products, and those for dot products, which single rows use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct I8mm(Dotprod);

impl I8mm {
    /// If the processor has them.
    pub(crate) fn new() -> Option<Self> {
        Dotprod::new().filter(|_| has_i8mm()).map(Self)
    }
}

#[cfg(feature = "std")]
fn has_i8mm() -> bool {
    std::arch::is_aarch64_feature_detected!("i8mm")
}

#[cfg(not(feature = "std"))]
fn has_i8mm() -> bool {
    cfg!(target_feature = "i8mm")
}

impl Products for I8mm {
    fn one(self, row: &[i32], quads: &[Weights], sums: &mut Lanes<i32>) {
        self.0.one(row, quads, sums);
    }

    fn four(self, rows: [&[i32]; ROWS], quads: &[Weights], sums: [&mut Lanes<i32>; ROWS]) {
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { four_products(rows, quads, sums) }
    }
}

/// Adds to four sums, of two rows by two outputs, the products of eight inputs.
macro_rules! multiply {
    ($sums:ident, $rows:ident, $weights:ident) => {
        // SAFETY: one instruction, which reads and writes the registers named alone, and which the processor has: only functions that are
        // compiled for it use this macro.
        unsafe {
            asm!(
                "smmla {sums:v}.4s, {rows:v}.16b, {weights:v}.16b",
                sums = inout(vreg) $sums,
                rows = in(vreg) $rows,
                weights = in(vreg) $weights,
                options(pure, nomem, nostack, preserves_flags),
            )
        }
    };
}

/// Adds the products of two quads of four rows with a panel, each four outputs to sums of their own. A macro, because compilers asked for
/// small programs would keep a loop, and with it the sums in memory.
macro_rules! step {
    ($rows:expr, $first:expr, $second:expr; $($four:literal $a:ident $b:ident $c:ident $d:ident),+) => {
        let [a, b, c, d] = $rows;
        let (upper, lower): (int8x16_t, int8x16_t) = (cast([a, b]), cast([c, d]));
        $(
            let (one, two) = (cast($first[$four]), cast($second[$four]));
            let low = vreinterpretq_s8_s32(vzip1q_s32(one, two));
            let high = vreinterpretq_s8_s32(vzip2q_s32(one, two));
            multiply!($a, upper, low);
            multiply!($b, upper, high);
            multiply!($c, lower, low);
            multiply!($d, lower, high);
        )+
    };
}

/// A function that puts the products of four rows, a quad a word, with a panel into `sums`. Of each four outputs there are four sums of
/// two rows by two outputs, the first row in the lower half.
macro_rules! four_products {
    ($name:ident: $($four:literal $a:ident $b:ident $c:ident $d:ident),+) => {
        #[target_feature(enable = "neon,dotprod,i8mm")]
        #[inline(never)]
        fn $name(rows: [&[i32]; ROWS], quads: &[Weights], [first, second, third, fourth]: [&mut Lanes<i32>; ROWS]) {
            let (whole, rest) = quads.as_chunks::<2>();
            let [a, b, c, d] = rows.map(|row| row.as_chunks::<2>());
            $(let (mut $a, mut $b, mut $c, mut $d) = (
                vdupq_n_s32(0),
                vdupq_n_s32(0),
                vdupq_n_s32(0),
                vdupq_n_s32(0),
            );)+
            for ((((quads, &a), &b), &c), &d) in whole.iter().zip(a.0).zip(b.0).zip(c.0).zip(d.0) {
                step!([a, b, c, d], quads[0], quads[1]; $($four $a $b $c $d),+);
            }
            if let ([weights], [a], [b], [c], [d]) = (rest, a.1, b.1, c.1, d.1) {
                let none = [vdupq_n_s8(0); PANEL / QUAD];
                step!([[*a, 0], [*b, 0], [*c, 0], [*d, 0]], weights, none; $($four $a $b $c $d),+);
            }
            $(
                for (row, other, low, high) in [(&mut *first, &mut *second, $a, $b), (&mut *third, &mut *fourth, $c, $d)] {
                    let (low, high) = (vreinterpretq_s64_s32(low), vreinterpretq_s64_s32(high));
                    row.as_chunks_mut::<4>().0[$four] = cast(vzip1q_s64(low, high));
                    other.as_chunks_mut::<4>().0[$four] = cast(vzip2q_s64(low, high));
                }
            )+
        }
    };
}

four_products!(four_products: 0 a0 b0 c0 d0, 1 a1 b1 c1 d1, 2 a2 b2 c2 d2, 3 a3 b3 c3 d3);
