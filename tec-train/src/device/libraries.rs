//! CUDA's libraries, found when they are asked for.
//!
//! candle's CUDA back end calls them by name, as a program does that is linked with them; such a program does not start where
//! they are not. Here every one of those names is a jump through a table, which [`load`] fills from the libraries of the
//! machine: the same program starts anywhere, and computes on a GPU where there is one.

use std::{
    collections::BTreeSet,
    ffi::c_void,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use libloading::Library;

// The jumps and their table, made by the build script from `symbols.txt`.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the feature `cuda` is for x86-64 and 64-bit Arm");
std::arch::global_asm!(include_str!(concat!(env!("OUT_DIR"), "/jumps.s")), options(raw));

include!(concat!(env!("OUT_DIR"), "/names.rs"));

unsafe extern "C" {
    /// One address for each of [`NAMES`], at first that of a function that gives `CUDA_ERROR_NOT_INITIALIZED`.
    #[link_name = "tec_cuda_jumps"]
    static mut JUMPS: [*const c_void; NAMES.len()];
}

/// Each library with the names of its files, the newest first.
const LIBRARIES: [(&str, &[&str]); 4] = [
    ("cuda", &["libcuda.so.1"]),
    ("cublasLt", &["libcublasLt.so.13", "libcublasLt.so.12"]),
    ("cublas", &["libcublas.so.13", "libcublas.so.12"]),
    ("curand", &["libcurand.so.10"]),
];

/// What several GPUs need besides.
const NCCL: (&str, &[&str]) = ("nccl", &["libnccl.so.2"]);

/// Folders that are tried after those of the dynamic linker.
const FOLDERS: [&str; 2] = ["/usr/local/cuda/lib64", "/opt/cuda/lib64"];

static LOADED: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

/// Finds the libraries that one GPU needs, and everything that is called in them. Does nothing the second time.
///
/// # Errors
/// What is missing and where it comes from, in words.
pub fn load() -> Result<(), String> {
    LIBRARIES.into_iter().try_for_each(load_one)
}

/// Finds NCCL, which several GPUs need. Does nothing the second time.
///
/// # Errors
/// That it is missing and where it comes from, in words.
pub fn load_nccl() -> Result<(), String> {
    load_one(NCCL)
}

fn load_one((library, files): (&'static str, &[&str])) -> Result<(), String> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if loaded.contains(library) {
        return Ok(());
    }
    let opened = open(files).ok_or_else(|| missing(library, files))?;
    for (number, (of, name)) in NAMES.iter().enumerate() {
        if *of == library {
            // SAFETY: only the address is taken; it is called with the arguments of NVIDIA's own headers.
            let address = unsafe { opened.get::<*const c_void>(name.as_bytes()) };
            if let Ok(address) = address {
                // SAFETY: the table is written under the lock, before anything is called through it, and an entry
                // is read whole by the jumps.
                unsafe { JUMPS[number] = *address };
            }
        }
    }
    // The addresses stay in use until the process ends.
    std::mem::forget(opened);
    loaded.insert(library);
    Ok(())
}

fn open(files: &[&str]) -> Option<Library> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let folders: Vec<PathBuf> = homes
        .flat_map(|home| [PathBuf::from(&home).join("lib64"), PathBuf::from(home).join("lib")])
        .chain(FOLDERS.map(PathBuf::from))
        .collect();
    files.iter().find_map(|file| {
        let paths = std::iter::once(PathBuf::from(file)).chain(folders.iter().map(|folder| folder.join(file)));
        // SAFETY: CUDA's libraries may be loaded at any time by any thread.
        paths.into_iter().find_map(|path| unsafe { Library::new(path) }.ok())
    })
}

fn missing(library: &str, files: &[&str]) -> String {
    let names = files.join(" or ");
    match library {
        "cuda" => format!(
            "there is no NVIDIA driver on this machine ({names} was not found): install it from \
             https://www.nvidia.com/drivers"
        ),
        "nccl" => format!(
            "{names}, by which they exchange tensors, was not found: install NCCL, or set LD_LIBRARY_PATH to the folder \
             that has it (PyTorch's wheels bring it as nvidia/nccl/lib)"
        ),
        _ => format!(
            "{names}, a library of the CUDA toolkit, was not found: install the toolkit, or set LD_LIBRARY_PATH to the \
             folder that has it (PyTorch's wheels bring it as nvidia/cu13/lib)"
        ),
    }
}
