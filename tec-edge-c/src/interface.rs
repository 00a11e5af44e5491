//! The types of the header.
#![allow(non_camel_case_types, reason = "the names are C's")]

use core::ffi::c_void;

/// What encoder files and scratch memory are aligned to, in bytes.
pub const TEC_ALIGNMENT: usize = 16;

/// The version of encoder files that this library reads.
pub const TEC_FILE_VERSION: u32 = 4;

/// Bytes of the longest text that `tec_error_text` writes, with its terminator.
pub const TEC_ERROR_TEXT_LEN: usize = 256;

/// Words of a `tec_encoder`.
pub const TEC_ENCODER_WORDS: usize = 32;

/// Words of a `tec_error`.
pub const TEC_ERROR_WORDS: usize = 10;

const _: () = assert!(TEC_ALIGNMENT == tec_edge::ALIGNMENT);
const _: () = assert!(TEC_FILE_VERSION == tec_edge::format::VERSION);

/// What a function returns: done, or why not. `tec_error_text` says it in a sentence.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum tec_code {
    /// Done.
    TEC_OK = 0,
    /// A pointer is NULL that must not be.
    TEC_ERROR_NULL = 1,
    /// The encoder was not opened, or opening it failed.
    TEC_ERROR_NOT_OPEN = 2,
    /// A kind of image or output that this library does not have.
    TEC_ERROR_KIND = 3,
    /// Memory that is written overlaps other memory of the call.
    TEC_ERROR_OVERLAP = 4,
    /// A pointer is not aligned.
    TEC_ERROR_MISALIGNED = 5,
    /// Something has another length than this encoder needs.
    TEC_ERROR_LENGTH = 6,
    /// A patch to encode that the image does not have.
    TEC_ERROR_PATCH = 7,
    /// The image holds a NaN.
    TEC_ERROR_NAN = 8,
    /// The file does not begin as encoder files do.
    TEC_ERROR_NOT_AN_ENCODER = 9,
    /// The file is of a version that this library does not read.
    TEC_ERROR_VERSION = 10,
    /// The file is damaged.
    TEC_ERROR_CHECKSUM = 11,
    /// A number in the file's header is outside what encoders can have.
    TEC_ERROR_HEADER = 12,
    /// The file needs something that this library does not do.
    TEC_ERROR_UNSUPPORTED = 13,
    /// A section of the file is not where or what the header says.
    TEC_ERROR_SECTION = 14,
    /// Anything else; the text says what.
    TEC_ERROR_OTHER = 15,
    /// An output that this encoder does not have: logits without a head.
    TEC_ERROR_NO_OUTPUT = 16,
}

/// Why a call failed, for `tec_error_text`. Functions write it where the pointer to it is not NULL, after success, too.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tec_error {
    /// A `tec_code`: what the function returned.
    pub code: i32,
    /// The library's own.
    pub opaque: [u64; TEC_ERROR_WORDS],
}

/// An encoder: the caller's memory, written by `tec_encoder_open`. It may be copied, and used by several threads at a time.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tec_encoder {
    /// The library's own.
    pub opaque: [u64; TEC_ENCODER_WORDS],
}

/// The outputs of an encoder. Their sum is a choice of several.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum tec_output_kind {
    /// The class token after the final norm, `[dim]`; the token itself where `fc_norm` is not 0.
    TEC_CLASS = 1,
    /// The mean of the patch tokens after the final norm, `[dim]`; the norm of their mean where `fc_norm` is not 0.
    TEC_MEAN = 2,
    /// The patch tokens after the final norm, `[patches, dim]`; the tokens themselves where `fc_norm` is not 0.
    TEC_PATCHES = 4,
    /// The classification head's outputs, `[classes]`, of encoders that have one.
    TEC_LOGITS = 8,
}

/// How an image's values are to be read.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum tec_image_kind {
    /// `uint8_t`: pixels as a camera gives them, `[height, width, channels]`, rows from the top, red first.
    TEC_PIXELS = 0,
    /// `float`: `(pixel / 255 - mean) / std` in the same order. Each value is taken to the nearest pixel first, so both kinds of
    /// image give the same outputs.
    TEC_NORMALIZED = 1,
    /// `uint8_t`: grey pixels, `[height, width]`; each is taken for all channels of an encoder that has several.
    TEC_GREY = 2,
}

/// What an encoder is.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct tec_info {
    /// Width and height of an image in pixels.
    pub image_size: u32,
    /// Width and height of a patch in pixels.
    pub patch_size: u32,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: u32,
    /// Values of a token.
    pub dim: u32,
    /// Blocks.
    pub depth: u32,
    /// Heads of a block.
    pub heads: u32,
    /// Hidden values of a block's MLP.
    pub hidden: u32,
    /// Patches of an image.
    pub patches: u32,
    /// Values of an image.
    pub image_len: usize,
    /// Logits of the classification head; 0 without one.
    pub classes: u32,
    /// Not 0 where the final norm is that of the mean alone.
    pub fc_norm: u32,
    /// The output that is meant as the image's embedding, a `tec_output_kind`.
    pub embedding: u32,
    /// How pixels were normalized in training: mean of each channel. Grey encoders use the first.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
}

/// What an output is. Its real values are its integers times `step`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct tec_output_info {
    /// Values; of patch tokens, those of all patches.
    pub len: usize,
    /// `step` is 2^-shift.
    pub shift: i32,
    /// A power of two.
    pub step: f32,
}

/// How an image is encoded. All zeros are the defaults, which a NULL in place of the options means, too.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tec_options {
    /// The patches to encode, by number, row by row from the top left, in the order of their outputs; NULL for all. Attention
    /// and mean are over these alone: a quarter of the patches is a quarter of the work, or less.
    pub patches: *const u32,
    /// How many those are; with all patches, 0.
    pub patches_len: usize,
    /// Shares of the tokens that are computed side by side, 0 for one: by threads where the library was built with the feature
    /// `std`, otherwise one after the other. The number changes time and scratch memory, and no bit of an output.
    pub workers: usize,
}

/// An image of the encoder's size. `tec_pixels`, `tec_grey` and `tec_normalized` make one.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tec_image {
    /// A `tec_image_kind`: what `values` points to.
    pub kind: u32,
    /// The values.
    pub values: *const c_void,
    /// How many values there are.
    pub len: usize,
}

/// Where an output goes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tec_values {
    /// The values; NULL for an output that is not wanted and not computed.
    pub values: *mut i16,
    /// How many there is room for: as many as the output has, exactly.
    pub len: usize,
}

/// Where the outputs go. Initialize it with zeros and set what is wanted, so that outputs of later versions are not.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct tec_outputs {
    /// `[dim]`.
    pub class_token: tec_values,
    /// `[dim]`.
    pub mean: tec_values,
    /// `[patches, dim]`, of the patches that are encoded.
    pub patches: tec_values,
    /// `[classes]`.
    pub logits: tec_values,
}
