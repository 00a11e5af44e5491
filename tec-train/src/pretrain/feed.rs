//! Batches as a step takes them. For a GPU a thread of their own uploads the next one while the step before is computed.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::{
    Error, Result,
    data::{self, Batch, Batches, Normalization},
};

/// A batch and, where it is there already, what a GPU has of it.
pub struct Fed {
    /// The batch.
    pub batch: Batch,
    #[cfg(feature = "cuda")]
    upload: Option<data::Upload>,
}

impl From<Batch> for Fed {
    fn from(batch: Batch) -> Self {
        Self {
            batch,
            #[cfg(feature = "cuda")]
            upload: None,
        }
    }
}

impl Fed {
    /// Images `range` `[B, C, size, size]` for the new model, or, with `second`, for the base: crops of a size of their own if there
    /// are any. `size` and `normalization` are those of the model.
    ///
    /// # Errors
    /// Fewer images, or images of another size.
    pub fn images(
        &self,
        second: bool,
        range: Range<usize>,
        size: usize,
        normalization: &Normalization,
        device: &Device,
    ) -> Result<Tensor> {
        let second = second && !self.batch.pixels2.is_empty();
        #[cfg(feature = "cuda")]
        if let Some(upload) = &self.upload {
            return upload.images(usize::from(second), range, size, normalization);
        }
        let pixels = match second {
            true => &self.batch.pixels2,
            false => &self.batch.pixels,
        };
        let pixels = part(pixels, self.batch.len(), &range)?;
        let channels = normalization.mean.len();
        data::to_tensor(pixels, range.len(), size, channels, normalization, device)
    }
}

/// The pixels of some of `images` images.
fn part<'a>(pixels: &'a [u8], images: usize, range: &Range<usize>) -> Result<&'a [u8]> {
    let size = pixels.len() / images.max(1);
    pixels
        .get(range.start * size..range.end * size)
        .ok_or_else(|| Error::Data(format!("images {range:?} of {images} were asked for; please report it")))
}

/// Batches for a device, in their order.
pub enum Feed {
    /// As they come: pixels go to the device when images are made of them.
    Direct(Batches),
    /// Uploaded ahead.
    #[cfg(feature = "cuda")]
    Ahead(ahead::Ahead),
}

impl Feed {
    /// Batches for `device`.
    ///
    /// # Errors
    /// A GPU that fails, a thread that cannot be started.
    pub fn new(batches: Batches, device: &Device) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            return Ok(Self::Ahead(ahead::Ahead::new(batches, device)?));
        }
        let _ = device;
        Ok(Self::Direct(batches))
    }

    /// Why batches are uploaded when they are needed although the device is a GPU; said once.
    pub fn note(&mut self) -> Option<String> {
        match self {
            Self::Direct(_) => None,
            #[cfg(feature = "cuda")]
            Self::Ahead(ahead) => ahead.note.take(),
        }
    }
}

impl Iterator for Feed {
    type Item = Result<Fed>;

    fn next(&mut self) -> Option<Result<Fed>> {
        match self {
            Self::Direct(batches) => batches.next().map(|batch| batch.map(Fed::from)),
            #[cfg(feature = "cuda")]
            Self::Ahead(ahead) => ahead.next(),
        }
    }
}

#[cfg(feature = "cuda")]
mod ahead {
    use std::{
        sync::mpsc::{self, Receiver, SyncSender},
        thread::{self, JoinHandle},
        time::Instant,
    };

    use candle_core::Device;

    use super::Fed;
    use crate::{
        Error, Result,
        data::{Batch, Batches, Returns, Slot, Upload, Uploads},
    };

    /// A thread that has the next batch on the GPU when it is asked for.
    pub struct Ahead {
        device: Device,
        /// Both are there until this is dropped.
        ready: Option<Receiver<Ready>>,
        returns: Option<Returns>,
        thread: Option<JoinHandle<()>>,
        pub note: Option<String>,
    }

    /// A batch, where it was uploaded, and, once, why it was not.
    type Ready = Result<(Batch, Option<Slot>, Option<String>)>;

    impl Ahead {
        pub fn new(batches: Batches, device: &Device) -> Result<Self> {
            let (uploads, returns) = Uploads::new(device)?;
            // One batch is uploaded ahead: the thread holds it until it is asked for.
            let (sender, ready) = mpsc::sync_channel(0);
            let thread = thread::Builder::new()
                .name("uploads".into())
                .spawn(move || upload(batches, uploads, &sender))
                .map_err(|e| Error::Data(format!("no thread can be started that uploads images: {e}")))?;
            Ok(Self {
                device: device.clone(),
                ready: Some(ready),
                returns: Some(returns),
                thread: Some(thread),
                note: None,
            })
        }

        pub fn next(&mut self) -> Option<Result<Fed>> {
            let start = Instant::now();
            let (mut batch, slot, note) = match self.ready.as_ref()?.recv() {
                Ok(Ok(ready)) => ready,
                Ok(Err(error)) => return Some(Err(error)),
                Err(_) => return self.ended().err().map(Err),
            };
            // What the thread waited for the loader nobody else has waited for.
            batch.wait = start.elapsed();
            self.note = self.note.take().or(note);
            let upload = match (slot, &self.returns) {
                (Some(slot), Some(returns)) => Upload::new(slot, &self.device, returns).map(Some),
                _ => Ok(None),
            };
            Some(upload.map(|upload| Fed { batch, upload }).map_err(Error::from))
        }
    }

    impl Ahead {
        /// Whether the thread ended because there are no more batches.
        fn ended(&mut self) -> Result<()> {
            match self.thread.take().map(JoinHandle::join) {
                Some(Err(_)) => Err(Error::Data(
                    "the thread that uploads images failed; this is a fault of the program, please report it".into(),
                )),
                _ => Ok(()),
            }
        }
    }

    impl Drop for Ahead {
        fn drop(&mut self) {
            // Without them the thread ends.
            drop((self.ready.take(), self.returns.take()));
            let _ = self.ended();
        }
    }

    /// What the thread does.
    fn upload(batches: Batches, uploads: Uploads, sender: &SyncSender<Ready>) {
        let mut uploads = Some(uploads);
        for batch in batches {
            let ready = batch.map(|batch| {
                let filled = uploads.as_mut().map(|u| u.fill([&batch.pixels, &batch.pixels2]));
                match filled.transpose() {
                    Ok(slot) => (batch, slot.flatten(), None),
                    // The step can do without, and says better what is wrong if it is the GPU.
                    Err(error) => {
                        uploads = None;
                        let error = error.to_string();
                        // A backtrace may follow.
                        let reason = error.lines().next().unwrap_or_default();
                        let note = format!("images are not uploaded ahead of their step, which is slower: {reason}");
                        (batch, None, Some(note))
                    }
                }
            });
            if sender.send(ready).is_err() {
                return;
            }
        }
    }
}
