//! Compiles the CUDA kernels, and makes the jumps to CUDA's libraries (feature `cuda`); nothing otherwise.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    cuda::build();
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::{
        env,
        fmt::Write as _,
        fs,
        path::{Path, PathBuf},
    };

    /// Every function of CUDA's libraries that is called, as `library name`.
    const SYMBOLS: &str = "src/device/symbols.txt";

    pub fn build() {
        println!("cargo::rerun-if-changed={SYMBOLS}");
        println!("cargo::rerun-if-changed=kernels");
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let symbols = fs::read_to_string(SYMBOLS).expect("the list of symbols is part of the sources");
        let names: Vec<(&str, &str)> = symbols
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| line.split_once(' ').expect("a library and a name in each line"))
            .collect();
        fs::write(out.join("names.rs"), names_table(&names)).expect("OUT_DIR can be written");
        fs::write(out.join("jumps.s"), jumps(&names)).expect("OUT_DIR can be written");
        kernels(&out.join("kernels.rs"));
        nothing_to_link(&out);
    }

    /// candle asks for these libraries by name. What it calls is found in the jumps, so empty ones do, where the toolkit's
    /// own are not installed.
    fn nothing_to_link(out: &Path) {
        for library in ["cuda", "cudart", "cublas", "cublasLt", "curand", "nvrtc"] {
            let archive = out.join(format!("lib{library}.a"));
            fs::write(archive, "!<arch>\n").expect("OUT_DIR can be written");
        }
        println!("cargo::rustc-link-search=native={}", out.display());
    }

    fn names_table(names: &[(&str, &str)]) -> String {
        let mut text = format!(
            "/// Library and name of every function called.\nconst NAMES: [(&str, &str); {}] = [\n",
            names.len()
        );
        for (library, name) in names {
            writeln!(text, "    ({library:?}, {name:?}),").expect("strings can be written");
        }
        text + "];\n"
    }

    /// A jump through the table for each name.
    fn jumps(names: &[(&str, &str)]) -> String {
        let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the architecture");
        let (jump, missing): (fn(usize) -> String, &str) = match arch.as_str() {
            "x86_64" => (
                |at| format!("jmp qword ptr [rip + tec_cuda_jumps + {at}]"),
                "mov eax, 3\nret",
            ),
            _ => (
                |at| format!("adrp x16, tec_cuda_jumps + {at}\nldr x16, [x16, :lo12:tec_cuda_jumps + {at}]\nbr x16"),
                "mov w0, 3\nret",
            ),
        };
        let mut text = format!(".text\ntec_cuda_missing:\n{missing}\n");
        for (number, (_, name)) in names.iter().enumerate() {
            let jump = jump(8 * number);
            write!(text, ".globl {name}\n.type {name}, @function\n{name}:\n{jump}\n").expect("strings can be written");
        }
        text += ".section .data.rel.tec_cuda_jumps, \"aw\"\n.balign 8\n.globl tec_cuda_jumps\n.hidden tec_cuda_jumps\ntec_cuda_jumps:\n";
        text += &".quad tec_cuda_missing\n".repeat(names.len());
        text + ".text\n"
    }

    /// The kernels as PTX, which the driver compiles for its GPU.
    fn kernels(table: &Path) {
        cudaforge::KernelBuilder::new()
            .source_dir("kernels")
            .arg("-std=c++17")
            .arg("-O3")
            .arg("--expt-relaxed-constexpr")
            .build_ptx()
            .expect("the CUDA kernels compile with this toolkit");
        let mut files: Vec<String> = fs::read_dir("kernels")
            .expect("the kernels are part of the sources")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        files.sort();
        let mut text = format!(
            "/// The kernels of each source file.\nstatic PTX: [&str; {}] = [\n",
            files.len()
        );
        for file in files {
            writeln!(text, "    include_str!(concat!(env!(\"OUT_DIR\"), \"/{file}.ptx\")),")
                .expect("strings can be written");
        }
        fs::write(table, text + "];\n").expect("OUT_DIR can be written");
    }
}
