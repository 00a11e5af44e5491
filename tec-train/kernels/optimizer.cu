// AdamW over all parameters at once, with the arithmetic of optim.rs: one rounding for each operation, no fused
// multiply-add, the same bits.
//
// Tensors are given by tables in device memory, one entry a tensor; `chunks` [n, 2] says of each block which tensor it works on
// and on which of its pieces of CHUNK elements.
#include "device.cuh"

constexpr u32 CHUNK = 16384;

// Each chunk's sum of squares in f64. Launch: blocks of 256 threads, one for each chunk.
KERNEL(squares_by_chunk, 256)(const float* const* gradients, const u64* lengths, const u32* chunks, double* partial) {
    SHARED(double, scratch, 8);
    const u32 tensor = chunks[2 * blockIdx.x];
    const u64 first = u64(chunks[2 * blockIdx.x + 1]) * CHUNK, length = lengths[tensor];
    const u64 end = length - first < CHUNK ? length : first + CHUNK;
    const float* gradient = gradients[tensor];
    double sum = 0.0;
    for (u64 at = first + threadIdx.x; at < end; at += blockDim.x) {
        const double value = double(gradient[at]);
        sum += value * value;
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
    }
}

// The square root of the sum of n values; NaN where one of the `count` losses is not finite. Launch: one block of 256 threads.
KERNEL(root_of_sum, 256)(const double* partial, const float* losses, double* norm, u32 n, u32 count) {
    SHARED(double, scratch, 8);
    double sum = 0.0;
    for (u32 at = threadIdx.x; at < n; at += blockDim.x) {
        sum += partial[at];
    }
    for (u32 at = threadIdx.x; at < count; at += blockDim.x) {
        sum += double(losses[at]) * 0.0;  // 0, or NaN
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        *norm = sqrt(sum);
    }
}

// One step of every parameter. Gradients are multiplied by min(clip / norm, 1); where the norm is not finite nothing changes.
// `clip` holds the bits of an f64, infinity for no limit. Tensors whose entry of `decays` is 0 do not decay.
// Where `rounded` has an address for a tensor, its new values go there as bf16, too.
// Launch: blocks of 256 threads, one for each chunk.
KERNEL(adamw, 256)
(float* const* parameters, const float* const* gradients, float* const* firsts, float* const* seconds,
 bf16* const* rounded, const u64* lengths, const u32* decays, const u32* chunks, const double* norm, u64 clip, float beta1, float rest1, float beta2,
 float rest2, float decay, float step_size, float correction, float eps) {
    const double value = *norm;
    if (!(value - value == 0.0)) {
        return;  // NaN or infinite
    }
    union {
        u64 bits;
        double value;
    } most = {clip};
    const double ratio = most.value / value;
    const float scale = float(ratio < 1.0 ? ratio : 1.0);
    const u32 tensor = chunks[2 * blockIdx.x];
    const u64 first = u64(chunks[2 * blockIdx.x + 1]) * CHUNK, length = lengths[tensor];
    const u64 end = length - first < CHUNK ? length : first + CHUNK;
    float* parameter = parameters[tensor];
    const float* gradient = gradients[tensor];
    float* mean = firsts[tensor];
    float* square = seconds[tensor];
    bf16* copy = rounded[tensor];
    const float kept = decays[tensor] ? decay : 1.0f;
    for (u64 at = first + threadIdx.x; at < end; at += blockDim.x) {
        const float g = __fmul_rn(gradient[at], scale);
        const float m = __fadd_rn(__fmul_rn(beta1, mean[at]), __fmul_rn(rest1, g));
        const float v = __fadd_rn(__fmul_rn(beta2, square[at]), __fmul_rn(rest2, __fmul_rn(g, g)));
        const float root = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), correction), eps);
        mean[at] = m;
        square[at] = v;
        const float updated = __fsub_rn(__fmul_rn(parameter[at], kept), __fmul_rn(step_size, __fdiv_rn(m, root)));
        parameter[at] = updated;
        if (copy != nullptr) {
            copy[at] = to_bf16(updated);
        }
    }
}
