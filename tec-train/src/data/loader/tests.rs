//! Order, resumption, skipping and failing of the loader.

use super::*;
use crate::data::{Idx, Pixels, Region, Resizer, Subset, idx::tests::idx_bytes};

/// `count` grey images of 6 × 5 pixels.
fn images(count: u32) -> Arc<dyn Source> {
    let (images, labels) = idx_bytes(count, 5, 6);
    Arc::new(Idx::from_bytes(&images, Some(&labels)).unwrap())
}

fn config(batch_size: usize, threads: usize) -> LoaderConfig {
    LoaderConfig {
        threads,
        ..LoaderConfig::train(4, 1, batch_size, 7)
    }
}

fn collect(loader: &Loader, epoch: u32, step: usize, epochs: u32) -> Vec<Batch> {
    let batches = loader.batches(epoch, step, epochs).unwrap();
    batches
        .map(|batch| Batch {
            wait: Duration::ZERO,
            ..batch.unwrap()
        })
        .collect()
}

/// A source that misbehaves for some of its images.
struct Faulty {
    images: Arc<dyn Source>,
    fault: fn(usize) -> bool,
    panics: bool,
}

impl Source for Faulty {
    fn len(&self) -> usize {
        self.images.len()
    }
    fn name(&self, index: usize) -> String {
        format!("file-{index}.png")
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.images.label(index)
    }
    fn classes(&self) -> &[String] {
        self.images.classes()
    }
    fn load(&self, index: usize) -> Result<Pixels, String> {
        if !(self.fault)(index) {
            return self.images.load(index);
        }
        assert!(!self.panics, "as the test wants it");
        Err("broken".into())
    }
}

fn faulty(count: u32, fault: fn(usize) -> bool, panics: bool) -> Arc<dyn Source> {
    Arc::new(Faulty {
        images: images(count),
        fault,
        panics,
    })
}

/// What the decoder fills with grey stays in the batch, and the batch says so.
#[test]
fn damaged_images_are_used_and_named() {
    let names = ["full.jpg", "gap.jpg", "half.jpg", "stops.jpg"];
    let path = |name| {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tec-image/tests/data")
            .join(name)
    };
    let source = Arc::new(crate::data::Files::new(names.map(path).to_vec()));
    let config = LoaderConfig {
        threads: 2,
        ..LoaderConfig::eval(16, 3, 4)
    };
    let batches = collect(&Loader::new(source, config).unwrap(), 0, 0, 1);
    assert_eq!((batches.len(), batches[0].len(), batches[0].skipped.len()), (1, 4, 0));
    assert_eq!(batches[0].damaged, [1, 3]);
}

/// Orders computed in Python from Philox numbers and numpy's stable argsort.
#[test]
fn the_order_is_the_argsort_of_the_noise() {
    assert_eq!(shuffled(7, 0, 12).unwrap(), [4, 2, 0, 9, 11, 8, 3, 7, 6, 10, 5, 1]);
    assert_eq!(shuffled(7, 1, 12).unwrap(), [0, 2, 10, 5, 11, 6, 3, 9, 7, 1, 4, 8]);
    let loader = Loader::new(images(12), config(5, 2)).unwrap();
    let batches = collect(&loader, 0, 0, 2);
    let samples: Vec<_> = batches
        .iter()
        .map(|batch| (batch.epoch, batch.step, batch.samples.clone()))
        .collect();
    assert_eq!(
        samples,
        [
            (0, 0, vec![4, 2, 0, 9, 11]),
            (0, 1, vec![8, 3, 7, 6, 10]),
            (1, 0, vec![0, 2, 10, 5, 11]),
            (1, 1, vec![6, 3, 9, 7, 1]),
        ]
    );
    assert_eq!(batches[0].labels, [1, 2, 0, 0, 2].map(Some));
    assert_eq!(batches[0].pixels.len(), 5 * 4 * 4);
    assert!(batches[0].pixels2.is_empty());
}

#[test]
fn batches_do_not_depend_on_threads_or_prefetch() {
    let expected = collect(&Loader::new(images(50), config(7, 1)).unwrap(), 0, 0, 3);
    assert_eq!(expected.len(), 21);
    assert_ne!(expected[0].pixels, expected[7].pixels);
    for (threads, prefetch) in [(1, 0), (3, 1), (8, 5)] {
        let config = LoaderConfig {
            prefetch,
            ..config(7, threads)
        };
        assert_eq!(collect(&Loader::new(images(50), config).unwrap(), 0, 0, 3), expected);
    }
}

/// Every kind of source, its images of several sizes and kinds: files that are decoded in part, missing ones, pixels.
#[test]
fn no_source_depends_on_threads() {
    let material = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let dir = tempfile::tempdir().unwrap();
    let shard = crate::data::open(material.join("shard-00.tar")).unwrap();
    let mut list = String::new();
    for index in 0..shard.len() {
        let crate::data::Stored::File(bytes) = shard.read(index).unwrap() else {
            panic!("tar files hold files")
        };
        std::fs::write(dir.path().join(format!("{index}.jpg")), bytes).unwrap();
        list += &format!("{index}.jpg\tclass\nmissing-{index}.jpg\tclass\n");
    }
    std::fs::write(dir.path().join("list.txt"), list).unwrap();
    std::fs::write(
        dir.path().join("cifar.bin"),
        (0..4 * 3073_u32).map(|at| (at % 10) as u8).collect::<Vec<_>>(),
    )
    .unwrap();
    let open = |path: std::path::PathBuf| -> Arc<dyn Source> { Arc::from(crate::data::open(path).unwrap()) };
    let sources = [
        images(9),
        open(dir.path().into()),
        open(dir.path().join("list.txt")),
        open(dir.path().join("cifar.bin")),
        open(material.join("shard-{00..01}.tar")),
        open(material.join("hf.parquet")),
        open(material.join("plain.parquet")),
    ];
    for (number, source) in sources.iter().enumerate() {
        for (order, augment) in [
            (
                Order::Shuffled { drop_last: false },
                LoaderConfig::train(8, 3, 2, 7).augment,
            ),
            (Order::Sequential, Augment::Eval),
        ] {
            let batches = |threads| {
                let config = LoaderConfig {
                    threads,
                    second_size: Some(6),
                    order,
                    augment,
                    ..LoaderConfig::train(8, 3, 2, 7)
                };
                collect(&Loader::new(Arc::clone(source), config).unwrap(), 0, 0, 4)
            };
            let one = batches(1);
            assert!(one.iter().any(|batch| !batch.is_empty()));
            for threads in [2, 16] {
                assert_eq!(batches(threads), one, "source {number}, {threads} threads");
            }
            // What a loader makes of a part is what it makes of the whole.
            let whole = Arc::new(Whole(Arc::clone(source)));
            let config = LoaderConfig {
                threads: 1,
                second_size: Some(6),
                order,
                augment,
                ..LoaderConfig::train(8, 3, 2, 7)
            };
            let wholes = collect(&Loader::new(whole, config).unwrap(), 0, 0, 4);
            for (a, b) in one.iter().zip(&wholes) {
                assert_eq!((&a.samples, &a.labels), (&b.samples, &b.labels));
                let off = a.pixels.iter().chain(&a.pixels2).zip(b.pixels.iter().chain(&b.pixels2));
                let off = off.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
                assert!(off <= 1, "source {number}: {off}");
            }
        }
    }
}

/// A source whose images are always decoded whole.
struct Whole(Arc<dyn Source>);

impl Source for Whole {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn name(&self, index: usize) -> String {
        self.0.name(index)
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.0.label(index)
    }
    fn classes(&self) -> &[String] {
        self.0.classes()
    }
    fn load(&self, index: usize) -> Result<Pixels, String> {
        self.0.load(index)
    }
}

/// While the caller does something else, no more than `1 + prefetch` batches are prepared.
#[test]
fn a_slow_consumer_does_not_grow_memory() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    struct Counted(Arc<dyn Source>, AtomicUsize);
    impl Source for Counted {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn name(&self, index: usize) -> String {
            self.0.name(index)
        }
        fn label(&self, index: usize) -> Option<u32> {
            self.0.label(index)
        }
        fn classes(&self) -> &[String] {
            self.0.classes()
        }
        fn load(&self, index: usize) -> Result<Pixels, String> {
            self.1.fetch_add(1, Ordering::SeqCst);
            self.0.load(index)
        }
    }
    let source = Arc::new(Counted(images(500), AtomicUsize::new(0)));
    let loader = Loader::new(Arc::clone(&source) as Arc<dyn Source>, config(5, 4)).unwrap();
    let mut batches = loader.batches(0, 0, 1).unwrap();
    for taken in 1..=3 {
        batches.next().unwrap().unwrap();
        // Beyond those taken, 1 + `prefetch` are prepared.
        std::thread::sleep(Duration::from_millis(100));
        let read = source.1.load(Ordering::SeqCst);
        assert_eq!(read, 5 * (taken + 3), "after {taken} batches");
    }
}

#[test]
fn resuming_continues_where_it_stopped() {
    let loader = Loader::new(images(50), config(7, 2)).unwrap();
    let all = collect(&loader, 0, 0, 3);
    for at in 0..=all.len() {
        let (epoch, step) = ((at / 7) as u32, at % 7);
        assert_eq!(collect(&loader, epoch, step, 3), all[at..]);
    }
    // The end of an epoch is the beginning of the next.
    assert_eq!(collect(&loader, 1, 7, 3), all[14..]);
    assert!(
        loader
            .batches(0, 8, 3)
            .err()
            .unwrap()
            .to_string()
            .contains("step 8 of an epoch of 7 steps")
    );
}

#[test]
fn evaluation_is_in_order_and_complete() {
    let loader = Loader::new(
        images(10),
        LoaderConfig {
            threads: 3,
            ..LoaderConfig::eval(4, 3, 4)
        },
    )
    .unwrap();
    assert_eq!(loader.steps_per_epoch(), 3);
    let batches = collect(&loader, 0, 0, 1);
    assert_eq!(batches.iter().map(Batch::len).collect::<Vec<_>>(), [4, 4, 2]);
    assert_eq!(
        batches
            .iter()
            .flat_map(|batch| batch.samples.clone())
            .collect::<Vec<_>>(),
        (0..10).collect::<Vec<_>>()
    );
    assert_eq!(batches[2].pixels.len(), 2 * 4 * 4 * 3);
    let keep_last = LoaderConfig {
        order: Order::Shuffled { drop_last: false },
        ..config(4, 2)
    };
    let batches = collect(&Loader::new(images(10), keep_last).unwrap(), 0, 0, 1);
    let mut samples: Vec<_> = batches.iter().flat_map(|batch| batch.samples.clone()).collect();
    samples.sort_unstable();
    assert_eq!(samples, (0..10).collect::<Vec<_>>());
}

#[test]
fn the_second_size_is_the_same_crop() {
    let source = images(9);
    let config = LoaderConfig {
        second_size: Some(6),
        ..config(3, 2)
    };
    for batch in collect(&Loader::new(Arc::clone(&source), config.clone()).unwrap(), 4, 0, 5) {
        for (at, &sample) in batch.samples.iter().enumerate() {
            let noise = Noise {
                seed: 7,
                epoch: 4,
                sample,
                stream: Stream::Augment,
            };
            let image = source.load(sample as usize).unwrap();
            let placement = config.augment.place(6, 5, 4, &noise);
            assert!(matches!(placement.region, Region::Cut { .. }));
            let take = |size| placement.take(&image, size, &mut Resizer::new()).unwrap();
            assert_eq!(batch.pixels[at * 16..][..16], take(4));
            assert_eq!(batch.pixels2[at * 36..][..36], take(6));
        }
    }
}

#[test]
fn unusable_images_are_left_out_and_listed() {
    let source = faulty(12, |index| index % 4 == 3, false);
    let batches = collect(&Loader::new(source, config(6, 3)).unwrap(), 0, 0, 1);
    assert_eq!(batches[0].samples, [4, 2, 0, 9, 8]);
    assert_eq!(batches[0].pixels.len(), 5 * 16);
    let skipped = Skipped {
        sample: 11,
        name: "file-11.png".into(),
        reason: "broken".into(),
    };
    assert_eq!(batches[0].skipped, [skipped]);
    assert_eq!(batches[1].samples, [6, 10, 5, 1]);
    assert_eq!(batches[1].skipped.len(), 2);
}

#[test]
fn an_epoch_without_usable_images_is_an_error() {
    let loader = Loader::new(faulty(8, |_| true, false), config(4, 2)).unwrap();
    let mut batches = loader.batches(0, 0, 2).unwrap();
    assert!(batches.next().unwrap().unwrap().is_empty());
    let error = batches.next().unwrap().unwrap_err().to_string();
    assert!(
        error.contains("none of the images") && error.contains("broken"),
        "{error}"
    );
    assert!(batches.next().is_none());
}

#[test]
fn a_panic_is_an_error_that_names_the_image() {
    let loader = Loader::new(faulty(8, |index| index == 5, true), LoaderConfig::eval(4, 1, 4)).unwrap();
    let mut batches = loader.batches(0, 0, 1).unwrap();
    assert_eq!(batches.next().unwrap().unwrap().len(), 4);
    let error = batches.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("file-5.png"), "{error}");
    assert!(batches.next().is_none());
}

#[test]
fn dropping_early_stops_the_threads() {
    let source = images(1000);
    let loader = Loader::new(
        Arc::clone(&source),
        LoaderConfig {
            prefetch: 10,
            ..config(50, 4)
        },
    )
    .unwrap();
    let mut batches = loader.batches(0, 0, 1_000_000).unwrap();
    batches.next().unwrap().unwrap();
    drop(batches);
    drop(loader.batches(0, 0, 5).unwrap());
    drop(loader);
    // Every thread held the source; all have let go.
    assert_eq!(Arc::strong_count(&source), 1);
}

#[test]
fn impossible_configurations_are_refused() {
    let refused = |config: LoaderConfig| Loader::new(images(10), config).err().unwrap().to_string();
    assert!(refused(config(11, 1)).contains("give at most 10"));
    assert!(refused(config(0, 1)).contains("the batch size is 0"));
    assert!(refused(config(2, 0)).contains("threads is 0"));
    assert!(
        refused(LoaderConfig {
            channels: 4,
            ..config(2, 1)
        })
        .contains("not 4")
    );
    assert!(
        refused(LoaderConfig {
            image_size: 0,
            ..config(2, 1)
        })
        .contains("the image size is 0")
    );
    assert!(
        refused(LoaderConfig {
            second_size: Some(0),
            ..config(2, 1)
        })
        .contains("second")
    );
    let empty = Arc::new(Subset::new(images(3), vec![]).unwrap());
    assert!(
        Loader::new(empty, config(1, 1))
            .err()
            .unwrap()
            .to_string()
            .contains("no images")
    );
}
