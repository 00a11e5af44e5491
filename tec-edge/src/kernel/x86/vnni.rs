//! What the kernels with `vpdpbusd` share. It multiplies unsigned by signed bytes, and sums four products without saturating.
//!
//! Weights become unsigned by adding 128, and each row keeps behind its factors what that adds to its products with any weights:
//! 128 times their sum, to be taken off. Keys are kept with 128 added. What that adds to a query's scores is the same for all
//! keys, so softmax does not see it.

use bytemuck::cast;

use crate::kernel::Lanes;
use crate::panel::QUAD;

/// Factors behind a row: an i32.
pub(super) const TAIL: usize = size_of::<i32>();

/// An i8 with 128 added, as unsigned byte.
pub(super) fn unsigned(k: i8) -> i8 {
    (k as u8 ^ 0x80) as i8
}

/// Writes a row's tail: minus 128 times the sum of its factors.
pub(super) fn finish(row: &mut [i8]) {
    if let Some((factors, tail)) = row.split_last_chunk_mut::<TAIL>() {
        let sum = factors.iter().fold(0i32, |sum, &q| sum.wrapping_add(q.into()));
        *tail = cast(sum.wrapping_mul(-128));
    }
}

/// The quads of a row, `count` of them, and its tail.
pub(super) fn quads_and_tail(row: &[i8], count: usize) -> Option<(&[[i8; QUAD]], i32)> {
    let (factors, rest) = row.split_at_checked(count * QUAD)?;
    Some((factors.as_chunks().0, cast(*rest.first_chunk::<TAIL>()?)))
}

pub(super) fn put(values: &Lanes<i8>, row: &mut [i8], first: usize) {
    let Some(row) = row.get_mut(first..) else { return };
    match row.first_chunk_mut() {
        Some(whole) => *whole = *values,
        None => row.iter_mut().zip(values).for_each(|(slot, &value)| *slot = value),
    }
}
