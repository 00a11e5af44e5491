//! Runs by several processes that find each other over TCP, as torchrun starts them, on this machine.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use super::{
    Place, assert_same,
    command::{Outcome, SMALL},
    newest, place, pretrain,
};

/// What torchrun tells each of `size` processes, with a port that was free a moment ago.
fn started(place: &Place, size: usize, args: impl Fn(usize) -> String) -> Vec<Child> {
    let port = TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let start = |rank: usize| {
        let mut command = place.command(&args(rank));
        command.envs([
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", rank.to_string()),
            ("WORLD_SIZE", size.to_string()),
            ("LOCAL_WORLD_SIZE", size.to_string()),
            ("MASTER_ADDR", "127.0.0.1".into()),
            ("MASTER_PORT", port.to_string()),
        ]);
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        piped.spawn().unwrap()
    };
    (0..size).map(start).collect()
}

/// How each process ended, by rank: its code, and what it said on standard error.
fn ends(processes: Vec<Child>) -> Vec<(Option<i32>, String)> {
    let end = |process: Child| {
        let output = process.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    processes.into_iter().map(end).collect()
}

fn all_well(ends: &[(Option<i32>, String)]) {
    for (rank, (code, said)) in ends.iter().enumerate() {
        assert_eq!(*code, Some(0), "rank {rank}: {said}");
    }
}

/// 180 images of 17 tokens are two pieces, one for each process, and one process adds the same ones in their order.
#[test]
fn processes_with_a_piece_each_train_the_weights_of_one_bit_for_bit() {
    let place = place();
    place.images("photos", 40, 240);
    let args = pretrain("--set optimizer.ema=0.99").replace("--batch 8", "--batch 180");
    place.tec(&format!("{args} --out one")).ok();
    let ends = ends(started(&place, 2, |_| format!("{args} --out two")));
    all_well(&ends);
    assert_same(&place, "two", "one");
    // One of them speaks.
    assert!(ends[0].1.contains("on 2 processes") && ends[1].1.is_empty(), "{ends:?}");
}

#[test]
fn a_killed_process_ends_the_job_in_seconds_and_the_run_goes_on() {
    let place = place();
    place.tec(&pretrain("--set optimizer.epochs=40 --out whole")).ok();
    for killed in [1, 0] {
        let run = format!("killed-{killed}");
        let args = pretrain(&format!("--set optimizer.epochs=40 --json --out {run}"));
        let mut processes = started(&place, 3, |_| args.clone());
        let mut lines = BufReader::new(processes[0].stdout.take().unwrap()).lines();
        for _ in 0..7 {
            lines.next().expect("it goes on").unwrap();
        }
        processes[killed].kill().unwrap();
        let clock = Instant::now();
        drop(lines);
        let ends = ends(processes);
        assert!(clock.elapsed() < Duration::from_secs(20), "{ends:?}");
        for (rank, (code, said)) in ends.iter().enumerate().filter(|(rank, _)| *rank != killed) {
            let words = format!("error: rank {rank}: rank {killed} has ended without a word");
            assert_eq!(*code, Some(1), "{said}");
            assert!(said.contains(&words), "{said}");
        }
        place.tec(&format!("pretrain --out {run} --resume")).ok();
        let [run, whole] = [&run, "whole"].map(|name| newest(&place, name).unwrap().0.state);
        assert_eq!((run.seen, run.step), (whole.seen, whole.step));
    }
}

#[test]
fn an_error_of_one_process_ends_all() {
    let place = place();
    let args = |rank: usize| match rank {
        1 => pretrain("--out run").replace("--data photos", "--data missing"),
        _ => pretrain("--out run"),
    };
    let ends = ends(started(&place, 2, args));
    assert!(ends[0].1.contains("error: rank 1: "), "{ends:?}");
    assert!(ends.iter().all(|(code, _)| *code == Some(1)), "{ends:?}");
    assert!(!place.path("run").exists());
}

#[test]
fn processes_that_cannot_meet_or_have_no_gpu_are_told_what_to_do() {
    let place = place();
    let args = pretrain("--out run");
    let mut command = place.command(&args);
    command.envs([("RANK", "1"), ("WORLD_SIZE", "2")]);
    let outcome = Outcome::of(command, "pretrain without a place to meet");
    assert_eq!(outcome.code, Some(2), "{outcome}");
    assert!(outcome.stderr.contains("torchrun started 2 processes"), "{outcome}");
    assert!(outcome.stderr.contains("MASTER_ADDR and MASTER_PORT"), "{outcome}");
    let ends = ends(started(&place, 2, |_| {
        format!("pretrain --method mae --data photos --device cuda:1 --out run {SMALL}")
    }));
    for (_, said) in &ends[..1] {
        assert!(
            said.contains("--device cuda:1") && said.contains("use --device cuda,"),
            "{ends:?}"
        );
    }
    assert!(ends.iter().all(|(code, _)| *code == Some(2)), "{ends:?}");
}
