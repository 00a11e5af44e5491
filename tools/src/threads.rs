//! Threads of the whole process.

/// Keeps candle's own worker threads out of the way of rayon's.
///
/// candle 0.11 runs large elementwise additions (its backward pass makes one for every gradient) on workers of its own that
/// spin while they wait. Beside rayon's, which our operations use, they cost a third of a step and more. One thread means
/// none of those workers. A value the user has set is kept.
pub fn settle() {
    const KEY: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(KEY).is_none() {
        // SAFETY: called first in `main`, before any other thread exists that could read the environment.
        unsafe { std::env::set_var(KEY, "1") };
    }
}
