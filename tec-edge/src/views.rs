//! Constants of the file, read in place whatever the machine's byte order.

use crate::panel::PANEL;

/// Little-endian i32, four bytes each.
#[derive(Debug, Clone, Copy)]
pub struct I32s<'a>(pub(crate) &'a [u8]);

impl<'a> I32s<'a> {
    /// The values in these bytes; a rest of fewer than four is left out.
    pub const fn from_bytes(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = i32> + use<'a> {
        self.0.as_chunks::<4>().0.iter().map(|&bytes| i32::from_le_bytes(bytes))
    }

    pub(crate) fn get(self, index: usize) -> Option<i32> {
        self.0
            .as_chunks::<4>()
            .0
            .get(index)
            .map(|&bytes| i32::from_le_bytes(bytes))
    }

    /// A panel's values from `start` on, zeros where there are no more.
    pub(crate) fn lanes(self, start: usize) -> [i32; PANEL] {
        let mut lanes = [0; PANEL];
        for (slot, value) in lanes.iter_mut().zip(self.part(start, PANEL).iter()) {
            *slot = value;
        }
        lanes
    }

    /// `count` values from `start` on; fewer, if there are fewer.
    pub(crate) fn part(self, start: usize, count: usize) -> Self {
        Self(part(self.0, start.saturating_mul(4), count.saturating_mul(4)))
    }
}

/// Little-endian i16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct I16s<'a>(pub(crate) &'a [u8]);

impl<'a> I16s<'a> {
    /// `count` values from `start` on; fewer, if there are fewer.
    pub(crate) fn part(self, start: usize, count: usize) -> Self {
        Self(part(self.0, start.saturating_mul(2), count.saturating_mul(2)))
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = i16> + use<'a> {
        self.0.as_chunks::<2>().0.iter().map(|&bytes| i16::from_le_bytes(bytes))
    }
}

/// `count` elements from `start` on; fewer, if there are fewer.
pub(crate) fn part<T>(all: &[T], start: usize, count: usize) -> &[T] {
    let start = start.min(all.len());
    all.get(start..start.saturating_add(count).min(all.len()))
        .unwrap_or(&[])
}

/// As [`part`], to write.
pub(crate) fn part_mut<T>(all: &mut [T], start: usize, count: usize) -> &mut [T] {
    let start = start.min(all.len());
    let end = start.saturating_add(count).min(all.len());
    all.get_mut(start..end).unwrap_or(&mut [])
}
