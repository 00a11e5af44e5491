//! Models: the frozen base or exported encoder ([`Vit`]), the new model with its adapters and heads ([`Tec`]) and the
//! masked autoencoder ([`Mae`]).
//!
//! Parameters carry the names of timm and of the published checkpoints. Every layer is made of [`crate::ops`], whose
//! operations all have gradients; frozen models hold plain tensors, trainable ones the variables of [`Params`].
//!
//! Shapes: `B` images, `C` channels, `L` patches, `D` width of the model at hand, `T` width and `H` heads of the base,
//! `K` selected query patches, `d` width of the decoder.

mod adapters;
mod assembly;
mod checkpoint;
mod config;
mod decoder;
mod family;
mod geometry;
mod head;
mod inspect;
mod layers;
mod load;
mod mae;
mod masks;
mod observer;
mod params;
mod plan;
mod sidecar;
mod tec;
mod variant;
mod vit;
mod weights_file;

pub use checkpoint::Checkpoint;
pub use config::{BaseConfig, DecoderConfig, EncoderMetadata, MaeConfig, Pool, TecConfig, VitConfig};
pub use head::Head;
pub use inspect::{EncoderFacts, Inspection, inspect};
pub use load::{LoadOptions, LoadReport, MisShaped};
pub use mae::Mae;
pub use masks::Masks;
pub use observer::{Observer, Site};
pub use params::Params;
pub use plan::Origin;
pub use tec::{Losses, Predictions, Tec};
pub use variant::{Activation, Variant};
pub use vit::{Targets, Vit};
pub use weights_file::in_folder;
