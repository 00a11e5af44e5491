//! Two processes and one run directory.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use super::{assert_same, place, pretrain};

#[test]
fn a_second_process_is_kept_out_and_a_killed_one_keeps_nobody_out() {
    let place = place();
    // Long enough not to be done by the time.
    let args = pretrain("--set optimizer.epochs=40");
    place.tec(&format!("{args} --out whole")).ok();
    let mut child = place
        .command(&format!("{args} --json --out run"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    (0..6).for_each(|_| assert_ne!(lines.read_line(&mut line).unwrap(), 0));
    let others =
        ["pretrain --out run --resume", &format!("{args} --out run --overwrite")].map(|other| place.tec(other));
    assert!(child.try_wait().unwrap().is_none(), "it ended too early");
    child.kill().unwrap();
    child.wait().unwrap();
    for other in others {
        assert_eq!(other.code, Some(1), "{other}");
        for words in [
            "error: run: another process is training",
            "wait until it has ended",
            "--out",
        ] {
            assert!(other.stderr.contains(words), "{words}: {other}");
        }
    }
    // Nothing is left of the lock but a file.
    assert!(place.path("run/lock").is_file());
    place.tec("pretrain --out run --resume").ok();
    assert_same(&place, "run", "whole");
}
