//! Ctrl-C, SIGTERM and a closed terminal: the first ends a run after its step, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

/// What a shell reports of a command ended by Ctrl-C.
pub const EXIT_CODE: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From here on the first signal only sets a flag. Where that is not possible signals end the process as before.
pub fn settle() {
    let _ = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(EXIT_CODE));
        }
        eprintln!("\nstopping after this step, with a checkpoint; Ctrl-C again stops at once");
    });
}

/// Whether a signal has come.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
