//! Compiles the kernels of `tec-train` for the host, with a table of their names.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, thread};

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    let (cpp, kernels) = (here.join("cpp"), here.join("../../tec-train/kernels"));
    println!("cargo:rerun-if-changed={}", cpp.display());
    println!("cargo:rerun-if-changed={}", kernels.display());
    let checks = here.join("kernels");
    println!("cargo:rerun-if-changed={}", checks.display());

    let sources = [sources(&kernels), sources(&checks)].concat();
    let compiled: Vec<(Vec<PathBuf>, Vec<String>)> = thread::scope(|scope| {
        let jobs: Vec<_> = sources
            .iter()
            .map(|source| scope.spawn(|| compile(source, &out, &[&cpp, &kernels])))
            .collect();
        jobs.into_iter()
            .map(|job| {
                job.join()
                    .expect("a source does not compile; the compiler's message is above")
            })
            .collect()
    });
    let (objects, names): (Vec<_>, Vec<_>) = compiled.into_iter().unzip();
    let table = out.join("table.cpp");
    write(&table, &kernel_table(&names.concat()));
    compiler(&[&cpp, &kernels])
        .file(cpp.join("context.cpp"))
        .file(cpp.join("lanes.cpp"))
        .file(table)
        .objects(objects.concat())
        .compile("cuda_emulator");
}

fn variable(name: &str) -> String {
    env::var(name).expect("cargo sets this variable for build scripts")
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("cargo's output directory can be written");
}

/// The sources in a directory in the order of their names.
fn sources(kernels: &Path) -> Vec<PathBuf> {
    let mut sources: Vec<PathBuf> = fs::read_dir(kernels)
        .expect("the directories of kernels are part of the repository")
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    sources
}

/// Optimized in every profile, since tests run whole training steps; without fused multiply-add, as the host's own code.
fn compiler(includes: &[&Path]) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .warnings(true)
        .includes(includes)
        .flag("-ffp-contract=off")
        .flag("-fno-exceptions")
        .flag("-fno-math-errno")
        .flag("-Wno-unknown-pragmas");
    build
}

/// The object file of one source with the rows of the table for its kernels, which are functions private to it.
fn compile(source: &Path, out: &Path, includes: &[&Path]) -> (Vec<PathBuf>, Vec<String>) {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let unit = out.join(format!("kernels_{stem}.cpp"));
    let mut text = format!("#include \"{}\"\n", source.display());
    write(&unit, &text);
    let names = names(&String::from_utf8_lossy(&compiler(includes).file(&unit).expand()));
    text.push_str("namespace lanes {\n");
    for name in &names {
        writeln!(
            text,
            "extern const Kernel KERNEL_{name} = {{\"{name}\", kernel_threads_{name},\n    \
             [](void** parameters) {{ call(kernel_entry_{name}, parameters); }},\n    \
             []() {{ return parameter_sizes(kernel_entry_{name}); }}}};"
        )
        .expect("writing to a string cannot fail");
    }
    text.push_str("}\n");
    write(&unit, &text);
    (compiler(includes).file(&unit).compile_intermediates(), names)
}

/// The names of the kernels that a preprocessed source defines.
fn names(expanded: &str) -> Vec<String> {
    let mark = "void kernel_entry_";
    expanded
        .match_indices(mark)
        .map(|(at, _)| &expanded[at + mark.len()..])
        .map(|rest| {
            rest.split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .next()
                .unwrap_or_default()
        })
        .map(str::to_owned)
        .collect()
}

fn kernel_table(names: &[String]) -> String {
    let mut text = String::from("#include \"lanes.h\"\nnamespace lanes {\n");
    for name in names {
        writeln!(text, "extern const Kernel KERNEL_{name};").expect("writing to a string cannot fail");
    }
    // Filled in when the program starts: constants of other files are no constant expressions.
    text.push_str("const Kernel KERNELS[] = {\n");
    for name in names {
        writeln!(text, "    KERNEL_{name},").expect("writing to a string cannot fail");
    }
    text.push_str("    {nullptr, 0, nullptr, nullptr},\n};\n}\n");
    text
}
