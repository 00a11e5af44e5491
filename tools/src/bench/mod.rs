//! `tec bench`: how fast this machine is at a part of the work.

mod loader;

use tec_train::Result;

/// What is measured.
#[derive(clap::Subcommand)]
pub enum Verb {
    /// Images a second that are read, decoded, cropped, resized and normalized
    Loader(loader::Args),
}

/// Runs the verb.
pub fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Loader(args) => loader::run(args),
    }
}
