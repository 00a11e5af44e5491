//! Says which of the back ends a target has that no one `cfg` of the compiler tells: it knows none for Arm's DSP extension and for Helium,
//! and NEON is used where vectors have the file's byte order.

use std::env::var;

fn main() {
    println!("cargo:rustc-check-cfg=cfg(tec_amx, tec_dsp, tec_mve, tec_neon, tec_no_scalar)");
    println!("cargo:rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    let target = var("TARGET").unwrap_or_default();
    let simd = var("CARGO_FEATURE_SIMD").is_ok();
    let dsp = target.starts_with("thumbv7em");
    let mve = target.starts_with("thumbv8") && helium(&var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default());
    if dsp {
        println!("cargo:rustc-cfg=tec_dsp");
    }
    if mve {
        println!("cargo:rustc-cfg=tec_mve");
    }
    // Where such instructions are certain, the scalar back end would only take flash.
    if simd && (dsp || mve) {
        println!("cargo:rustc-cfg=tec_no_scalar");
    }
    let std = var("CARGO_FEATURE_STD").is_ok();
    let is = |name: &str, value: &str| var(name).unwrap_or_default().split(',').any(|part| part == value);
    if is("CARGO_CFG_TARGET_ARCH", "aarch64")
        && is("CARGO_CFG_TARGET_ENDIAN", "little")
        && is("CARGO_CFG_TARGET_FEATURE", "neon")
    {
        println!("cargo:rustc-cfg=tec_neon");
    }
    // The operating system has to be asked for it.
    if simd && std && is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_OS", "linux") {
        println!("cargo:rustc-cfg=tec_amx");
    }
}

/// Whether the compiler's flags (`-C`, `target-cpu=…` or both in one, apart by U+001F) name a processor with Helium, or the feature itself.
/// A Cortex-M33 has the same target without it, so no flag means no Helium.
fn helium(flags: &str) -> bool {
    let mut helium = false;
    for flag in flags.split('\u{1f}') {
        let flag = flag.strip_prefix("-C").unwrap_or(flag).trim_start();
        if let Some(cpu) = flag.strip_prefix("target-cpu=") {
            helium = matches!(cpu, "cortex-m52" | "cortex-m55" | "cortex-m85");
        }
    }
    for feature in flags
        .split('\u{1f}')
        .filter_map(|flag| flag.strip_prefix("-C").unwrap_or(flag).strip_prefix("target-feature="))
        .flat_map(|list| list.split(','))
    {
        match feature {
            "+mve" | "+mve.fp" => helium = true,
            "-mve" => helium = false,
            _ => {}
        }
    }
    helium
}
