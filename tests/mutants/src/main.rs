//! Breaks the program on purpose, one rule at a time, and checks that a golden vector notices.
//!
//! `tests/mutants.toml` is the list. A copy of the sources is made with all mutants in it and compiled once; the program
//! is then run once for each. With names as arguments, only those mutants are run, and every group that fails is listed.

mod copy;
mod list;
mod rewrite;

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use list::Mutant;

/// A mutant that has not ended by then hangs; the vectors take a tenth of a second.
const LIMIT: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let outcome = if names.is_empty() { check_all() } else { show(&names) };
    outcome.unwrap_or_else(|reason| {
        eprintln!("mutants: {reason}");
        ExitCode::from(2)
    })
}

fn check_all() -> Result<ExitCode, String> {
    let (mutants, runner) = prepare()?;
    let mut by_vector = 0;
    let mut survivors = Vec::new();
    for (number, mutant) in (1..).zip(&mutants) {
        let Mutant { name, what, .. } = mutant;
        match runner.run(number)?.verdict(mutant) {
            Verdict::Vector(line) => {
                by_vector += 1;
                println!("{name}: {what}. Caught by {line}");
            }
            Verdict::NoEnd(how) => println!("{name}: {what}. Caught, but by no vector: the program {how}"),
            Verdict::Survived(why) => {
                println!("{name}: {what}. NOT CAUGHT: {why}");
                survivors.push(name.as_str());
            }
        }
    }
    let (all, caught) = (mutants.len(), mutants.len() - survivors.len());
    if !survivors.is_empty() {
        println!(
            "mutants: {caught} of {all} caught; NOT CAUGHT: {}",
            survivors.join(", ")
        );
        return Ok(ExitCode::FAILURE);
    }
    match all - by_vector {
        0 => println!("mutants: {caught} of {all} caught, each by a named vector"),
        others => println!("mutants: {caught} of {all} caught, {others} of them by a panic or no end"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs some mutants and lists everything that fails.
fn show(names: &[String]) -> Result<ExitCode, String> {
    let (mutants, runner) = prepare()?;
    for name in names {
        let found = (1..).zip(&mutants).find(|(_, mutant)| mutant.name == *name);
        let (number, mutant) = found.ok_or_else(|| format!("there is no mutant {name}"))?;
        println!("{name}: {}", mutant.what);
        let run = runner.run(number)?;
        for group in run.groups.iter().filter(|group| group.failures > 0) {
            println!("    {}: {}", group.name, group.first);
        }
        match &run.no_end {
            Some(how) => println!("    the program {how}"),
            None if run.groups.iter().all(|group| group.failures == 0) => println!("    no vector fails"),
            None => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Compiles, and makes sure that every vector passes while no mutant is alive, and that the groups of the list exist.
fn prepare() -> Result<(Vec<Mutant>, Runner), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().map_err(|e| format!("{}: {e}", root.display()))?;
    let path = root.join("tests/mutants.toml");
    let mutants = list::parse(&copy::read(&path)?).map_err(|e| format!("{}: {e}", path.display()))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let copy = std::path::absolute(target.join("mutants")).map_err(|e| e.to_string())?;
    copy::make(&root, &copy, &mutants)?;

    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let start = Instant::now();
    let build = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--package", copy::PROGRAM])
        .current_dir(&copy)
        .env("CARGO_TARGET_DIR", copy.join("target"))
        .env("RUSTFLAGS", "-Awarnings")
        .env_remove("CARGO_BUILD_TARGET")
        .status()
        .map_err(|e| format!("cargo does not start: {e}"))?;
    if !build.success() {
        return Err(format!(
            "the copy in {} does not compile: look at the mutant named above it",
            copy.display()
        ));
    }
    println!(
        "mutants: {} in one program, compiled in {:.0} s",
        mutants.len(),
        start.elapsed().as_secs_f64()
    );

    let program = copy
        .join("target/release")
        .join(format!("{}{}", copy::PROGRAM, std::env::consts::EXE_SUFFIX));
    let vectors = root.join("tests/goldens");
    let runner = Runner { program, vectors };
    let sound = runner.run(0)?;
    if let Some(how) = sound.no_end {
        return Err(format!("without a mutant the program {how}"));
    }
    if let Some(group) = sound.groups.iter().find(|group| group.failures + group.not_run > 0) {
        return Err(format!("without a mutant, {} fails: {}", group.name, group.first));
    }
    for mutant in &mutants {
        for name in &mutant.caught_by {
            if !sound.groups.iter().any(|group| group.name == *name) {
                return Err(format!(
                    "the list is out of date: mutant {} names {name}, no group of vectors",
                    mutant.name
                ));
            }
        }
    }
    println!(
        "mutants: with none alive, all {} groups of vectors pass",
        sound.groups.len()
    );
    Ok((mutants, runner))
}

/// The compiled program and its vectors.
struct Runner {
    program: PathBuf,
    vectors: PathBuf,
}

/// What a run said.
struct Run {
    groups: Vec<Group>,
    /// How it ended, if not of its own accord.
    no_end: Option<String>,
}

/// One group of vectors.
struct Group {
    name: String,
    failures: usize,
    not_run: usize,
    first: String,
}

enum Verdict {
    /// The first vector of the list's groups that failed.
    Vector(String),
    /// A panic or no end.
    NoEnd(String),
    Survived(String),
}

impl Runner {
    fn run(&self, number: u32) -> Result<Run, String> {
        let fail = |e: std::io::Error| format!("{}: {e}", self.program.display());
        let mut child = Command::new(&self.program)
            .arg(&self.vectors)
            .arg(number.to_string())
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(fail)?;
        // What it prints fits a pipe, but a pipe that nobody reads might still fill.
        let mut output = child.stdout.take().ok_or("no standard output")?;
        let mut errors = child.stderr.take().ok_or("no standard error")?;
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            output.read_to_string(&mut text).map(|_| text)
        });
        let complaints = std::thread::spawn(move || {
            let mut text = String::new();
            errors.read_to_string(&mut text).map(|_| text)
        });
        let start = Instant::now();
        let status = loop {
            match child.try_wait().map_err(fail)? {
                Some(status) => break Some(status),
                None if start.elapsed() > LIMIT => {
                    child.kill().and_then(|()| child.wait()).map_err(fail)?;
                    break None;
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let text = reader.join().map_err(|_| "the reader failed")?.map_err(fail)?;
        let complaint = complaints.join().map_err(|_| "the reader failed")?.map_err(fail)?;
        let no_end = match status {
            Some(status) if status.success() => None,
            Some(_) => Some(format!("failed: {}", complaint.trim().replace('\n', " "))),
            None => Some(format!("did not end in {} s", LIMIT.as_secs())),
        };
        Ok(Run {
            groups: text.lines().filter_map(Group::parse).collect(),
            no_end,
        })
    }
}

impl Run {
    fn verdict(&self, mutant: &Mutant) -> Verdict {
        if let Some(how) = &self.no_end {
            return Verdict::NoEnd(how.clone());
        }
        let failed: Vec<&Group> = self.groups.iter().filter(|group| group.failures > 0).collect();
        let named = |name: &String| failed.iter().find(|group| group.name == *name);
        match (
            mutant.caught_by.iter().find(|name| named(name).is_none()),
            mutant.caught_by.first().and_then(named),
        ) {
            (None, Some(first)) => {
                let others = match failed.len() {
                    1 => String::new(),
                    2 => ", and another group".into(),
                    count => format!(", and {} other groups", count - 1),
                };
                Verdict::Vector(format!("{}, {}{others}", first.name, first.vector()))
            }
            (silent, _) => {
                let names: Vec<&str> = failed.iter().map(|group| group.name.as_str()).collect();
                let silent = silent.map_or("", String::as_str);
                Verdict::Survived(match names.is_empty() {
                    true => "no vector fails".into(),
                    false => format!("{silent} passes; these fail: {}", names.join(", ")),
                })
            }
        }
    }
}

impl Group {
    /// A line of the program.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(4, '\t');
        Some(Self {
            name: fields.next()?.to_owned(),
            failures: fields.next()?.parse().ok()?,
            not_run: fields.next()?.parse().ok()?,
            first: fields.next()?.to_owned(),
        })
    }

    /// Case and tensor of the first vector that failed.
    fn vector(&self) -> String {
        self.first.split(": ").take(2).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lines: &str, no_end: Option<&str>) -> Verdict {
        let toml = "[[mutant]]\nname='n'\nwhat='w'\nfile='f'\nfrom='1'\nto='2'\ncaught_by=['a', 'b c']\n";
        let run = Run {
            groups: lines.lines().filter_map(Group::parse).collect(),
            no_end: no_end.map(str::to_owned),
        };
        run.verdict(&list::parse(toml).unwrap()[0])
    }

    #[test]
    fn every_group_of_the_list_must_fail() {
        let Verdict::Vector(line) = verdict("a\t2\t0\t7: x: 1 bit differs\nb c\t1\t0\tz\nd\t0\t0\t\n", None) else {
            panic!("both failed");
        };
        assert_eq!(line, "a, 7 x, and another group");
        let Verdict::Survived(why) = verdict("a\t2\t0\t7: x: 1 bit\nb c\t0\t0\t\nd\t1\t0\tz\n", None) else {
            panic!("b c passed");
        };
        assert_eq!(why, "b c passes; these fail: a, d");
        // What was not run is no failure.
        assert!(matches!(
            verdict("a\t0\t1\tlost\nb c\t0\t1\tlost\n", None),
            Verdict::Survived(_)
        ));
        assert!(matches!(
            verdict("a\t1\t0\tx\nb c\t1\t0\tx\n", Some("failed")),
            Verdict::NoEnd(_)
        ));
    }
}
