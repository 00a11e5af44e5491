//! Images as 8-bit pixels: [`decode`] turns JPEG and PNG files into [`Pixels`], as PIL does, and a [`Resizer`] makes squares of
//! them.
//!
//! A crate of its own because the decoders' and the resizer's code is generic: it is compiled here, once, and not again
//! with every change of what uses it.

mod decode;
mod jpeg;
mod pixels;
mod resize;

pub use decode::{Decoder, ImageInfo, decode, inspect};
use jpeg::Rect;
pub use pixels::{Pixels, check_channels, flip_horizontal};
pub use resize::{Region, Resizer};
