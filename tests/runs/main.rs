//! Runs of `tec pretrain` that are killed, stopped, split and starved: whatever happens to them, none is lost.
//!
//! `KILLS=50 cargo test -p tec-tools --test runs -- --nocapture kills` kills a run fifty times; without the variable a short
//! version does it six times. `KILL_SEED` chooses other moments.

#[path = "../../tools/tests/command/mod.rs"]
mod command;
mod full_disk;
mod kills;
mod locked;
#[cfg(feature = "mpi")]
mod mpi;
mod signals;
mod splits;
mod tcp;

use std::collections::BTreeMap;

use command::{Place, SMALL, base};
use tec_train::checkpoint::{self, Checkpoint};

/// A place with 40 images in three classes and a base.
fn place() -> Place {
    let place = Place::new();
    place.images("photos", 0, 40);
    place.write("base.safetensors", &base().encoder);
    place
}

/// The command line of a run, without `--out`.
fn pretrain(rest: &str) -> String {
    format!("pretrain --base base.safetensors --data photos --batch 8 {SMALL} --set objective.top_k=5 {rest}")
}

/// The newest checkpoint of a run, and what is said about newer ones that cannot be read.
fn newest(place: &Place, run: &str) -> Option<(Checkpoint, Vec<String>)> {
    checkpoint::newest(&place.path(&format!("{run}/checkpoints"))).unwrap()
}

/// Every tensor of a checkpoint in its bits.
fn bits(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u32>> {
    let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let bits = |t| values(t).into_iter().map(f32::to_bits).collect();
    checkpoint
        .tensors
        .iter()
        .map(|(name, t)| (name.clone(), bits(t)))
        .collect()
}

/// Asserts that two finished runs ended in the same weights, moments and state, and left the same encoder.
fn assert_same(place: &Place, run: &str, whole: &str) {
    let [a, b] = [run, whole].map(|r| newest(place, r).unwrap().0);
    assert_eq!(a.state, b.state, "{run}");
    let (a, b) = (bits(&a), bits(&b));
    assert!(a.keys().eq(b.keys()), "{run}: other tensors");
    for (name, values) in &a {
        assert!(*values == b[name], "{run}: {name} differs");
    }
    let encoder = |r: &str| place.read(&format!("{r}/encoder.safetensors"));
    assert!(encoder(run) == encoder(whole), "{run}: another encoder");
}
