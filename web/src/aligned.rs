//! Memory of any length at the boundary that encoder files and scratch memory need.

use tec_edge::ALIGNMENT;

/// Bytes that start at a multiple of [`ALIGNMENT`].
#[derive(Default)]
pub(crate) struct AlignedBytes {
    /// Never grows, so the boundary in it stays where it is.
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    /// `len` zeros; `None` where there is no memory for them.
    pub(crate) fn zeroed(len: usize) -> Option<Self> {
        let room = len.checked_add(ALIGNMENT)?;
        let mut memory = Vec::new();
        memory.try_reserve_exact(room).ok()?;
        memory.resize(room, 0);
        let start = memory.as_ptr().addr().next_multiple_of(ALIGNMENT) - memory.as_ptr().addr();
        Some(Self { memory, start, len })
    }

    /// The bytes.
    pub(crate) fn get(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The bytes, to write.
    pub(crate) fn get_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_any_length_starts_at_a_boundary() {
        for len in [0, 1, 15, 16, 17, 4099] {
            let mut bytes = AlignedBytes::zeroed(len).unwrap();
            assert_eq!(bytes.get().len(), len);
            assert_eq!(bytes.get_mut().as_ptr().addr() % 16, 0);
        }
        assert!(AlignedBytes::default().get().is_empty());
        assert!(AlignedBytes::zeroed(usize::MAX).is_none() && AlignedBytes::zeroed(usize::MAX / 2).is_none());
    }
}
