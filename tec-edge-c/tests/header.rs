//! The header is the one that cbindgen writes from the sources, and compiles as C and C++.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Where a new header is written instead of compared.
const UPDATE: &str = "TEC_UPDATE_HEADER";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn is_up_to_date() {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(root().join("src/interface.rs"))
        .with_src(root().join("src/functions.rs"))
        .generate()
        .unwrap();
    let mut written = Vec::new();
    bindings.write(&mut written);
    let written = String::from_utf8(written).unwrap();
    let path = root().join("include/tec_edge.h");
    if env::var_os(UPDATE).is_some() {
        fs::write(&path, &written).unwrap();
    }
    let shipped = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        shipped == written,
        "include/tec_edge.h is out of date: {UPDATE}=1 cargo test -p tec-edge-c --test header writes it"
    );
}

/// Every function of the library and every code is in the header.
#[test]
fn holds_every_function() {
    let header = fs::read_to_string(root().join("include/tec_edge.h")).unwrap();
    let functions = fs::read_to_string(root().join("src/functions.rs")).unwrap();
    let mut count = 0;
    for line in functions.lines().filter(|line| line.starts_with("pub ")) {
        let name = line
            .split("fn ")
            .nth(1)
            .and_then(|rest| rest.split('(').next())
            .unwrap();
        assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
        count += 1;
    }
    assert!(
        count >= 13,
        "{count} functions: this test no longer reads the sources right"
    );
}

#[test]
fn compiles_as_c_and_cpp_without_warnings() {
    let work = tempfile::tempdir().unwrap();
    let source = |name: &str| -> PathBuf {
        let path = work.path().join(name);
        fs::write(
            &path,
            "#include \"tec_edge.h\"\nint main(void) { return tec_version() == NULL; }\n",
        )
        .unwrap();
        path
    };
    let strict = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"];
    for (compiler, standard, file) in [
        ("cc", "-std=c99", "main.c"),
        ("cc", "-std=c11", "main.c"),
        ("c++", "-std=c++11", "main.cc"),
    ] {
        let mut command = Command::new(compiler);
        command
            .args(strict)
            .arg(standard)
            .arg("-I")
            .arg(root().join("include"))
            .arg(source(file));
        match command.output() {
            Ok(output) => assert!(
                output.status.success(),
                "{compiler} {standard}: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(e) => println!("NOT RUN: the header was not compiled with {compiler} {standard}: {e}"),
        }
    }
}
