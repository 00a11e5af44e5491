//! Ranks that are processes under an MPI, on one machine or many.

use std::cell::Cell;

use candle_core::Tensor;
use mpi::{
    Count, Threading,
    datatype::{Partition, PartitionMut},
    environment::Universe,
    topology::SimpleCommunicator,
    traits::{Communicator, CommunicatorCollectives},
};

use super::{Collective, Launch, Launcher, buckets, share};
use crate::{Error, Result};

/// The exit code that an aborted job ends with.
const FAILURE: i32 = 1;

/// A process of an MPI job.
///
/// Tensors are summed by hand rather than by `MPI_Allreduce`, whose order of sums is the library's choice: each rank gets one
/// segment of a bucket from all, adds it up in the ranks' order, and sends the sums to all. Each rank sends and receives
/// 2 (N − 1) / N of the bytes, as in a ring. An error of the MPI itself ends the job with a message of its own.
///
/// Dropping it waits until all ranks have come so far, unless [`Collective::abandon`] was called.
pub struct Mpi {
    world: SimpleCommunicator,
    abandoned: Cell<bool>,
    // Ends the MPI when it is dropped, last.
    _universe: Universe,
}

impl Mpi {
    /// Joins the job that `launch` says this process is of. To be called once, on the main thread, which alone may use the value.
    ///
    /// # Errors
    /// [`Error::Usage`] where the MPI knows of other processes than `launch`: they were not started by its launcher.
    pub fn join(launch: &Launch) -> Result<Self> {
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| Error::Data("the MPI has been started before in this process; please report it".into()))?;
        let world = universe.world();
        let found = (world.rank() as usize, world.size() as usize);
        if found != (launch.rank, launch.size) {
            let advice = match launch.launcher {
                Launcher::Slurm => {
                    "start with `srun --mpi=pmix` (`srun --mpi=list` shows what there is) or with mpirun"
                }
                _ => "start with the mpirun of the MPI that tec was built with",
            };
            return Err(Error::Usage(format!(
                "{} started {} processes, of which this is rank {}, but the MPI finds itself to be rank {} of {}; {advice}",
                launch.launcher, launch.size, launch.rank, found.0, found.1
            )));
        }
        Ok(Self {
            world,
            abandoned: Cell::new(false),
            _universe: universe,
        })
    }

    /// Replaces `values` by their sums over ranks.
    fn sum_values(&self, values: &mut [f32]) -> Result<()> {
        let (rank, size) = (self.rank(), self.size());
        let segments: Vec<_> = (0..size).map(|rank| share(values.len(), rank, size)).collect();
        let mine = segments[rank].len();
        let mut parts = vec![0f32; mine * size];
        {
            let (counts, starts) = layout(segments.iter().map(|segment| segment.len()))?;
            let (same, places) = layout((0..size).map(|_| mine))?;
            let from = Partition::new(&*values, counts, starts);
            let mut to = PartitionMut::new(&mut parts[..], same, places);
            self.world.all_to_all_varcount_into(&from, &mut to);
        }
        let (sum, others) = parts.split_at_mut(mine);
        for other in others.chunks_exact(mine.max(1)) {
            sum.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
        }
        let (counts, starts) = layout(segments.iter().map(|segment| segment.len()))?;
        let mut all = PartitionMut::new(values, counts, starts);
        self.world.all_gather_varcount_into(&*sum, &mut all);
        Ok(())
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn sum(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
        buckets::sum(tensors, |values| self.sum_values(values))
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut lengths = vec![0u64; self.size()];
        self.world.all_gather_into(&(bytes.len() as u64), &mut lengths[..]);
        let (counts, starts) = layout(lengths.iter().map(|length| *length as usize))?;
        let mut all = vec![0u8; lengths.iter().sum::<u64>() as usize];
        {
            let mut to = PartitionMut::new(&mut all[..], counts, starts);
            self.world.all_gather_varcount_into(bytes, &mut to);
        }
        let mut rest = all.as_slice();
        let split = |length: &u64| {
            let (said, others) = rest.split_at(*length as usize);
            rest = others;
            said.to_vec()
        };
        Ok(lengths.iter().map(split).collect())
    }

    fn abandon(&self) {
        self.abandoned.set(true);
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // Ending in order would wait for ranks that may be waiting for this one.
        if self.abandoned.get() || std::thread::panicking() {
            self.world.abort(FAILURE);
        }
    }
}

/// Counts and offsets of pieces that lie one behind the other, as the MPI wants them.
fn layout(lengths: impl Iterator<Item = usize>) -> Result<(Vec<Count>, Vec<Count>)> {
    let too_large =
        |_| Error::Data("a message between ranks is larger than the MPI can count; please report it".into());
    let (mut counts, mut starts, mut end) = (Vec::new(), Vec::new(), 0usize);
    for length in lengths {
        starts.push(Count::try_from(end).map_err(too_large)?);
        counts.push(Count::try_from(length).map_err(too_large)?);
        end += length;
    }
    Count::try_from(end).map_err(too_large)?;
    Ok((counts, starts))
}
