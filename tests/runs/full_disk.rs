//! A disk that is full, and files that may not grow.

use std::process::Command;

use super::{Place, assert_same, newest, place, pretrain};

/// A shell in the place, the command at `$TEC`.
fn shell(place: &Place, script: &str) -> std::process::Output {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(place.path("."));
    command.env("TEC", env!("CARGO_BIN_EXE_tec")).output().unwrap()
}

/// The size of the largest checkpoint of a run in kB.
fn checkpoint_kb(place: &Place, run: &str) -> u64 {
    let files = std::fs::read_dir(place.path(&format!("{run}/checkpoints"))).unwrap();
    files.map(|f| f.unwrap().metadata().unwrap().len()).max().unwrap() / 1024
}

#[test]
fn a_checkpoint_that_cannot_be_written_costs_none_before_it() {
    let place = place();
    let args = pretrain("");
    place.tec(&format!("{args} --out whole")).ok();
    place.tec(&format!("{args} --out run --max-steps 5")).ok();
    // No file may grow beyond half a checkpoint: `ulimit -f` counts in 512 bytes.
    let blocks = checkpoint_kb(&place, "run");
    let limit = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$TEC\"");
    let output = shell(&place, &format!("{limit} pretrain --out run --resume"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in [
        "step-00000010.safetensors: cannot be written",
        "the checkpoint of step 5 is whole",
        "free some space",
        "go on with: tec pretrain --out run --resume",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(newest(&place, "run").unwrap().0.state.step, 5);
    assert!(
        !place.files("run").iter().any(|f| f.contains(".writing-")),
        "{:?}",
        place.files("run")
    );
    place.tec("pretrain --out run --resume").ok();
    assert_same(&place, "run", "whole");

    // The same before there is any checkpoint.
    let output = shell(&place, &format!("{limit} {args} --out early"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("there is no checkpoint yet; free some space"), "{said}");
    place.tec("pretrain --out early --resume").ok();
    assert_same(&place, "early", "whole");
}

/// A file system of a few hundred kilobytes, where the system lets a user mount one.
#[test]
fn a_full_disk_is_named_and_costs_nothing() {
    let place = place();
    std::fs::create_dir(place.path("small")).unwrap();
    let args = pretrain("");
    place.tec(&format!("{args} --out whole")).ok();
    // Room for one checkpoint and a half; the mount ends with its shell, so the rest happens inside.
    let size = checkpoint_kb(&place, "whole") * 8 / 5 + 60;
    let output = shell(
        &place,
        &format!(
            "exec unshare --user --map-root-user --mount sh -c '
            mount -t tmpfs -o size={size}k none small || exit 77
            \"$TEC\" {args} --out small/run 2>&1; echo \"ended with $?\"
            mount -o remount,size=64m small
            \"$TEC\" pretrain --out small/run --resume 2>&1; echo \"ended with $?\"
            cp -r small/run run'"
        ),
    );
    let said = String::from_utf8(output.stdout).unwrap();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        println!("not run: no file system can be mounted here ({})", why.trim());
        assert!(!said.contains("ended with"), "{said}{why}");
        return;
    }
    let (first, second) = said.split_once("ended with 1").unwrap_or_else(|| panic!("{said}"));
    for words in [
        "No space left on device",
        "the checkpoint of step 5 is whole",
        "--resume",
    ] {
        assert!(first.contains(words), "{words}: {first}");
    }
    assert!(second.contains("ended with 0"), "{second}");
    assert_same(&place, "run", "whole");
}
