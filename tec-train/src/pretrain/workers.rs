//! Pieces of a batch, computed side by side.
//!
//! Threads that share every operation wait for the slowest of them thousands of times a step; pieces meet once. How a batch
//! is cut depends on its size alone, and what pieces give is taken in their order, so results do not depend on the number of
//! threads.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// Tokens that a piece has at least, where the batch has as many: enough for products to run at full speed, and few enough
/// that two cores have a piece each at a batch of 16 images of 197 tokens.
const PIECE_TOKENS: usize = 1_500;
/// The most pieces: each costs one addition of all gradients.
const MOST_PIECES: usize = 16;
/// How much of its threads' time an operation uses that several share, about; alone a thread uses all of it.
const SHARED: f64 = 0.8;

/// The pieces of a batch of `images` images with `tokens` tokens each, none of them empty.
pub fn pieces(images: usize, tokens: usize) -> Vec<Range<usize>> {
    let least = PIECE_TOKENS.div_ceil(tokens.max(1));
    let count = (images / least).clamp(1, MOST_PIECES).min(images);
    (0..count)
        .map(|piece| piece * images / count..(piece + 1) * images / count)
        .collect()
}

/// Threads for pieces: as many pools as pieces are computed at once, each with its share of the threads.
#[derive(Debug)]
pub struct Workers {
    /// Empty: pieces are computed one after the other by all threads of the caller's pool.
    pools: Vec<ThreadPool>,
    /// Whether batches stay whole.
    whole: bool,
}

impl Workers {
    /// Divides as many threads as the current rayon pool has among `pieces` pieces.
    ///
    /// # Errors
    /// [`Error::Data`] where the system starts no more threads.
    pub fn new(pieces: usize) -> Result<Self> {
        let threads = rayon::current_num_threads();
        let at_once = at_once(pieces, threads);
        if at_once == 1 {
            return Ok(Self {
                pools: Vec::new(),
                whole: false,
            });
        }
        let pool = |number: usize| {
            let threads = (number + 1) * threads / at_once - number * threads / at_once;
            ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(move |thread| format!("piece {number} {thread}"))
                .build()
                .map_err(|e| Error::Data(format!("{threads} threads cannot be started: {e}; give fewer")))
        };
        Ok(Self {
            pools: (0..at_once).map(pool).collect::<Result<_>>()?,
            whole: false,
        })
    }

    /// For a device that has its own threads: batches are not cut.
    pub fn whole() -> Self {
        Self {
            pools: Vec::new(),
            whole: true,
        }
    }

    /// The pieces of a batch of `images` images with `tokens` tokens each.
    pub fn pieces(&self, images: usize, tokens: usize) -> Vec<Range<usize>> {
        match self.whole {
            true if images > 0 => std::iter::once(0..images).collect(),
            _ => pieces(images, tokens),
        }
    }

    /// Computes `work` of every number below `count` and hands the results to `take` in the order of the numbers.
    ///
    /// # Errors
    /// The first error in that order; what comes after it is not taken.
    pub fn in_order<T: Send>(
        &self,
        count: usize,
        work: impl Fn(usize) -> Result<T> + Sync,
        mut take: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        if self.pools.is_empty() {
            return (0..count).try_for_each(|number| take(work(number)?));
        }
        let next = AtomicUsize::new(0);
        let (sender, results) = mpsc::channel();
        thread::scope(|scope| {
            for pool in self.pools.iter().take(count) {
                let (sender, next, work) = (sender.clone(), &next, &work);
                scope.spawn(move || {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        // The receiver leaves early only after an error: then nobody wants more.
                        if number >= count || sender.send((number, pool.install(|| work(number)))).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let mut early = BTreeMap::new();
            let mut expected = 0;
            for (number, result) in results {
                early.insert(number, result);
                while let Some(result) = early.remove(&expected) {
                    take(result?)?;
                    expected += 1;
                }
            }
            Ok(())
        })
    }
}

/// How many of `pieces` pieces are best computed at once by `threads` threads.
fn at_once(pieces: usize, threads: usize) -> usize {
    let rounds = |at_once: usize| {
        let each = (threads / at_once) as f64;
        let speed = if each > 1.0 { each * SHARED } else { 1.0 };
        pieces.div_ceil(at_once) as f64 / speed
    };
    let choices = 1..=pieces.min(threads).max(1);
    // Of equals the most at once: they wait for each other least.
    choices
        .rev()
        .min_by(|a, b| rounds(*a).total_cmp(&rounds(*b)))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pieces_cover_the_batch_in_order() {
        for images in 0..300 {
            for tokens in [0, 1, 50, 197, 257, 5000] {
                let pieces = pieces(images, tokens);
                let mut end = 0;
                for piece in &pieces {
                    assert!(piece.start == end && piece.end > piece.start);
                    end = piece.end;
                }
                assert_eq!(end, images);
                assert!(pieces.len() <= MOST_PIECES);
            }
        }
        let lengths = |images, tokens| pieces(images, tokens).iter().map(Range::len).collect::<Vec<_>>();
        assert_eq!(lengths(16, 197), [8, 8]);
        assert_eq!(lengths(128, 50), [32, 32, 32, 32]);
        assert_eq!(lengths(256, 197), [16; 16]);
        assert_eq!(lengths(5, 197), [5]);
    }

    #[test]
    fn threads_are_divided_so_that_few_wait() {
        assert_eq!(at_once(2, 2), 2);
        assert_eq!(at_once(2, 1), 1);
        assert_eq!(at_once(1, 8), 1);
        assert_eq!(at_once(2, 16), 2);
        assert_eq!(at_once(16, 16), 16);
        assert_eq!(at_once(16, 64), 16);
        assert_eq!(
            at_once(4, 3),
            1,
            "two rounds of three pieces would leave two threads waiting"
        );
        assert_eq!(at_once(0, 4), 1);
    }

    #[test]
    fn results_are_taken_in_order_and_the_first_error_wins() {
        let pool = ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        let workers = pool.install(|| Workers::new(8)).unwrap();
        assert_eq!(workers.pools.len(), 4);
        let slow_at_first = |number: usize| {
            thread::sleep(Duration::from_millis(if number < 4 {
                20 - 5 * number as u64
            } else {
                0
            }));
            Ok(number)
        };
        let mut taken = Vec::new();
        workers
            .in_order(8, slow_at_first, |number| {
                taken.push(number);
                Ok(())
            })
            .unwrap();
        assert_eq!(taken, [0, 1, 2, 3, 4, 5, 6, 7]);

        let mut taken = Vec::new();
        let fails = |number: usize| match number {
            2 | 5 => Err(Error::Data(format!("piece {number}"))),
            _ => slow_at_first(number),
        };
        let error = workers.in_order(8, fails, |number| {
            taken.push(number);
            Ok(())
        });
        assert_eq!(error.unwrap_err().to_string(), "piece 2");
        assert_eq!(taken, [0, 1]);
        workers
            .in_order(0, slow_at_first, |_| unreachable!("no piece"))
            .unwrap();
    }
}
