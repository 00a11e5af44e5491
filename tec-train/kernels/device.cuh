// What all kernels need: CUDA or its emulation on a CPU, element types, vector accesses, sums in a fixed order.
//
// No kernel uses atomic operations, and every sum has one order that depends on sizes alone, not on the GPU: the same
// arguments give the same bits.
#pragma once

#ifdef __CUDACC__
// `KERNEL(name, threads)(arguments) { .. }` defines a kernel for blocks of at most `threads` threads.
#define KERNEL(name, threads) extern "C" __global__ void __launch_bounds__(threads) name
// Declares the memory that the launch gives a block.
#define DYNAMIC_SHARED(type, name)                                            \
    extern __shared__ __align__(16) unsigned char dynamic_shared_memory[]; \
    type* const name = reinterpret_cast<type*>(dynamic_shared_memory)
// Declares memory of a block of a size that is known here.
#define SHARED(type, name, count) __shared__ type name[count]
#define INFINITE __int_as_float(0x7f800000)
#else
#include "lanes.h"
#define INFINITE HUGE_VALF
#endif

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

constexpr u32 ALL_LANES = 0xffffffffu;

// The upper half of a float's bits.
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// The nearest bf16, ties to even.
__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 y;
#ifdef __CUDACC__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    const u32 bits = __float_as_uint(x);
    y.bits = x != x ? 0x7fff : u16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
    return y;
}

// Two as one word, `low` in its lower half.
__device__ __forceinline__ u32 to_bf16x2(float low, float high) {
#ifdef __CUDACC__
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#else
    return u32(to_bf16(low).bits) | u32(to_bf16(high).bits) << 16;
#endif
}

__device__ __forceinline__ void store(float* place, float x) { *place = x; }

__device__ __forceinline__ void store(bf16* place, float x) { *place = to_bf16(x); }

// Two neighbors in one access, aligned to it.
__device__ __forceinline__ void store2(float* place, float x, float y) {
    float2 v;
    v.x = x, v.y = y;
    *reinterpret_cast<float2*>(place) = v;
}

__device__ __forceinline__ void store2(bf16* place, float x, float y) { *reinterpret_cast<u32*>(place) = to_bf16x2(x, y); }

__device__ __forceinline__ bool is_aligned(const void* pointer, u32 bytes) {
    return reinterpret_cast<u64>(pointer) % bytes == 0;
}

// Four neighbors in one access: 16 bytes of float, 8 of bf16, aligned to as many.
__device__ __forceinline__ void load4(const float* from, float (&x)[4]) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

__device__ __forceinline__ void unpack(u32 both, float& low, float& high) {
    low = __uint_as_float(both << 16);
    high = __uint_as_float(both & 0xffff0000u);
}

__device__ __forceinline__ void load4(const bf16* from, float (&x)[4]) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    unpack(v.x, x[0], x[1]);
    unpack(v.y, x[2], x[3]);
}

__device__ __forceinline__ void store4(float* to, const float (&x)[4]) {
    float4 v;
    v.x = x[0], v.y = x[1], v.z = x[2], v.w = x[3];
    *reinterpret_cast<float4*>(to) = v;
}

__device__ __forceinline__ void store4(bf16* to, const float (&x)[4]) {
    uint2 v;
    v.x = to_bf16x2(x[0], x[1]), v.y = to_bf16x2(x[2], x[3]);
    *reinterpret_cast<uint2*>(to) = v;
}

// Whether rows of `width` elements can be read four at a time.
template <typename T>
__device__ __forceinline__ bool in_fours(const T* rows, u32 width) {
    return width % 4 == 0 && is_aligned(rows, 4 * sizeof(T));
}

// Eight neighbors: 16 bytes of bf16, twice 16 of float.
__device__ __forceinline__ void load8(const float* from, float (&x)[8]) {
    const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
    x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

__device__ __forceinline__ void load8(const bf16* from, float (&x)[8]) {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    unpack(v.x, x[0], x[1]);
    unpack(v.y, x[2], x[3]);
    unpack(v.z, x[4], x[5]);
    unpack(v.w, x[6], x[7]);
}

__device__ __forceinline__ void store8(float* to, const float (&x)[8]) {
    float4 a, b;
    a.x = x[0], a.y = x[1], a.z = x[2], a.w = x[3];
    b.x = x[4], b.y = x[5], b.z = x[6], b.w = x[7];
    reinterpret_cast<float4*>(to)[0] = a;
    reinterpret_cast<float4*>(to)[1] = b;
}

__device__ __forceinline__ void store8(bf16* to, const float (&x)[8]) {
    uint4 v;
    v.x = to_bf16x2(x[0], x[1]), v.y = to_bf16x2(x[2], x[3]);
    v.z = to_bf16x2(x[4], x[5]), v.w = to_bf16x2(x[6], x[7]);
    *reinterpret_cast<uint4*>(to) = v;
}

// The sum over a warp; each lane has it, with the same bits: a + b is b + a.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (u32 distance = 16; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

// The largest over a warp, NaNs apart.
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (u32 distance = 16; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, x, distance);
        x = other > x ? other : x;
    }
    return x;
}

// The sum over a block of whole warps along x; each thread has it. `scratch` has a place for each warp.
template <typename T>
__device__ __forceinline__ T block_sum(T x, T* scratch) {
    x = warp_sum(x);
    __syncthreads();  // the sum before may still be read
    if (threadIdx.x % 32 == 0) {
        scratch[threadIdx.x / 32] = x;
    }
    __syncthreads();
    T sum = 0;
    for (u32 warp = 0; warp < blockDim.x / 32; ++warp) {
        sum += scratch[warp];
    }
    return sum;
}
