//! What a launch is made of.

use std::borrow::Cow;

/// One launch of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Launch {
    /// The kernel's name in its source.
    pub kernel: Cow<'static, str>,
    /// Blocks along x, y and z; where one is 0 there is nothing to do and nothing may be launched.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Bytes of shared memory of a block, besides what the kernel declares itself. Above 48 kB the kernel has to be told
    /// first that it may have as many.
    pub shared: u32,
    /// The kernel's arguments in their order.
    pub args: Vec<Arg>,
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Arg {
    /// An address in device memory, 0 for none.
    Pointer(u64),
    U32(u32),
    U64(u64),
    F32(f32),
}

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Float {
    F32,
    Bf16,
}

impl Float {
    /// The name as in those of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

impl Launch {
    /// A launch of `blocks` blocks of 256 threads side by side, without shared memory.
    ///
    /// The number of blocks saturates at CUDA's limit, which no tensor that fits a device reaches.
    pub fn line(kernel: impl Into<Cow<'static, str>>, blocks: usize, args: Vec<Arg>) -> Self {
        Self {
            kernel: kernel.into(),
            grid: [count(blocks), 1, 1],
            block: [256, 1, 1],
            shared: 0,
            args,
        }
    }
}

/// A size as a kernel's 32-bit argument or a number of blocks; saturates at 2^31 - 1, CUDA's limit for blocks and more than any
/// axis of a tensor has.
pub(crate) fn count(size: usize) -> u32 {
    size.min(i32::MAX as usize) as u32
}

/// A size as an argument.
pub(crate) fn size(size: usize) -> Arg {
    Arg::U32(count(size))
}
