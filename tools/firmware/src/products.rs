//! The six matrix products of one block of ViT-Ti on 50 tokens by themselves, on numbers of the whole range.

use tec_edge::layers::{I32s, Linear};
use tec_edge::{ALIGNMENT, BackEnd, Precision, panel};

use crate::start::emulated_instructions;

const TOKENS: usize = 50;
const DIM: usize = 192;
const HEADS: usize = 3;
const HIDDEN: usize = 768;
const WIDTH: usize = DIM / HEADS;
/// The longest bias or multiplier, in bytes.
const CONSTANTS: usize = 4 * HIDDEN;
/// Bytes of the largest weights.
const WEIGHTS: usize = DIM * HIDDEN;

/// Instructions of all of them together, rounding included: the activations of linear layers and the keys of scores are i8, the weights
/// of values 12 bits. `None` if the memory does not suffice.
pub fn count(memory: &mut [u8]) -> Option<u64> {
    let back_end = BackEnd::best();
    let (constants, rest) = memory.split_at_mut_checked(CONSTANTS)?;
    let (weights, rest) = rest.split_at_mut_checked(WEIGHTS)?;
    let (rows, rest) = rest.split_at_mut_checked(TOKENS * HIDDEN)?;
    let (out, rest) = rest.split_at_mut_checked(2 * TOKENS * HIDDEN)?;
    let skip = rest.as_ptr().align_offset(ALIGNMENT);
    let factors = rest.get_mut(skip..)?;
    fill(constants);
    fill(weights);
    fill(rows);
    // Multipliers of every magnitude; the values only have to differ.
    let constants = I32s::from_bytes(constants);
    let mut spent = 0;
    let layers = [
        (DIM, 3 * DIM, 1),
        (DIM, DIM, 1),
        (DIM, HIDDEN, 1),
        (HIDDEN, DIM, 1),
        (WIDTH, TOKENS, HEADS),
    ];
    for (inner, outputs, times) in layers {
        let layer = Linear {
            weight: weights.get(..panel::panels_len(outputs, inner))?,
            precision: Precision::Int8,
            inner,
            bias: constants,
            multiplier: constants,
            shift: 45,
        };
        let rows = bytemuck::cast_slice(rows.get(..TOKENS * inner)?);
        let out = bytemuck::try_cast_slice_mut(out.get_mut(..2 * TOKENS * outputs)?).ok()?;
        let started = emulated_instructions()?;
        for _ in 0..times {
            back_end.linear(&layer, rows, factors, out).ok()?;
        }
        spent += emulated_instructions()? - started;
    }
    let values = bytemuck::cast_slice(weights.get(..panel::panels_len(WIDTH, TOKENS))?);
    let means = bytemuck::try_cast_slice_mut(out.get_mut(..4 * TOKENS * WIDTH)?).ok()?;
    let row: &mut [i16] = bytemuck::try_cast_slice_mut(rows.get_mut(..2 * TOKENS * panel::padded(TOKENS))?).ok()?;
    row.iter_mut().for_each(|weight| *weight &= 0xFFF);
    let started = emulated_instructions()?;
    for _ in 0..HEADS {
        back_end.weighted(row, TOKENS, values, means);
    }
    Some(spent + (emulated_instructions()? - started))
}

/// Bytes without order.
fn fill(bytes: &mut [u8]) {
    let mut state = 1u32;
    for byte in bytes {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
}
