//! The memory that a listing of many images takes, and the time it and a shuffled order need.
//!
//! usage: cargo run --release -p tec-train --example listing -- COUNT [FOLDER]
//!
//! Writes a text list of COUNT names like ImageNet's and opens it, with classes and without; with FOLDER, also lists the images
//! below it. Memory is the process's resident set, before and after.

use std::error::Error;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use tec_train::data::{self, Loader, LoaderConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let count: u64 = args.next().ok_or("give the number of names")?.parse()?;
    let dir = tempfile::tempdir()?;
    for classes in [false, true] {
        let path = dir.path().join("list.txt");
        let mut file = BufWriter::new(std::fs::File::create(&path)?);
        for number in 0..count {
            let class = number / 1300;
            write!(file, "n{class:08}/n{class:08}_{}.JPEG", 10_000 + number * 37 % 20_000)?;
            writeln!(file, "{}", if classes { format!("\t{class}") } else { String::new() })?;
        }
        file.into_inner()?.sync_all()?;
        measure(if classes { "list with classes" } else { "list" }, &path)?;
    }
    if let Some(folder) = args.next() {
        measure("folder", Path::new(&folder))?;
    }
    Ok(())
}

fn measure(what: &str, path: &Path) -> Result<(), Box<dyn Error>> {
    // Forgets the greatest size so far.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let (before, start) = (resident("VmRSS")?, Instant::now());
    let source: std::sync::Arc<dyn data::Source> = std::sync::Arc::from(data::open(path)?);
    let (after, opened) = (resident("VmRSS")?, start.elapsed());
    let each = |bytes: u64| bytes as f64 / source.len() as f64;
    println!(
        "{what}: {} images, {:.1} bytes each ({:.1} at most while opening), opened in {opened:.1?}",
        source.len(),
        each(after.saturating_sub(before)),
        each(resident("VmHWM")?.saturating_sub(before)),
    );
    let (before, start) = (after, Instant::now());
    // No file exists: the first batch is empty, but has its order.
    let config = LoaderConfig {
        prefetch: 0,
        ..LoaderConfig::train(32, 3, 1, 0)
    };
    let mut batches = Loader::new(source.clone(), config)?.batches(0, 0, 1)?;
    let _ = batches.next();
    println!(
        "  shuffled: {:.1} bytes each, in {:.1?}",
        each(resident("VmRSS")?.saturating_sub(before)),
        start.elapsed()
    );
    Ok(())
}

/// Bytes of a line of the process's status.
fn resident(field: &str) -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .ok_or("no such field")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).ok_or("no value")?.parse()?;
    Ok(kilobytes * 1024)
}
