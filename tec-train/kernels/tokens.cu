// Moving tokens: pixels to images, images to patches, visible patches out of all, and back. All exact.
//
// Indices were checked by the host; one that is out of range all the same touches nothing outside.
#include "device.cuh"

// Copies a row with all threads of the block; `from` null gives zeros.
__device__ __forceinline__ void copy_row(const float* from, float* to, u32 width) {
    if (in_fours(to, width) && in_fours(from, width)) {
        for (u32 at = 4 * threadIdx.x; at < width; at += 4 * blockDim.x) {
            float x[4] = {};
            if (from != nullptr) {
                load4(from + at, x);
            }
            store4(to + at, x);
        }
        return;
    }
    for (u32 at = threadIdx.x; at < width; at += blockDim.x) {
        to[at] = from == nullptr ? 0.0f : from[at];
    }
}

// Images [B, C, H, W] of (value / 255 - mean) / std, rounded after each operation, from pixels u8 [B, H, W, C], C at most 3.
// Launch: blocks of 256 threads, a thread for each pixel; `pixels` = B · H · W, `plane` = H · W.
KERNEL(images_from_pixels, 256)
(const u8* from, float* images, u32 pixels, u32 plane, u32 channels, float mean0, float mean1, float mean2, float std0,
 float std1, float std2) {
    const u32 pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= pixels) {
        return;
    }
    const u32 image = pixel / plane, place = pixel % plane;
    for (u32 channel = 0; channel < channels; ++channel) {
        const float mean = channel == 0 ? mean0 : channel == 1 ? mean1 : mean2;
        const float deviation = channel == 0 ? std0 : channel == 1 ? std1 : std2;
        const float value = __fdiv_rn(float(from[u64(pixel) * channels + channel]), 255.0f);
        images[(u64(image) * channels + channel) * plane + place] = __fdiv_rn(__fsub_rn(value, mean), deviation);
    }
}

// Patches [B, L, patch · patch · C] of images [B, C, H, W]; within one the order is channel, row, column, or, where
// channels_last is not 0, row, column, channel. Launch: blocks of 256 threads, one for each patch of the batch.
KERNEL(patchify, 256)
(const float* images, float* patches, u32 channels, u32 height, u32 width, u32 patch, u32 channels_last) {
    const u32 columns = width / patch, count = (height / patch) * columns, length = patch * patch * channels;
    const u32 image = blockIdx.x / count, place = blockIdx.x % count;
    const float* corner = images + u64(image) * channels * height * width + (place / columns) * patch * width +
                          (place % columns) * patch;
    patches += u64(blockIdx.x) * length;
    for (u32 at = threadIdx.x; at < length; at += blockDim.x) {
        const u32 channel = channels_last ? at % channels : at / (patch * patch);
        const u32 within = channels_last ? at / channels : at % (patch * patch);
        patches[at] = corner[u64(channel) * height * width + within / patch * width + within % patch];
    }
}

// Tokens `index` [B, n] of x [B, L, width]: y [B, n, width]; zeros for a token that does not exist.
// Launch: blocks of 256 threads, one for each row of y.
KERNEL(gather_tokens, 256)(const float* x, const u32* index, float* y, u32 tokens, u32 n, u32 width) {
    const u32 image = blockIdx.x / n, token = index[blockIdx.x];
    copy_row(token < tokens ? x + (u64(image) * tokens + token) * width : nullptr, y + u64(blockIdx.x) * width, width);
}

// The gradient of x in gather_tokens from that of y: each token's is the sum of those of its copies, in their order.
// Launch: blocks of 256 threads, one for each row of grad_x [B, L, width].
KERNEL(gather_tokens_gradient, 256)(const float* grad, const u32* index, float* grad_x, u32 tokens, u32 n, u32 width) {
    const u32 image = blockIdx.x / tokens, token = blockIdx.x % tokens;
    index += u64(image) * n;
    grad += u64(image) * n * width;
    grad_x += u64(blockIdx.x) * width;
    for (u32 at = threadIdx.x; at < width; at += blockDim.x) {
        float sum = 0.0f;
        for (u32 row = 0; row < n; ++row) {
            if (index[row] == token) {
                sum += grad[u64(row) * width + at];
            }
        }
        grad_x[at] = sum;
    }
}

// Visible patches back in place and mask tokens everywhere else: x [B, visible, width] (class token first), mask_tokens
// [L, width], restore [B, L], y [B, 1 + L, width]. Launch: blocks of 256 threads, one for each row of y.
KERNEL(unmask, 256)
(const float* x, const float* mask_tokens, const u32* restore, float* y, u32 visible, u32 patches, u32 width) {
    const u32 image = blockIdx.x / (1 + patches), token = blockIdx.x % (1 + patches);
    const u32 place = token == 0 ? 0 : restore[u64(image) * patches + token - 1];
    const u32 row = token == 0 ? 0 : 1 + place;
    // A place so large that 1 + place wraps around is masked, too.
    const bool masked = token > 0 && place >= visible - 1;
    copy_row(masked ? mask_tokens + u64(token - 1) * width : x + (u64(image) * visible + row) * width,
             y + u64(blockIdx.x) * width, width);
}

// The gradient of x [B, visible, width] in unmask, from grad [B, 1 + L, width]; `restore` holds each place once.
// Launch: blocks of 256 threads, one for each row of grad.
KERNEL(unmask_gradient_visible, 256)
(const float* grad, const u32* restore, float* grad_x, u32 visible, u32 patches, u32 width) {
    const u32 image = blockIdx.x / (1 + patches), token = blockIdx.x % (1 + patches);
    const u32 place = token == 0 ? 0 : restore[u64(image) * patches + token - 1];
    if (token > 0 && place >= visible - 1) {
        return;
    }
    const u32 row = token == 0 ? 0 : 1 + place;
    copy_row(grad + u64(blockIdx.x) * width, grad_x + (u64(image) * visible + row) * width, width);
}

// The gradient of mask_tokens [L, width] in unmask: for each patch the sum over the images that lack it, in their order.
// Launch: blocks of 128 threads; block (x, y) has 128 columns of patch x.
KERNEL(unmask_gradient_masked, 128)
(const float* grad, const u32* restore, float* grad_tokens, u32 images, u32 visible, u32 patches, u32 width) {
    const u32 patch = blockIdx.x, at = blockIdx.y * blockDim.x + threadIdx.x;
    if (at >= width) {
        return;
    }
    float sum = 0.0f;
    for (u32 image = 0; image < images; ++image) {
        if (restore[u64(image) * patches + patch] >= visible - 1) {
            sum += grad[(u64(image) * (1 + patches) + 1 + patch) * width + at];
        }
    }
    grad_tokens[u64(patch) * width + at] = sum;
}
