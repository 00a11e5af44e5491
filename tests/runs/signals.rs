//! Ctrl-C and SIGTERM.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{assert_same, newest, place, pretrain};

fn send(signal: &str, child: &Child) {
    let sent = Command::new("kill")
        .arg(signal)
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert!(sent.success());
}

/// A shell that starts something in the background may have it ignore Ctrl-C, and what that starts as well: then these tests would wait
/// for ever.
fn refuse_where_interrupts_are_ignored() {
    const INTERRUPT: u32 = 2;
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return;
    };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    assert!(
        mask >> (INTERRUPT - 1) & 1 == 0,
        "SIGINT is ignored here: run this test from a shell's foreground"
    );
}

#[test]
fn a_signal_ends_the_step_and_keeps_it() {
    refuse_where_interrupts_are_ignored();
    let place = place();
    // Long enough not to be done by the time; checkpoints only at the end of epochs and when told to stop.
    let args = pretrain("--set optimizer.epochs=40");
    place.tec(&format!("{args} --out whole")).ok();
    for (signal, run) in [("-INT", "run one"), ("-TERM", "run-two"), ("-HUP", "run-three")] {
        let mut command = place.command(&format!("{args} --json --out"));
        command.arg(run).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        (0..7).for_each(|_| assert_ne!(lines.read_line(&mut line).unwrap(), 0));
        send(signal, &child);
        // What is written meanwhile is read, or it would wait for room in the pipe.
        let rest: Vec<String> = lines.lines().map_while(Result::ok).collect();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{signal}: {said}");
        let quoted = if run.contains(' ') {
            format!("'{run}'")
        } else {
            run.to_string()
        };
        let hint = format!("go on with: tec pretrain --out {quoted} --resume");
        assert!(
            said.contains(&hint) && said.contains("Ctrl-C again"),
            "{signal}: {said}"
        );
        // The last step that was logged is the one that is kept.
        let done = 7 + rest.len() - 1;
        assert!(done < 200, "{signal} came too late");
        let (found, _) = newest(&place, run).unwrap();
        assert_eq!(found.state.step, done, "{signal}: {said}");
        let mut resume = place.command("pretrain --resume --out");
        assert!(resume.arg(run).output().unwrap().status.success());
        assert_same(&place, run, "whole");
    }
}

#[test]
fn a_second_signal_stops_at_once() {
    refuse_where_interrupts_are_ignored();
    let place = place();
    // A step of 4,000 parts would take minutes.
    for number in 0..100 {
        std::fs::copy(
            place.path("photos/disc/001.jpg"),
            place.path(&format!("photos/disc/copy-{number}.jpg")),
        )
        .unwrap();
    }
    let args = pretrain("--set data.image_size=128 --set model.patch_size=8 --set model.dim=256 --set model.heads=4 --set model.depth=12 --set optimizer.epochs=40 --out run")
        .replace("--batch 8", "--batch 140 --accumulate 140");
    let mut child = place
        .command(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    // The plan is printed when the first step begins.
    while !line.contains("effective batch 140 (140 × 1 images)") {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "it ended by itself");
    }
    send("-INT", &child);
    while !line.contains("stopping after this step") {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "it ended by itself");
    }
    let clock = Instant::now();
    send("-INT", &child);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(clock.elapsed() < Duration::from_secs(5));
    assert!(newest(&place, "run").is_none(), "the step was finished");
}

/// `nohup` has a run ignore the terminal's end, and it does.
#[test]
fn an_ignored_signal_stays_ignored() {
    let place = place();
    let args = pretrain("--json --out run");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("trap '' HUP; exec \"$TEC\" {args}")]);
    shell.current_dir(place.path(".")).env("TEC", env!("CARGO_BIN_EXE_tec"));
    let mut child = shell.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    assert_ne!(lines.read_line(&mut line).unwrap(), 0);
    send("-HUP", &child);
    assert_eq!(
        lines.lines().map_while(Result::ok).count(),
        10,
        "nine steps and a line for the run"
    );
    assert!(child.wait().unwrap().success());
}
