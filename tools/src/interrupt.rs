//! Ctrl-C, SIGTERM and a closed terminal: the first ends a run after its step, the second ends the process.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

/// What a shell reports of a command ended by Ctrl-C.
const EXIT_CODE: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Whether a signal has come.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// Takes note that a run ended early because of a signal.
pub fn note_stopped() {
    STOPPED.store(true, Ordering::SeqCst);
}

/// The exit code of a command without errors: its own if a signal ended it early.
pub fn exit_code() -> ExitCode {
    match STOPPED.load(Ordering::SeqCst) {
        true => ExitCode::from(EXIT_CODE),
        false => ExitCode::SUCCESS,
    }
}

/// From here on the first signal only sets a flag. Where that is not possible signals end the process as before, and the run can
/// still be resumed from its newest checkpoint.
#[cfg(not(unix))]
pub fn settle() {}

/// From here on the first signal only sets a flag. Where that is not possible signals end the process as before, and the run can
/// still be resumed from its newest checkpoint.
#[cfg(unix)]
pub fn settle() {
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM},
        iterator::Signals,
    };
    // What the process was told to ignore stays ignored: `nohup` and jobs in the background count on it.
    let ignored = ignored();
    let heard = [SIGINT, SIGTERM, SIGHUP]
        .into_iter()
        .filter(|signal| ignored & (1 << (signal - 1)) == 0);
    let Ok(mut signals) = Signals::new(heard) else { return };
    let listen = move || {
        for _ in &mut signals {
            if REQUESTED.swap(true, Ordering::SeqCst) {
                std::process::exit(i32::from(EXIT_CODE));
            }
            eprintln!("\nstopping after this step, with a checkpoint; Ctrl-C again stops at once");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("signals".into()).spawn(listen) {
        // Heard by nobody, they would neither stop the run nor end the process.
        eprintln!("Ctrl-C and SIGTERM have no effect: {error}; SIGKILL does no harm either");
    }
}

/// The signals that are ignored, signal n as bit n − 1; none where the system does not tell.
#[cfg(unix)]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
