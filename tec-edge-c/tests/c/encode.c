/* Encodes an image file of pixels with an encoder file, from C, and prints the outputs; then makes mistakes and prints what they are
 * called. tests/c_program.rs compares. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tec_edge.h"

static tec_error error;

static void fail(const char *what) {
    char text[TEC_ERROR_TEXT_LEN];
    tec_error_text(&error, text, sizeof text);
    fprintf(stderr, "%s: %s\n", what, text);
    exit(1);
}

static void show(const char *name, tec_code code) {
    char text[TEC_ERROR_TEXT_LEN];
    tec_error_text(&error, text, sizeof text);
    printf("%s %d %s\n", name, (int)code, text);
}

/* A file's bytes at a 16-byte boundary. */
static uint8_t *load(const char *path, size_t *len) {
    FILE *file = fopen(path, "rb");
    uint8_t *bytes;
    if (!file || fseek(file, 0, SEEK_END)) exit(2);
    *len = (size_t)ftell(file);
    rewind(file);
    bytes = aligned_alloc(TEC_ALIGNMENT, (*len + TEC_ALIGNMENT) / TEC_ALIGNMENT * TEC_ALIGNMENT);
    if (!bytes || fread(bytes, 1, *len, file) != *len) exit(2);
    fclose(file);
    return bytes;
}

static void print_output(const tec_encoder *encoder, const char *name, uint32_t kind, tec_values output) {
    float *real = malloc(output.len * sizeof *real);
    printf("%s", name);
    if (!real || tec_to_float(encoder, kind, output.values, output.len, real, &error)) fail("to float");
    for (size_t i = 0; i < output.len; i++) printf(" %d", output.values[i]);
    printf("\n%s-float", name);
    for (size_t i = 0; i < output.len; i++) printf(" %.9g", (double)real[i]);
    printf("\n");
    free(real);
}

static tec_values room(const tec_encoder *encoder, uint32_t kind) {
    tec_output_info info;
    tec_values values;
    if (tec_encoder_output(encoder, kind, &info, &error)) fail("output");
    values.len = info.len;
    values.values = malloc(info.len * sizeof(int16_t));
    return values;
}

int main(int count, char **arguments) {
    size_t file_len, pixels_len, scratch_len;
    uint8_t *file, *pixels, *scratch;
    tec_encoder encoder;
    tec_info info;
    tec_outputs outputs;
    tec_options workers;
    char name[64];

    if (count != 3) return 2;
    file = load(arguments[1], &file_len);
    pixels = load(arguments[2], &pixels_len);
    if (tec_encoder_open(&encoder, file, file_len, &error)) fail("open");
    if (tec_encoder_info(&encoder, &info, &error)) fail("info");
    tec_encoder_name(&encoder, name, sizeof name);
    printf("%s, version %s, %" PRIu32 " patches of dim %" PRIu32 "\n", name, tec_version(), info.patches, info.dim);

    memset(&outputs, 0, sizeof outputs);
    memset(&workers, 0, sizeof workers);
    workers.workers = 2;
    outputs.class_token = room(&encoder, TEC_CLASS);
    outputs.mean = room(&encoder, TEC_MEAN);
    outputs.patches = room(&encoder, TEC_PATCHES);
    scratch_len = tec_encoder_scratch_len(&encoder, &workers, TEC_CLASS + TEC_MEAN + TEC_PATCHES);
    scratch = aligned_alloc(TEC_ALIGNMENT, scratch_len);
    if (tec_encode(&encoder, &workers, tec_pixels(pixels, pixels_len), scratch, scratch_len, &outputs, &error)) fail("encode");
    print_output(&encoder, "class", TEC_CLASS, outputs.class_token);
    print_output(&encoder, "mean", TEC_MEAN, outputs.mean);
    print_output(&encoder, "patches", TEC_PATCHES, outputs.patches);

    show("short", tec_encode(&encoder, NULL, tec_pixels(pixels, pixels_len - 1), scratch, scratch_len, &outputs, &error));
    show("null", tec_encode(&encoder, NULL, tec_pixels(pixels, pixels_len), NULL, scratch_len, &outputs, &error));
    file[file_len / 2] ^= 1;
    show("damaged", tec_encoder_open(&encoder, file, file_len, &error));
    show("closed", tec_encoder_info(&encoder, &info, &error));

    free(outputs.class_token.values);
    free(outputs.mean.values);
    free(outputs.patches.values);
    free(scratch);
    free(pixels);
    free(file);
    return 0;
}
