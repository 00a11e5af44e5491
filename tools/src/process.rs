//! Settings of the whole process.

/// Makes them; called first in `main`.
pub fn settle() {
    quiet_candle();
    keep_freed_memory();
}

/// Keeps candle's own worker threads out of the way of rayon's.
///
/// candle 0.11 runs large elementwise additions (its backward pass makes one for every gradient) on workers of its own that
/// spin while they wait. Beside rayon's, which our operations use, they cost a third of a step and more. One thread means
/// none of those workers. A value the user has set is kept.
fn quiet_candle() {
    const KEY: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(KEY).is_none() {
        // SAFETY: called first in `main`, before any other thread exists that could read the environment.
        unsafe { std::env::set_var(KEY, "1") };
    }
}

/// Keeps the memory of a step for the next one.
///
/// glibc maps every large tensor anew and gives it back when it is freed; a tenth of a training step then goes into page
/// faults. With these thresholds large blocks come from the heap, and the heap is not trimmed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    const NEVER: libc::c_int = libc::c_int::MAX;
    // SAFETY: mallopt takes any numbers, and no other thread exists yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, NEVER);
        libc::mallopt(libc::M_TRIM_THRESHOLD, NEVER);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}
