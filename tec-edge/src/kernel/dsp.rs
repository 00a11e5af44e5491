//! Cortex-M4 and M7: two products of 16 bits an instruction (`SMLAD`).
//!
//! `SXTB16` widens the even bytes of a word, and after a rotation the odd ones, so the i16 activations of a quad lie in the order
//! 0 2 1 3. Two rows and two outputs at a time fill the registers: for 16 products a load of two words of weights, four widenings,
//! two loads of activations, and eight `SMLAD`, less than an instruction a product.

use core::arch::asm;

use super::{Kernel, Lanes, Needs, narrow, rows};
use crate::layers::Norm;
use crate::panel::{PANEL, QUAD};

/// Where in a quad the factor of an input lies.
const ORDER: [usize; QUAD] = [0, 2, 1, 3];

/// The DSP extension, which every target with this module has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dsp;

impl Kernel for Dsp {
    type Factor = i16;
    type Sums = [Lanes<i32>; Self::ROWS];
    type Values = [Lanes<i16>; Self::ROWS];
    const NEEDS: Needs = Needs::DSP;

    fn factor(self, q: i8) -> i16 {
        q.into()
    }

    fn activation(self, factor: i16) -> i8 {
        factor as i8
    }

    #[inline(always)]
    fn at(self, input: usize) -> usize {
        input / QUAD * QUAD + ORDER[input % QUAD]
    }

    fn put(self, values: &Lanes<i8>, row: &mut [i16], first: usize) {
        let row = row.get_mut(first..).unwrap_or_default();
        for (slots, &[a, b, c, d]) in row.as_chunks_mut::<QUAD>().0.iter_mut().zip(values.as_chunks().0) {
            *slots = [a, c, b, d].map(i16::from);
        }
    }

    fn products(self, activations: &[i16], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
        sums.fill([0; PANEL]);
        add_products(activations, stride, panel, sums);
    }

    fn finish_weights(self, weights: &mut [i16]) {
        for quad in weights.as_chunks_mut::<QUAD>().0 {
            quad.swap(1, 2);
        }
    }

    fn weighted(self, weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]) {
        add_products(weights, stride, values, sums);
    }

    fn requantize(
        self,
        sums: &[Lanes<i32>],
        bias: &Lanes<i32>,
        multiplier: &Lanes<i32>,
        shift: u32,
        values: &mut [Lanes<i16>],
    ) {
        narrow::requantize(sums, bias, multiplier, shift, values);
    }

    fn norm(self, norm: &Norm<'_>, token: &[i16], out: &mut [i16]) {
        narrow::norm(norm, token, |i, value| {
            if let Some(slot) = out.get_mut(self.at(i)) {
                *slot = value.into();
            }
        });
    }
}

/// Two i16.
type Pair = u32;

fn add_products(factors: &[i16], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
    let (Ok(words), Ok(pairs)) = (
        bytemuck::try_cast_slice::<i8, [u32; PANEL]>(panel),
        bytemuck::try_cast_slice::<i16, [Pair; 2]>(factors),
    ) else {
        return add_one_by_one(factors, stride, panel, sums);
    };
    let stride = stride / QUAD;
    for (row, sums) in sums.chunks_mut(2).enumerate() {
        let first = pairs.get(2 * row * stride..).and_then(|rest| rest.get(..words.len()));
        let second = pairs
            .get((2 * row + 1) * stride..)
            .and_then(|rest| rest.get(..words.len()));
        match (sums, first, second) {
            ([sums, others], Some(first), Some(second)) => two_rows(first, second, words, sums, others),
            ([sums], Some(first), _) => {
                let mut same = *sums;
                two_rows(first, first, words, sums, &mut same);
            }
            _ => {}
        }
    }
}

/// For slices of a caller that do not lie at the boundary of a word, as all in files and scratch memory do.
#[cold]
#[inline(never)]
fn add_one_by_one(factors: &[i16], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
    let quads = panel.as_chunks::<{ PANEL * QUAD }>().0;
    for (row, sums) in rows(factors, stride, quads.len() * QUAD).zip(sums) {
        for (&[a, c, b, d], weights) in row.as_chunks::<QUAD>().0.iter().zip(quads) {
            for (sum, weights) in sums.iter_mut().zip(weights.as_chunks::<QUAD>().0) {
                for (factor, &weight) in [a, b, c, d].into_iter().zip(weights) {
                    *sum = sum.wrapping_add(i32::from(factor) * i32::from(weight));
                }
            }
        }
    }
}

/// The products of one quad of two rows (registers 1 and 2 point to them and move on) with two outputs, whose weights lie `$at` bytes behind
/// register 0: sums in 4, 5 for the first row, 12, 14 for the second. 6 to 11 are overwritten.
macro_rules! quad {
    ($at:literal) => {
        concat!(
            "ldrd r6, r7, [r0, #",
            $at,
            "]\n",
            "sxtb16 r8, r6\n",
            "sxtb16 r9, r6, ror #8\n",
            "sxtb16 r6, r7\n",
            "sxtb16 r7, r7, ror #8\n",
            "ldrd r10, r11, [r1], #8\n",
            "smlad r4, r8, r10, r4\n",
            "smlad r5, r6, r10, r5\n",
            "smlad r4, r9, r11, r4\n",
            "smlad r5, r7, r11, r5\n",
            "ldrd r10, r11, [r2], #8\n",
            "smlad r12, r8, r10, r12\n",
            "smlad lr, r6, r10, lr\n",
            "smlad r12, r9, r11, r12\n",
            "smlad lr, r7, r11, lr\n",
        )
    };
}

/// Runs quads until register 1 has come to register 3, some at a time.
macro_rules! quads {
    ($weights:expr, $first:expr, $second:expr, $end:expr, $sums:expr, $others:expr, $($code:expr),+) => {
        // SAFETY: the caller sees to it that both rows and the outputs have as many quads as there are between the pointer to the first
        // row and its end, at least one and a whole number of turns. The stack is in order again behind it, and the registers 6 and 7,
        // which the compiler keeps for itself, are restored.
        unsafe {
            asm!(
                "push {{r6, r7}}",
                "2:",
                $($code,)+
                "cmp r1, r3",
                "bne 2b",
                "pop {{r6, r7}}",
                inout("r0") $weights => _,
                inout("r1") $first => _,
                inout("r2") $second => _,
                in("r3") $end,
                inout("r4") $sums[0],
                inout("r5") $sums[1],
                out("r8") _,
                out("r9") _,
                out("r10") _,
                out("r11") _,
                inout("r12") $others[0],
                inout("lr") $others[1],
            )
        }
    };
}

#[inline(never)]
fn two_rows(
    first: &[[Pair; 2]],
    second: &[[Pair; 2]],
    words: &[[u32; PANEL]],
    sums: &mut Lanes<i32>,
    others: &mut Lanes<i32>,
) {
    let quads = words.len();
    if first.len() != quads || second.len() != quads {
        return;
    }
    let whole_turns = quads / TURN * TURN;
    let each = sums
        .as_chunks_mut::<2>()
        .0
        .iter_mut()
        .zip(others.as_chunks_mut::<2>().0);
    for (pair, (sums, others)) in each.enumerate() {
        let weights = words.as_ptr().cast::<u32>().wrapping_add(2 * pair);
        let (first, second) = (first.as_ptr(), second.as_ptr());
        // Where the turns end and single quads begin.
        let (turned, end) = (first.wrapping_add(whole_turns), first.wrapping_add(quads));
        let (weights_left, second_left) = (
            weights.wrapping_add(PANEL * whole_turns),
            second.wrapping_add(whole_turns),
        );
        if first != turned {
            quads!(
                weights,
                first,
                second,
                turned,
                sums,
                others,
                quad!(0),
                quad!(64),
                quad!(128),
                quad!(192),
                "add r0, #256"
            );
        }
        if turned != end {
            quads!(
                weights_left,
                turned,
                second_left,
                end,
                sums,
                others,
                quad!(0),
                "add r0, #64"
            );
        }
    }
}

/// Quads of a turn.
const TURN: usize = 4;
