// Operations on each element by itself. Blocks of 256 threads, each for 2048 elements; any number of elements and any
// alignment, fastest where all pointers are multiples of 16 bytes.
#include "device.cuh"

constexpr u32 PER_BLOCK = 2048;

// Neighbors that a thread takes at once: 16 bytes of the widest type.
template <typename... T>
constexpr u32 PACK = sizeof...(T) * sizeof(bf16) == (sizeof(T) + ...) ? 8 : 4;

template <typename T>
__device__ __forceinline__ void load_pack(const T* from, float (&x)[4]) {
    load4(from, x);
}

template <typename T>
__device__ __forceinline__ void load_pack(const T* from, float (&x)[8]) {
    load8(from, x);
}

template <typename T>
__device__ __forceinline__ void store_pack(T* to, const float (&x)[4]) {
    store4(to, x);
}

template <typename T>
__device__ __forceinline__ void store_pack(T* to, const float (&x)[8]) {
    store8(to, x);
}

// y = F(x), both of n elements.
template <typename F, typename Out, typename In>
__device__ __forceinline__ void map(const In* x, Out* y, u64 n) {
    constexpr u32 N = PACK<In, Out>;
    const u64 start = u64(blockIdx.x) * PER_BLOCK;
    if (start + PER_BLOCK <= n && is_aligned(x, 16) && is_aligned(y, 16)) {
        // All loads before the first store, which could be to the same place for all that the compiler knows.
        float in[8 / N][N];
#pragma unroll
        for (u32 j = 0; j < 8 / N; ++j) {
            load_pack(x + start + N * (threadIdx.x + 256 * j), in[j]);
        }
#pragma unroll
        for (u32 j = 0; j < 8 / N; ++j) {
#pragma unroll
            for (u32 i = 0; i < N; ++i) {
                in[j][i] = F::of(in[j][i]);
            }
            store_pack(y + start + N * (threadIdx.x + 256 * j), in[j]);
        }
        return;
    }
    for (u64 at = start + threadIdx.x; at < n && at < start + PER_BLOCK; at += blockDim.x) {
        store(y + at, F::of(to_float(x[at])));
    }
}

// y = F(a, b), all of n elements.
template <typename F, typename Out, typename A, typename B>
__device__ __forceinline__ void map(const A* a, const B* b, Out* y, u64 n) {
    constexpr u32 N = PACK<A, B, Out>;
    const u64 start = u64(blockIdx.x) * PER_BLOCK;
    if (start + PER_BLOCK <= n && is_aligned(a, 16) && is_aligned(b, 16) && is_aligned(y, 16)) {
        float first[8 / N][N], second[8 / N][N];
#pragma unroll
        for (u32 j = 0; j < 8 / N; ++j) {
            load_pack(a + start + N * (threadIdx.x + 256 * j), first[j]);
            load_pack(b + start + N * (threadIdx.x + 256 * j), second[j]);
        }
#pragma unroll
        for (u32 j = 0; j < 8 / N; ++j) {
#pragma unroll
            for (u32 i = 0; i < N; ++i) {
                first[j][i] = F::of(first[j][i], second[j][i]);
            }
            store_pack(y + start + N * (threadIdx.x + 256 * j), first[j]);
        }
        return;
    }
    for (u64 at = start + threadIdx.x; at < n && at < start + PER_BLOCK; at += blockDim.x) {
        store(y + at, F::of(to_float(a[at]), to_float(b[at])));
    }
}

struct Same {
    static __device__ __forceinline__ float of(float x) { return x; }
};

struct Sum {
    static __device__ __forceinline__ float of(float a, float b) { return a + b; }
};

// For a >= 0 of the standard normal distribution: the probability of more than a, and e = e^(-a^2 / 2). The polynomial is
// that of tec_core::activation.
__device__ __forceinline__ float upper_tail(float a, float& e) {
    e = expf(-0.5f * (a * a));
    const float t = 3.5f / (3.5f + a);
    const float u = 2.0f * t - 1.0f;
    float p = -3.1625543e-5f;
    p = p * u + 1.2054224e-4f;
    p = p * u + 1.4141248e-4f;
    p = p * u - 9.072317e-4f;
    p = p * u - 1.855176e-3f;
    p = p * u + 4.973251e-3f;
    p = p * u + 3.315801e-2f;
    p = p * u + 9.012144e-2f;
    p = p * u + 1.6159007e-1f;
    p = p * u + 2.1269031e-1f;
    return e * (t * p);
}

// x · Φ(x), with the error function.
struct Gelu {
    static __device__ __forceinline__ float of(float x) {
        float e;
        const float tail = upper_tail(fabsf(x), e);
        return x * (x < 0.0f ? tail : 1.0f - tail);
    }
};

// (Φ(x) + x · φ(x)) · grad
struct GeluGradient {
    static __device__ __forceinline__ float of(float x, float grad) {
        float e;
        const float tail = upper_tail(fabsf(x), e);
        return grad * ((x < 0.0f ? tail : 1.0f - tail) + x * (e * 0.3989423f));
    }
};

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct QuickGelu {
    static __device__ __forceinline__ float of(float x) { return x * sigmoid(1.702f * x); }
};

// silu(gate) · value of one row a block: x [rows, 2 H], gates first, y [rows, H].
template <typename T>
__device__ __forceinline__ void gated(const T* x, T* y, u32 hidden) {
    const T* gates = x + u64(blockIdx.x) * 2 * hidden;
    const T* values = gates + hidden;
    y += u64(blockIdx.x) * hidden;
    if (in_fours(x, hidden) && in_fours(y, hidden)) {
        for (u32 at = 4 * threadIdx.x; at < hidden; at += 4 * blockDim.x) {
            float gate[4], value[4];
            load4(gates + at, gate);
            load4(values + at, value);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                value[i] = gate[i] * sigmoid(gate[i]) * value[i];
            }
            store4(y + at, value);
        }
        return;
    }
    for (u32 at = threadIdx.x; at < hidden; at += blockDim.x) {
        const float gate = to_float(gates[at]);
        store(y + at, gate * sigmoid(gate) * to_float(values[at]));
    }
}

// A copy in another type.
KERNEL(cast_f32_bf16, 256)(const float* x, bf16* y, u64 n) { map<Same>(x, y, n); }
KERNEL(cast_bf16_f32, 256)(const bf16* x, float* y, u64 n) { map<Same>(x, y, n); }

// y = a + b; y may be either.
KERNEL(add_f32, 256)(const float* a, const float* b, float* y, u64 n) { map<Sum>(a, b, y, n); }

// y = a + b where b is bf16: a residual connection behind a product in bf16; y may be a.
KERNEL(add_f32_bf16, 256)(const float* a, const bf16* b, float* y, u64 n) { map<Sum>(a, b, y, n); }

KERNEL(gelu_f32, 256)(const float* x, float* y, u64 n) { map<Gelu>(x, y, n); }
KERNEL(gelu_bf16, 256)(const bf16* x, bf16* y, u64 n) { map<Gelu>(x, y, n); }

// The gradient of x from that of gelu(x); may be written over either.
KERNEL(gelu_gradient_f32, 256)(const float* x, const float* grad, float* grad_x, u64 n) {
    map<GeluGradient>(x, grad, grad_x, n);
}
KERNEL(gelu_gradient_bf16, 256)(const bf16* x, const bf16* grad, bf16* grad_x, u64 n) {
    map<GeluGradient>(x, grad, grad_x, n);
}

KERNEL(quick_gelu_f32, 256)(const float* x, float* y, u64 n) { map<QuickGelu>(x, y, n); }
KERNEL(quick_gelu_bf16, 256)(const bf16* x, bf16* y, u64 n) { map<QuickGelu>(x, y, n); }

// Blocks of 256 threads, one for each row.
KERNEL(swiglu_f32, 256)(const float* x, float* y, u32 hidden) { gated(x, y, hidden); }
KERNEL(swiglu_bf16, 256)(const bf16* x, bf16* y, u32 hidden) { gated(x, y, hidden); }
