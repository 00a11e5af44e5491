//! The `tec` command: pretrain, evaluate, export, quantize, embed, measure, inspect, check conformance.

mod bench;
mod conformance;
mod embed;
mod encoder;
mod eval;
mod export;
mod inspect;
mod interrupt;
mod output;
mod pretrain;
mod process;
mod progress;
mod quantize;
mod quickstart;
mod ranks;
mod respond;

use std::{panic::AssertUnwindSafe, process::ExitCode};

use clap::{Parser, Subcommand};
use tec_train::{
    Error,
    ranks::{Collective, OneProcess},
};

/// Trains a vision transformer that beats the one it starts from, or a small one that keeps most of it, and deploys it.
#[derive(Parser)]
#[command(name = "tec", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the whole way on images that ship with the program, in a few minutes on two cores
    Quickstart(quickstart::Args),
    /// Train a new encoder on a folder of images: from a frozen base (tec) or from the pixels alone (mae)
    Pretrain(Box<pretrain::Args>),
    /// Measure an encoder
    #[command(subcommand)]
    Eval(eval::Verb),
    /// Write a run's encoder as safetensors under timm's names
    Export(export::Args),
    /// Make the int8 file that runs on a device, and compare it with f32
    Quantize(quantize::Args),
    /// Turn images into embeddings
    Embed(embed::Args),
    /// Measure throughput on this machine
    #[command(subcommand)]
    Bench(bench::Verb),
    /// Check every bit on this host, on emulated machines and on your device
    Conformance(conformance::Args),
    /// Answer requests on standard input, so that `tec conformance --device "ssh HOST tec respond"` checks this machine
    Respond(respond::Args),
    /// Say what a file is: an image, a checkpoint, an encoder, a run
    Inspect(inspect::Args),
}

/// Usage errors end with 2, as clap's own do; every other failure with 1.
const USAGE: u8 = 2;
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    process::settle();
    let cli = Cli::parse();
    // A panic is our bug: it gets one line and an exit code of a failure, like any other end that is not success.
    std::panic::set_hook(Box::new(|info| {
        let place = info
            .location()
            .map(|l| format!(" at {}:{}", l.file(), l.line()))
            .unwrap_or_default();
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let what = text
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("unknown");
        eprintln!(
            "error: internal error{place}: {what}\nThis is a bug in tec; please report it with the command you gave."
        );
    }));
    // Outlives the messages below: when one process of a job ends, its launcher may stop the others.
    let mut job: Box<dyn Collective> = Box::new(OneProcess);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| match cli.verb {
        Verb::Quickstart(args) => quickstart::run(&args),
        Verb::Pretrain(args) => {
            let launch;
            (job, launch) = ranks::join(args.device())?;
            pretrain::run(&args, &*job, &launch)
        }
        Verb::Eval(verb) => eval::run(&verb),
        Verb::Export(args) => export::run(&args),
        Verb::Quantize(args) => quantize::run(&args),
        Verb::Embed(args) => embed::run(&args),
        Verb::Bench(verb) => bench::run(&verb),
        Verb::Conformance(args) => conformance::run(&args),
        Verb::Respond(args) => respond::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
    }));
    match result {
        Ok(Ok(())) => interrupt::exit_code(),
        Ok(Err(e)) => {
            // What all processes know the first one says.
            if job.rank() == 0 || !matches!(e, Error::Rank { .. }) {
                eprintln!("error: {e}");
            }
            ExitCode::from(if e.is_usage() { USAGE } else { FAILURE })
        }
        Err(_) => {
            job.abandon();
            ExitCode::from(FAILURE)
        }
    }
}
