//! CUDA's driver, cuBLASLt, NCCL and what candle asks of cuBLAS and cuRAND, on the CPU: the kernels run in the emulator.
//!
//! A program that loads this library in the place of CUDA's trains "on a GPU" on any machine, slowly: so tests run the host's
//! whole side of it. Device memory is the host's, poisoned when it is given out and guarded at both ends; what streams
//! do out of order, the program has to allow for (`streams`). Names, arguments and numbers are those of CUDA's headers.
#![allow(missing_docs, reason = "the functions are documented by NVIDIA")]
#![allow(non_snake_case, reason = "CUDA's names")]
#![allow(clippy::missing_safety_doc, reason = "each wants what CUDA's documentation says")]
#![allow(clippy::too_many_arguments, reason = "CUDA's arguments")]

mod blas;
mod candle;
mod memory;
mod nccl;
mod streams;

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    ptr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

type Status = c_int;

const SUCCESS: Status = 0;
const INVALID_VALUE: Status = 1;
const OUT_OF_MEMORY: Status = 2;
const INVALID_DEVICE: Status = 101;
const NOT_FOUND: Status = 500;
const NOT_READY: Status = 600;
const LAUNCH_FAILED: Status = 719;

/// The GPUs that the process sees, by number: of those of the machine, `EMULATED_GPUS` or 1, the ones that
/// `CUDA_VISIBLE_DEVICES` lists, else all.
fn visible() -> Vec<u64> {
    let all = number("EMULATED_GPUS").unwrap_or(1);
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(list) => list
            .split(',')
            .map_while(|gpu| gpu.trim().parse().ok().filter(|gpu| *gpu < all))
            .collect(),
        Err(_) => (0..all).collect(),
    }
}

fn gpus() -> c_int {
    visible().len() as c_int
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_: c_uint) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(status: Status, text: *mut *const c_char) -> Status {
    // SAFETY: as CUDA's documentation asks.
    unsafe { cuGetErrorString(status, text) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(status: Status, text: *mut *const c_char) -> Status {
    let words: &CStr = match status {
        SUCCESS => c"no error",
        INVALID_VALUE => c"invalid argument",
        OUT_OF_MEMORY => c"out of memory",
        INVALID_DEVICE => c"invalid device ordinal",
        NOT_FOUND => c"named symbol not found",
        LAUNCH_FAILED => c"unspecified launch failure",
        _ => c"unknown error",
    };
    // SAFETY: the caller gives room for a pointer.
    unsafe { *text = words.as_ptr() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Status {
    if !(0..gpus()).contains(&ordinal) {
        return INVALID_DEVICE;
    }
    // SAFETY: the caller gives room for a number.
    unsafe { *device = ordinal };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    // SAFETY: the caller gives room for a number.
    unsafe { *count = gpus() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) -> Status {
    let Some(gpu) = visible().get(device as usize).copied() else {
        return INVALID_DEVICE;
    };
    // SAFETY: the caller gives room for 16 bytes.
    unsafe { *uuid = (0xe0u128 << 120 | u128::from(gpu)).to_be_bytes() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, _: c_int) -> Status {
    let text = c"emulated GPU".to_bytes_with_nul();
    if (length as usize) < text.len() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller gives room for `length` characters.
    unsafe { ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len()) };
    SUCCESS
}

/// Attributes that are asked for.
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;
const MEMORY_POOLS_SUPPORTED: c_int = 115;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _: c_int) -> Status {
    let capability = number("EMULATED_CAPABILITY").unwrap_or(90) as c_int;
    let known = match attribute {
        COMPUTE_CAPABILITY_MAJOR => capability / 10,
        COMPUTE_CAPABILITY_MINOR => capability % 10,
        MEMORY_POOLS_SUPPORTED => 1,
        _ => return INVALID_VALUE,
    };
    // SAFETY: the caller gives room for a number.
    unsafe { *value = known };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) -> Status {
    // SAFETY: the caller gives room for a pointer, which is never followed.
    unsafe { *context = ptr::without_provenance_mut(0x1000 + device as usize) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_: c_int) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(_: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> Status {
    // SAFETY: the caller gives room for a pointer.
    unsafe { *context = ptr::without_provenance_mut(0x1000) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(_: *mut c_void, state: *mut c_int) -> Status {
    // SAFETY: the caller gives room for a number.
    unsafe { *state = 0 };
    SUCCESS
}

/// Modules are not read: their kernels are known by name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, _: *const c_void) -> Status {
    // SAFETY: the caller gives room for a pointer, which is never followed.
    unsafe { *module = ptr::without_provenance_mut(0x4000) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(_: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *mut c_void,
    _: *mut c_void,
    name: *const c_char,
) -> Status {
    // SAFETY: the caller gives a string that ends with a zero.
    let name = unsafe { CStr::from_ptr(name) };
    let text = name.to_string_lossy();
    if !tec_cuda_emulator::has_kernel(name) && !candle::has(&text) {
        eprintln!("emulated CUDA: there is no kernel {text}");
        return NOT_FOUND;
    }
    // A function is its name; there are few.
    // SAFETY: the caller gives room for a pointer.
    unsafe { *function = CString::from(name).into_raw().cast() };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(_: *mut c_void, _: c_int, _: c_int) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: *mut c_void,
    arguments: *mut *mut c_void,
    _: *mut *mut c_void,
) -> Status {
    // SAFETY: the function is a name that `cuModuleGetFunction` gave.
    let kernel = unsafe { CStr::from_ptr(function.cast()) };
    let name = kernel.to_string_lossy();
    // SAFETY: as below.
    unsafe { spoil(&name, arguments) };
    // SAFETY: as above.
    streams::operation(stream, &unsafe { pointers(kernel, arguments) });
    // SAFETY: the caller gives as many arguments as the kernel declares.
    let done = unsafe {
        match candle::launch(&name, arguments) {
            Some(done) => done,
            None => tec_cuda_emulator::launch_raw(
                kernel,
                [grid_x, grid_y, grid_z],
                [block_x, block_y, block_z],
                shared,
                arguments,
            ),
        }
    };
    match done {
        Ok(()) => SUCCESS,
        Err(reason) => {
            eprintln!("emulated CUDA: kernel {name}: {reason}");
            LAUNCH_FAILED
        }
    }
}

/// The arguments of one of our kernels that may be addresses.
///
/// # Safety
/// They are what the kernel declares.
unsafe fn pointers(kernel: &CStr, arguments: *mut *mut c_void) -> Vec<usize> {
    let sizes = tec_cuda_emulator::parameter_sizes(kernel).unwrap_or_default();
    let wide = sizes.iter().enumerate().filter(|(_, size)| **size == 8);
    // SAFETY: as promised by the caller; CUDA gives the address of each argument.
    wide.map(|(number, _)| unsafe { *(*arguments.add(number)).cast::<usize>() })
        .collect()
}

/// With `EMULATED_NAN=N` the N-th GELU and those after it find a NaN in their input.
///
/// # Safety
/// The arguments are the kernel's.
unsafe fn spoil(kernel: &str, arguments: *mut *mut c_void) {
    static GELUS: AtomicU64 = AtomicU64::new(0);
    if kernel == "gelu_f32" && number("EMULATED_NAN").is_some_and(|first| GELUS.fetch_add(1, Relaxed) + 1 >= first) {
        // SAFETY: its first argument is the address of its input, of which there is at least one value.
        unsafe { ptr::with_exposed_provenance_mut::<f32>(*(*arguments).cast::<usize>()).write(f32::NAN) };
    }
}

// cuBLAS and cuRAND are opened by candle and not called by anything that trains.

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasCreate_v2(handle: *mut *mut c_void) -> Status {
    // SAFETY: the caller gives room for a pointer, which is never followed.
    unsafe { *handle = ptr::without_provenance_mut(0x5000) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasDestroy_v2(_: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasSetStream_v2(_: *mut c_void, _: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn curandCreateGenerator(generator: *mut *mut c_void, _: c_int) -> Status {
    // SAFETY: the caller gives room for a pointer, which is never followed.
    unsafe { *generator = ptr::without_provenance_mut(0x6000) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn curandDestroyGenerator(_: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn curandSetStream(_: *mut c_void, _: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn curandSetPseudoRandomGeneratorSeed(_: *mut c_void, _: u64) -> Status {
    SUCCESS
}
