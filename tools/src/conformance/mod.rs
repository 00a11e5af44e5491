//! `tec conformance`: every provider this machine offers, on every golden vector.

mod log;
mod machines;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tec_conformance::{Command, Group, InProcess, Link, Log, Remote, Row, Stream, find_groups, goldens, training};
use tec_edge::BackEnd;
use tec_train::{
    Error, Result,
    device::DeviceName,
    run_dir::{Existing, RunDir},
};

use crate::output;
use machines::MACHINES;

/// Arguments of `tec conformance`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory of golden vectors [default: tests/goldens of the sources this program was built from]
    #[arg(long, value_name = "DIR")]
    vectors: Option<PathBuf>,
    /// Directory of the firmware for emulated machines, as ci/firmware writes it
    #[arg(long, value_name = "DIR", default_value = "target/firmware")]
    firmware: PathBuf,
    /// Also check a device: the command that runs its firmware, such as "probe-rs run --chip CHIP firmware.elf". It is spoken
    /// to by the command's standard input and output, unless --port is given
    #[arg(long, value_name = "COMMAND")]
    device: Option<String>,
    /// Speak to the device over this serial port, such as /dev/ttyACM0; alone, the firmware must be running
    #[arg(long, value_name = "PATH")]
    port: Option<String>,
    /// Bits a second of the serial port
    #[arg(long, value_name = "N", default_value_t = 115_200)]
    baud: u32,
    /// Decode what the device logs by defmt, from its firmware's file
    #[arg(long, value_name = "FILE")]
    elf: Option<PathBuf>,
    /// Seconds to wait for an answer of a device
    #[arg(long, value_name = "N", default_value_t = 60)]
    timeout: u64,
    /// Check this provider only (repeatable): host, candle-cpu, cortex-m4f, …, device
    #[arg(long, value_name = "PROVIDER")]
    only: Vec<String>,
    /// Directory for the report [default: the next free runs/conformance-N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one JSON object a provider and group instead of the table
    #[arg(long)]
    json: bool,
}

/// Runs the verb. Ends in failure when a bit differs that may not, or an error exceeds its bound; what was merely not run is
/// no failure.
pub fn run(args: &Args) -> Result<()> {
    let out = match &args.out {
        Some(out) => out.clone(),
        None => RunDir::next_free("conformance")?,
    };
    RunDir::check(&out, Existing::Refuse)?;
    let directory = args.vectors.clone().unwrap_or_else(goldens::directory);
    if !directory.is_dir() {
        let shown = directory.display();
        return Err(Error::Usage(format!(
            "{shown}: no such directory of golden vectors; give one by --vectors"
        )));
    }
    let groups = find_groups(&directory).map_err(vectors_error)?;
    let names = providers(args);
    if let Some(unknown) = args.only.iter().find(|only| !names.contains(only)) {
        return Err(Error::Usage(format!(
            "--only {unknown}: there are {}",
            names.join(", ")
        )));
    }

    let mut rows = Vec::new();
    for name in names
        .iter()
        .filter(|name| args.only.is_empty() || args.only.contains(name))
    {
        let from = rows.len();
        check(args, name, &directory, &groups, &mut rows)?;
        if !args.json {
            output::line(&report::line(name, rows.get(from..).unwrap_or_default()));
        }
    }
    let page = report::write(&out, &directory, &rows)?;
    let failed: Vec<&Row> = rows.iter().filter(|row| !row.failures.is_empty()).collect();
    if !args.json {
        for row in &failed {
            for failure in &row.failures {
                output::line(&format!("FAILED {}, {}: {failure}", row.provider, row.group));
            }
        }
        output::line(&format!("The report: {}", page.display()));
    }
    if failed.is_empty() {
        return Ok(());
    }
    let places: Vec<String> = failed
        .iter()
        .map(|row| format!("{} on {}", row.provider, row.group))
        .collect();
    Err(Error::Data(format!(
        "not conformant: {}; {} tells more",
        places.join(", "),
        page.display()
    )))
}

/// What is wrong with a directory of vectors.
fn vectors_error(error: tec_conformance::Error) -> Error {
    Error::Data(error.to_string())
}

const HOST: &str = "host";
const CANDLE: &str = "candle-cpu";
const CUDA: &str = "cuda-f32";
/// Providers that are not built yet; their rows say so.
const NOT_THERE: [(&str, &str); 1] = [("cuda-bf16", "was not run: there are no vectors of mixed precision yet")];
/// What the names of this host's back ends begin with.
const EDGE: &str = "edge-";
const DEVICE: &str = "device";

fn providers(args: &Args) -> Vec<String> {
    let mut names = vec![HOST.to_string()];
    names.extend(BackEnd::NAMES.iter().map(|name| format!("{EDGE}{name}")));
    names.extend([CANDLE, CUDA].map(str::to_owned));
    names.extend(NOT_THERE.iter().map(|&(name, _)| name.to_owned()));
    names.extend(MACHINES.iter().map(|machine| machine.name.to_owned()));
    if args.device.is_some() || args.port.is_some() {
        names.push(DEVICE.to_owned());
    }
    names
}

/// Adds the rows of one provider.
fn check(args: &Args, name: &str, directory: &Path, groups: &[Group], rows: &mut Vec<Row>) -> Result<()> {
    let json = args.json;
    let print = |row: &Row| {
        if json {
            output::json(&report::row_json(row));
        }
    };
    let mut not_there = |reason: &str| {
        let row = Row::not_there(name, "all", reason);
        print(&row);
        rows.push(row);
    };
    if let Some((_, reason)) = NOT_THERE.iter().find(|(other, _)| *other == name) {
        not_there(reason);
    } else if name == HOST {
        rows.extend(tec_conformance::run(&mut InProcess::new(HOST), None, groups, print));
    } else if let Some(back_end) = name.strip_prefix(EDGE) {
        match BackEnd::all().find(|known| known.name() == back_end) {
            Some(back_end) => {
                // What does not lie in the back end would be checked again and again.
                let integers: Vec<Group> = groups.iter().filter(|group| group.is_integer()).cloned().collect();
                rows.extend(tec_conformance::run(
                    &mut InProcess::by(name, back_end),
                    None,
                    &integers,
                    print,
                ));
            }
            None => not_there("was not run: this processor cannot execute it"),
        }
    } else if name == CANDLE || name == CUDA {
        let place = if name == CUDA {
            DeviceName::Cuda(0)
        } else {
            DeviceName::Cpu
        };
        match place.find() {
            Ok(place) => {
                let checked = training::run(name, &place, directory, print);
                if checked.is_empty() {
                    not_there("the vectors have no training step");
                }
                rows.extend(checked);
            }
            Err(reason) => not_there(&format!("was not run: {reason}")),
        }
    } else if let Some(machine) = MACHINES.iter().find(|machine| machine.name == name) {
        let firmware = args.firmware.join(machine.file);
        match machine.command(&firmware) {
            Ok(words) => {
                let log = log::decoder(machine.logs.then_some(firmware.as_path()), name)?;
                let link = Command::start(&words, Duration::from_secs(args.timeout), log).map_err(device_error)?;
                rows.extend(remote(Some(name), Box::new(link), groups, print)?);
            }
            Err(reason) => not_there(&reason),
        }
    } else {
        let log = log::decoder(args.elf.as_deref(), name)?;
        let (link, _runner) = device(args, log)?;
        rows.extend(remote(None, link, groups, print)?);
    }
    Ok(())
}

fn device_error(error: tec_conformance::Error) -> Error {
    Error::Data(error.to_string())
}

/// Checks what is at the other end of a link.
fn remote(name: Option<&str>, link: Box<dyn Link>, groups: &[Group], print: impl FnMut(&Row)) -> Result<Vec<Row>> {
    let mut remote = Remote::connect(name, link).map_err(device_error)?;
    let mut host = InProcess::new(HOST);
    Ok(tec_conformance::run(&mut remote, Some(&mut host), groups, print))
}

/// A program that runs for as long as this lives.
struct Runner(std::process::Child);

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The link to the user's device: by its command's input and output, or by a serial port beside it.
fn device(args: &Args, log: Option<Log>) -> Result<(Box<dyn Link>, Option<Runner>)> {
    let patience = Duration::from_secs(args.timeout);
    let words = match &args.device {
        Some(command) => shell_words::split(command).map_err(|e| Error::Usage(format!("--device {command}: {e}")))?,
        None => Vec::new(),
    };
    let Some(port) = &args.port else {
        let link = Command::start(&words, patience, log).map_err(device_error)?;
        return Ok((Box::new(link), None));
    };
    let runner = match words.split_first() {
        Some((program, arguments)) => {
            let started = std::process::Command::new(program)
                .args(arguments)
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .spawn();
            Some(Runner(started.map_err(|e| {
                Error::Usage(format!("--device {program}: cannot be started: {e}"))
            })?))
        }
        None => None,
    };
    let fail = |e: serialport::Error| Error::Usage(format!("--port {port}: {e}"));
    // The port waits as long as the link does; a shorter limit would end the stream in the middle of a computation.
    let output = serialport::new(port, args.baud)
        .timeout(patience)
        .open()
        .map_err(fail)?;
    let input = output.try_clone().map_err(fail)?;
    Ok((Box::new(Stream::new(input, output, patience, log)), runner))
}
