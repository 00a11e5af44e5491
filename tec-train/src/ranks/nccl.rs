//! Ranks that compute on GPUs: their tensors are summed by NCCL, their messages go over TCP.

use std::cell::{Cell, OnceCell};

use candle_core::{CudaDevice, DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{Collective, Launch, Tcp};
use crate::{
    Error, Result,
    cuda::{Float, elementwise},
    device::nccl::{self, Communicator, Values},
    ops::gpu,
};

/// Values of a bucket: 100 MB of f32, for the host waits for each. A larger tensor is a bucket of its own.
const BUCKET: usize = 100_000_000 / size_of::<f32>();
/// Tensors in a bucket begin at multiples of so many values, 16 bytes: kernels are fastest there.
const ALIGNMENT: usize = 4;

/// A process of a job that has a GPU.
///
/// Each rank gets one segment of a bucket from all others, adds it up in the ranks' order, and sends the sums to all; so the
/// bits are those of every other provider. Nothing of it leaves the GPUs.
///
/// While a rank waits for NCCL it watches whether the others are there, and ends with a message where one is not. Dropping it
/// ends the whole job if [`Collective::abandon`] was called.
pub struct Nccl {
    gpus: OnceCell<Gpus>,
    failed: Cell<bool>,
    tcp: Tcp,
}

struct Gpus {
    device: CudaDevice,
    communicator: Communicator,
}

/// What a rank says of its GPU.
#[derive(Serialize, Deserialize)]
struct Introduction {
    gpu: String,
    /// NCCL's version.
    version: i32,
    /// The communicator's name: rank 0's to give.
    id: Option<Vec<u8>>,
}

impl Nccl {
    /// Joins the job that `launch` says this process is of.
    ///
    /// # Errors
    /// Processes that do not find each other.
    pub fn join(launch: &Launch) -> Result<Self> {
        Ok(Self {
            gpus: OnceCell::new(),
            failed: Cell::new(false),
            tcp: Tcp::join(launch)?,
        })
    }

    /// The sums over ranks of tensors whose places in a bucket of `len` values are `places`.
    fn sum_bucket(&self, gpus: &Gpus, tensors: &[Tensor], places: &[usize], len: usize) -> Result<Vec<Tensor>> {
        if len == 0 {
            return Ok(tensors.to_vec());
        }
        let (rank, size) = (self.rank(), self.size());
        // All segments have the same length, and so do the parts of a gathering.
        let segment = len.div_ceil(size).next_multiple_of(ALIGNMENT);
        let device = Device::Cuda(gpus.device.clone());
        let bucket = Tensor::zeros(segment * size, DType::F32, &device)?;
        for (tensor, place) in tensors.iter().zip(places) {
            if tensor.elem_count() > 0 {
                bucket.slice_set(&tensor.flatten_all()?.contiguous()?, 0, *place)?;
            }
        }
        let parts = Tensor::zeros(segment * size, DType::F32, &device)?;
        let split = |tensor: &Tensor| -> Result<Vec<Values>> {
            let start = gpu::address_of("sum over ranks", tensor)?;
            let at = |number: usize| Values {
                address: start + (number * segment * size_of::<f32>()) as u64,
                count: segment,
            };
            Ok((0..size).map(at).collect())
        };
        let (segments, received) = (split(&bucket)?, split(&parts)?);
        let over = || self.tcp.star().over();
        let nccl = |done: Result<(), String>| done.map_err(Error::Data);
        nccl(gpus.communicator.exchange(&segments, &received, rank, &over))?;
        // This rank's own part stayed in the bucket.
        let part = |number: usize| match number == rank {
            true => segments[rank].address,
            false => received[number].address,
        };
        let mut sum = part(0);
        for other in 1..size {
            let to = received[0].address;
            let add = elementwise::add(Float::F32, sum, part(other), to, segment);
            gpu::launch(&gpus.device, &add)?;
            sum = to;
        }
        let sum = Values {
            address: sum,
            count: segment,
        };
        nccl(gpus.communicator.all_gather(sum, segments[0].address, &over))?;
        // The memory of both is in use until then.
        nccl(gpus.communicator.wait(&over))?;
        let part = |(tensor, place): (&Tensor, &usize)| {
            let values = bucket.narrow(0, *place, tensor.elem_count())?;
            Ok(values.reshape(tensor.shape())?)
        };
        tensors.iter().zip(places).map(part).collect()
    }
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.tcp.rank()
    }

    fn size(&self) -> usize {
        self.tcp.size()
    }

    fn introduce(&self, device: &Device) -> Result<Vec<u8>> {
        let said = (|| {
            let Device::Cuda(cuda) = device else {
                return Err("the tensors are on no GPU; please report it".into());
            };
            let version = nccl::load()?;
            let introduction = Introduction {
                gpu: nccl::gpu(cuda)?,
                version,
                id: (self.rank() == 0).then(nccl::unique_id).transpose()?,
            };
            serde_json::to_vec(&introduction).map_err(|e| e.to_string())
        })();
        said.map_err(|reason| Error::Usage(format!("several GPUs cannot be used: {reason}")))
    }

    fn connect(&self, device: &Device, introductions: Vec<Vec<u8>>) -> Result<()> {
        let all: Vec<Introduction> = introductions
            .iter()
            .map(|said| serde_json::from_slice(said))
            .collect::<Result<_, _>>()
            .map_err(|e| Error::Data(format!("the processes do not understand each other ({e})")))?;
        let (Some(first), Device::Cuda(cuda)) = (all.first(), device) else {
            return Err(Error::Data("there is no GPU to connect; please report it".into()));
        };
        fit(&all)?;
        let over = || self.tcp.star().over();
        let id = first.id.as_deref().unwrap_or_default();
        let communicator = Communicator::connect(cuda, id, self.rank(), self.size(), &over)
            .map_err(|reason| Error::Data(format!("the GPUs cannot be connected: {reason}")))?;
        let device = cuda.clone();
        self.gpus.set(Gpus { device, communicator }).map_err(|_| {
            let text = "the GPUs are connected already; please report it";
            Error::Data(text.into())
        })
    }

    fn sum(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let Some(gpus) = self.gpus.get() else {
            return Err(Error::Data("the GPUs are not connected; please report it".into()));
        };
        if let Some(tensor) = tensors.iter().find(|tensor| tensor.dtype() != DType::F32) {
            return Err(Error::Data(format!(
                "a {:?} tensor cannot be summed over ranks, which is done in f32; please report it",
                tensor.dtype()
            )));
        }
        let lengths: Vec<usize> = tensors.iter().map(Tensor::elem_count).collect();
        let mut sums = Vec::with_capacity(tensors.len());
        for Bucket { first, places, len } in buckets(&lengths, BUCKET) {
            let some = &tensors[first..first + places.len()];
            // What is under way would keep the GPU from everything that is still to be done there.
            let sum = self.sum_bucket(gpus, some, &places, len);
            sums.extend(sum.inspect_err(|_| gpus.communicator.abort())?);
        }
        Ok(sums)
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.tcp.gather(bytes)
    }

    fn abandon(&self) {
        self.failed.set(true);
        self.tcp.abandon();
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let Some(gpus) = self.gpus.get() else { return };
        match self.failed.get() || std::thread::panicking() || self.tcp.star().over().is_some() {
            true => gpus.communicator.abort(),
            false => gpus.communicator.finish(),
        }
    }
}

/// Whether GPUs of ranks that say this can be connected.
fn fit(all: &[Introduction]) -> Result<()> {
    for (rank, one) in all.iter().enumerate() {
        if let Some(other) = all[..rank].iter().position(|other| other.gpu == one.gpu) {
            return Err(Error::Usage(format!(
                "ranks {other} and {rank} have the same GPU (UUID {}): start one process a GPU, and let each see a GPU of its own \
                 or all of its machine's (CUDA_VISIBLE_DEVICES)",
                one.gpu
            )));
        }
        if one.version != all[0].version {
            return Err(Error::Usage(format!(
                "rank {rank} has NCCL {}, and rank 0 has {}: use the same libnccl.so.2 on every machine",
                nccl::name(one.version),
                nccl::name(all[0].version)
            )));
        }
    }
    Ok(())
}

/// Some tensors side by side.
#[derive(Debug, PartialEq)]
struct Bucket {
    /// The number of the first.
    first: usize,
    /// Where each begins, in values.
    places: Vec<usize>,
    /// Values in all.
    len: usize,
}

/// Tensors of `lengths` values in buckets of at most `limit`, or one tensor.
fn buckets(lengths: &[usize], limit: usize) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = Vec::new();
    for (number, length) in lengths.iter().enumerate() {
        let padded = length.next_multiple_of(ALIGNMENT);
        match buckets.last_mut() {
            Some(last) if last.len + padded <= limit => {
                last.places.push(last.len);
                last.len += padded;
            }
            _ => buckets.push(Bucket {
                first: number,
                places: vec![0],
                len: padded,
            }),
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_fill_buckets_at_aligned_places() {
        let bucket = |first, places: &[usize], len| Bucket {
            first,
            places: places.to_vec(),
            len,
        };
        assert_eq!(
            buckets(&[3, 4, 1, 20, 0, 8], 12),
            [bucket(0, &[0, 4, 8], 12), bucket(3, &[0], 20), bucket(4, &[0, 0], 8)]
        );
        assert!(buckets(&[], 12).is_empty());
    }

    #[test]
    fn ranks_on_one_gpu_or_with_other_versions_are_named() {
        let of = |gpu: &str, version| Introduction {
            gpu: gpu.into(),
            version,
            id: None,
        };
        assert!(fit(&[of("a", 22_703), of("b", 22_703)]).is_ok());
        for (all, words) in [
            (
                [of("a", 1), of("b", 1), of("a", 1)],
                "ranks 0 and 2 have the same GPU (UUID a)",
            ),
            (
                [of("a", 22_703), of("b", 22_703), of("c", 22_105)],
                "rank 2 has NCCL 2.21.5, and rank 0 has 2.27.3",
            ),
        ] {
            let error = fit(&all).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(words), "{error}");
        }
    }
}
