//! The matrix of this host, or of a device that a command runs: a look without the tec command.
use std::time::{Duration, Instant};
use tec_conformance::*;
fn main() {
    let groups = find_groups(&goldens::directory()).unwrap();
    let mut args = std::env::args().skip(1);
    let mut host = InProcess::new("host");
    let print = |row: &Row| {
        println!(
            "{:12} {:20} cases {:4} values {:7} bits {:?} err {:?} instr {:?} not run {:?} FAIL {:?}",
            row.provider,
            row.group,
            row.cases,
            row.values,
            row.differing_bits,
            row.max_error,
            row.instructions,
            row.not_run.first(),
            row.failures.iter().take(2).collect::<Vec<_>>()
        );
    };
    match args.next() {
        None => {
            run(&mut host, None, &groups, print);
        }
        Some(_) => {
            let words: Vec<String> = args.collect();
            let link = Command::start(&words, Duration::from_secs(60), None).unwrap();
            let mut remote = Remote::connect(None, Box::new(link)).unwrap();
            println!("{} {}", remote.name(), remote.capacity());
            let mut last = Instant::now();
            run(&mut remote, Some(&mut host), &groups, |row| {
                print(row);
                println!("   {:?}", last.elapsed());
                last = Instant::now();
            });
        }
    }
}
