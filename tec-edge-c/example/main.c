/*
 * Encodes one image on a Cortex-M4 and prints its embedding: the whole program that calls tec_edge.
 *
 * The encoder file is linked into flash (encoder.S). The image would come from a camera; here it is a pattern.
 */
#include "console.h"
#include "tec_edge.h"

enum { SCRATCH = 32 * 1024, LARGEST_IMAGE = 32 * 32 * 3, LARGEST_DIM = 192, FIRST = 8 };

extern const uint8_t encoder_file[], encoder_file_end[];

static _Alignas(TEC_ALIGNMENT) uint8_t scratch[SCRATCH];
static uint8_t camera[LARGEST_IMAGE];
static int16_t embedding[LARGEST_DIM];
static tec_encoder encoder;
static tec_error error;

/* The library's sentence, and 1. */
static int failed(const char *what) {
    char text[TEC_ERROR_TEXT_LEN];
    tec_error_text(&error, text, sizeof text);
    print(what);
    print(": ");
    print(text);
    print("\n");
    return 1;
}

/* FNV-1a of the values' bytes, the low one first. */
static uint64_t checksum(const int16_t *values, size_t len) {
    uint64_t sum = UINT64_C(0xCBF29CE484222325);
    for (size_t i = 0; i < len; i++) {
        sum = (sum ^ ((uint16_t)values[i] & 0xFF)) * UINT64_C(0x100000001B3);
        sum = (sum ^ ((uint16_t)values[i] >> 8)) * UINT64_C(0x100000001B3);
    }
    return sum;
}

int main(void) {
    tec_info info;
    tec_output_info output;
    tec_outputs outputs = {0};

    if (tec_encoder_open(&encoder, encoder_file, (size_t)(encoder_file_end - encoder_file), &error) != TEC_OK)
        return failed("the encoder");
    if (tec_encoder_info(&encoder, &info, &error) != TEC_OK ||
        tec_encoder_output(&encoder, info.embedding, &output, &error) != TEC_OK)
        return failed("what the encoder is");
    if (info.image_len > sizeof camera || output.len > LARGEST_DIM) {
        print("the encoder is larger than this example's buffers\n");
        return 1;
    }

    for (size_t i = 0; i < info.image_len; i++) camera[i] = (uint8_t)(i * 89 % 251);

    tec_values *place = info.embedding == TEC_CLASS ? &outputs.class_token : &outputs.mean;
    place->values = embedding;
    place->len = output.len;
    if (tec_encode(&encoder, NULL, tec_pixels(camera, info.image_len), scratch, sizeof scratch, &outputs, &error) != TEC_OK)
        return failed("the image");

    print(info.embedding == TEC_CLASS ? "class: " : "mean: ");
    print_decimal((int32_t)output.len);
    print(" values, step 2^");
    print_decimal(-output.shift);
    print(", checksum ");
    print_hexadecimal(checksum(embedding, output.len));
    print(", first");
    for (size_t i = 0; i < FIRST && i < output.len; i++) {
        print(" ");
        print_decimal(embedding[i]);
    }
    print("\n");
    return 0;
}
