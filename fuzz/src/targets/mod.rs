//! What each target does with an input, and what it starts from.

pub mod core_ops;
pub mod data_source;
pub mod encoder_file;
pub mod forged_file;
pub mod image_file;
pub mod pytorch_file;
pub mod request;

/// A target without its fuzzer.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Takes one input, and panics where something does not hold.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($name:ident),*) => { [$(Target { name: stringify!($name), seeds: $name::seeds, run: $name::run }),*] };
}

/// All targets.
pub const ALL: [Target; 7] = targets![
    encoder_file,
    forged_file,
    request,
    core_ops,
    pytorch_file,
    image_file,
    data_source
];
