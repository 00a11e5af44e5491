//! Products of rows with a panel, in whole tiles: where their bytes are read directly, and where a copy filled up with zeros takes their
//! place. Tested with emulated tiles on every processor.

use core::array;
use core::mem::MaybeUninit;

use crate::kernel::Lanes;
use crate::panel::{PANEL, QUAD};

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;
/// Inputs of a tile: the bytes of a row.
pub(super) const TILE_INPUTS: usize = 64;
/// Quads of a tile of weights.
const TILE_QUADS: usize = TILE_INPUTS / QUAD;

/// A quad of all outputs of a panel: a row of a tile of weights.
pub(super) type Weights = [i8; PANEL * QUAD];
/// The sums of a tile's rows.
pub(super) type TileSums = [Lanes<i32>; TILE_ROWS];

/// Tiles to multiply one after the other.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Steps {
    /// The first row of each tile of factors; not used beyond the number of tiles.
    pub(super) rows: [*const i8; 4],
    /// Bytes from a row to the next.
    pub(super) stride: usize,
    /// Bytes from a step's rows to the next one's.
    pub(super) advance: usize,
    /// The weights of the first step; a step's has [`TILE_QUADS`].
    pub(super) weights: *const Weights,
    /// Steps, at least one.
    pub(super) count: usize,
}

/// What multiplies tiles.
///
/// # Safety
/// Implementations access nothing else than [`multiply`](Self::multiply) says.
pub(super) unsafe trait Multiply: Copy {
    /// The sums, or zeros where they are `fresh`, plus the products of `TILES` tiles of factors each with a tile of weights, of all steps. Factors
    /// are signed or unsigned, weights signed.
    ///
    /// # Safety
    /// Of all steps the 64 bytes of 16 rows of each tile, `stride` bytes apart, and 16 quads of weights can be read. `TILES` is 1, 2 or 4.
    unsafe fn multiply<const TILES: usize, const SIGNED: bool>(
        self,
        steps: &[Steps],
        fresh: bool,
        sums: &mut [TileSums; TILES],
    );
}

/// Factors of `TILES` tiles of rows.
pub(super) struct Factors<'f, const TILES: usize> {
    pub(super) bytes: &'f [i8],
    /// Where each tile's first row begins.
    pub(super) first: [usize; TILES],
    /// And where its factors after the last whole step begin.
    pub(super) rest: [usize; TILES],
    /// Bytes from a row to the next.
    pub(super) stride: usize,
    /// Bytes from a step to the next.
    pub(super) advance: usize,
}

/// Adds to the sums (zeros where they are `fresh`) the products of factors with a panel. Rows that do not exist count as zeros.
#[inline(always)]
pub(super) fn add<M: Multiply, const TILES: usize, const SIGNED: bool>(
    tiles: M,
    factors: &Factors<'_, TILES>,
    panel: &[Weights],
    fresh: bool,
    sums: &mut [TileSums; TILES],
) {
    let (whole, rest) = panel.as_chunks::<TILE_QUADS>();
    let in_reach = factors.reach(factors.first, whole.len());
    if !in_reach {
        add_copied::<_, _, SIGNED>(tiles, factors, whole, fresh, sums);
    }
    let fresh = fresh && in_reach;
    let whole_steps = Steps {
        rows: factors.rows(factors.first),
        stride: factors.stride,
        advance: factors.advance,
        weights: whole.as_ptr().cast(),
        count: whole.len(),
    };
    let add_whole = in_reach && !whole.is_empty();
    if rest.is_empty() {
        if add_whole {
            // SAFETY: of the factors was just checked, the weights are the panel's.
            unsafe { tiles.multiply::<TILES, SIGNED>(&[whole_steps], fresh, sums) };
        } else if fresh {
            *sums = [TileSums::default(); TILES];
        }
        return;
    }
    // Behind the factors of a row come others, whose weights are zeros here.
    let mut weights = [[0; PANEL * QUAD]; TILE_QUADS];
    weights.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let mut copied = MaybeUninit::uninit();
    let (rows, stride) = if factors.reach(factors.rest, 1) {
        (factors.rows(factors.rest), factors.stride)
    } else {
        let copied = copied.write(factors.copied(factors.rest, rest.len() * QUAD));
        (pointers(copied), TILE_INPUTS)
    };
    let rest_steps = Steps {
        rows,
        stride,
        advance: 0,
        weights: weights.as_ptr(),
        count: 1,
    };
    let steps = [whole_steps, rest_steps];
    let steps = if add_whole { &steps[..] } else { &steps[1..] };
    // SAFETY: of the factors was just checked, or they are arrays as the weights.
    unsafe { tiles.multiply::<TILES, SIGNED>(steps, fresh, sums) };
}

/// As [`add`], of whole steps whose rows the slice is too short for.
#[cold]
fn add_copied<M: Multiply, const TILES: usize, const SIGNED: bool>(
    tiles: M,
    factors: &Factors<'_, TILES>,
    whole: &[[Weights; TILE_QUADS]],
    fresh: bool,
    sums: &mut [TileSums; TILES],
) {
    for (number, weights) in whole.iter().enumerate() {
        let first = factors.first.map(|first| first + number * factors.advance);
        let copied = factors.copied(first, TILE_INPUTS);
        let step = Steps {
            rows: pointers(&copied),
            stride: TILE_INPUTS,
            advance: 0,
            weights: weights.as_ptr(),
            count: 1,
        };
        // SAFETY: both are tiles in arrays.
        unsafe { tiles.multiply::<TILES, SIGNED>(&[step], fresh && number == 0, sums) };
    }
}

/// Factors of a tile.
type Tile = [[i8; TILE_INPUTS]; TILE_ROWS];

/// Pointers to tiles' first rows.
fn pointers<const TILES: usize>(tiles: &[Tile; TILES]) -> [*const i8; 4] {
    array::from_fn(|tile| {
        tiles
            .get(tile)
            .map_or(tiles.as_ptr().cast(), |rows| rows.as_ptr().cast())
    })
}

impl<const TILES: usize> Factors<'_, TILES> {
    /// Pointers to the tiles' first rows, to be used where they are in [`reach`](Self::reach).
    #[inline(always)]
    fn rows(&self, first: [usize; TILES]) -> [*const i8; 4] {
        array::from_fn(|tile| {
            let at = first.get(tile).copied().unwrap_or(0);
            self.bytes.as_ptr().wrapping_add(at)
        })
    }

    /// Whether so many steps of 16 rows can be read.
    #[inline(always)]
    fn reach(&self, first: [usize; TILES], steps: usize) -> bool {
        let Some(more) = steps.checked_sub(1) else { return true };
        let last = first.into_iter().fold(0, usize::max);
        last + (TILE_ROWS - 1) * self.stride + more * self.advance + TILE_INPUTS <= self.bytes.len()
    }

    /// The tiles of one step, with zeros for what does not exist; only `len` factors of a row are needed.
    fn copied(&self, first: [usize; TILES], len: usize) -> [Tile; TILES] {
        let mut tiles = [[[0; TILE_INPUTS]; TILE_ROWS]; TILES];
        for (tile, first) in tiles.iter_mut().zip(first) {
            for (row, slots) in tile.iter_mut().enumerate() {
                let from = self.bytes.get(first + row * self.stride..).unwrap_or_default();
                slots.iter_mut().zip(from).take(len).for_each(|(to, &from)| *to = from);
            }
        }
        tiles
    }
}
