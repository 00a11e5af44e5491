//! Messages between ranks, of which any may be that a rank has failed.
//!
//! A rank that fails between two exchanges says so in its next one, whatever the others are sending, and all stop there: so
//! nobody waits for a rank that is not coming, and nothing but the exchanges has to think of failures elsewhere.

use std::cell::Cell;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Collective;
use crate::{Error, Result};

/// What one rank tells the others.
#[derive(Serialize, Deserialize)]
enum Message<T> {
    /// All is well; what they want to know.
    Well(T),
    /// It stops, and why.
    Failed { usage: bool, text: String },
}

/// How this rank stands to the others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bond {
    /// They take the same steps.
    Together,
    /// All know that the job is over.
    Over,
    /// Others may not know that this rank has left.
    Broken,
}

/// The ranks of a job as one of them sees them.
pub struct Ranks<'a> {
    collective: &'a dyn Collective,
    bond: Cell<Bond>,
}

impl<'a> Ranks<'a> {
    pub fn new(collective: &'a dyn Collective) -> Self {
        Self {
            collective,
            bond: Cell::new(Bond::Together),
        }
    }

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    /// Ranks in all.
    pub fn size(&self) -> usize {
        self.collective.size()
    }

    /// Whether this is the rank that writes and speaks.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// What every rank says, by rank.
    ///
    /// # Errors
    /// A rank has failed: [`Error::Rank`] says which and why. All ranks get it, and the job is over.
    pub fn exchange<T: Serialize + DeserializeOwned>(&self, mine: T) -> Result<Vec<T>> {
        if self.size() == 1 {
            return Ok(vec![mine]);
        }
        let mut all = Vec::with_capacity(self.size());
        let mut failed = None;
        for (rank, message) in self
            .gather::<Message<T>, _>(&Message::Well(mine))?
            .into_iter()
            .enumerate()
        {
            match message {
                Message::Well(said) => all.push(said),
                Message::Failed { usage, text } => {
                    failed.get_or_insert(Error::Rank { rank, usage, text });
                }
            }
        }
        match failed {
            Some(error) => {
                self.bond.set(Bond::Over);
                Err(error)
            }
            None => Ok(all),
        }
    }

    /// Makes ready to sum tensors on `device`.
    ///
    /// # Errors
    /// What is missing on this rank, to be told to the others by [`Ranks::fail`]; a rank that has failed; devices that cannot be
    /// connected.
    pub fn connect(&self, device: &Device) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let all = self.exchange(self.collective.introduce(device)?)?;
        self.collective.connect(device, all).map_err(|e| self.broken(e))
    }

    /// The sum over ranks of every tensor.
    ///
    /// # Errors
    /// A rank that has failed before, as [`Ranks::exchange`] says; else as [`Collective::sum`].
    pub fn sum(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
        // A rank without its tensors says so here: it could not within the sum.
        self.exchange(())?;
        self.collective.sum(tensors).map_err(|e| self.broken(e))
    }

    /// Tells the other ranks that this one stops because of `error`, unless they know; returns what this rank ends with:
    /// [`Error::Rank`] of the lowest rank that failed, or `error` itself where that is this rank and the first.
    pub fn fail(&self, error: Error) -> Error {
        if self.size() == 1 || self.bond.get() != Bond::Together {
            return error;
        }
        let message = Message::<()>::Failed {
            usage: error.is_usage(),
            text: error.to_string(),
        };
        // The others may be sending anything.
        let all = match self.gather::<Message<serde::de::IgnoredAny>, _>(&message) {
            Ok(all) => all,
            Err(broken) => return broken,
        };
        self.bond.set(Bond::Over);
        let first = all.into_iter().enumerate().find_map(|(rank, message)| match message {
            Message::Failed { usage, text } => Some(Error::Rank { rank, usage, text }),
            Message::Well(_) => None,
        });
        match first {
            Some(first) if !matches!(first, Error::Rank { rank: 0, .. }) || !self.is_first() => first,
            _ => error,
        }
    }

    fn gather<M: DeserializeOwned, S: Serialize>(&self, message: &S) -> Result<Vec<M>> {
        let unreadable = |e: serde_json::Error| {
            let text =
                format!("the processes do not understand each other ({e}); start the same program on every machine");
            self.broken(Error::Data(text))
        };
        let bytes = serde_json::to_vec(message).map_err(unreadable)?;
        let all = self.collective.gather(&bytes).map_err(|e| self.broken(e))?;
        let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes).map_err(unreadable);
        all.into_iter().map(read).collect()
    }

    fn broken(&self, error: Error) -> Error {
        self.bond.set(Bond::Broken);
        self.collective.abandon();
        // Every rank says for itself what it has met.
        Error::Data(format!("rank {}: {error}", self.rank()))
    }
}

/// What this rank has come to, if every rank has come to anything.
///
/// # Errors
/// A rank's error, on all of them: rank 0's own on rank 0, else [`Error::Rank`].
pub fn agree<T>(collective: &dyn Collective, result: Result<T>) -> Result<T> {
    let ranks = Ranks::new(collective);
    match result {
        Ok(value) => ranks.exchange(()).map(|_| value),
        Err(error) => Err(ranks.fail(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{OneProcess, threads::on_ranks};
    use super::*;

    #[test]
    fn every_rank_hears_what_every_rank_says() {
        let heard = on_ranks(3, |collective| {
            let ranks = Ranks::new(collective);
            let first = ranks.exchange(vec![ranks.rank(); ranks.rank()]).unwrap();
            let second = ranks.exchange(format!("rank {}", ranks.rank())).unwrap();
            (first, second)
        });
        let expected = (
            vec![vec![], vec![1], vec![2, 2]],
            ["rank 0", "rank 1", "rank 2"].map(String::from).to_vec(),
        );
        assert_eq!(heard, [expected.clone(), expected.clone(), expected]);
        assert_eq!(Ranks::new(&OneProcess).exchange(7).unwrap(), [7]);
    }

    /// Ranks 1 and 2 fail where rank 0 and 3 send something else: all end with rank 1's reason.
    #[test]
    fn a_rank_that_fails_stops_all() {
        let ends = on_ranks(4, |collective| {
            let ranks = Ranks::new(collective);
            let result = match ranks.rank() {
                1 => Err(Error::Usage("data.path: gone".into())),
                2 => Err(Error::Data("later".into())),
                _ => ranks.exchange(vec![1.5f32]).map(drop),
            };
            let error = result.map_err(|e| ranks.fail(e)).unwrap_err();
            // Failing once more is no second message.
            let error = ranks.fail(error);
            (error.to_string(), error.is_usage())
        });
        assert!(
            ends.iter()
                .all(|end| *end == ("rank 1: data.path: gone".to_string(), true)),
            "{ends:?}"
        );
    }

    #[test]
    fn the_first_rank_keeps_its_own_error() {
        let ends = on_ranks(2, |collective| {
            let result: Result<()> = match collective.rank() {
                0 => Err(Error::File {
                    path: "a.tar".into(),
                    reason: "cut short".into(),
                }),
                _ => Ok(()),
            };
            agree(collective, result).unwrap_err()
        });
        assert!(matches!(&ends[0], Error::File { path, .. } if path.ends_with("a.tar")));
        assert!(
            matches!(&ends[1], Error::Rank { rank: 0, usage: false, text } if text == "a.tar: cut short"),
            "{ends:?}"
        );
        assert_eq!(on_ranks(2, |c| agree(c, Ok(c.rank())).unwrap()), [0, 1]);
    }

    #[test]
    fn messages_that_make_no_sense_are_an_error_on_every_rank() {
        let ends = on_ranks(2, |collective| {
            let ranks = Ranks::new(collective);
            let result = match ranks.rank() {
                0 => ranks.exchange(1).map(drop),
                _ => ranks.exchange("one".to_string()).map(drop),
            };
            ranks.fail(result.unwrap_err()).to_string()
        });
        for (rank, end) in ends.iter().enumerate() {
            let words = format!("rank {rank}: the processes do not understand each other");
            assert!(end.starts_with(&words), "{end}");
        }
    }

    /// Where the others would wait for its tensors for ever.
    #[test]
    fn a_rank_without_tensors_to_sum_stops_all() {
        let ends = on_ranks(3, |collective| {
            let ranks = Ranks::new(collective);
            let zeros = || Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu);
            let result = match ranks.rank() {
                1 => Err(Error::Data("the GPU has no room".into())),
                _ => ranks.sum(vec![zeros().unwrap()]).map(drop),
            };
            ranks.fail(result.unwrap_err()).to_string()
        });
        assert_eq!(ends, ["rank 1: the GPU has no room"; 3]);
    }

    #[test]
    fn sums_are_in_the_order_of_ranks() {
        // In f32 (2^24 + 1) + 1 is 2^24, but 1 + 1 + 2^24 is 2^24 + 2: the order shows.
        let large = (1 << 24) as f32;
        for (values, expected) in [([large, 1.0, 1.0], large), ([1.0, 1.0, large], large + 2.0)] {
            let sums = on_ranks(3, |collective| {
                let mine = Tensor::new(&[values[collective.rank()], 1.0], &candle_core::Device::Cpu).unwrap();
                let sums = Ranks::new(collective).sum(vec![mine]).unwrap();
                sums[0].to_vec1::<f32>().unwrap()
            });
            assert_eq!(sums, vec![vec![expected, 3.0]; 3]);
        }
    }
}
