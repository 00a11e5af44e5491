//! Says which of the back ends a target has that no one `cfg` of the compiler tells: it knows none for Arm's DSP extension, and NEON is
//! used where vectors have the file's byte order.

use std::env::var;

fn main() {
    println!("cargo:rustc-check-cfg=cfg(tec_dsp, tec_neon)");
    if var("TARGET").unwrap_or_default().starts_with("thumbv7em") {
        println!("cargo:rustc-cfg=tec_dsp");
    }
    let is = |name: &str, value: &str| var(name).unwrap_or_default().split(',').any(|part| part == value);
    if is("CARGO_CFG_TARGET_ARCH", "aarch64")
        && is("CARGO_CFG_TARGET_ENDIAN", "little")
        && is("CARGO_CFG_TARGET_FEATURE", "neon")
    {
        println!("cargo:rustc-cfg=tec_neon");
    }
}
