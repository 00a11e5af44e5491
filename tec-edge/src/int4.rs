//! Weights of 4 bits: how they lie in memory, and what they stand for.
//!
//! An integer q of −8 … 7 and the scale s, 0 … 255, of its output and group of inputs stand for the weight `(q · s + 8) >> 4`, which is
//! −127 … 112: as [`panel`](crate::panel) has them, a panel at a time, they enter the same products as weights of 8 bits. So a file of
//! such weights is about half as large, and computes with the same kernels.
//!
//! A panel of 16 outputs is its scales, `[groups][16]`, then its integers, `[inner / 4][16][2]`: two in a byte, the input of lower number
//! in the lower half. A group is a number of inputs, a multiple of four; the last one of an output may be smaller. Integers that fill up the
//! last panel and quad are zeros, scales that fill up the panel too.

use crate::format::MAX_INNER;
use crate::panel::{PANEL, QUAD, padded, rest_is_zero};

/// Bytes of a panel's group of scales.
const SCALES: usize = PANEL;
/// Bytes of a panel's quad of integers.
const PAIRS: usize = PANEL * QUAD / 2;

/// Bytes of a panel.
pub(crate) const fn panel_len(inner: usize, group: usize) -> usize {
    let groups = match inner.checked_div(group) {
        Some(whole) => whole + if inner > whole * group { 1 } else { 0 },
        None => 0,
    };
    let scales = groups.saturating_mul(SCALES);
    scales.saturating_add((padded(inner) / QUAD).saturating_mul(PAIRS))
}

/// Bytes of a matrix with groups of `group` inputs.
pub const fn panels_len(outputs: usize, inner: usize, group: usize) -> usize {
    outputs.div_ceil(PANEL).saturating_mul(panel_len(inner, group))
}

/// The weight that an integer of −8 … 7 stands for.
#[inline(always)]
pub const fn weight(q: i8, scale: u8) -> i8 {
    ((q as i16 * scale as i16 + 8) >> 4) as i8
}

/// Packs integers, `[outputs, inner]`, of which the lower four bits count, and scales, `[outputs, groups]`, into `panels`, [`panels_len`]
/// bytes, all zero before. What does not fit is left out.
pub fn pack(rows: &[i8], scales: &[u8], inner: usize, group: usize, panels: &mut [u8]) {
    let (inner, group) = (inner.max(1), group.max(1));
    let groups = inner.div_ceil(group).max(1);
    let rows = rows.chunks_exact(inner).zip(scales.chunks_exact(groups));
    for (output, (row, scales)) in rows.enumerate() {
        let start = output / PANEL * panel_len(inner, group);
        let Some(panel) = panels.get_mut(start..) else { return };
        for (number, &scale) in scales.iter().enumerate() {
            if let Some(slot) = panel.get_mut(number * SCALES + output % PANEL) {
                *slot = scale;
            }
        }
        for (input, &q) in row.iter().enumerate() {
            let at = groups * SCALES + input / QUAD * PAIRS + output % PANEL * (QUAD / 2) + input % QUAD / 2;
            if let Some(slot) = panel.get_mut(at) {
                *slot |= (q as u8 & 15) << (input % 2 * 4);
            }
        }
    }
}

/// Weights of a panel, `[inner / 4][16][4]`.
#[inline(never)]
pub(crate) fn unpack(packed: &[u8], inner: usize, group: usize, panel: &mut [i8]) {
    // More quads than there are make no larger group.
    let quads = padded(inner) / QUAD;
    let group = (group / QUAD).clamp(1, MAX_INNER);
    let scales_len = quads.div_ceil(group).saturating_mul(SCALES);
    let Some((scales, pairs)) = packed.split_at_checked(scales_len) else {
        return;
    };
    let groups = pairs.chunks(group * PAIRS).zip(panel.chunks_mut(group * PANEL * QUAD));
    for (scales, (pairs, panel)) in scales.as_chunks::<SCALES>().0.iter().zip(groups) {
        let quads = panel.as_chunks_mut::<{ PANEL * QUAD }>().0;
        for (pairs, quad) in pairs.as_chunks::<PAIRS>().0.iter().zip(quads) {
            let weights = quad.as_chunks_mut::<QUAD>().0.iter_mut().zip(scales);
            for (&[first, second], (slot, &scale)) in pairs.as_chunks::<2>().0.iter().zip(weights) {
                *slot = [first << 4, first, second << 4, second].map(|upper| weight(upper as i8 >> 4, scale));
            }
        }
    }
}

/// Whether what fills up the last panel and the last quads are zeros.
pub(crate) fn padding_is_zero(panels: &[u8], outputs: usize, inner: usize, group: usize) -> bool {
    let scales_len = inner.div_ceil(group.max(1)).saturating_mul(SCALES);
    // Of the two bytes of a quad.
    let unused: [u8; 2] = match inner % QUAD {
        1 => [0xf0, 0xff],
        2 => [0, 0xff],
        3 => [0, 0xf0],
        _ => [0, 0],
    };
    let mut panels = panels.chunks_exact(panel_len(inner, group).max(1));
    let last = panels.clone().next_back().unwrap_or_default();
    let zero_inputs = panels.all(|panel| {
        let quad = panel.last_chunk::<PAIRS>().map_or(&[][..], |quad| &quad[..]);
        let mut pairs = quad.as_chunks::<2>().0.iter();
        pairs.all(|pair| pair[0] & unused[0] == 0 && pair[1] & unused[1] == 0)
    });
    let (scales, pairs) = last.split_at_checked(scales_len).unwrap_or_default();
    zero_inputs && rest_is_zero(scales, 1, outputs) && rest_is_zero(pairs, QUAD / 2, outputs)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::panel;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn unpacked_panels_are_those_of_the_weights() {
        for (outputs, inner, group) in [
            (1, 1usize, 4),
            (16, 8, 4),
            (17, 9, 8),
            (40, 22, 12),
            (3, 64, 64),
            (5, 6, 32),
        ] {
            let rows: Vec<i8> = (0..outputs * inner).map(|i| (i * 7 % 16) as i8 - 8).collect();
            let groups = inner.div_ceil(group);
            let scales: Vec<u8> = (0..outputs * groups).map(|i| (100 + i * 53 % 156) as u8).collect();
            let mut packed = vec![0; panels_len(outputs, inner, group)];
            pack(&rows, &scales, inner, group, &mut packed);
            assert!(padding_is_zero(&packed, outputs, inner, group));

            let weights: Vec<i8> = (0..outputs * inner)
                .map(|i| {
                    let scale = scales[i / inner * groups + i % inner / group];
                    (f64::from(rows[i]) * f64::from(scale) / 16.0 + 0.5).floor() as i8
                })
                .collect();
            let mut expected = vec![0; panel::panels_len(outputs, inner)];
            panel::pack(&weights, inner, &mut expected);
            let mut got = vec![1; expected.len()];
            let panels = got.chunks_exact_mut(PANEL * padded(inner));
            for (packed, panel) in packed.chunks_exact(panel_len(inner, group)).zip(panels) {
                unpack(packed, inner, group, panel);
            }
            assert_eq!(got, expected, "{outputs} {inner} {group}");

            // Every half of a byte that belongs to no weight is noticed.
            for at in 0..packed.len() {
                for bits in [0x0f, 0xf0] {
                    let mut wrong = packed.clone();
                    wrong[at] ^= bits;
                    let mut panel = got.clone();
                    let panels = panel.chunks_exact_mut(PANEL * padded(inner));
                    for (packed, panel) in wrong.chunks_exact(panel_len(inner, group)).zip(panels) {
                        unpack(packed, inner, group, panel);
                    }
                    if !padding_is_zero(&wrong, outputs, inner, group) {
                        continue;
                    }
                    let scale = at % panel_len(inner, group) < groups * SCALES;
                    assert!(scale || panel != got, "{outputs} {inner} {group} {at}");
                }
            }
        }
    }

    #[test]
    fn weights_stay_within_eight_bits() {
        for scale in 0..=255 {
            for q in -8..8 {
                assert_eq!(i32::from(weight(q, scale)), (i32::from(q) * i32::from(scale) + 8) >> 4);
                assert!(weight(q, scale) > i8::MIN);
            }
        }
    }
}
