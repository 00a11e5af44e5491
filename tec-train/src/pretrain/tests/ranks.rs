//! Whole runs by several ranks, as threads: the same results as by one process, and one end for all.

use std::{
    cell::Cell,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use candle_core::{Tensor, Var};

use super::{
    place::{Generated, Listener, NONE, encoder_of, generated, go, newest, place, recipe},
    *,
};
use crate::{
    pretrain::gradients::Share,
    ranks::{OneProcess, threads::on_ranks},
};

/// Does a run by `size` ranks, each with its own source; what each came to, and what rank 0 said.
fn go_by(
    place: &Path,
    out: &str,
    size: usize,
    source: impl Fn(usize) -> Generated + Sync,
    settings: &[&str],
    max_steps: Option<usize>,
) -> (Vec<Result<Summary>>, Listener) {
    let existing = match place.join(out).exists() {
        true => Existing::Resume,
        false => Existing::Refuse,
    };
    let mut ends = on_ranks(size, |collective| {
        let mut listener = Listener::default();
        let job = Job {
            recipe: recipe(place, settings),
            out: place.join(out),
            existing,
            source: Some(Arc::new(source(collective.rank()))),
            max_steps,
            device: DeviceName::Cpu,
        };
        (run(job, collective, &mut listener), listener)
    });
    for (rank, (_, listener)) in ends.iter().enumerate().skip(1) {
        assert!(
            listener.notes.is_empty() && listener.metrics.is_empty(),
            "rank {rank} spoke"
        );
    }
    let first = std::mem::take(&mut ends[0].1);
    (ends.into_iter().map(|(end, _)| end).collect(), first)
}

fn all_well(ends: Vec<Result<Summary>>) {
    for (rank, end) in ends.into_iter().enumerate() {
        end.unwrap_or_else(|e| panic!("rank {rank}: {e}"));
    }
}

/// Every end is an error; rank 0's, and of the others that they name rank `first`.
fn all_failed(ends: Vec<Result<Summary>>, first: usize) -> Error {
    let mut errors = ends.into_iter().map(Result::unwrap_err);
    let spoken = errors.next().unwrap();
    for error in errors {
        assert!(
            matches!(&error, Error::Rank { rank, .. } if *rank == first),
            "{error:?}"
        );
    }
    spoken
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// 180 images of 17 tokens are two pieces; two ranks have one each, and one process adds the same two.
#[test]
fn two_ranks_of_one_piece_each_give_one_process_bits() {
    let place = place();
    assert_eq!((pieces(180, 17).len(), pieces(90, 17).len()), (2, 1));
    for method in ["method=tec", "method=mae"] {
        let settings = [
            "optimizer.batch=180",
            method,
            "optimizer.ema=0.9",
            "optimizer.clip_grad=0.5",
        ];
        let [one, two] = ["one", "two"].map(|name| format!("{name} {method}"));
        let mut alone = Listener::default();
        go(place.path(), &one, generated(380, &[]), &settings, &mut alone).unwrap();
        let (ends, together) = go_by(place.path(), &two, 2, |_| generated(380, &[]), &settings, None);
        for end in &ends {
            let end = end.as_ref().unwrap();
            assert!(end.finished && !end.interrupted && end.step == 4);
            assert_eq!(end.loss.to_bits(), alone.metrics[3].loss.to_bits());
        }
        let computed = |m: &StepMetrics| (m.step, m.loss.to_bits(), m.grad_norm.to_bits(), m.lr.to_bits());
        assert_eq!(
            alone.metrics.iter().map(computed).collect::<Vec<_>>(),
            together.metrics.iter().map(computed).collect::<Vec<_>>()
        );
        let [a, b] = [&one, &two].map(|name| newest(place.path(), name));
        assert_eq!(a.state, b.state);
        for (name, tensor) in &a.tensors {
            assert!(values(tensor) == values(&b.tensors[name]), "{method}: {name} differs");
        }
        assert!(
            encoder_of(place.path(), &one) == encoder_of(place.path(), &two),
            "{method}"
        );
    }
}

/// Parts, shares that differ by an image, images that nobody can read, and more ranks than some parts have readable images.
#[test]
fn any_number_of_ranks_sees_the_same_and_adds_up_to_it() {
    let place = place();
    // AdamW divides gradients by their size. With a larger eps than usual, rounding errors in gradients that are zero, as those of
    // keys' biases, stay small, and weights can be compared.
    let settings = [
        "optimizer.batch=14",
        "optimizer.accumulate=2",
        "optimizer.eps=1e-3",
        "data.max_unreadable=0.2",
    ];
    let source = || generated(44, &[3, 7, 21, 30]);
    let mut alone = Listener::default();
    go(place.path(), "one", source(), &settings, &mut alone).unwrap();
    let one = newest(place.path(), "one");
    for size in [2, 3, 7] {
        let name = format!("by-{size}");
        let (ends, together) = go_by(place.path(), &name, size, |_| source(), &settings, None);
        all_well(ends);
        let found = newest(place.path(), &name);
        assert_eq!(
            (found.state.seen, found.state.updates, found.state.step),
            (one.state.seen, one.state.updates, one.state.step)
        );
        for (a, b) in alone.metrics.iter().zip(&together.metrics) {
            // The loss is a mean of f32 losses of other groups of images; weights differ by then in their last places.
            assert!(
                (a.loss - b.loss).abs() <= 1e-6 * a.loss,
                "{size} ranks: {a:?} and {b:?}"
            );
            assert!(
                (a.grad_norm - b.grad_norm).abs() <= 1e-5 * a.grad_norm,
                "{a:?} and {b:?}"
            );
        }
        assert_eq!(together.metrics.len(), alone.metrics.len());
        let skipped = |run: &str| std::fs::read_to_string(place.path().join(run).join("skipped.txt")).unwrap();
        let sorted = |text: String| {
            let mut lines: Vec<_> = text.lines().map(String::from).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(skipped(&name)), sorted(skipped("one")));
        for (name, tensor) in one.tensors.iter().filter(|(name, _)| name.starts_with("model.")) {
            let other = values(&found.tensors[name]);
            let worst = values(tensor)
                .iter()
                .zip(other)
                .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst <= 1e-6, "{size} ranks: {name} differs by {worst}");
        }
    }
}

/// Stopped by a rank that is not the first, and resumed by other numbers of ranks.
#[test]
fn other_numbers_of_ranks_go_on_with_the_same_samples() {
    /// A user who has had enough when asked for the second time.
    #[derive(Default)]
    struct Impatient(Cell<usize>);
    impl Progress for Impatient {
        fn begin(&mut self, _: &Plan) {}
        fn step(&mut self, _: &StepMetrics, _: &Plan) {}
        fn note(&mut self, _: &str) {}
        fn end(&mut self) {}
        fn stop_requested(&self) -> bool {
            self.0.set(self.0.get() + 1);
            self.0.get() == 2
        }
    }
    let place = place();
    let settings = ["optimizer.batch=9"];
    let source = || generated(47, &[]);
    let mut alone = Listener::default();
    go(place.path(), "whole", source(), &settings, &mut alone).unwrap();
    let ends = on_ranks(3, |collective| {
        let job = Job {
            recipe: recipe(place.path(), &settings),
            out: place.path().join("run"),
            existing: Existing::Refuse,
            source: Some(Arc::new(source())),
            max_steps: None,
            device: DeviceName::Cpu,
        };
        match collective.rank() {
            2 => run(job, collective, &mut Impatient::default()),
            _ => run(job, collective, &mut Listener::default()),
        }
    });
    for end in ends {
        let end = end.unwrap();
        assert!(end.interrupted && !end.finished && end.step == 2);
    }
    assert_eq!(newest(place.path(), "run").state.step, 2);
    all_well(go_by(place.path(), "run", 2, |_| source(), &settings, Some(4)).0);
    assert_eq!(newest(place.path(), "run").state.step, 4);
    go_on_alone(place.path(), source(), &settings, 5);
    let (ends, last) = go_by(place.path(), "run", 5, |_| source(), &settings, None);
    assert!(ends.into_iter().all(|end| end.unwrap().finished));
    assert!(
        last.notes.iter().any(|n| n.contains("goes on after step 5")),
        "{:?}",
        last.notes
    );
    let [run, whole] = ["run", "whole"].map(|name| newest(place.path(), name));
    assert_eq!((run.state.seen, run.state.step), (whole.state.seen, whole.state.step));
    let loss = run.state.mean_loss.unwrap() - whole.state.mean_loss.unwrap();
    assert!(loss.abs() < 1e-6 * whole.state.mean_loss.unwrap());
}

fn go_on_alone(place: &Path, source: Generated, settings: &[&str], max_steps: usize) {
    super::place::go_on(
        place,
        "run",
        Arc::new(source),
        settings,
        Some(max_steps),
        &mut Listener::default(),
    )
    .unwrap();
}

/// An image that rank 1 cannot prepare: everything done is kept, everybody stops, and the run goes on later.
#[test]
fn a_rank_that_fails_stops_all_and_costs_nothing() {
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
    let setup = Setup::new(
        recipe(place.path(), &settings),
        Some(Arc::new(generated(40, &[]))),
        &Device::Cpu,
        &mut Listener::default(),
    )
    .unwrap();
    let loader = Loader::new(setup.source.clone(), setup.loader_config()).unwrap();
    let fourth = loader.batches(0, 3, 1).unwrap().next().unwrap().unwrap();
    // Of the two halves of a batch the second is rank 1's.
    let culprit = fourth.samples[5] as usize;
    let source = |rank: usize| {
        let source = generated(40, &[]);
        source
            .panics
            .store(if rank == 1 { culprit } else { NONE }, Ordering::SeqCst);
        source
    };
    let (ends, _) = go_by(place.path(), "run", 2, source, &settings, None);
    let text = all_failed(ends, 1).to_string();
    for words in [
        "rank 1: a thread failed",
        &format!("image-{culprit}"),
        "3 steps are kept",
        "--resume",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(newest(place.path(), "run").state.step, 3);
    all_well(go_by(place.path(), "run", 3, |_| generated(40, &[]), &settings, None).0);
    let [run, whole] = ["run", "whole"].map(|name| newest(place.path(), name).state);
    assert_eq!((run.seen, run.step), (whole.seen, whole.step));
}

#[test]
fn images_that_cannot_be_read_count_over_all_ranks() {
    let place = place();
    let settings = ["optimizer.batch=8"];
    let (ends, first) = go_by(place.path(), "run", 3, |_| generated(40, &[3, 19, 33]), &settings, None);
    let text = all_failed(ends, 0).to_string();
    for words in [
        "3 of 40 images",
        "image-3: cut short",
        "image-19",
        "image-33",
        "steps are kept",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(newest(place.path(), "run").state.step, first.metrics.len());
    // None at all, which no rank can tell from its share.
    let settings = ["optimizer.batch=8", "data.max_unreadable=1"];
    let every: Vec<usize> = (0..16).collect();
    let (ends, _) = go_by(place.path(), "none", 2, |_| generated(16, &every), &settings, None);
    let text = all_failed(ends, 0).to_string();
    assert!(text.contains("none of the images of an epoch could be used"), "{text}");
}

#[test]
fn ranks_that_do_not_fit_together_are_refused_before_anything_is_written() {
    let place = place();
    let refused = |size: usize, source: &(dyn Fn(usize) -> Generated + Sync), settings: &[&str], words: &[&str]| {
        let (ends, _) = go_by(place.path(), "run", size, source, settings, None);
        let error = all_failed(ends, 0);
        assert!(error.is_usage(), "{error:?}");
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
        assert!(!place.path().join("run").exists());
    };
    let same = |_| generated(40, &[]);
    let small = ["optimizer.batch=8", "optimizer.accumulate=4"];
    refused(
        3,
        &same,
        &small,
        &["optimizer.batch = 8 in 4 part", "2 images a part", "3 processes"],
    );
    let more = |rank: usize| generated(40 + rank / 2, &[]);
    refused(
        3,
        &more,
        &["optimizer.batch=8"],
        &["rank 2 does not train", "41 images instead of 40"],
    );
}

#[test]
fn a_directory_that_rank_0_cannot_make_stops_all() {
    let place = place();
    std::fs::write(place.path().join("file"), "").unwrap();
    let (ends, _) = go_by(
        place.path(),
        "file/run",
        2,
        |_| generated(40, &[]),
        &["optimizer.batch=8"],
        None,
    );
    let error = all_failed(ends, 0);
    assert!(
        matches!(&error, Error::File { path, .. } if path.ends_with("file/run")),
        "{error:?}"
    );
}

/// Rank 0 finds a file where its checkpoints were; the other is busy with the next step by then.
#[test]
fn a_checkpoint_that_rank_0_cannot_write_stops_all() {
    struct Saboteur(std::path::PathBuf);
    impl Progress for Saboteur {
        fn begin(&mut self, _: &Plan) {}
        fn step(&mut self, _: &StepMetrics, _: &Plan) {
            std::fs::remove_dir_all(&self.0).unwrap();
            std::fs::write(&self.0, "").unwrap();
        }
        fn note(&mut self, _: &str) {}
        fn end(&mut self) {}
    }
    let place = place();
    let ends = on_ranks(2, |collective| {
        let job = Job {
            recipe: recipe(place.path(), &["optimizer.batch=8", "checkpoint.every_steps=1"]),
            out: place.path().join("run"),
            existing: Existing::Refuse,
            source: Some(Arc::new(generated(40, &[]))),
            max_steps: None,
            device: DeviceName::Cpu,
        };
        run(job, collective, &mut Saboteur(place.path().join("run/checkpoints")))
    });
    let text = all_failed(ends, 0).to_string();
    for words in ["step-00000001.safetensors", "there is no checkpoint yet", "--resume"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// What rank 1 says of its share is changed on the way, as if its loss had been NaN.
struct NanOnRank1<'a>(&'a dyn Collective);

impl Collective for NanOnRank1<'_> {
    fn rank(&self) -> usize {
        self.0.rank()
    }
    fn size(&self) -> usize {
        self.0.size()
    }
    fn sum(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
        self.0.sum(tensors)
    }
    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut said: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        let share = said.pointer_mut("/Well/share").filter(|_| self.rank() == 1);
        if let Some(share) = share {
            share["feature"] = f64::NAN.to_bits().into();
            share["finite"] = false.into();
        }
        self.0.gather(&serde_json::to_vec(&said).unwrap())
    }
    fn abandon(&self) {
        self.0.abandon();
    }
}

#[test]
fn a_nan_on_one_rank_stops_all_and_names_it() {
    let place = place();
    let ends = on_ranks(2, |collective| {
        let job = Job {
            recipe: recipe(place.path(), &["optimizer.batch=8"]),
            out: place.path().join("run"),
            existing: Existing::Refuse,
            source: Some(Arc::new(generated(40, &[]))),
            max_steps: None,
            device: DeviceName::Cpu,
        };
        run(job, &NanOnRank1(collective), &mut Listener::default())
    });
    let text = all_failed(ends, 0).to_string();
    for words in [
        "step 1: on rank 1 of 2, loss NaN",
        "not finite; samples ",
        "there is no checkpoint yet",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// A rank's share is not finite if a loss is not, or a gradient alone.
#[test]
fn shares_tell_what_is_no_number() {
    let device = Device::Cpu;
    let var = Var::new(&[0.0f32, 2.0], &device).unwrap();
    let params = [("w".to_string(), var.clone())];
    let workers = Workers::new(1).unwrap();
    let share = |loss: &(dyn Fn(&Tensor) -> Tensor + Sync)| {
        let mut sum = Gradients::new(&params, 4, 0);
        sum.add(&workers, 2, 5000, |_| {
            let total = loss(var.as_tensor());
            Ok(MeanLoss {
                feature: total.clone(),
                total,
                relation: None,
            })
        })
        .unwrap();
        sum.share().unwrap()
    };
    let well = share(&|w| w.sum_all().unwrap());
    assert!(well.finite && well.losses() == (2.0, None));
    // The square root's slope at zero is infinite.
    let steep = share(&|w| w.sqrt().unwrap().sum_all().unwrap());
    assert!(!steep.finite && steep.losses().0.is_finite());
    let nan = share(&|w| w.log().unwrap().sum_all().unwrap());
    assert!(!nan.finite && nan.losses().0.is_infinite());
    // Nothing read is no error, and whatever a share says arrives as it was.
    let none = Gradients::new(&params, 4, 0).share().unwrap();
    assert!(none.finite);
    for share in [well, steep, nan, none] {
        let text = serde_json::to_string(&share).unwrap();
        assert_eq!(serde_json::from_str::<Share>(&text).unwrap(), share);
    }
}

/// The same run alone, for whoever calls [`run`] with one process.
#[test]
fn one_process_is_a_job_of_one_rank() {
    let place = place();
    let settings = ["optimizer.batch=8"];
    go(
        place.path(),
        "alone",
        generated(16, &[]),
        &settings,
        &mut Listener::default(),
    )
    .unwrap();
    all_well(go_by(place.path(), "one-rank", 1, |_| generated(16, &[]), &settings, None).0);
    assert!(encoder_of(place.path(), "alone") == encoder_of(place.path(), "one-rank"));
    assert_eq!((OneProcess.rank(), OneProcess.size()), (0, 1));
}
