//! Pixels on their way to a GPU: through page-locked memory and on a stream of their own, while the GPU computes something else.
//!
//! Nothing but what is written here orders the two streams, for the device tracks no uses of memory: a copy waits for the
//! event after which the pixels before it are no longer read, and who reads pixels waits for the event after their copy.

use std::{
    ops::Range,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
};

use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, Device, InplaceOp1, Layout, Result, Tensor, bail,
    cuda_backend::cudarc::driver::{CudaEvent, CudaStream, DriverError, PinnedHostSlice},
};

use super::Normalization;
use crate::ops;

/// Pieces of memory: one that is read, and one that is filled meanwhile.
const SLOTS: usize = 2;

/// Where a piece of pixels begins: addresses are a multiple of it.
const ALIGNMENT: usize = 256;

/// Brings pixels to a GPU, in memory that is allocated once and used in turn.
pub struct Uploads {
    device: CudaDevice,
    copies: Arc<CudaStream>,
    /// Slots made so far, and those that came back.
    made: usize,
    back: Receiver<Slot>,
}

/// Where slots go whose pixels have been read.
pub type Returns = Sender<Slot>;

impl Uploads {
    /// For the GPU whose tensors are `device`'s. Who takes slots gives them back to [`Returns`], or [`Uploads::fill`] ends.
    ///
    /// # Errors
    /// A device that is no GPU, or has no second stream.
    pub fn new(device: &Device) -> Result<(Self, Returns)> {
        let device = device.as_cuda_device()?.clone();
        let copies = device.cuda_stream().context().new_stream().map_err(refused)?;
        let (returns, back) = mpsc::channel();
        let made = 0;
        Ok((
            Self {
                device,
                copies,
                made,
                back,
            },
            returns,
        ))
    }

    /// Puts the copies of some pixels on their stream, once there is a slot for them; `None` where nobody gives any back anymore.
    ///
    /// # Errors
    /// No page-locked memory or no room on the GPU; a GPU that fails.
    pub fn fill(&mut self, pixels: [&[u8]; 2]) -> Result<Option<Slot>> {
        let starts = [0, pixels[0].len().next_multiple_of(ALIGNMENT)];
        let bytes = starts[1] + pixels[1].len();
        let slot = if self.made < SLOTS {
            self.made += 1;
            None
        } else {
            match self.back.recv() {
                Ok(slot) => Some(slot),
                Err(_) => return Ok(None),
            }
        };
        let mut slot = match slot.filter(|slot| slot.host.len() >= bytes) {
            Some(slot) => slot,
            None => Slot::new(&self.device, bytes.max(ALIGNMENT))?,
        };
        slot.fill(&self.copies, pixels, starts)?;
        Ok(Some(slot))
    }
}

/// Memory for the pixels of a batch, on both sides.
pub struct Slot {
    host: PinnedHostSlice<u8>,
    there: Tensor,
    /// Where the pixels lie in it.
    places: [Range<usize>; 2],
    /// After the copy.
    arrived: CudaEvent,
    /// After the last kernel that reads it, on the stream of all kernels, which also allocates and frees it.
    read: CudaEvent,
}

impl Slot {
    fn new(device: &CudaDevice, bytes: usize) -> Result<Self> {
        let computing = device.cuda_stream();
        let context = computing.context();
        // SAFETY: the memory is written below, before anything reads it.
        let mut host = unsafe { context.alloc_pinned::<u8>(bytes) }.map_err(refused)?;
        host.as_mut_slice().map_err(refused)?.fill(0);
        Ok(Self {
            there: Tensor::zeros(bytes, DType::U8, &Device::Cuda(device.clone()))?,
            host,
            places: [0..0, 0..0],
            arrived: context.new_event(None).map_err(refused)?,
            // The zeros above are to be written before anything else is.
            read: computing.record_event(None).map_err(refused)?,
        })
    }

    fn fill(&mut self, copies: &Arc<CudaStream>, pixels: [&[u8]; 2], starts: [usize; 2]) -> Result<()> {
        // The copy before must have left the memory. `PinnedHostSlice` would see to that only if uses of memory were tracked.
        self.arrived.synchronize().map_err(refused)?;
        let host = self.host.as_mut_slice().map_err(refused)?;
        for ((pixels, start), place) in pixels.into_iter().zip(starts).zip(&mut self.places) {
            *place = start..start + pixels.len();
            match host.get_mut(place.clone()) {
                Some(room) => room.copy_from_slice(pixels),
                None => bail!("pixels do not fit in the memory they go through; please report it"),
            }
        }
        copies.wait(&self.read).map_err(refused)?;
        let copy = CopyFrom {
            host: &self.host,
            copies,
        };
        self.there.inplace_op1(&copy)?;
        self.arrived.record(copies).map_err(refused)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A copy may be under way between the two. Should the GPU have failed, it is not.
        let _ = self.arrived.synchronize();
    }
}

/// Everything in page-locked memory to a tensor as long, on the stream of copies.
struct CopyFrom<'a> {
    host: &'a PinnedHostSlice<u8>,
    copies: &'a Arc<CudaStream>,
}

impl InplaceOp1 for CopyFrom<'_> {
    fn name(&self) -> &'static str {
        "upload"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("upload: the memory is on the CPU; please report it")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        let there = storage.as_cuda_slice_mut::<u8>()?;
        if there.len() != self.host.len() {
            bail!("upload: the memory has another size on the GPU; please report it")
        }
        self.copies.memcpy_htod(self.host, there).map_err(refused)
    }
}

/// The pixels of a batch on a GPU, for as long as this lives.
pub struct Upload {
    slot: Option<Slot>,
    computing: Arc<CudaStream>,
    returns: Returns,
}

impl Upload {
    /// Lets the GPU wait for the pixels of `slot` before it computes what is asked for from now on; the slot then goes to `returns`.
    ///
    /// # Errors
    /// A GPU that fails.
    pub fn new(slot: Slot, device: &Device, returns: &Returns) -> Result<Self> {
        let computing = device.as_cuda_device()?.cuda_stream();
        computing.wait(&slot.arrived).map_err(refused)?;
        Ok(Self {
            slot: Some(slot),
            computing,
            returns: returns.clone(),
        })
    }

    /// Images `range` `[B, C, size, size]` of pixels number `which`: to the bit what [`super::to_tensor`] makes of them.
    ///
    /// # Errors
    /// Fewer images than that.
    pub fn images(
        &self,
        which: usize,
        range: Range<usize>,
        size: usize,
        normalization: &Normalization,
    ) -> crate::Result<Tensor> {
        let channels = normalization.mean.len();
        let image = size * size * channels;
        let (start, bytes) = (range.start * image, range.len() * image);
        let pixels = self.slot.as_ref().and_then(|slot| {
            let place = slot.places.get(which)?;
            (start + bytes <= place.len()).then(|| slot.there.narrow(0, place.start + start, bytes))
        });
        let Some(pixels) = pixels else {
            let text = format!("images {range:?} were asked for, but fewer were uploaded; please report it");
            return Err(crate::Error::Data(text));
        };
        let pixels = pixels?.reshape((range.len(), size, size, channels))?;
        ops::images_from_pixels(&pixels, normalization)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        // Where the GPU has failed, the slot is not used again.
        if slot.read.record(&self.computing).is_ok() {
            // Nobody may be left who would fill it.
            let _ = self.returns.send(slot);
        }
    }
}

fn refused(error: DriverError) -> candle_core::Error {
    candle_core::Error::msg(format!("pixels do not get to the GPU: {error}"))
}
