//! The inputs that a target starts from, written at run time.

use std::path::{Path, PathBuf};

/// Writes `seeds` to the directory that the environment variable `FUZZ_SEEDS` names and ends the process; returns where there is
/// no such variable.
pub fn write_if_asked<T: AsRef<[u8]>>(seeds: impl IntoIterator<Item = T>) {
    let Some(directory) = std::env::var_os("FUZZ_SEEDS").map(PathBuf::from) else {
        return;
    };
    let count = seeds
        .into_iter()
        .enumerate()
        .map(|(number, seed)| write(&directory, number, seed.as_ref()))
        .count();
    println!("{count} seeds in {}", directory.display());
    std::process::exit(0);
}

fn write(directory: &Path, number: usize, seed: &[u8]) {
    let path = directory.join(format!("seed-{number:03}"));
    if let Err(error) = std::fs::write(&path, seed) {
        eprintln!("cannot write {}: {error}", path.display());
        std::process::exit(1);
    }
}
