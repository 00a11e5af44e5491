//! `tec bench`: throughput on this machine, comparable with the PyTorch peers.

mod loader;
mod train;

use clap::Subcommand;
use tec_train::Result;

/// What is measured.
#[derive(Subcommand)]
pub enum Verb {
    /// Training steps: base forward, new model forward and backward, AdamW, on random images in memory
    Train(train::Args),
    /// Images a second that are read, decoded, cropped, resized and normalized
    Loader(loader::Args),
}

/// Runs the verb.
pub fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Train(args) => train::run(args),
        Verb::Loader(args) => loader::run(args),
    }
}
