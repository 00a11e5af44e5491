//! Memory between two inaccessible pages.

use bytemuck::Pod;

/// Values that end where an inaccessible page begins, or begin where one ends: an access beyond that side kills the process.
pub struct Guarded<T> {
    map: *mut libc::c_void,
    bytes: usize,
    first: *mut T,
    len: usize,
}

impl<T: Pod> Guarded<T> {
    /// A copy of `values` at a multiple of `align`; with `at_end`, as near to the page behind it as that allows.
    pub fn new(values: &[T], align: usize, at_end: bool) -> Self {
        // SAFETY: a question about a constant.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
        let size = size_of_val(values);
        let inner = size.div_ceil(page).max(1) * page;
        let bytes = inner + 2 * page;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        // SAFETY: a new mapping, which replaces none.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(map, libc::MAP_FAILED, "no memory");
        let start = map.wrapping_byte_add(page);
        // SAFETY: pages of the mapping above, to which nothing refers yet.
        let status = unsafe { libc::mprotect(start, inner, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(status, 0, "the pages cannot be made accessible");
        let gap = if at_end { (inner - size) / align * align } else { 0 };
        let first: *mut T = start.wrapping_byte_add(gap).cast();
        assert!(first.is_aligned());
        let mut new = Self {
            map,
            bytes,
            first,
            len: values.len(),
        };
        new.get_mut().copy_from_slice(values);
        new
    }

    pub fn get(&self) -> &[T] {
        // SAFETY: accessible, aligned and initialized (fresh pages are zero, which is a value of a `Pod`) while `self` lives.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }

    /// Reads one value just outside, behind the slice or before it: what the page is to stop.
    pub fn trespass(&self, behind: bool) -> T {
        let at = if behind {
            self.first.wrapping_add(self.len)
        } else {
            self.first.wrapping_sub(1)
        };
        // SAFETY: the address is one of the mapping's, in an inaccessible page: the processor stops the process here.
        unsafe { at.read_volatile() }
    }

    pub fn get_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `get`, and borrowed by this alone.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; no slice of it outlives `self`.
        unsafe { libc::munmap(self.map, self.bytes) };
    }
}
