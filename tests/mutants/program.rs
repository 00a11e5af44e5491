//! Checks the host against the golden vectors of a directory while one mutant is alive. A line for each group: its name, how
//! many checks failed and how many were not run, and the first of those, separated by tabs.

use std::path::PathBuf;

use tec_conformance::{InProcess, Row, find_groups, run};

fn main() {
    let mut args = std::env::args().skip(1);
    let directory = PathBuf::from(args.next().expect("a directory of vectors"));
    let number = args
        .next()
        .and_then(|n| n.parse().ok())
        .expect("the number of a mutant");
    tec_core::mutant::set(number);
    let groups = find_groups(&directory).expect("golden vectors");
    run(&mut InProcess::new("host"), None, &groups, |row: &Row| {
        let first = row.failures.first().or(row.not_run.first()).map_or("", String::as_str);
        println!(
            "{}\t{}\t{}\t{}",
            row.group,
            row.failures.len(),
            row.not_run.len(),
            first.replace('\n', " ")
        );
    });
}
