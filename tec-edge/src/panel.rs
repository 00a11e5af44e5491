//! Panels: how matrices lie in memory for products of 8-bit integers.
//!
//! A panel holds [`PANEL`] outputs (rows of a weight matrix), [`QUAD`] inputs of one output side by side:
//! `[inner / QUAD][PANEL][QUAD]`. Outputs and inputs that fill up the last panel and quad are zeros. Every kernel reads panels in
//! place: 16 outputs are one 512-bit register of AVX-512, four 128-bit registers of NEON or WebAssembly, or eight pairs of words of
//! a Cortex-M, and a quad is what the dot-product instructions take.

/// Outputs of a panel.
pub const PANEL: usize = 16;
/// Inputs that lie side by side.
pub const QUAD: usize = 4;

/// `inner` rounded up to whole quads; the largest number where that is beyond it.
pub const fn padded(inner: usize) -> usize {
    match inner.checked_next_multiple_of(QUAD) {
        Some(padded) => padded,
        None => usize::MAX,
    }
}

/// Bytes of the panels of a matrix.
pub const fn panels_len(outputs: usize, inner: usize) -> usize {
    match outputs.checked_next_multiple_of(PANEL) {
        Some(outputs) => outputs.saturating_mul(padded(inner)),
        None => usize::MAX,
    }
}

/// Where the weight of an output and an input lies in the panels of a matrix with `inner` inputs.
#[inline(always)]
pub const fn place(output: usize, input: usize, inner: usize) -> usize {
    let panel = output / PANEL * PANEL * padded(inner);
    panel + input / QUAD * (PANEL * QUAD) + output % PANEL * QUAD + input % QUAD
}

/// Packs a row-major matrix, `[outputs, inner]`, into `panels`, [`panels_len`] bytes, all zero before. What does not fit is left out.
pub fn pack(rows: &[i8], inner: usize, panels: &mut [i8]) {
    for (output, row) in rows.chunks_exact(inner.max(1)).enumerate() {
        for (input, &weight) in row.iter().enumerate() {
            if let Some(slot) = panels.get_mut(place(output, input, inner)) {
                *slot = weight;
            }
        }
    }
}

/// Whether the weights that fill up the last panel and the last quads are zeros.
pub(crate) fn padding_is_zero(panels: &[u8], outputs: usize, inner: usize) -> bool {
    let panel_len = (PANEL * padded(inner)).max(1);
    let mut panels = panels.chunks_exact(panel_len);
    let last = panels.clone().next_back().unwrap_or_default();
    let zero_inputs = match inner % QUAD {
        0 => true,
        used => panels.all(|panel| {
            let (quads, _) = panel.as_chunks::<{ PANEL * QUAD }>();
            let (weights, _) = quads.last().map_or(&[][..], |quad| &quad[..]).as_chunks::<QUAD>();
            weights.iter().all(|weight| weight.iter().skip(used).all(|&w| w == 0))
        }),
    };
    zero_inputs && rest_is_zero(last, QUAD, outputs)
}

/// Whether in the last panel of a matrix of so many outputs, in units of `len` bytes for each of 16, those that fill it up are zeros.
#[inline(never)]
pub(crate) fn rest_is_zero(panel: &[u8], len: usize, outputs: usize) -> bool {
    let used = match outputs % PANEL {
        0 => PANEL,
        used => used,
    };
    let mut units = panel.chunks_exact(len.saturating_mul(PANEL).max(1));
    units.all(|unit| unit.iter().skip(used.saturating_mul(len)).all(|&byte| byte == 0))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;

    #[test]
    fn every_weight_has_a_place_of_its_own() {
        for (outputs, inner) in [(1, 1), (16, 4), (17, 5), (40, 22), (3, 64)] {
            let mut seen = vec![false; panels_len(outputs, inner)];
            for output in 0..outputs {
                for input in 0..inner {
                    let at = place(output, input, inner);
                    assert!(!core::mem::replace(&mut seen[at], true));
                }
            }
            let rows = vec![1; outputs * inner];
            let mut panels = vec![0; seen.len()];
            pack(&rows, inner, &mut panels);
            for (at, (&weight, &used)) in panels.iter().zip(&seen).enumerate() {
                assert_eq!(weight == 1, used);
                if !used {
                    let mut wrong = panels.clone();
                    wrong[at] = 1;
                    assert!(
                        !padding_is_zero(bytemuck::cast_slice(&wrong), outputs, inner),
                        "{outputs} {inner} {at}"
                    );
                }
            }
            assert!(padding_is_zero(bytemuck::cast_slice(&panels), outputs, inner));
        }
    }

    #[test]
    fn a_quad_of_sixteen_outputs_comes_before_the_next_quad() {
        // Output 17, input 6 of 8: the second panel (16 · 8 bytes), its second quad (64), its second output (4), the third input.
        assert_eq!(place(17, 6, 8), 128 + 64 + 4 + 2);
    }
}
