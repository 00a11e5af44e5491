//! Steps in parts, averages, probes, and what stops a run: whole runs of a tiny model on generated images.

mod place;
mod ranks;

use std::sync::{Arc, atomic::Ordering};

use super::*;
use crate::{data::Batch, model::Masks};
use place::{Listener, NONE, encoder_of, generated, go, go_on, newest, place, recipe};

fn part(whole: &Batch, of: std::ops::Range<usize>) -> Batch {
    let size = whole.pixels.len() / whole.len();
    Batch {
        pixels: whole.pixels[of.start * size..of.end * size].to_vec(),
        pixels2: Vec::new(),
        samples: whole.samples[of.clone()].to_vec(),
        labels: whole.labels[of].to_vec(),
        ..Batch::default()
    }
}

/// A step in equal parts, in unequal ones, and with images left out has the losses and gradients of the step in one.
#[test]
fn parts_of_a_step_add_up_to_it() {
    let place = place();
    for method in ["tec", "mae"] {
        let setup = |accumulate: usize| {
            let method = format!("method={method}");
            let parts = format!("optimizer.accumulate={accumulate}");
            let recipe = recipe(place.path(), &["optimizer.batch=32", &parts, &method]);
            Setup::new(
                recipe,
                Some(Arc::new(generated(40, &[]))),
                &Device::Cpu,
                &mut Listener::default(),
            )
            .unwrap()
        };
        let whole_setup = setup(1);
        let (learner, _) = whole_setup.learner(None, &mut Listener::default()).unwrap();
        let params: Vec<_> = learner_params(&learner);
        let loader = Loader::new(whole_setup.source.clone(), whole_setup.loader_config()).unwrap();
        let whole = loader.batches(0, 0, 1).unwrap().next().unwrap().unwrap();
        assert_eq!(whole.len(), 32);
        let step = |setup: &Setup, parts: &[Batch]| {
            let mut sum = learner.gradients(setup);
            parts
                .iter()
                .for_each(|p| learner.add(setup, &p.clone().into(), &mut sum).unwrap());
            let (feature, relation) = sum.losses().means().unwrap();
            let losses = [feature, relation.unwrap_or(0.0)];
            let grads = sum.finish().unwrap().unwrap();
            let values = |var: &candle_core::Var| -> Vec<f32> {
                grads.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap()
            };
            (losses, params.iter().map(|(_, var)| values(var)).collect::<Vec<_>>())
        };
        for (what, accumulate, cuts, end) in [
            ("two halves", 2, vec![0, 16, 32], 32),
            ("four quarters", 4, vec![0, 8, 16, 24, 32], 32),
            ("images left out of three parts", 4, vec![0, 7, 15, 18, 25], 25),
            ("a part of which nothing is left", 2, vec![0, 13], 13),
        ] {
            let (losses, grads) = step(&whole_setup, &[part(&whole, 0..end)]);
            let parts: Vec<Batch> = cuts.windows(2).map(|w| part(&whole, w[0]..w[1])).collect();
            let (of_parts, grads_of_parts) = step(&setup(accumulate), &parts);
            for (a, b) in losses.iter().zip(of_parts) {
                // The mean of f32 losses of few images each: a few units in the last place.
                assert!((a - b).abs() <= 1e-6 * a.abs(), "{method}, {what}: losses {a} and {b}");
            }
            // Sums in another order, in f32: relative to the largest gradient of all.
            let largest = grads.iter().flatten().fold(0.0f32, |m, g| m.max(g.abs()));
            for ((name, _), (a, b)) in params.iter().zip(grads.iter().zip(&grads_of_parts)) {
                let worst = a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(
                    worst <= 2e-6 * largest,
                    "{method}, {what}: {name} differs by {worst} of {largest}"
                );
            }
        }
    }
}

/// A batch of several pieces has, to the bit, the same losses and gradients whatever the number of threads, and those of its
/// halves.
#[test]
fn pieces_of_a_batch_do_not_depend_on_threads() {
    let place = place();
    let recipe = recipe(place.path(), &["optimizer.batch=360"]);
    let setup = Setup::new(
        recipe,
        Some(Arc::new(generated(360, &[]))),
        &Device::Cpu,
        &mut Listener::default(),
    )
    .unwrap();
    let loader = Loader::new(setup.source.clone(), setup.loader_config()).unwrap();
    let batch = loader.batches(0, 0, 1).unwrap().next().unwrap().unwrap();
    assert_eq!(pieces(batch.len(), 17).len(), 4);
    let step = |threads: usize, parts: &[Batch]| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (learner, _) = setup.learner(None, &mut Listener::default()).unwrap();
            let mut sum = learner.gradients(&setup);
            parts
                .iter()
                .for_each(|part| learner.add(&setup, &part.clone().into(), &mut sum).unwrap());
            let (feature, relation) = sum.losses().means().unwrap();
            let losses = [feature.to_bits(), relation.unwrap().to_bits()];
            let (seen, grads) = (sum.seen(), sum.finish().unwrap().unwrap());
            let bits = |(_, var): &(String, candle_core::Var)| -> Vec<u32> {
                let values: Vec<f32> = grads.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                values.into_iter().map(f32::to_bits).collect()
            };
            (
                losses,
                seen,
                learner_params(&learner).iter().map(bits).collect::<Vec<_>>(),
            )
        })
    };
    let one = step(1, std::slice::from_ref(&batch));
    for threads in [2, 3, 4, 7] {
        assert!(step(threads, std::slice::from_ref(&batch)) == one, "{threads} threads");
    }
    assert!(
        step(2, &[part(&batch, 0..180), part(&batch, 180..360)]) == one,
        "two halves"
    );
}

/// Activation checkpointing changes no bit of a run.
#[test]
fn blocks_computed_again_give_the_same_weights() {
    let place = place();
    for method in ["method=tec", "method=mae"] {
        let encoder = |name: &str, checkpointing: &str| {
            let settings = ["optimizer.batch=8", method, checkpointing];
            let name = format!("{name} {method}");
            go(
                place.path(),
                &name,
                generated(24, &[]),
                &settings,
                &mut Listener::default(),
            )
            .unwrap();
            encoder_of(place.path(), &name)
        };
        let kept = encoder("kept", "optimizer.grad_checkpointing=false");
        assert!(
            kept == encoder("again", "optimizer.grad_checkpointing=true"),
            "{method}"
        );
    }
}

fn learner_params(learner: &learner::Learner) -> Vec<(String, candle_core::Var)> {
    learner.params().trainable().to_vec()
}

/// 75 images make two steps of 32 an epoch however they are split; the rest is left out of both.
#[test]
fn parts_see_the_same_samples_and_masks() {
    let place = place();
    let seen = |accumulate: usize| {
        let parts = format!("optimizer.accumulate={accumulate}");
        let settings = ["optimizer.batch=32", &parts];
        let source: Arc<dyn Source> = Arc::new(generated(75, &[11]));
        let setup = Setup::new(
            recipe(place.path(), &settings),
            Some(source),
            &Device::Cpu,
            &mut Listener::default(),
        )
        .unwrap();
        let loader = Loader::new(setup.source.clone(), setup.loader_config()).unwrap();
        assert_eq!(loader.steps_per_epoch(), 2 * accumulate);
        let mut samples = Vec::new();
        let mut masks: Vec<Vec<u32>> = Vec::new();
        for batch in loader.batches(0, 0, 3).unwrap() {
            let batch = batch.unwrap();
            if batch.is_empty() {
                // The one image of this part cannot be read.
                continue;
            }
            let drawn = Masks::draw(5, batch.epoch, &batch.samples, 16, 0.75, &Device::Cpu).unwrap();
            masks.extend(drawn.keep.to_vec2::<u32>().unwrap());
            samples.extend(batch.samples.iter().map(|s| (batch.epoch, *s)));
        }
        let name = format!("parts-{accumulate}");
        go(
            place.path(),
            &name,
            generated(75, &[11]),
            &settings,
            &mut Listener::default(),
        )
        .unwrap();
        (samples, masks, newest(place.path(), &name).state.seen)
    };
    let whole = seen(1);
    assert!(whole.0.len() >= 3 * 64 - 3 && whole.2 != 0);
    for accumulate in [2, 8, 32] {
        assert!(seen(accumulate) == whole, "{accumulate} parts");
    }
}

#[test]
fn resumed_in_parts_with_average_limit_and_probe_is_the_same() {
    let place = place();
    let settings = [
        "optimizer.batch=8",
        "optimizer.accumulate=2",
        "optimizer.ema=0.9",
        "optimizer.clip_grad=0.5",
        "probe.every_epochs=1",
        "probe.k=3",
        "checkpoint.every_steps=2",
    ];
    let mut whole = Listener::default();
    go(place.path(), "whole", generated(36, &[7]), &settings, &mut whole).unwrap();
    assert_eq!(whole.metrics.len(), 8);
    // A probe an epoch.
    let probed: Vec<usize> = whole
        .metrics
        .iter()
        .filter(|m| m.knn_top1.is_some())
        .map(|m| m.step)
        .collect();
    assert_eq!(probed, [4, 8]);
    // Stopped in an epoch, at a probe, and one step before the end.
    let mut logged = Vec::new();
    for stop_after in [3, 1, 3] {
        let mut part = Listener {
            stop_after: Some(stop_after),
            ..Listener::default()
        };
        let summary = go(place.path(), "run", generated(36, &[7]), &settings, &mut part).unwrap();
        assert!(summary.interrupted && !summary.finished);
        assert_eq!(newest(place.path(), "run").state.step, summary.step);
        logged.extend(part.metrics);
    }
    let mut last = Listener::default();
    let summary = go(place.path(), "run", generated(36, &[7]), &settings, &mut last).unwrap();
    assert!(summary.finished && !summary.interrupted);
    logged.extend(last.metrics);
    let computed = |m: &StepMetrics| (m.step, m.loss.to_bits(), m.grad_norm.to_bits(), m.knn_top1);
    assert_eq!(
        logged.iter().map(computed).collect::<Vec<_>>(),
        whole.metrics.iter().map(computed).collect::<Vec<_>>()
    );
    assert!(encoder_of(place.path(), "run") == encoder_of(place.path(), "whole"));
    let (a, b) = (newest(place.path(), "run"), newest(place.path(), "whole"));
    assert_eq!(a.state, b.state);
    assert_eq!(a.tensors.len(), b.tensors.len());
    for (name, tensor) in &a.tensors {
        let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(tensor), values(&b.tensors[name]), "{name}");
    }
    // What is exported is the average.
    let exported = export(&RunDir::open(&place.path().join("run")).unwrap(), None).unwrap();
    let norm = |weights: Vec<(String, candle_core::Tensor)>| -> Vec<f32> {
        let norm = weights.into_iter().find(|(name, _)| name == "norm.weight");
        norm.unwrap().1.to_vec1().unwrap()
    };
    let average: Vec<f32> = a.tensors["ema.norm.weight"].to_vec1().unwrap();
    assert_eq!(norm(exported.0.weights().to_vec()), average);
    assert_ne!(a.tensors["model.norm.weight"].to_vec1::<f32>().unwrap(), average);
}

#[test]
fn a_probe_changes_nothing_of_a_run() {
    let place = place();
    let train = |out: &str, every: &str| {
        let mut listener = Listener::default();
        go(
            place.path(),
            out,
            generated(40, &[]),
            &["optimizer.batch=8", "probe.k=3", every],
            &mut listener,
        )
        .unwrap();
        listener.metrics.iter().filter(|m| m.knn_top1.is_some()).count()
    };
    assert_eq!(train("without", "probe.every_epochs=0"), 0);
    assert_eq!(train("with", "probe.every_epochs=1"), 2);
    assert!(encoder_of(place.path(), "with") == encoder_of(place.path(), "without"));
    let report = std::fs::read_to_string(place.path().join("with/report/index.html")).unwrap();
    assert!(
        report.contains("k-NN probe") && report.contains("Best checkpoint"),
        "no probe in the report"
    );
    // Images of one class: off, and said so.
    let mut one = generated(40, &[]);
    one.classes.truncate(1);
    let mut listener = Listener::default();
    go(
        place.path(),
        "one",
        one,
        &["optimizer.batch=8", "probe.every_epochs=1"],
        &mut listener,
    )
    .unwrap();
    assert!(
        listener.notes.iter().any(|n| n.contains("no k-NN probe")),
        "{:?}",
        listener.notes
    );
}

#[test]
fn a_thread_that_panics_costs_no_step() {
    let place = place();
    let settings = ["optimizer.batch=8"];
    go(
        place.path(),
        "whole",
        generated(40, &[]),
        &settings,
        &mut Listener::default(),
    )
    .unwrap();
    let source = generated(40, &[]);
    let panics = source.panics.clone();
    let source: Arc<dyn Source> = Arc::new(source);
    // A sample of the fourth step: three are done by then, with no checkpoint yet.
    let setup = Setup::new(
        recipe(place.path(), &settings),
        Some(source.clone()),
        &Device::Cpu,
        &mut Listener::default(),
    )
    .unwrap();
    let loader = Loader::new(source.clone(), setup.loader_config()).unwrap();
    let fourth = loader.batches(0, 3, 1).unwrap().next().unwrap().unwrap();
    let culprit = fourth.samples[5] as usize;
    panics.store(culprit, Ordering::SeqCst);
    let mut listener = Listener::default();
    let error = go_on(place.path(), "run", source.clone(), &settings, None, &mut listener).unwrap_err();
    let text = error.to_string();
    for words in [
        &format!("image-{culprit}"),
        "3 steps are kept",
        "go on with: tec pretrain --out ",
    ] {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(newest(place.path(), "run").state.step, 3);
    panics.store(NONE, Ordering::SeqCst);
    go_on(place.path(), "run", source, &settings, None, &mut listener).unwrap();
    assert!(encoder_of(place.path(), "run") == encoder_of(place.path(), "whole"));
}

#[test]
fn too_many_unreadable_images_stop_a_run_and_are_listed() {
    let place = place();
    let settings = ["optimizer.batch=8"];
    let allowed = ["optimizer.batch=8", "data.max_unreadable=0.1"];
    let broken = [3, 19, 33];
    // Two of forty are one in twenty; three are more.
    go(
        place.path(),
        "two",
        generated(40, &broken[..2]),
        &settings,
        &mut Listener::default(),
    )
    .unwrap();
    let mut listener = Listener::default();
    let error = go(place.path(), "run", generated(40, &broken), &settings, &mut listener).unwrap_err();
    let text = error.to_string();
    for words in [
        "3 of 40 images",
        "image-3: cut short",
        "image-19",
        "image-33",
        "steps are kept",
        "--resume",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let listed = std::fs::read_to_string(place.path().join("run/skipped.txt")).unwrap();
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert_eq!(newest(place.path(), "run").state.step, listener.metrics.len());
    // Allowed, the same run goes on; it is that of one who allowed them at once.
    go(place.path(), "run", generated(40, &broken), &allowed, &mut listener).unwrap();
    go(
        place.path(),
        "whole",
        generated(40, &broken),
        &allowed,
        &mut Listener::default(),
    )
    .unwrap();
    assert!(encoder_of(place.path(), "run") == encoder_of(place.path(), "whole"));
}

#[test]
fn a_run_without_a_checkpoint_resumes_from_the_beginning() {
    let place = place();
    let settings = ["optimizer.batch=8"];
    let whole = go(
        place.path(),
        "whole",
        generated(40, &[]),
        &settings,
        &mut Listener::default(),
    );
    whole.unwrap();
    go_on(
        place.path(),
        "run",
        Arc::new(generated(40, &[])),
        &settings,
        Some(2),
        &mut Listener::default(),
    )
    .unwrap();
    std::fs::remove_dir_all(place.path().join("run/checkpoints")).unwrap();
    let mut listener = Listener::default();
    go(place.path(), "run", generated(40, &[]), &settings, &mut listener).unwrap();
    assert!(
        listener.notes.iter().any(|n| n.contains("begins anew")),
        "{:?}",
        listener.notes
    );
    assert_eq!(listener.metrics[0].step, 1);
    assert!(encoder_of(place.path(), "run") == encoder_of(place.path(), "whole"));
}

#[test]
fn a_loss_that_is_not_finite_stops_at_the_last_good_checkpoint() {
    let place = place();
    let settings = ["optimizer.batch=8", "checkpoint.every_steps=1", "optimizer.lr=1e30"];
    let mut listener = Listener::default();
    let error = go(place.path(), "run", generated(40, &[]), &settings, &mut listener).unwrap_err();
    let (text, done) = (error.to_string(), listener.metrics.len());
    assert!(done >= 1, "{text}");
    for words in [
        format!("step {}: loss", done + 1),
        format!("the last good checkpoint is of step {done}"),
        "not finite; samples ".into(),
        "optimizer.clip_grad".into(),
    ] {
        assert!(text.contains(&words), "{words}: {text}");
    }
    assert_eq!(newest(place.path(), "run").state.step, done);
}
