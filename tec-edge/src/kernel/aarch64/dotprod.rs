//! The dot-product instructions of Armv8.2: four sums of four products each (`SDOT`), in the order in which panels lie. A quad of a
//! panel and four rows are sixteen of them, their sums in as many registers.

use core::arch::aarch64::*;
use core::arch::asm;

use bytemuck::cast;

use super::{Products, ROWS, Weights};
use crate::kernel::Lanes;

/// Proof that the processor has the dot-product instructions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dotprod(());

impl Dotprod {
    /// If the processor has them.
    pub(crate) fn new() -> Option<Self> {
        has_dotprod().then_some(Self(()))
    }
}

#[cfg(feature = "std")]
fn has_dotprod() -> bool {
    std::arch::is_aarch64_feature_detected!("dotprod")
}

#[cfg(not(feature = "std"))]
fn has_dotprod() -> bool {
    cfg!(target_feature = "dotprod")
}

impl Products for Dotprod {
    fn one(self, row: &[i32], quads: &[Weights], sums: &mut Lanes<i32>) {
        // SAFETY: the value of this type proves that the processor has the instructions.
        unsafe { products([row], quads, [sums]) }
    }

    fn four(self, rows: [&[i32]; ROWS], quads: &[Weights], sums: [&mut Lanes<i32>; ROWS]) {
        // SAFETY: as above.
        unsafe { four_products(rows, quads, sums) }
    }
}

/// Adds to each of four sums the products of a quad of its output with one of a row.
macro_rules! dot {
    ($sums:ident, $weights:expr, $factors:ident) => {
        // SAFETY: one instruction, which reads and writes the registers named alone, and which the processor has: only functions that are
        // compiled for it use this macro.
        unsafe {
            asm!(
                "sdot {sums:v}.4s, {weights:v}.16b, {factors:v}.16b",
                sums = inout(vreg) $sums,
                weights = in(vreg) $weights,
                factors = in(vreg) $factors,
                options(pure, nomem, nostack, preserves_flags),
            )
        }
    };
}

/// A function that puts the products of some rows, a quad a word, with a panel into `sums`. A macro, because compilers asked for small
/// programs would keep a loop over rows, and with it the sums in memory.
macro_rules! products {
    ($name:ident, $count:literal: $($row:ident $sums:ident $a:ident $b:ident $c:ident $d:ident),+) => {
        #[target_feature(enable = "neon,dotprod")]
        #[inline(never)]
        fn $name([$($row),+]: [&[i32]; $count], quads: &[Weights], [$($sums),+]: [&mut Lanes<i32>; $count]) {
            let ($(Some($row),)+) = ($($row.get(..quads.len()),)+) else {
                return;
            };
            $(let (mut $a, mut $b, mut $c, mut $d) = (
                vdupq_n_s32(0),
                vdupq_n_s32(0),
                vdupq_n_s32(0),
                vdupq_n_s32(0),
            );)+
            for quad in 0..quads.len() {
                let (Some(weights), $(Some(&$row)),+) = (quads.get(quad), $($row.get(quad)),+) else {
                    break;
                };
                $(
                    let factors = vdupq_n_s32($row);
                    dot!($a, weights[0], factors);
                    dot!($b, weights[1], factors);
                    dot!($c, weights[2], factors);
                    dot!($d, weights[3], factors);
                )+
            }
            $(*$sums = cast([$a, $b, $c, $d]);)+
        }
    };
}

products!(products, 1: row sums a0 a1 a2 a3);
products!(four_products, 4: row sums a0 a1 a2 a3, row1 sums1 b0 b1 b2 b3, row2 sums2 c0 c1 c2 c3, row3 sums3 d0 d1 d2 d3);
