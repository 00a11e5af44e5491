//! The ways of tiles through rows and panels, on every processor: with tiles that plain Rust multiplies.

extern crate std;

use std::{vec, vec::Vec};

use super::product::{Multiply, Steps, TILE_INPUTS, TILE_ROWS, TileSums};
use super::{products, weighted};
use crate::kernel::Lanes;
use crate::kernel::tests::Random;
use crate::panel::{PANEL, QUAD, pack, padded, panels_len};

/// What the processor's tiles do.
#[derive(Clone, Copy)]
struct Emulated;

// SAFETY: it reads what the steps say, no byte more.
unsafe impl Multiply for Emulated {
    unsafe fn multiply<const TILES: usize, const SIGNED: bool>(
        self,
        steps: &[Steps],
        fresh: bool,
        sums: &mut [TileSums; TILES],
    ) {
        if fresh {
            *sums = [TileSums::default(); TILES];
        }
        for step in steps {
            assert!(step.count > 0, "a loop that ends after the first turn");
            for number in 0..step.count {
                // SAFETY: as the caller says.
                let weights = unsafe { step.weights.add(number * 16).cast::<[i8; PANEL * TILE_INPUTS]>().read() };
                for (first, sums) in step.rows.iter().zip(&mut *sums) {
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let at = number * step.advance + row * step.stride;
                        // SAFETY: as the caller says.
                        let factors = unsafe { first.add(at).cast::<[i8; TILE_INPUTS]>().read() };
                        add_products::<SIGNED>(&factors, &weights, sums);
                    }
                }
            }
        }
    }
}

fn add_products<const SIGNED: bool>(factors: &[i8], weights: &[i8], sums: &mut Lanes<i32>) {
    for (input, &factor) in factors.iter().enumerate() {
        let factor = if SIGNED { factor.into() } else { i32::from(factor as u8) };
        for (output, sum) in sums.iter_mut().enumerate() {
            *sum += factor * i32::from(weights[input / QUAD * (PANEL * QUAD) + output * QUAD + input % QUAD]);
        }
    }
}

/// Numbers of inputs around whole tiles.
const INPUTS: [usize; 11] = [1, 4, 22, 60, 63, 64, 65, 100, 128, 131, 192];
/// Numbers of rows around whole tiles.
const ROWS: [usize; 7] = [1, 5, 15, 16, 17, 31, 32];

/// A panel of random weights, in both orders.
fn panel(random: &mut Random, inputs: usize) -> (Vec<i8>, Vec<i8>) {
    let weights = random.bytes(PANEL * inputs);
    let mut panel = vec![0; panels_len(PANEL, inputs)];
    pack(&weights, inputs, &mut panel);
    (weights, panel)
}

#[test]
fn rows_of_factors() {
    let random = &mut Random(3);
    for inputs in INPUTS {
        let (weights, panel) = panel(random, inputs);
        let stride = padded(inputs);
        for rows in ROWS {
            // As many rows as there are, and memory for more behind them.
            for memory in [rows, rows.next_multiple_of(32), rows.next_multiple_of(32) + 1] {
                // What fills up a quad, and what lies behind the rows, does not matter where weights are zeros.
                let factors = random.bytes(memory * stride);
                let mut sums = vec![[7; PANEL]; rows];
                products(Emulated, &factors, stride, &panel, &mut sums);
                for (factors, sums) in factors.chunks(stride).zip(&sums) {
                    for (weights, &sum) in weights.chunks(inputs).zip(sums) {
                        let exact: i32 = weights
                            .iter()
                            .zip(factors)
                            .map(|(&w, &q)| i32::from(w) * i32::from(q))
                            .sum();
                        assert_eq!(sum, exact, "{rows} rows of {inputs}, memory for {memory}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_of_softmax_weights() {
    let random = &mut Random(4);
    for tokens in INPUTS {
        let (values, panel) = panel(random, tokens);
        let len = padded(tokens);
        for rows in ROWS {
            for behind in [0, TILE_INPUTS] {
                let stride = len + 4;
                let weights: Vec<i16> = (0..rows * stride).map(|_| (random.next() % 4096) as i16).collect();
                let mut split = vec![0i16; rows * stride + behind];
                for (row, split) in weights.chunks(stride).zip(split.chunks_mut(stride)) {
                    let split: &mut [u8] = bytemuck::cast_slice_mut(split);
                    let mut at = 0;
                    for block in row[..len].chunks(TILE_INPUTS) {
                        for (i, weight) in block.iter().enumerate() {
                            [split[at + i], split[at + block.len() + i]] = weight.to_le_bytes();
                        }
                        at += 2 * block.len();
                    }
                }
                let mut sums = vec![[7; PANEL]; rows];
                weighted(Emulated, &split, stride, &panel, &mut sums);
                for (weights, sums) in weights.chunks(stride).zip(&sums) {
                    for (values, &sum) in values.chunks(tokens).zip(sums) {
                        let exact: i32 = values
                            .iter()
                            .zip(weights)
                            .map(|(&v, &w)| i32::from(v) * i32::from(w))
                            .sum();
                        assert_eq!(sum, 7 + exact, "{rows} rows of {tokens}, {behind} behind them");
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_to_multiply() {
    let mut sums = [[7; PANEL]; TILE_ROWS];
    products(Emulated, &[], 0, &[], &mut sums);
    assert_eq!(sums, [[0; PANEL]; TILE_ROWS]);
    weighted(Emulated, &[], 0, &[], &mut sums);
    assert_eq!(sums, [[0; PANEL]; TILE_ROWS]);
}
