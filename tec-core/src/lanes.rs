//! Sums whose order is fixed: eight partial sums, combined in one way.
//!
//! Element `i` is added to lane `i % 8`, each lane in ascending order of `i`; then
//! `((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7))`. So a sum is the same whether the compiler uses vectors of one,
//! four or eight floats, and every sum of this crate is one of these.

/// Partial sums of every sum.
pub const LANES: usize = 8;

/// Adds the eight partial sums in the order that this module states.
#[inline(always)]
pub fn combine(partial: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = partial;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The sum of a slice.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    sum_by(x, |v| v)
}

/// The sum of `a[i] * b[i]`; what the longer slice has more is not looked at.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let common = a.len().min(b.len());
    let (a, b) = (a.get(..common).unwrap_or(a), b.get(..common).unwrap_or(b));
    sum_by2(a, b, |a, b| a * b)
}

/// The largest value of `f` over a slice, NaNs apart; minus infinity of an empty slice.
#[inline(always)]
pub fn max_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let larger = |m: f32, v: f32| if v > m { v } else { m };
    let mut partial = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (p, &v) in partial.iter_mut().zip(chunk) {
            *p = larger(*p, f(v));
        }
    }
    for (p, &v) in partial.iter_mut().zip(tail) {
        *p = larger(*p, f(v));
    }
    partial.iter().fold(f32::NEG_INFINITY, |m, &v| larger(m, v))
}

/// The sum of `f` over a slice.
#[inline(always)]
pub(crate) fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut partial = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (p, &v) in partial.iter_mut().zip(chunk) {
            *p += f(v);
        }
    }
    for (p, &v) in partial.iter_mut().zip(tail) {
        *p += f(v);
    }
    combine(partial)
}

/// The sum of `f` over two slices side by side; they must have one length, which the callers have checked.
#[inline(always)]
pub(crate) fn sum_by2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut partial = [0.0; LANES];
    let (x_chunks, x_tail) = x.as_chunks::<LANES>();
    let (y_chunks, y_tail) = y.as_chunks::<LANES>();
    for (x_chunk, y_chunk) in x_chunks.iter().zip(y_chunks) {
        for ((p, &a), &b) in partial.iter_mut().zip(x_chunk).zip(y_chunk) {
            *p += f(a, b);
        }
    }
    for ((p, &a), &b) in partial.iter_mut().zip(x_tail).zip(y_tail) {
        *p += f(a, b);
    }
    combine(partial)
}

/// The sum of `f` over three slices side by side; they must have one length, which the callers have checked.
#[inline(always)]
pub(crate) fn sum_by3(x: &[f32], y: &[f32], z: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut partial = [0.0; LANES];
    let (x_chunks, x_tail) = x.as_chunks::<LANES>();
    let (y_chunks, y_tail) = y.as_chunks::<LANES>();
    let (z_chunks, z_tail) = z.as_chunks::<LANES>();
    for ((x_chunk, y_chunk), z_chunk) in x_chunks.iter().zip(y_chunks).zip(z_chunks) {
        for (((p, &a), &b), &c) in partial.iter_mut().zip(x_chunk).zip(y_chunk).zip(z_chunk) {
            *p += f(a, b, c);
        }
    }
    for (((p, &a), &b), &c) in partial.iter_mut().zip(x_tail).zip(y_tail).zip(z_tail) {
        *p += f(a, b, c);
    }
    combine(partial)
}

/// The sums down the columns of `[rows, width]` for the eight channels from `start`, of `f(row, channel − start, value)`;
/// row i goes to lane i mod 8. The width must not be zero, which the callers have checked.
#[inline(always)]
pub(crate) fn column_sums(x: &[f32], width: usize, start: usize, f: impl Fn(usize, usize, f32) -> f32) -> [f32; LANES] {
    // partial[lane][channel]
    let mut partial = [[0.0f32; LANES]; LANES];
    for (row_number, row) in x.chunks_exact(width).enumerate() {
        let values = eight(row, start);
        if let Some(sums) = partial.get_mut(row_number % LANES) {
            for (channel, (sum, value)) in sums.iter_mut().zip(values).enumerate() {
                *sum += f(row_number, channel, value);
            }
        }
    }
    let mut totals = [0.0; LANES];
    for (channel, total) in totals.iter_mut().enumerate() {
        *total = combine(partial.map(|sums| sums.get(channel).copied().unwrap_or(0.0)));
    }
    totals
}

/// Eight elements from `start` on, and zeros where there are fewer: a loop over them has a known length.
#[inline(always)]
pub(crate) fn eight(x: &[f32], start: usize) -> [f32; LANES] {
    let rest = x.get(start..).unwrap_or(&[]);
    match rest.first_chunk() {
        Some(values) => *values,
        None => core::array::from_fn(|i| rest.get(i).copied().unwrap_or(0.0)),
    }
}

/// The sum of values that come one by one; the same bits as [`sum`] of them in a slice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accumulator {
    partial: [f32; LANES],
    next: usize,
}

impl Accumulator {
    /// An empty sum.
    pub const fn new() -> Self {
        Self {
            partial: [0.0; LANES],
            next: 0,
        }
    }

    /// Adds the next value.
    #[inline(always)]
    pub fn push(&mut self, value: f32) {
        if let Some(lane) = self.partial.get_mut(self.next % LANES) {
            *lane += value;
        }
        self.next = self.next.wrapping_add(1);
    }

    /// The sum so far.
    #[inline(always)]
    pub fn total(&self) -> f32 {
        combine(self.partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn order_of_combining_is_fixed() {
        // Values so far apart that adding them one after the other rounds differently.
        let partial = [1e8, 1.0, 3.0, 5.0, -1e8, 0.5, 7.0, 0.25];
        assert_eq!(combine(partial), 16.75);
        assert_ne!(partial.iter().sum::<f32>(), 16.75);
        let twice: Vec<f32> = partial.iter().chain(&partial).copied().collect();
        assert_eq!(sum(&twice), combine(partial.map(|v| v + v)));
    }

    #[test]
    fn dot_stops_at_the_shorter() {
        let ones = [1.0; 40];
        for (a, b) in [(40, 3), (3, 40), (40, 11), (16, 17), (9, 40), (0, 5)] {
            assert_eq!(dot(&ones[..a], &ones[..b]), a.min(b) as f32);
        }
    }

    proptest! {
        #[test]
        fn accumulator_equals_sum(x in prop::collection::vec(-1e6f32..1e6, 0..100)) {
            let mut total = Accumulator::new();
            x.iter().for_each(|&v| total.push(v));
            prop_assert_eq!(total.total().to_bits(), sum(&x).to_bits());
            let exact: f64 = x.iter().map(|&v| f64::from(v)).sum();
            prop_assert!((f64::from(sum(&x)) - exact).abs() <= 1e-6 * x.iter().map(|v| f64::from(v.abs())).sum::<f64>());
        }

        #[test]
        fn max_is_the_largest(x in prop::collection::vec(-1e6f32..1e6, 0..50)) {
            let expected = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(max_by(&x, |v| v), expected);
        }
    }
}
