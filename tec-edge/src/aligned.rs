//! Alignment for files in flash and for scratch memory.

/// What encoder files and scratch memory are aligned to, in bytes.
pub const ALIGNMENT: usize = 16;

/// A value at a 16-byte boundary.
///
/// For a file in flash: `static ENCODER: &Aligned<[u8]> = &Aligned(*include_bytes!("encoder.tec"));`. For scratch memory:
/// `static SCRATCH: Mutex<Aligned<[u8; 32768]>>`, or on the stack.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
pub struct Aligned<T: ?Sized>(
    /// The value.
    pub T,
);

impl<const N: usize> Aligned<[u8; N]> {
    /// `N` zero bytes.
    pub const fn zeroed() -> Self {
        Self([0; N])
    }
}
