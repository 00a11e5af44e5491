//! `tec bench`: throughput on this machine, comparable with the PyTorch peers.

mod encode;
mod loader;
mod train;

use clap::Subcommand;
use tec_train::Result;

/// What is measured.
#[derive(Subcommand)]
pub enum Verb {
    /// Training steps: base forward, new model forward and backward, AdamW, on random images in memory
    Train(train::Args),
    /// The int8 encoder: milliseconds an image, memory, and how near it comes to f32
    Encode(encode::Args),
    /// Images a second that are read, decoded, cropped, resized and normalized
    Loader(loader::Args),
}

/// Runs the verb.
pub fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Train(args) => train::run(args),
        Verb::Encode(args) => encode::run(args),
        Verb::Loader(args) => loader::run(args),
    }
}
