//! Device memory: the host's, poisoned when it is given out, with guards at both ends that are looked at when it is freed.

use std::{
    alloc::{Layout, alloc, dealloc},
    collections::BTreeMap,
    ffi::{c_int, c_uint, c_void},
    ptr,
    sync::{Mutex, PoisonError},
};

use super::{INVALID_VALUE, OUT_OF_MEMORY, SUCCESS, Status, number, streams};

/// Bytes before and behind each piece of memory; also its alignment, which is CUDA's.
const GUARD: usize = 256;
/// What guards hold, and fresh memory: each 32 and each 16 bits of it are a NaN.
const POISON: u8 = 0xff;

/// Pieces given out: address and bytes.
static PIECES: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
/// The same of the host's page-locked memory.
static PAGE_LOCKED: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

/// The start of the piece of device memory that holds an address.
pub fn piece(address: usize) -> Option<usize> {
    around(&PIECES, address)
}

/// Whether an address is in page-locked memory.
pub fn is_page_locked(address: usize) -> bool {
    around(&PAGE_LOCKED, address).is_some()
}

fn around(pieces: &Mutex<BTreeMap<usize, usize>>, address: usize) -> Option<usize> {
    let pieces = pieces.lock().unwrap_or_else(PoisonError::into_inner);
    let (&start, &bytes) = pieces.range(..=address).next_back()?;
    (address < start + bytes).then_some(start)
}

/// Makes device memory as if it had just been given out.
pub fn poison(address: usize, bytes: usize) {
    // SAFETY: whoever asks has been given the memory.
    unsafe { ptr::write_bytes(ptr::with_exposed_provenance_mut::<u8>(address), POISON, bytes) };
}

/// Whether a range lies in one piece.
pub fn has(address: usize, bytes: usize) -> bool {
    let pieces = PIECES.lock().unwrap_or_else(PoisonError::into_inner);
    let piece = pieces.range(..=address).next_back();
    piece.is_some_and(|(start, length)| address + bytes <= start + length)
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(2 * GUARD)?, GUARD).ok()
}

fn give(bytes: usize) -> Option<usize> {
    let mut pieces = PIECES.lock().unwrap_or_else(PoisonError::into_inner);
    let used: usize = pieces.values().sum();
    if number("EMULATED_MEMORY").is_some_and(|all| (used + bytes) as u64 > all) {
        return None;
    }
    let layout = layout(bytes)?;
    // SAFETY: the layout has a size, that of its guards.
    let start = unsafe { alloc(layout) };
    if start.is_null() {
        return None;
    }
    // SAFETY: all of it was just allocated.
    unsafe { ptr::write_bytes(start, POISON, layout.size()) };
    let address = start.expose_provenance() + GUARD;
    pieces.insert(address, bytes);
    Some(address)
}

fn take_back(address: usize) -> Status {
    if address == 0 {
        return SUCCESS;
    }
    streams::forget(address);
    let Some(bytes) = PIECES.lock().unwrap_or_else(PoisonError::into_inner).remove(&address) else {
        return INVALID_VALUE;
    };
    let start: *mut u8 = ptr::with_exposed_provenance_mut(address - GUARD);
    let guard_is_whole = |offset: usize| {
        // SAFETY: both guards are parts of the piece.
        unsafe { std::slice::from_raw_parts(start.add(offset), GUARD) }
            .iter()
            .all(|&byte| byte == POISON)
    };
    if !guard_is_whole(0) || !guard_is_whole(GUARD + bytes) {
        eprintln!("emulated CUDA: something wrote beside a piece of {bytes} bytes");
        std::process::abort();
    }
    if let Some(layout) = layout(bytes) {
        // SAFETY: allocated by `give` in this layout, and no longer listed.
        unsafe { dealloc(start, layout) };
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(address: *mut usize, bytes: usize, stream: *mut c_void) -> Status {
    // SAFETY: the same demands.
    let status = unsafe { cuMemAlloc_v2(address, bytes) };
    if status == SUCCESS {
        // SAFETY: just written.
        streams::operation(stream, &[unsafe { *address }]);
    }
    status
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut usize, bytes: usize) -> Status {
    match give(bytes) {
        _ if bytes == 0 => INVALID_VALUE,
        None => OUT_OF_MEMORY,
        Some(found) => {
            // SAFETY: the caller gives room for an address.
            unsafe { *address = found };
            SUCCESS
        }
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: usize, stream: *mut c_void) -> Status {
    streams::operation(stream, &[address]);
    take_back(address)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: usize) -> Status {
    take_back(address)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(address: *mut usize, bytes: usize, _: c_uint) -> Status {
    let locked = || PAGE_LOCKED.lock().unwrap_or_else(PoisonError::into_inner);
    let used: usize = locked().values().sum();
    if number("EMULATED_PAGE_LOCKED").is_some_and(|all| (used + bytes) as u64 > all) {
        return OUT_OF_MEMORY;
    }
    // SAFETY: the same demands.
    let status = unsafe { cuMemAlloc_v2(address, bytes) };
    if status == SUCCESS {
        // SAFETY: just written.
        locked().insert(unsafe { *address }, bytes);
    }
    status
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(address: usize) -> Status {
    let bytes = PAGE_LOCKED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&address);
    if bytes.is_some_and(|bytes| streams::is_copied_from(address, bytes)) {
        eprintln!("emulated CUDA: page-locked memory is freed that a copy still reads");
        std::process::abort();
    }
    take_back(address)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    let all = number("EMULATED_MEMORY").unwrap_or(1 << 40) as usize;
    let used: usize = PIECES.lock().unwrap_or_else(PoisonError::into_inner).values().sum();
    // SAFETY: the caller gives room for two numbers.
    unsafe {
        *free = all.saturating_sub(used);
        *total = all;
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetDefaultMemPool(pool: *mut *mut c_void, _: c_int) -> Status {
    // SAFETY: the caller gives room for a pointer, which is never followed.
    unsafe { *pool = ptr::without_provenance_mut(0x7000) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolSetAttribute(_: *mut c_void, _: c_int, _: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: usize,
    from: *const c_void,
    bytes: usize,
    stream: *mut c_void,
) -> Status {
    streams::copy_there(stream, to, from.expose_provenance(), bytes);
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: usize,
    bytes: usize,
    stream: *mut c_void,
) -> Status {
    streams::operation(stream, &[from]);
    // SAFETY: the caller gives as many bytes at both places.
    unsafe { ptr::copy(ptr::with_exposed_provenance::<u8>(from), to.cast(), bytes) };
    if !is_page_locked(to.addr()) {
        streams::wait_for(stream);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: usize, from: usize, bytes: usize, stream: *mut c_void) -> Status {
    streams::operation(stream, &[to, from]);
    let (to, from) = (
        ptr::with_exposed_provenance_mut::<u8>(to),
        ptr::with_exposed_provenance(from),
    );
    // SAFETY: the caller gives as many bytes at both places.
    unsafe { ptr::copy(from, to, bytes) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(to: usize, value: u8, bytes: usize, stream: *mut c_void) -> Status {
    streams::operation(stream, &[to]);
    // SAFETY: the caller gives as many bytes.
    unsafe { ptr::write_bytes(ptr::with_exposed_provenance_mut::<u8>(to), value, bytes) };
    SUCCESS
}
