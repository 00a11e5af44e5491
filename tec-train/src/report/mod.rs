//! What a run leaves for people to look at: `report/index.html` and TensorBoard events.
//!
//! A [`Report`] is one page that needs nothing beside it: styles and pictures are inside, nothing is fetched, so that it
//! can be mailed. Its parts take plain data: [`Plot`] draws curves, [`masked_images`] shows what the encoder saw,
//! [`attention_maps`] sets the base's maps beside the new model's, [`Table`], [`facts`] and [`skipped_images`] say the
//! rest. [`EventWriter`] writes the same scalars for TensorBoard.

mod axis;
mod curve;
mod facts;
mod html;
mod page;
mod picture;
mod plot;
mod table;
mod tensorboard;
mod vision;

pub use curve::{downsample, smooth};
pub use facts::{facts, skipped_images};
pub use html::Html;
pub use page::Report;
pub use picture::Picture;
pub use plot::{Plot, Scale, Series};
pub use table::{Cell, Column, Table};
pub use tensorboard::EventWriter;
pub use vision::{AttentionMaps, MaskedImage, attention_maps, masked_images};
