/*
 * The integer encoder of TEC for programs in C and C++; written by cbindgen, edit tec-edge-c/src instead.
 *
 * Nothing is allocated. A program brings the encoder file, which is read in place (from flash), an encoder of its own,
 * scratch memory and room for the outputs:
 *
 *     static _Alignas(TEC_ALIGNMENT) uint8_t scratch[32768];
 *     tec_encoder encoder;
 *     tec_error error;
 *     tec_outputs outputs = {0};
 *     outputs.mean = (tec_values){embedding, DIM};
 *     if (tec_encoder_open(&encoder, file, file_len, &error) != TEC_OK ||
 *         tec_encode(&encoder, NULL, tec_pixels(pixels, pixels_len), scratch, sizeof scratch, &outputs, &error) != TEC_OK) {
 *         char text[TEC_ERROR_TEXT_LEN];
 *         tec_error_text(&error, text, sizeof text);
 *     }
 *
 * Of every pointer: it is NULL, or points to as many values as the function or the length beside it says, which nothing else
 * writes during the call. NULL where a pointer is needed is an error code, and so is memory that is not aligned or overlaps.
 * A pointer to a tec_error may always be NULL. Functions keep nothing between calls, but for the file that an encoder refers to.
 */

#ifndef TEC_EDGE_H
#define TEC_EDGE_H

#include <stddef.h>
#include <stdint.h>

/**
 * What encoder files and scratch memory are aligned to, in bytes.
 */
#define TEC_ALIGNMENT 16

/**
 * The version of encoder files that this library reads.
 */
#define TEC_FILE_VERSION 4

/**
 * Bytes of the longest text that `tec_error_text` writes, with its terminator.
 */
#define TEC_ERROR_TEXT_LEN 256

/**
 * Words of a `tec_encoder`.
 */
#define TEC_ENCODER_WORDS 32

/**
 * Words of a `tec_error`.
 */
#define TEC_ERROR_WORDS 10

/**
 * What a function returns: done, or why not. `tec_error_text` says it in a sentence.
 */
enum tec_code
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Done.
   */
  TEC_OK = 0,
  /**
   * A pointer is NULL that must not be.
   */
  TEC_ERROR_NULL = 1,
  /**
   * The encoder was not opened, or opening it failed.
   */
  TEC_ERROR_NOT_OPEN = 2,
  /**
   * A kind of image or output that this library does not have.
   */
  TEC_ERROR_KIND = 3,
  /**
   * Memory that is written overlaps other memory of the call.
   */
  TEC_ERROR_OVERLAP = 4,
  /**
   * A pointer is not aligned.
   */
  TEC_ERROR_MISALIGNED = 5,
  /**
   * Something has another length than this encoder needs.
   */
  TEC_ERROR_LENGTH = 6,
  /**
   * A patch to encode that the image does not have.
   */
  TEC_ERROR_PATCH = 7,
  /**
   * The image holds a NaN.
   */
  TEC_ERROR_NAN = 8,
  /**
   * The file does not begin as encoder files do.
   */
  TEC_ERROR_NOT_AN_ENCODER = 9,
  /**
   * The file is of a version that this library does not read.
   */
  TEC_ERROR_VERSION = 10,
  /**
   * The file is damaged.
   */
  TEC_ERROR_CHECKSUM = 11,
  /**
   * A number in the file's header is outside what encoders can have.
   */
  TEC_ERROR_HEADER = 12,
  /**
   * The file needs something that this library does not do.
   */
  TEC_ERROR_UNSUPPORTED = 13,
  /**
   * A section of the file is not where or what the header says.
   */
  TEC_ERROR_SECTION = 14,
  /**
   * Anything else; the text says what.
   */
  TEC_ERROR_OTHER = 15,
  /**
   * An output that this encoder does not have: logits without a head.
   */
  TEC_ERROR_NO_OUTPUT = 16,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tec_code tec_code;
#else
typedef int32_t tec_code;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The outputs of an encoder. Their sum is a choice of several.
 */
enum tec_output_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * The class token after the final norm, `[dim]`; the token itself where `fc_norm` is not 0.
   */
  TEC_CLASS = 1,
  /**
   * The mean of the patch tokens after the final norm, `[dim]`; the norm of their mean where `fc_norm` is not 0.
   */
  TEC_MEAN = 2,
  /**
   * The patch tokens after the final norm, `[patches, dim]`; the tokens themselves where `fc_norm` is not 0.
   */
  TEC_PATCHES = 4,
  /**
   * The classification head's outputs, `[classes]`, of encoders that have one.
   */
  TEC_LOGITS = 8,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tec_output_kind tec_output_kind;
#else
typedef uint32_t tec_output_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How an image's values are to be read.
 */
enum tec_image_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * `uint8_t`: pixels as a camera gives them, `[height, width, channels]`, rows from the top, red first.
   */
  TEC_PIXELS = 0,
  /**
   * `float`: `(pixel / 255 - mean) / std` in the same order. Each value is taken to the nearest pixel first, so both kinds of
   * image give the same outputs.
   */
  TEC_NORMALIZED = 1,
  /**
   * `uint8_t`: grey pixels, `[height, width]`; each is taken for all channels of an encoder that has several.
   */
  TEC_GREY = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum tec_image_kind tec_image_kind;
#else
typedef uint32_t tec_image_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * An encoder: the caller's memory, written by `tec_encoder_open`. It may be copied, and used by several threads at a time.
 */
typedef struct tec_encoder {
  /**
   * The library's own.
   */
  uint64_t opaque[TEC_ENCODER_WORDS];
} tec_encoder;

/**
 * Why a call failed, for `tec_error_text`. Functions write it where the pointer to it is not NULL, after success, too.
 */
typedef struct tec_error {
  /**
   * A `tec_code`: what the function returned.
   */
  int32_t code;
  /**
   * The library's own.
   */
  uint64_t opaque[TEC_ERROR_WORDS];
} tec_error;

/**
 * What an encoder is.
 */
typedef struct tec_info {
  /**
   * Width and height of an image in pixels.
   */
  uint32_t image_size;
  /**
   * Width and height of a patch in pixels.
   */
  uint32_t patch_size;
  /**
   * 1 (grey) or 3 (red, green, blue).
   */
  uint32_t channels;
  /**
   * Values of a token.
   */
  uint32_t dim;
  /**
   * Blocks.
   */
  uint32_t depth;
  /**
   * Heads of a block.
   */
  uint32_t heads;
  /**
   * Hidden values of a block's MLP.
   */
  uint32_t hidden;
  /**
   * Patches of an image.
   */
  uint32_t patches;
  /**
   * Values of an image.
   */
  size_t image_len;
  /**
   * Logits of the classification head; 0 without one.
   */
  uint32_t classes;
  /**
   * Not 0 where the final norm is that of the mean alone.
   */
  uint32_t fc_norm;
  /**
   * The output that is meant as the image's embedding, a `tec_output_kind`.
   */
  uint32_t embedding;
  /**
   * How pixels were normalized in training: mean of each channel. Grey encoders use the first.
   */
  float mean[3];
  /**
   * Standard deviation of each channel.
   */
  float std[3];
} tec_info;

/**
 * What an output is. Its real values are its integers times `step`.
 */
typedef struct tec_output_info {
  /**
   * Values; of patch tokens, those of all patches.
   */
  size_t len;
  /**
   * `step` is 2^-shift.
   */
  int32_t shift;
  /**
   * A power of two.
   */
  float step;
} tec_output_info;

/**
 * How an image is encoded. All zeros are the defaults, which a NULL in place of the options means, too.
 */
typedef struct tec_options {
  /**
   * The patches to encode, by number, row by row from the top left, in the order of their outputs; NULL for all. Attention
   * and mean are over these alone: a quarter of the patches is a quarter of the work, or less.
   */
  const uint32_t *patches;
  /**
   * How many those are; with all patches, 0.
   */
  size_t patches_len;
  /**
   * Shares of the tokens that are computed side by side, 0 for one: by threads where the library was built with the feature
   * `std`, otherwise one after the other. The number changes time and scratch memory, and no bit of an output.
   */
  size_t workers;
} tec_options;

/**
 * An image of the encoder's size. `tec_pixels`, `tec_grey` and `tec_normalized` make one.
 */
typedef struct tec_image {
  /**
   * A `tec_image_kind`: what `values` points to.
   */
  uint32_t kind;
  /**
   * The values.
   */
  const void *values;
  /**
   * How many values there are.
   */
  size_t len;
} tec_image;

/**
 * Where an output goes.
 */
typedef struct tec_values {
  /**
   * The values; NULL for an output that is not wanted and not computed.
   */
  int16_t *values;
  /**
   * How many there is room for: as many as the output has, exactly.
   */
  size_t len;
} tec_values;

/**
 * Where the outputs go. Initialize it with zeros and set what is wanted, so that outputs of later versions are not.
 */
typedef struct tec_outputs {
  /**
   * `[dim]`.
   */
  struct tec_values class_token;
  /**
   * `[dim]`.
   */
  struct tec_values mean;
  /**
   * `[patches, dim]`, of the patches that are encoded.
   */
  struct tec_values patches;
  /**
   * `[classes]`.
   */
  struct tec_values logits;
} tec_outputs;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The library's version, such as "0.1.0".
 */
const char *tec_version(void);

/**
 * Opens the encoder file that lies at `bytes`, at a boundary of `TEC_ALIGNMENT`: checks it whole and refers to it; nothing
 * is copied or unpacked. The bytes must stay as they are for as long as the encoder is used.
 *
 * Fails with any code but those for images and patches; the encoder is not open then. No bytes make this, or later calls,
 * crash or read elsewhere.
 */
tec_code tec_encoder_open(struct tec_encoder *encoder,
                          const uint8_t *bytes,
                          size_t len,
                          struct tec_error *error);

/**
 * What the encoder is. Fails with `TEC_ERROR_NULL`, `TEC_ERROR_MISALIGNED`, `TEC_ERROR_NOT_OPEN`.
 */
tec_code tec_encoder_info(const struct tec_encoder *encoder, struct tec_info *info, struct tec_error *error);

/**
 * Writes the encoder's name, UTF-8, which may be empty; as `tec_error_text` writes. 0 where the encoder is not open.
 */
size_t tec_encoder_name(const struct tec_encoder *encoder, char *text, size_t len);

/**
 * Writes the name of what computes, such as "dsp", "neon" or "scalar"; as `tec_error_text` writes. All give the same bits. 0
 * where the encoder is not open.
 */
size_t tec_encoder_back_end(const struct tec_encoder *encoder,
                            char *text,
                            size_t len);

/**
 * Length and scale of an output, a `tec_output_kind`. Fails with `TEC_ERROR_NULL`, `TEC_ERROR_MISALIGNED`, `TEC_ERROR_NOT_OPEN`,
 * `TEC_ERROR_KIND`.
 */
tec_code tec_encoder_output(const struct tec_encoder *encoder,
                            uint32_t kind,
                            struct tec_output_info *info,
                            struct tec_error *error);

/**
 * Bytes of scratch memory that `tec_encode` needs with these options (NULL for the defaults) for these outputs, a sum of
 * `tec_output_kind`, exactly. It is the least; with more, up to `tec_encoder_fast_scratch_len`, each row of weights that is read
 * serves more tokens. 0 where the encoder is not open, or there is no such option or output.
 */
size_t tec_encoder_scratch_len(const struct tec_encoder *encoder,
                               const struct tec_options *options,
                               uint32_t outputs);

/**
 * Bytes of scratch memory with which `tec_encode` is fastest on a computer with caches; otherwise as `tec_encoder_scratch_len`.
 */
size_t tec_encoder_fast_scratch_len(const struct tec_encoder *encoder,
                                    const struct tec_options *options,
                                    uint32_t outputs);

/**
 * An image of pixels, `[height, width, channels]`, rows from the top, red first.
 */
struct tec_image tec_pixels(const uint8_t *values, size_t len);

/**
 * An image of grey pixels, `[height, width]`, rows from the top.
 */
struct tec_image tec_grey(const uint8_t *values, size_t len);

/**
 * An image of normalized values, `(pixel / 255 - mean) / std`, in the same order; `len` values.
 */
struct tec_image tec_normalized(const float *values, size_t len);

/**
 * Encodes one image. `options` may be NULL. `scratch` must start at a boundary of `TEC_ALIGNMENT` and have
 * `tec_encoder_scratch_len` bytes or more; what it held before does not matter, and nothing in it is needed afterwards.
 *
 * Scratch memory and outputs may overlap neither each other nor the image, the encoder, its file or the list of patches:
 * `TEC_ERROR_OVERLAP`. Other failures: `TEC_ERROR_NULL`, `TEC_ERROR_NOT_OPEN`, `TEC_ERROR_KIND`, `TEC_ERROR_MISALIGNED`,
 * `TEC_ERROR_LENGTH`, `TEC_ERROR_PATCH`, `TEC_ERROR_NAN`, `TEC_ERROR_NO_OUTPUT`. The outputs are untouched then.
 */
tec_code tec_encode(const struct tec_encoder *encoder,
                    const struct tec_options *options,
                    struct tec_image image,
                    uint8_t *scratch,
                    size_t scratch_len,
                    const struct tec_outputs *outputs,
                    struct tec_error *error);

/**
 * An output's real values, exactly: `out[i] = values[i] * step`, `len` of them. Fails with `TEC_ERROR_NULL`,
 * `TEC_ERROR_MISALIGNED`, `TEC_ERROR_LENGTH` (more than memory holds), `TEC_ERROR_NOT_OPEN`, `TEC_ERROR_KIND`,
 * `TEC_ERROR_OVERLAP`.
 */
tec_code tec_to_float(const struct tec_encoder *encoder,
                      uint32_t kind,
                      const int16_t *values,
                      size_t len,
                      float *out,
                      struct tec_error *error);

/**
 * Writes why a call failed, as a sentence with what was expected and what came, into `len` bytes at `text`, with its terminator;
 * what does not fit is cut off (`TEC_ERROR_TEXT_LEN` bytes hold all). Returns the length of the whole text without the terminator,
 * as `snprintf` does.
 */
size_t tec_error_text(const struct tec_error *error,
                      char *text,
                      size_t len);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TEC_EDGE_H */
