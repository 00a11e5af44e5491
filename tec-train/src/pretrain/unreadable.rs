//! How many images of a run cannot be read, and when those are too many.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    data::{Batch, Skipped, Source},
    run_dir::RunDir,
};

/// Images that must have been seen before the first epoch is judged by what it has shown so far.
const EARLY: usize = 1_000;
/// By how much the share must then exceed the limit: chance alone does not do that.
const EARLY_FACTOR: f64 = 2.0;
/// Images named in the message.
const NAMED: usize = 10;

/// The images of a step, or of a rank's share of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Drawn {
    /// Numbers of those that could be read.
    pub samples: Vec<u32>,
    /// Those that could not.
    pub skipped: Vec<Skipped>,
    /// Those of `samples` whose coded data are damaged.
    pub damaged: Vec<u32>,
}

impl Drawn {
    /// Takes note of one part of the step.
    pub fn add(&mut self, batch: Batch) {
        self.samples.extend(batch.samples);
        self.skipped.extend(batch.skipped);
        self.damaged.extend(batch.damaged);
    }
}

/// The different images that could not be read, by name.
pub struct Unreadable {
    limit: f64,
    images: usize,
    reasons: BTreeMap<String, String>,
}

impl Unreadable {
    /// Continues the list of a run of `images` images; `limit` is the share of them that may be unreadable.
    ///
    /// # Errors
    /// A list that cannot be read.
    pub fn open(run: &RunDir, images: usize, limit: f64) -> Result<Self> {
        Ok(Self {
            limit,
            images,
            reasons: run.skipped()?.into_iter().collect(),
        })
    }

    /// Takes note of images. What can be read now no longer counts: it was mended.
    pub fn note(&mut self, drawn: &Drawn, source: &dyn Source) {
        if !self.reasons.is_empty() {
            for sample in &drawn.samples {
                self.reasons.remove(&source.name(*sample as usize));
            }
        }
        for skipped in &drawn.skipped {
            self.reasons.insert(skipped.name.clone(), skipped.reason.clone());
        }
    }

    /// Whether the run may go on after having drawn `seen` images: no more than the limit's share of all images is unreadable, and
    /// in the first epoch, after a thousand images, no more than twice that share of those seen.
    ///
    /// # Errors
    /// [`Error::Data`] with the numbers and the first names.
    pub fn check(&self, seen: usize) -> Result<()> {
        let unreadable = self.reasons.len();
        let early = seen >= EARLY && seen < self.images && unreadable as f64 > EARLY_FACTOR * self.limit * seen as f64;
        let of = if early { seen } else { self.images };
        if !early && unreadable as f64 <= self.limit * self.images as f64 {
            return Ok(());
        }
        let mut list: Vec<String> = self
            .reasons
            .iter()
            .take(NAMED)
            .map(|(name, reason)| format!("\n  {name}: {reason}"))
            .collect();
        if unreadable > NAMED {
            list.push(format!("\n  and {} more", unreadable - NAMED));
        }
        Err(Error::Data(format!(
            "{unreadable} of {of} images could not be read, more than data.max_unreadable = {} allows:{}\n\
             mend or replace them (their number must stay the same to go on with this run), or allow more with \
             --set data.max_unreadable=…",
            self.limit,
            list.concat()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Pixels;

    struct Numbered;

    impl Source for Numbered {
        fn len(&self) -> usize {
            0
        }
        fn name(&self, index: usize) -> String {
            index.to_string()
        }
        fn label(&self, _: usize) -> Option<u32> {
            None
        }
        fn classes(&self) -> &[String] {
            &[]
        }
        fn load(&self, _: usize) -> Result<Pixels, String> {
            Err("none".into())
        }
    }

    fn with(images: usize, limit: f64, unreadable: usize) -> Unreadable {
        let mut found = Unreadable {
            limit,
            images,
            reasons: BTreeMap::new(),
        };
        let skipped = (0..unreadable as u32).map(|sample| Skipped {
            sample,
            name: sample.to_string(),
            reason: "cut short".into(),
        });
        let drawn = Drawn {
            skipped: skipped.collect(),
            ..Drawn::default()
        };
        // The same ones again in the next epoch.
        found.note(&drawn, &Numbered);
        found.note(&drawn, &Numbered);
        found
    }

    #[test]
    fn more_than_the_share_stops() {
        for (images, limit, unreadable, seen, passes) in [
            (100, 0.05, 5, 100, true),
            (100, 0.05, 6, 40, false),
            (9, 0.05, 1, 3, false),
            (9, 1.0, 9, 9, true),
            (9, 0.0, 0, 9, true),
            (9, 0.0, 1, 9, false),
            // Early: a tenth of what was seen, from a thousand on.
            (1_000_000, 0.05, 900, 999, true),
            (1_000_000, 0.05, 100, 1000, true),
            (1_000_000, 0.05, 101, 1000, false),
            (1_000_000, 0.05, 50_000, 1_000_000, true),
            (1_000_000, 0.05, 50_001, 1_000_000, false),
        ] {
            let found = with(images, limit, unreadable).check(seen);
            assert_eq!(found.is_ok(), passes, "{images} {limit} {unreadable} {seen}: {found:?}");
        }
        let error = with(100, 0.05, 12).check(100).unwrap_err().to_string();
        for words in [
            "12 of 100",
            "data.max_unreadable = 0.05",
            "\n  0: cut short",
            "and 2 more",
        ] {
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn mended_images_no_longer_count() {
        let mut found = with(10, 0.1, 2);
        assert!(found.check(10).is_err());
        let drawn = Drawn {
            samples: vec![1],
            ..Drawn::default()
        };
        found.note(&drawn, &Numbered);
        found.check(10).unwrap();
    }
}
