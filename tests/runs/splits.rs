//! Decode threads and parts of a step.

use super::{Place, assert_same, newest, place, pretrain};

/// A finished run of 32 images a step.
fn train(place: &Place, run: &str, rest: &str) {
    let args = pretrain(rest).replace("--batch 8", "--batch 32");
    place.tec(&format!("{args} --set optimizer.epochs=4 --out {run}")).ok();
}

#[test]
fn one_and_two_decode_threads_give_the_same_weights() {
    let place = place();
    train(&place, "one", "--threads 1");
    for threads in [2, 16] {
        let run = format!("threads-{threads}");
        train(&place, &run, &format!("--threads {threads}"));
        assert_same(&place, &run, "one");
    }
}

/// 40 images: of each epoch eight are left out, the same in both.
#[test]
fn one_part_of_32_and_two_of_16_see_the_same() {
    let place = place();
    train(&place, "whole", "");
    train(&place, "halves", "--accumulate 2");
    let [whole, halves] = ["whole", "halves"].map(|run| newest(&place, run).unwrap().0.state);
    println!(
        "samples and visible patches of {} steps of 1 × 32 images: CRC-32 {:08x}; of {} steps of 2 × 16: {:08x}",
        whole.step, whole.seen, halves.step, halves.seen
    );
    assert_eq!((whole.step, whole.seen), (halves.step, halves.seen));
    // The losses agree as far as f32 sums in another order do.
    let losses = |run: &str| -> Vec<f64> {
        let text = String::from_utf8(place.read(&format!("{run}/metrics.jsonl"))).unwrap();
        let line = |l: &str| {
            serde_json::from_str::<serde_json::Value>(l).unwrap()["loss"]
                .as_f64()
                .unwrap()
        };
        text.lines().map(line).collect()
    };
    for (a, b) in losses("whole").iter().zip(losses("halves")) {
        assert!((a - b).abs() < 1e-3 * a, "{a} and {b}");
    }
    // Another order would have another sum.
    train(&place, "other", "--seed 1");
    assert_ne!(newest(&place, "other").unwrap().0.state.seen, whole.seen);
}
