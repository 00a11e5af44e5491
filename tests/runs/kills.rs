//! SIGKILL at random moments of a run.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{Place, assert_same, newest, place, pretrain};

/// Steps between two checkpoints.
const INTERVAL: usize = 3;
/// Epochs of five steps.
const SETTINGS: &str = "--set optimizer.epochs=8 --set checkpoint.every_steps=3 --set decoder.dim=192 \
     --set optimizer.ema=0.99 --set optimizer.accumulate=2 --set probe.every_epochs=4 --set probe.k=3";

/// Numbers for choosing moments (splitmix64).
struct Chance(u64);

impl Chance {
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What the kills met.
#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    runs: usize,
    before_the_recipe: usize,
    before_a_checkpoint: usize,
    amid_writing_a_checkpoint: usize,
    after_the_last_step: usize,
    steps_done_again: usize,
    most_steps_done_again: usize,
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| {
        v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number"))
    })
}

fn is_writing(checkpoints: &Path) -> bool {
    let entries = fs::read_dir(checkpoints).into_iter().flatten().flatten();
    entries
        .into_iter()
        .any(|e| e.file_name().to_string_lossy().starts_with(".writing-"))
}

/// Waits until `until`, then, if asked to, until a checkpoint is being written; false if the process ended by itself.
fn wait(child: &mut Child, until: Instant, writing: Option<&Path>) -> bool {
    loop {
        if Instant::now() >= until && writing.is_none_or(is_writing) {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        // A checkpoint is written in a few milliseconds.
        if Instant::now() < until {
            thread::sleep(Duration::from_micros(500));
        }
    }
}

/// The step of the last whole line of a run's metrics.
fn last_logged(place: &Place, run: &str) -> usize {
    let text = fs::read_to_string(place.path(&format!("{run}/metrics.jsonl"))).unwrap_or_default();
    let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
    text.lines().filter_map(step).max().unwrap_or(0) as usize
}

#[test]
fn kills_at_random_moments_leave_no_trace() {
    let (kills, seed) = (setting("KILLS", 6) as usize, setting("KILL_SEED", 1));
    let mut chance = Chance(seed);
    let place = place();
    let fresh = pretrain(SETTINGS);
    let clock = Instant::now();
    place.tec(&format!("{fresh} --out whole")).ok();
    let whole = clock.elapsed();
    let mut tally = Tally::default();
    while tally.kills < kills {
        tally.runs += 1;
        let run = format!("run-{}", tally.runs);
        let checkpoints = place.path(&format!("{run}/checkpoints"));
        // The newest complete checkpoint, which nothing may lose.
        let mut kept = 0;
        loop {
            let begun = place.path(&format!("{run}/recipe.toml")).exists();
            let args = match begun {
                true => format!("pretrain --out {run} --resume"),
                false => format!("{fresh} --out {run}"),
            };
            let mut command = place.command(&args);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            // Some while it starts, before there is a run or a checkpoint; most anywhere.
            let span = if chance.share() < 0.2 { 0.1 } else { 0.7 };
            let moment = Instant::now() + whole.mul_f64(span * chance.share());
            let writing = (chance.share() < 0.4).then_some(checkpoints.as_path());
            if tally.kills == kills || !wait(&mut child, moment, writing) {
                // It ended by itself, and well.
                let output = child.wait_with_output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{args}: {said}");
                assert!(!said.contains("trying the checkpoint before"), "{said}");
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            tally.kills += 1;
            tally.before_the_recipe += usize::from(!place.path(&format!("{run}/recipe.toml")).exists());
            tally.amid_writing_a_checkpoint += usize::from(is_writing(&checkpoints));
            let now = newest(&place, &run).map_or(0, |(found, damaged)| {
                assert!(damaged.is_empty(), "kill {}: {damaged:?}", tally.kills);
                found.state.step
            });
            assert!(
                now >= kept,
                "kill {}: the checkpoint of step {kept} is lost, {now} is left",
                tally.kills
            );
            kept = now;
            let logged = last_logged(&place, &run);
            let again = logged.saturating_sub(now);
            assert!(
                again <= INTERVAL,
                "kill {}: step {logged} was done, {now} is kept",
                tally.kills
            );
            tally.before_a_checkpoint += usize::from(now == 0);
            tally.after_the_last_step += usize::from(now == 40);
            tally.steps_done_again += again;
            tally.most_steps_done_again = tally.most_steps_done_again.max(again);
        }
        assert_same(&place, &run, "whole");
        let leftovers: Vec<String> = place
            .files(&run)
            .into_iter()
            .filter(|f| f.contains(".writing-"))
            .collect();
        assert!(leftovers.is_empty(), "{leftovers:?}");
    }
    println!(
        "seed {seed}, an undisturbed run takes {:.1} s; every resumed run ended in its bits: {tally:?}",
        whole.as_secs_f64()
    );
}
