//! Integer operations of the int8 encoder, and the one rule by which they round.
//!
//! `docs/integer-encoder.md` is the specification; these functions are its definition in code. Every function is total:
//! no argument makes it panic or overflow. Where an argument outside the documented range would overflow in the
//! specification, the function saturates instead, and the reader of encoder files refuses such files beforehand.
//!
//! | step | function |
//! |---|---|
//! | rounding, scaling, saturation | [`round_shift`], [`scale`], [`saturate_i8`], [`saturate_i16`], [`saturate_i32`] |
//! | pixels | [`center_pixel`], [`pixel_constants`], [`pixel_from_f32`] |
//! | square root and division | [`sqrt`], [`reciprocal`] |
//! | LayerNorm | [`NormRow`], [`norm_affine`] |
//! | softmax | [`softmax_weights`], [`WeightedMean`] |
//! | GELU | [`gelu_table`], [`gelu`] |

mod gelu;
mod norm;
mod pixel;
mod root;
mod round;
mod softmax;

pub use gelu::{GELU_TABLE_LEN, gelu, gelu_table};
pub use norm::{AFFINE_OFFSET_BITS, NORM_BITS, NormRow, norm_affine};
pub use pixel::{NotANumber, center_pixel, pixel_constants, pixel_from_f32};
pub use root::{Reciprocal, reciprocal, sqrt};
pub use round::{round_shift, saturate_i8, saturate_i16, saturate_i32, scale};
pub use softmax::{EXP_STEPS_PER_UNIT, EXP_TABLE, EXP_TABLE_LEN, MEAN_BITS, WEIGHT_MAX, WeightedMean, softmax_weights};
