//! A program in C, compiled by the system's compiler and linked to the static library, gives the specified values.

#[path = "../../tec-edge/tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use common::{Random, file, geometry, header, reference};

/// What Rust's standard library needs on Linux: `rustc --print native-static-libs`.
const SYSTEM: &[&str] = if cfg!(target_os = "linux") {
    &["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl"]
} else {
    &[]
};

#[test]
fn gives_the_specified_values() {
    if !works(Command::new("cc").arg("--version")) {
        println!("NOT RUN: the C program, for there is no C compiler `cc`");
        return;
    }
    let library = library();
    let work = tempfile::tempdir().unwrap();
    let program = work.path().join("encode");
    let sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    if !compiled(&library, &program, &sanitizers) {
        println!("without sanitizers, which this compiler does not link");
        assert!(
            compiled(&library, &program, &[]),
            "the C program does not compile: see above"
        );
    }

    let header = header(geometry());
    let bytes = file(&header, 3, false);
    let mut random = Random(5);
    let pixels: Vec<u8> = (0..geometry().image_len()).map(|_| random.next() as u8).collect();
    let paths = [work.path().join("encoder.tec"), work.path().join("pixels")];
    fs::write(&paths[0], &bytes).unwrap();
    fs::write(&paths[1], &pixels).unwrap();
    let output = Command::new(&program).args(&paths).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let expected = reference(&header, &bytes, &pixels);
    let mut lines = vec![format!(
        "tin\u{e9}, version {}, 9 patches of dim 12",
        env!("CARGO_PKG_VERSION")
    )];
    for (name, values, bits) in [
        ("class", &expected.class, header.class_bits),
        ("mean", &expected.mean, header.mean_bits),
        ("patches", &expected.patches, header.patch_bits),
    ] {
        let integers: Vec<String> = values.iter().map(i16::to_string).collect();
        lines.push(format!("{name} {}", integers.join(" ")));
        lines.push(format!("{name}-float"));
        let step = 0.5f64.powi(bits.into());
        let printed = text_of(&output)
            .lines()
            .nth(lines.len() - 1)
            .unwrap_or_default()
            .to_owned();
        let floats: Vec<f64> = printed.split(' ').skip(1).map(|x| x.parse().unwrap()).collect();
        let exact: Vec<f64> = values.iter().map(|&x| f64::from(x) * step).collect();
        // Nine digits name an f32.
        let same = floats.iter().zip(&exact).all(|(a, b)| *a as f32 == *b as f32);
        assert!(same && floats.len() == exact.len(), "{name}: {printed}");
    }
    lines.push("short 6 image's values: expected 432, got 431".into());
    lines.push("null 1 scratch memory is NULL".into());
    lines.push("damaged 11 the encoder file is damaged".into());
    lines.push("closed 2 the encoder is not open".into());
    let text = text_of(&output);
    assert_eq!(text.lines().count(), lines.len(), "{text}");
    for (line, expected) in text.lines().zip(&lines) {
        assert!(line.starts_with(expected.as_str()), "{line}\nexpected: {expected}");
    }
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn works(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn compiled(library: &Path, program: &Path, more: &[&str]) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("cc");
    command
        .args(["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-pedantic", "-Werror"])
        .args(more);
    command
        .arg("-I")
        .arg(root.join("include"))
        .arg(root.join("tests/c/encode.c"));
    command.arg(library).args(SYSTEM).arg("-o").arg(program);
    let output = command.output().unwrap();
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    // A program that links may still lack the sanitizers' libraries.
    output.status.success()
        && Command::new(program)
            .output()
            .is_ok_and(|output| output.status.code() == Some(2))
}

/// The static library, built by cargo beside this test: the one in `deps` has a name that only cargo knows.
fn library() -> PathBuf {
    let here = env::current_exe().unwrap();
    let target = here.ancestors().nth(3).unwrap();
    let output = Command::new(env!("CARGO"))
        .args([
            "build",
            "--locked",
            "--offline",
            "--lib",
            "--features",
            "std,simd",
            "--message-format",
            "json",
        ])
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .output()
        .unwrap();
    let text = text_of(&output);
    let path = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| Some(message.get("filenames")?.as_array()?.clone()))
        .flatten()
        .filter_map(|name| Some(PathBuf::from(name.as_str()?)))
        .find(|path| path.extension().is_some_and(|extension| extension == "a"));
    path.unwrap_or_else(|| panic!("cargo built no library: {}", String::from_utf8_lossy(&output.stderr)))
}
