//! Says which of the back ends a target has that its name alone tells: the compiler knows no `cfg` for Arm's DSP extension.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(tec_dsp)");
    let target = std::env::var("TARGET").unwrap_or_default();
    if target.starts_with("thumbv7em") {
        println!("cargo:rustc-cfg=tec_dsp");
    }
}
