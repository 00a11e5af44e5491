//! Images: where they come from, how they are decoded, cropped and batched.
//!
//! A [`Source`] is a numbered collection of images: a [`Folder`] of JPEG and PNG files, a [`List`] of them, [`TarShards`],
//! [`ParquetImages`], [`Cifar`] and [`Idx`] files, a [`Subset`] of any; [`open`] finds out which. The [`Loader`] shuffles it,
//! decodes and augments on several threads, and yields [`Batch`]es of 8-bit pixels that depend on (seed, epoch, step) alone;
//! [`to_tensor`] normalizes them for a model.

mod augment;
mod cifar;
mod files;
mod folder;
mod idx;
mod list;
mod loader;
mod normalize;
mod open;
mod parquet;
mod paths;
mod shard;
mod source;
mod tar;
#[cfg(feature = "cuda")]
mod upload;
mod worker;

pub use augment::{Augment, Placement};
pub use cifar::Cifar;
pub use files::Files;
pub use folder::{Folder, read_image};
pub use idx::Idx;
pub use list::List;
pub use loader::{Batch, Batches, Loader, LoaderConfig, Order, Skipped};
pub use normalize::{IMAGENET_MEAN, IMAGENET_STD, Normalization, to_tensor};
pub use open::open;
pub use parquet::ParquetImages;
pub use source::{Source, Stored, Subset};
pub use tar::TarShards;
pub use tec_image::{Decoder, ImageInfo, Pixels, Region, Resizer, decode, inspect};
#[cfg(feature = "cuda")]
pub(crate) use upload::{Returns, Slot, Upload, Uploads};
