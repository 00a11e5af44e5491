//! Memory that kernels work on.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::slice;

use bytemuck::Pod;

/// Bytes before and behind a buffer that nobody may write.
const GUARD: usize = 1024;
/// Four of these are a NaN, two a NaN of bfloat16.
const POISON: u8 = 0xff;
/// The alignment of what `cudaMalloc` gives.
const ALIGN: usize = 256;

thread_local! {
    /// The buffers of this thread: where each begins and ends.
    static LIVING: RefCell<BTreeMap<u64, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// Whether an address is within a buffer of this thread, or just behind one.
pub fn holds(address: u64) -> bool {
    LIVING.with_borrow(|living| {
        let before = living.range(..=address).next_back();
        before.is_some_and(|(_, &end)| address <= end)
    })
}

/// Elements in memory that kernels read and write, between guard zones of NaNs: what a kernel reads outside shows in its
/// results, what it writes outside makes [`Buffer::values`] panic.
#[derive(Debug)]
pub struct Buffer<T> {
    memory: *mut u8,
    layout: Layout,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// A buffer with these values, aligned as `cudaMalloc` does.
    pub fn new(values: &[T]) -> Self {
        let buffer = Self::poisoned(values.len());
        let bytes: &[u8] = bytemuck::cast_slice(values);
        // SAFETY: the buffer has as many bytes from there on, and no one else has its memory yet.
        unsafe { slice::from_raw_parts_mut(buffer.memory.add(GUARD), bytes.len()) }.copy_from_slice(bytes);
        buffer
    }

    /// A buffer of `len` elements that are all ones in every bit: NaNs.
    pub fn poisoned(len: usize) -> Self {
        let bytes = len * size_of::<T>() + 2 * GUARD;
        let Ok(layout) = Layout::from_size_align(bytes, ALIGN) else {
            panic!("a buffer of {len} elements is larger than the address space");
        };
        // SAFETY: the layout has more than no bytes.
        let memory = unsafe { alloc(layout) };
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: the memory has this many bytes.
        unsafe { memory.write_bytes(POISON, bytes) };
        let start = memory as u64 + GUARD as u64;
        LIVING.with_borrow_mut(|living| living.insert(start, start + (len * size_of::<T>()) as u64));
        Self {
            memory,
            layout,
            len,
            element: PhantomData,
        }
    }

    /// The address of element `first`.
    pub fn address(&self, first: usize) -> u64 {
        self.memory as u64 + (GUARD + first * size_of::<T>()) as u64
    }

    /// What the buffer holds.
    ///
    /// # Panics
    /// When a kernel wrote outside the buffer: this is for tests.
    pub fn values(&self) -> Vec<T> {
        // SAFETY: the memory has this many bytes, all written when it was made; no kernel runs between launches.
        let bytes = unsafe { slice::from_raw_parts(self.memory, self.layout.size()) };
        let (before, rest) = bytes.split_at(GUARD);
        let (values, behind) = rest.split_at(rest.len() - GUARD);
        assert!(before.iter().all(|&byte| byte == POISON), "written before the buffer");
        assert!(behind.iter().all(|&byte| byte == POISON), "written behind the buffer");
        let mut out = vec![T::zeroed(); self.len];
        bytemuck::cast_slice_mut(&mut out).copy_from_slice(values);
        out
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        LIVING.with_borrow_mut(|living| living.remove(&(self.memory as u64 + GUARD as u64)));
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.memory, self.layout) };
    }
}
