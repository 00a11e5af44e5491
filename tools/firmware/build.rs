//! Gives the linker the memory of a board: `boards/NAME.x`, or any file that `TEC_BOARD` names.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-env-changed=TEC_BOARD");
    println!("cargo:rerun-if-changed=boards");
    let target = env::var("TARGET").unwrap_or_default();
    let default = match target.split('-').next().unwrap_or_default() {
        "riscv32imac" => "riscv32-virt",
        "aarch64" => "aarch64-virt",
        "thumbv8m.main" => "mps3-an547",
        "thumbv7em" => "mps2-an386",
        _ => return,
    };
    let board = env::var("TEC_BOARD").unwrap_or_else(|_| default.into());
    let shipped = PathBuf::from("boards").join(format!("{board}.x"));
    let file = if shipped.is_file() {
        shipped
    } else {
        PathBuf::from(&board)
    };
    // What a tick of SysTick takes under emulation, in picoseconds: the AN547 has 32 MHz, the others 25.
    let tick = if board == "mps3-an547" { 31_250 } else { 40_000 };
    println!("cargo:rustc-env=TEC_TICK={tick}");
    let memory = fs::read(&file).unwrap_or_else(|e| {
        panic!("TEC_BOARD={board}: no boards/{board}.x and no such file ({e}); give a linker script with FLASH and RAM")
    });
    println!("cargo:rerun-if-changed={}", file.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("memory.x"), memory).expect("OUT_DIR can be written");
    println!("cargo:rustc-link-search={}", out.display());
    let scripts: &[&str] = match target.split('-').next().unwrap_or_default() {
        "aarch64" => &["-Tmemory.x"],
        "riscv32imac" => &["-Tmemory.x", "-Tlink.x"],
        _ => &["-Tlink.x"],
    };
    for script in scripts {
        println!("cargo:rustc-link-arg-bins={script}");
    }
    if env::var_os("CARGO_FEATURE_DEFMT").is_some() {
        println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
    }
}
