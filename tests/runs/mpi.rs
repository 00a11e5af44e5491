//! Runs by several processes under Open MPI's `mpirun`, on this machine.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    Place, assert_same, bits,
    command::{Outcome, SMALL},
    newest, place, pretrain,
};

/// An `mpirun` that starts as many processes as it is told wherever it runs, in the place's folder.
fn mpirun(place: &Place, args: &str) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--bind-to", "none"]);
    // Containers have no other user.
    command.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    // Processes that wait leave the core to those that compute: there may be fewer cores than processes.
    command.args(["--mca", "mpi_yield_when_idle", "1"]);
    command.args(args.split_whitespace().map(|arg| match arg {
        "TEC" => env!("CARGO_BIN_EXE_tec"),
        arg => arg,
    }));
    command.current_dir(place.path(".")).stdin(Stdio::null());
    command
}

/// `processes` processes of `tec` with the same arguments.
fn by(place: &Place, processes: usize, args: &str) -> Outcome {
    Outcome::of(mpirun(place, &format!("-n {processes} TEC {args}")), args)
}

/// How many lines of what was said are errors of `tec`.
fn errors(said: &str) -> usize {
    said.lines().filter(|line| line.starts_with("error: ")).count()
}

/// The process of that rank, child of an `mpirun`.
fn rank(mpirun: &Child, rank: usize) -> u32 {
    let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
    let clock = Instant::now();
    while clock.elapsed() < Duration::from_secs(20) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
            let status = String::from_utf8(read("status")).unwrap_or_default();
            let is_child = status.contains(&format!("PPid:\t{}\n", mpirun.id()));
            if is_child && read("environ").split(|b| *b == 0).any(|v| v == variable.as_bytes()) {
                return pid;
            }
        }
    }
    panic!("no process of rank {rank}");
}

/// A long run by two processes after seven steps, its standard output still to be read.
fn under_way(place: &Place, run: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let args = pretrain(&format!("--set optimizer.epochs=40 --json --out {run}"));
    let mut command = mpirun(place, &format!("-n 2 TEC {args}"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    for _ in 0..7 {
        if lines.read_line(&mut line).unwrap() == 0 {
            let output = child.wait_with_output().unwrap();
            panic!("it ended by itself: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    (child, lines)
}

fn send(signal: &str, pid: u32) {
    assert!(
        Command::new("kill")
            .arg(signal)
            .arg(pid.to_string())
            .status()
            .unwrap()
            .success()
    );
}

/// 180 images of 17 tokens are two pieces, 270 are three: one for each process, and one process adds the same ones in their order.
#[test]
fn processes_with_a_piece_each_train_the_weights_of_one_bit_for_bit() {
    let place = place();
    place.images("photos", 40, 240);
    for (processes, batch) in [(2, "180"), (3, "270")] {
        let args = pretrain("--set optimizer.ema=0.99").replace("--batch 8", &format!("--batch {batch}"));
        let args = args.replace("--epochs 2", "--epochs 4");
        let [one, many] = ["one", "many"].map(|run| format!("{run}-{batch}"));
        place.tec(&format!("{args} --out {one}")).ok();
        let outcome = by(&place, processes, &format!("{args} --json --out {many}")).ok();
        assert_same(&place, &many, &one);
        // One of them speaks: four steps and a line for the run.
        assert_eq!(outcome.json().len(), 5, "{outcome}");
    }
}

/// Two processes, then one, then three; against one process all the way, and one that is never stopped.
#[test]
fn a_run_goes_on_with_another_number_of_processes() {
    let place = place();
    // A larger eps keeps AdamW from making steps of rounding errors where gradients are zero, as those of keys' biases.
    let args = pretrain("--accumulate 2 --set optimizer.eps=1e-3");
    place.tec(&format!("{args} --out whole")).ok();
    let said = by(&place, 2, &format!("{args} --out run --max-steps 3")).ok();
    assert!(said.stderr.contains("2 × 4 images on 2 processes"), "{said}");
    place.tec("pretrain --out run --resume --max-steps 6").ok();
    by(&place, 3, "pretrain --out run --resume").ok();
    let [run, whole] = ["run", "whole"].map(|name| newest(&place, name).unwrap().0);
    assert_eq!(
        (run.state.seen, run.state.step, run.state.updates),
        (whole.state.seen, whole.state.step, whole.state.updates)
    );
    let (a, b) = (bits(&run), bits(&whole));
    for (name, values) in a.iter().filter(|(name, _)| name.starts_with("model.")) {
        let float = |bits: &u32| f32::from_bits(*bits);
        let pairs = values.iter().map(float).zip(b[name].iter().map(float));
        let worst = pairs.fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
        // The same sums in another order.
        assert!(worst <= 1e-6, "{name} differs by {worst}");
    }
    assert!(place.path("run/report/index.html").exists());
}

#[test]
fn a_killed_process_ends_the_job_and_the_run_goes_on() {
    let place = place();
    place.tec(&pretrain("--set optimizer.epochs=40 --out whole")).ok();
    for killed in [1, 0] {
        let run = format!("killed-{killed}");
        let (child, lines) = under_way(&place, &run);
        send("-KILL", rank(&child, killed));
        let clock = Instant::now();
        drop(lines);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(clock.elapsed() < Duration::from_secs(60), "{said}");
        assert!(!output.status.success(), "{said}");
        let words = format!("process rank {killed} ");
        assert!(said.contains(&words) && said.contains("signal 9"), "{said}");
        // One process or two, whatever is there.
        by(&place, 2 - killed, &format!("pretrain --out {run} --resume")).ok();
        let [run, whole] = [&run, "whole"].map(|name| newest(&place, name).unwrap().0.state);
        assert_eq!((run.seen, run.step), (whole.seen, whole.step));
    }
}

#[test]
fn a_signal_to_one_process_stops_all_after_the_same_step() {
    let place = place();
    let (child, lines) = under_way(&place, "run");
    send("-TERM", rank(&child, 1));
    let rest = lines.lines().map_while(Result::ok).count();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("go on with: tec pretrain --out run --resume"), "{said}");
    // The last line is the run's.
    assert_eq!(newest(&place, "run").unwrap().0.state.step, 7 + rest - 1, "{said}");
}

/// Each process with arguments of its own.
#[test]
fn an_error_of_one_process_is_said_once_and_ends_all() {
    let place = place();
    place.images("fewer", 0, 39);
    let args = |data: &str| pretrain("--out run").replace("--data photos", &format!("--data {data}"));
    for (other, code, words) in [
        ("missing", 1, "error: rank 1: "),
        (
            "fewer",
            2,
            "error: rank 1 does not train what rank 0 trains: 39 images instead of 40",
        ),
    ] {
        let all = format!("-n 1 TEC {} : -n 1 TEC {}", args("photos"), args(other));
        let outcome = Outcome::of(mpirun(&place, &all), &all);
        assert_eq!(errors(&outcome.stderr), 1, "{outcome}");
        assert!(outcome.stderr.contains(words), "{outcome}");
        assert_eq!(outcome.code, Some(code), "{outcome}");
        assert!(!place.path("run").exists());
    }
    // The same mistake in all of them is one message too.
    let outcome = by(
        &place,
        2,
        &format!("pretrain --method mae --data missing --out run {SMALL}"),
    );
    assert_eq!((errors(&outcome.stderr), outcome.code), (1, Some(1)), "{outcome}");
    // Loss and weights grow beyond all numbers, on both alike.
    let args = pretrain("--set optimizer.warmup_epochs=0 --out run").replace("optimizer.lr=1e-3", "optimizer.lr=1e30");
    let outcome = by(&place, 2, &args);
    assert_eq!((errors(&outcome.stderr), outcome.code), (1, Some(1)), "{outcome}");
    assert!(outcome.stderr.contains("not finite; samples"), "{outcome}");
}
