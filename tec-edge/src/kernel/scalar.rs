//! The kernel that every processor has: the definition, in a loop order that compilers vectorize.

use super::{Kernel, Lanes, Needs, narrow, rows};
use crate::layers::Norm;
use crate::panel::{PANEL, QUAD};

/// Plain Rust.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

impl Kernel for Scalar {
    type Factor = i8;
    type Sums = [Lanes<i32>; Self::ROWS];
    type Values = [Lanes<i16>; Self::ROWS];
    const NEEDS: Needs = Needs::SCALAR;

    fn factor(self, q: i8) -> i8 {
        q
    }

    fn activation(self, factor: i8) -> i8 {
        factor
    }

    fn products(self, activations: &[i8], stride: usize, panel: &[i8], sums: &mut [Lanes<i32>]) {
        let (quads, _) = panel.as_chunks::<{ PANEL * QUAD }>();
        for (row, sums) in rows(activations, stride, quads.len() * QUAD).zip(sums) {
            *sums = [0; PANEL];
            add_products(row, quads, sums);
        }
    }

    fn weighted(self, weights: &[i16], stride: usize, values: &[i8], sums: &mut [Lanes<i32>]) {
        let (quads, _) = values.as_chunks::<{ PANEL * QUAD }>();
        for (row, sums) in rows(weights, stride, quads.len() * QUAD).zip(sums) {
            add_products(row, quads, sums);
        }
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

    fn norm(self, norm: &Norm<'_>, token: &[i16], out: &mut [i8]) {
        narrow::norm(norm, token, |i, value| {
            if let Some(slot) = out.get_mut(i) {
                *slot = value;
            }
        });
    }
}

/// Sums wrap where they could overflow, which the reader's caps rule out. The products of a quad are written out, for compilers asked for
/// small programs would keep a loop over them.
#[inline(always)]
fn add_products<T: Copy + Into<i32>>(row: &[T], quads: &[[i8; PANEL * QUAD]], sums: &mut Lanes<i32>) {
    for (&[a, b, c, d], weights) in row.as_chunks::<QUAD>().0.iter().zip(quads) {
        let (a, b, c, d): (i32, i32, i32, i32) = (a.into(), b.into(), c.into(), d.into());
        for (sum, &[p, q, r, s]) in sums.iter_mut().zip(weights.as_chunks::<QUAD>().0) {
            *sum = sum
                .wrapping_add(a * i32::from(p))
                .wrapping_add(b * i32::from(q))
                .wrapping_add(c * i32::from(r))
                .wrapping_add(d * i32::from(s));
        }
    }
}
