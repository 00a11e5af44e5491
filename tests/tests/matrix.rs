//! The matrix for what every machine offers: the host's own code, and training through candle on the CPU.

use candle_core::Device;
use tec_conformance::{InProcess, Row, find_groups, goldens, run, training};

fn assert_passed(rows: &[Row]) {
    for row in rows {
        let Row { group, failures, .. } = row;
        println!(
            "{group}: {} cases, differing bits {:?}, error {:?}",
            row.cases, row.differing_bits, row.max_error
        );
        assert!(failures.is_empty(), "{group}: {failures:#?}");
        assert!(row.not_run.is_empty(), "{group}: {:?}", row.not_run);
        assert!(row.cases > 0 && row.values > 0, "{group} compared nothing");
        assert_eq!(row.differing_bits.unwrap_or(0), 0);
    }
}

#[test]
fn host() {
    let groups = find_groups(&goldens::directory()).unwrap();
    let rows = run(&mut InProcess::new("host"), None, &groups, |_| {});
    // Every kind of vector is there.
    for group in [
        "noise",
        "masking",
        "relation",
        "pos_embed",
        "adapters",
        "encoder_trained",
        "integer linear",
    ] {
        assert!(rows.iter().any(|row| row.group == group), "{group}");
    }
    assert_passed(&rows);
}

#[test]
fn candle_on_the_cpu() {
    let rows = training::run("candle-cpu", &Device::Cpu, &goldens::directory(), |_| {});
    assert_eq!(rows.len(), 6);
    assert_passed(&rows);
}
