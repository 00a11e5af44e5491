//! Launching kernels.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use crate::buffer;

unsafe extern "C" {
    fn emulator_launch(
        name: *const c_char,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        parameters: *mut *mut c_void,
    ) -> c_int;
    fn emulator_run_backwards(backwards: c_int);
    fn emulator_error() -> *const c_char;
    fn emulator_parameter_sizes(name: *const c_char) -> *const c_uint;
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// An address within a living [`Buffer`](crate::Buffer) of this thread, or 0.
    Pointer(u64),
    /// A 32-bit number.
    U32(u32),
    /// A 64-bit number.
    U64(u64),
    /// A floating-point number.
    F32(f32),
}

impl Argument {
    /// The value as a kernel reads it, in the lower bytes, and its size in bytes.
    fn value(self) -> (u64, u32) {
        match self {
            Self::Pointer(value) | Self::U64(value) => (value, 8),
            Self::U32(value) => (value.into(), 4),
            Self::F32(value) => (value.to_bits().into(), 4),
        }
    }
}

/// Runs a kernel to its end, on this thread.
///
/// # Errors
/// What the emulation finds wrong, in words: no such kernel, arguments of other sizes than its parameters, a pointer that is in
/// no buffer, a grid or block outside CUDA's limits or the kernel's, threads that wait for others forever, shared memory
/// written outside of what the launch asks for.
pub fn launch(kernel: &str, grid: [u32; 3], block: [u32; 3], shared: u32, args: &[Argument]) -> Result<(), String> {
    let name = CString::new(kernel).map_err(|_| format!("{kernel:?} is no kernel's name"))?;
    let sizes = parameter_sizes(&name).ok_or_else(|| format!("{kernel}: there is no kernel of this name"))?;
    let (mut values, found): (Vec<u64>, Vec<u32>) = args.iter().map(|arg| arg.value()).unzip();
    if found != sizes {
        return Err(format!(
            "{kernel}: arguments of {found:?} bytes, its parameters have {sizes:?}"
        ));
    }
    let stray = args
        .iter()
        .position(|&arg| matches!(arg, Argument::Pointer(at) if at != 0 && !buffer::holds(at)));
    if let Some(stray) = stray {
        return Err(format!("{kernel}: argument {stray} points into no buffer"));
    }
    let mut parameters: Vec<*mut c_void> = values.iter_mut().map(|value| (value as *mut u64).cast()).collect();
    // SAFETY: there is a pointer for each parameter, to at least as many bytes as it has (on a
    // little-endian host the lower ones), and they live until the call ends. Pointers among the values begin within living
    // buffers, and what a kernel does beyond those is what the tests are for.
    unsafe { launch_raw(&name, grid, block, shared, parameters.as_mut_ptr()) }
}

/// Whether there is a kernel of this name.
pub fn has_kernel(name: &CStr) -> bool {
    parameter_sizes(name).is_some()
}

/// [`launch`] with arguments as CUDA's driver gets them, which nothing looks at before.
///
/// # Errors
/// As [`launch`].
///
/// # Safety
/// `parameters` are addresses of as many arguments as the kernel has parameters, of their types.
pub unsafe fn launch_raw(
    kernel: &CStr,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    parameters: *mut *mut c_void,
) -> Result<(), String> {
    let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
    // SAFETY: the name ends with a zero; the parameters are as the caller promises.
    let status = unsafe { emulator_launch(kernel.as_ptr(), gx, gy, gz, bx, by, bz, shared, parameters) };
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the message ends with a zero and stays until this thread's next launch.
    let message = unsafe { CStr::from_ptr(emulator_error()) };
    Err(message.to_string_lossy().into_owned())
}

/// Whether this thread's launches take the threads of a block from the last to the first: two orders give different results
/// where a barrier is missing.
pub fn run_backwards(backwards: bool) {
    // SAFETY: sets a number of this thread's.
    unsafe { emulator_run_backwards(backwards.into()) };
}

/// The sizes of a kernel's parameters in bytes, unless there is no such kernel.
pub fn parameter_sizes(name: &CStr) -> Option<Vec<u32>> {
    // SAFETY: the name ends with a zero.
    let mut size = unsafe { emulator_parameter_sizes(name.as_ptr()) };
    if size.is_null() {
        return None;
    }
    let mut sizes = Vec::new();
    // SAFETY: the numbers are constants of the program and end with a zero, at which the loop ends.
    unsafe {
        while *size != 0 {
            sizes.push(*size);
            size = size.add(1);
        }
    }
    Some(sizes)
}
