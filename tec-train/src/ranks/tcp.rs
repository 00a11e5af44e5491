//! Ranks that are connected by TCP alone.

use std::cell::Cell;

use candle_core::Tensor;

use super::{Collective, Launch, buckets, rendezvous, star::Star};
use crate::Result;

/// A process of a job whose processes find each other at the host and port that its launcher names.
///
/// Everything goes by way of rank 0, sums of tensors, too: it gets every bucket of all others and sends them the sums. So its
/// network carries N times what an MPI's or NCCL's would; for a few processes.
///
/// Dropping it ends the whole job if [`Collective::abandon`] was called.
pub struct Tcp {
    star: Star,
    abandoned: Cell<bool>,
}

impl Tcp {
    /// Joins the job that `launch` says this process is of.
    ///
    /// # Errors
    /// [`crate::Error::Usage`] where `launch` names no place to meet, or its port is taken; [`crate::Error::Data`] where not all
    /// processes came in time.
    pub fn join(launch: &Launch) -> Result<Self> {
        let streams = rendezvous::meet(launch, rendezvous::PATIENCE)?;
        Ok(Self {
            star: Star::new(launch.rank, launch.size, streams)?,
            abandoned: Cell::new(false),
        })
    }

    /// The connections.
    #[cfg(feature = "cuda")]
    pub(super) fn star(&self) -> &Star {
        &self.star
    }

    /// Replaces `values` by their sums over ranks.
    fn sum_values(&self, values: &mut [f32]) -> Result<()> {
        let bytes = bytemuck::cast_slice(values).to_vec();
        let sums = self.star.combine(bytes, |all| {
            let mut all = all.iter().map(|bytes| bytemuck::pod_collect_to_vec::<u8, f32>(bytes));
            let mut sums = all.next().unwrap_or_default();
            // In the ranks' order.
            for other in all {
                sums.iter_mut().zip(&other).for_each(|(sum, value)| *sum += value);
            }
            Ok(bytemuck::cast_slice(&sums).to_vec())
        })?;
        values.copy_from_slice(&bytemuck::pod_collect_to_vec::<u8, f32>(&sums));
        Ok(())
    }
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.star.rank()
    }

    fn size(&self) -> usize {
        self.star.size()
    }

    fn sum(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
        buckets::sum(tensors, |values| self.sum_values(values))
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.star.gather(bytes)
    }

    fn abandon(&self) {
        self.abandoned.set(true);
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        let failed = self.abandoned.get() || std::thread::panicking();
        let reason = format!("rank {} has failed; see its message", self.star.rank());
        self.star.close(failed.then_some(reason.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use candle_core::{DType, Device};

    use super::{
        super::{
            Ranks,
            rendezvous::tests::{launch, port},
            threads::on_ranks,
        },
        *,
    };

    fn on_tcp<T: Send>(size: usize, rank: impl Fn(&dyn Collective) -> T + Sync) -> Vec<T> {
        let port = port();
        thread::scope(|scope| {
            let ranks: Vec<_> = (0..size)
                .map(|number| {
                    let rank = &rank;
                    scope.spawn(move || rank(&Tcp::join(&launch(number, size, port)).unwrap()))
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    /// Values of which every order of a sum has other bits, the same as by threads.
    #[test]
    fn sums_are_those_of_threads_bit_for_bit() {
        let sums = |collective: &dyn Collective| {
            let rank = collective.rank();
            let values = |n: usize| -> Vec<f32> {
                let value =
                    |at: usize| ((at * 7919 + rank * 104_729) % 1009) as f32 / 7.0 * 10f32.powi((at % 5) as i32);
                (0..n).map(value).collect()
            };
            let tensors = [5usize, 1000, 0, 3]
                .map(|n| Tensor::from_vec(values(n), n, &Device::Cpu).unwrap())
                .to_vec();
            let sums = Ranks::new(collective).sum(tensors).unwrap();
            sums.iter()
                .flat_map(|t| t.to_vec1::<f32>().unwrap())
                .map(f32::to_bits)
                .collect::<Vec<u32>>()
        };
        let by_threads = on_ranks(4, sums);
        assert_eq!(by_threads[0].len(), 1008);
        assert_eq!(on_tcp(4, sums), by_threads);
    }

    #[test]
    fn a_rank_that_abandons_the_others_ends_their_wait() {
        let ends = on_tcp(3, |collective| {
            let ranks = Ranks::new(collective);
            ranks.exchange(()).unwrap();
            if collective.rank() == 1 {
                collective.abandon();
                return None;
            }
            let zeros = Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap();
            let error = ranks.sum(vec![zeros]).unwrap_err();
            // Nobody is there to be told.
            Some(ranks.fail(error).to_string())
        });
        for (rank, end) in ends.into_iter().enumerate().filter(|(rank, _)| *rank != 1) {
            assert_eq!(end.unwrap(), format!("rank {rank}: rank 1 has failed; see its message"));
        }
    }
}
