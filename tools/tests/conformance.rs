//! `tec conformance`: what passes, what fails, what is merely not run, and what is refused.

mod command;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use command::Place;
use serde_json::Value;

fn run(mut command: Command) -> (Option<i32>, Vec<Value>, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let lines = String::from_utf8(stdout).unwrap();
    let rows = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")));
    (status.code(), rows.collect(), String::from_utf8(stderr).unwrap())
}

fn goldens() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens"))
}

/// This program as a device, behind what `wrap` does to its streams.
fn device(place: &Place, wrap: impl Fn(&str) -> String, memory: usize) -> Command {
    let respond = format!("{} respond --memory {memory}", env!("CARGO_BIN_EXE_tec"));
    let mut command = place.command("conformance --json --out report --only device --timeout 5");
    command
        .arg("--vectors")
        .arg(goldens())
        .arg("--device")
        .arg(wrap(&respond));
    command
}

#[test]
fn the_host_passes() {
    let place = Place::new();
    let mut command = place.command("conformance --json --out out --only host");
    command.arg("--vectors").arg(goldens());
    let (code, rows, stderr) = run(command);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(rows.len() >= 18, "{} rows", rows.len());
    for row in &rows {
        assert_eq!(
            (&row["passed"], &row["provider"]),
            (&Value::Bool(true), &Value::from("host")),
            "{row}"
        );
        assert!(
            row["cases"].as_u64() > Some(0) && row["differing_bits"].as_u64().unwrap_or(0) == 0,
            "{row}"
        );
    }
    let report: Value = serde_json::from_slice(&place.read("out/report.json")).unwrap();
    assert_eq!(report["rows"].as_array().unwrap().len(), rows.len());
    let page = String::from_utf8(place.read("out/report/index.html")).unwrap();
    assert!(page.contains("encoder_trained") && page.contains("passed"));
}

#[test]
fn a_device_passes() {
    let place = Place::new();
    let (code, rows, stderr) = run(device(&place, |respond| respond.into(), 65_536));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        rows.iter()
            .all(|row| row["passed"] == true && row["provider"] == std::env::consts::ARCH),
        "{rows:?}"
    );
    // Beside the host, f32 is compared bit by bit as well.
    let bits = rows.iter().find(|row| row["group"] == "f32 bits").unwrap();
    assert_eq!(bits["differing_bits"], 0);
}

#[test]
fn what_does_not_fit_is_not_run_and_never_passed() {
    let place = Place::new();
    let (code, rows, stderr) = run(device(&place, |respond| respond.into(), 1));
    assert_eq!(code, Some(0), "{stderr}");
    for row in &rows {
        // Single numbers fit anything.
        let not_run = row["not_run"].as_array().unwrap();
        assert_eq!(row["passed"], not_run.is_empty(), "{row}");
        let reasons = not_run.iter().map(|reason| reason.as_str().unwrap());
        assert!(
            reasons.into_iter().all(|reason| reason.contains("does not fit")),
            "{row}"
        );
    }
    let whole = rows.iter().find(|row| row["group"] == "encoder_trained").unwrap();
    assert_eq!((&whole["cases"], &whole["values"]), (&Value::from(0), &Value::from(0)));
}

#[test]
fn a_device_that_stops_answering_ends_the_run_with_what_was_checked() {
    let place = Place::new();
    // Its answers are cut off after a while.
    let (code, rows, stderr) = run(device(
        &place,
        |respond| format!("sh -c '{respond} | dd bs=1 count=60000 status=none'"),
        65_536,
    ));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("not conformant"), "{stderr}");
    assert!(rows.first().unwrap()["passed"] == true, "{rows:?}");
    let failed: Vec<&Value> = rows
        .iter()
        .filter(|row| row["failures"].as_array().is_some_and(|f| !f.is_empty()))
        .collect();
    assert_eq!(failed.len(), 1, "{rows:?}");
    assert!(
        failed[0]["failures"][0].as_str().unwrap().contains("answer"),
        "{failed:?}"
    );
    let last = rows.last().unwrap();
    assert_eq!(last["not_run"].as_array().unwrap().len(), 1, "{last}");
    assert!(last["not_run"][0].as_str().unwrap().contains("not asked"), "{last}");
}

#[test]
fn a_device_that_hangs_or_does_not_speak_is_refused() {
    let place = Place::new();
    for (device, expected) in [
        ("sleep 60", "has not answered for 1 s"),
        ("false", "the device does not"),
        ("echo hello", "the device does not"),
        ("no-such-program", "cannot be started"),
        ("'", "--device"),
    ] {
        let mut command = place.command("conformance --out report --only device --timeout 1 --device");
        command.arg(device).arg("--vectors").arg(goldens());
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_ne!(output.status.code(), Some(0), "{device}");
        assert!(
            stderr.starts_with("error: ") && stderr.contains(expected),
            "{device}: {stderr}"
        );
        assert!(!stderr.contains("internal error"), "{stderr}");
    }
}

#[test]
fn a_wrong_bit_fails_and_is_named() {
    let place = Place::new();
    let mut bytes = fs::read(goldens().join("noise.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    place.write("vectors/noise.safetensors", &bytes);
    let (code, rows, stderr) = run(place.command("conformance --json --out out --only host --vectors vectors"));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("not conformant: host on noise"), "{stderr}");
    let failed: Vec<&Value> = rows.iter().filter(|row| row["passed"] == false).collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0]["differing_bits"].as_u64() > Some(0), "{}", failed[0]);
    assert!(
        failed[0]["failures"][0]
            .as_str()
            .unwrap()
            .contains("bits differ; element"),
        "{}",
        failed[0]
    );
}

#[test]
fn vectors_that_cannot_be_used_are_refused_by_name() {
    let place = Place::new();
    place.write("empty/readme.txt", "");
    place.write("garbage/masking.safetensors", "no safetensors");
    place.write(
        "unknown/maskin.safetensors",
        fs::read(goldens().join("masking.safetensors")).unwrap(),
    );
    place.write(
        "swapped/masking.safetensors",
        fs::read(goldens().join("pos_embed.safetensors")).unwrap(),
    );
    for (arguments, expected) in [
        ("--vectors nowhere", "nowhere: no such directory"),
        ("--vectors empty", "holds no .safetensors"),
        ("--vectors garbage", "masking.safetensors: is no safetensors file"),
        ("--vectors unknown", "maskin.safetensors: is no file of golden vectors"),
        ("--only cortex-m1", "--only cortex-m1: there are host, edge-"),
        ("--port /dev/no-such-port --only device", "--port /dev/no-such-port"),
    ] {
        let output = place
            .command(&format!("conformance --out out {arguments}"))
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_ne!(output.status.code(), Some(0), "{arguments}");
        assert!(
            stderr.starts_with("error: ") && stderr.contains(expected),
            "{arguments}: {stderr}"
        );
        assert!(!place.path("out").exists(), "{arguments} left something");
    }
    // The right name with other vectors in it compares nothing, which is no pass.
    let (_, rows, _) = run(place.command("conformance --json --out out --only host --vectors swapped"));
    assert!(rows.iter().all(|row| row["passed"] == false), "{rows:?}");
}

#[test]
fn a_report_is_not_written_over() {
    let place = Place::new();
    place.write("out/mine.txt", "mine");
    let output = place.command("conformance --out out --only host").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(place.read("out/mine.txt"), b"mine");
}
