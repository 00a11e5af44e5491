//! Processes that train together: which one this is, what they tell each other, and what happens when one of them fails.
//!
//! Each process is a *rank*. All compute the same weights: every rank takes its share of each step's images, the gradients are
//! summed over ranks, and each updates its own copy. Only rank 0 writes.

mod buckets;
mod exchange;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "cuda")]
mod nccl;
mod rendezvous;
mod star;
mod tcp;
#[cfg(test)]
pub(crate) mod threads;

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::Result;

pub(crate) use exchange::Ranks;
pub use exchange::agree;
pub use launch::{Launch, Launcher};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "cuda")]
pub use nccl::Nccl;
pub use tcp::Tcp;

/// What ranks do together. Every rank calls the same methods in the same order; a call returns when all have made it.
///
/// Dropping it ends the rank's part: a provider may wait there until all ranks have come so far.
pub trait Collective {
    /// This rank's number, from 0.
    fn rank(&self) -> usize;

    /// Ranks in all, at least 1.
    fn size(&self) -> usize;

    /// What the other ranks must know to sum tensors that live on `device`; each gets it in [`Collective::connect`].
    ///
    /// # Errors
    /// What is missing on this machine.
    fn introduce(&self, device: &Device) -> Result<Vec<u8>> {
        let _ = device;
        Ok(Vec::new())
    }

    /// Makes ready to sum tensors on `device`, given what every rank has said by [`Collective::introduce`], by rank. Before the first
    /// sum.
    ///
    /// # Errors
    /// Devices that cannot be connected, or a rank that is gone.
    fn connect(&self, device: &Device, introductions: Vec<Vec<u8>>) -> Result<()> {
        let _ = (device, introductions);
        Ok(())
    }

    /// The sum over ranks of every tensor, in the given order: f32 of the same shapes on every rank, the result where the
    /// tensor was.
    ///
    /// Every element is summed in one order, which the number of ranks alone decides, and all ranks get the same bits.
    ///
    /// # Errors
    /// A tensor of another type, or a rank that is gone. No rank is to call anything after it.
    fn sum(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>>;

    /// The bytes of every rank, by rank; they may differ in length. For messages of a few kilobytes.
    ///
    /// # Errors
    /// A rank that is gone. No rank is to call anything after it.
    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Notes that this rank takes no further part although others may wait for it: when this value is dropped, the whole job
    /// ends at once.
    fn abandon(&self);
}

/// One process: what it says is all there is.
#[derive(Debug, Clone, Copy, Default)]
pub struct OneProcess;

impl Collective for OneProcess {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
        Ok(tensors)
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }

    fn abandon(&self) {}
}

/// A rank's share of `count` things that `size` ranks divide among themselves: contiguous, in the ranks' order, of lengths that
/// differ by one at most.
pub fn share(count: usize, rank: usize, size: usize) -> Range<usize> {
    let bound = |rank: usize| (rank as u128 * count as u128 / size.max(1) as u128) as usize;
    bound(rank)..bound(rank + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_everything_in_order() {
        for count in 0..70 {
            for size in 1..9 {
                let shares: Vec<_> = (0..size).map(|rank| share(count, rank, size)).collect();
                assert_eq!((shares[0].start, shares[size - 1].end), (0, count));
                assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
                let lengths = shares.iter().map(Range::len);
                assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
            }
        }
        assert_eq!(share(usize::MAX, 6, 7).end, usize::MAX);
    }
}
