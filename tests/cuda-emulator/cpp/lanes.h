// The part of CUDA C++ that the kernels use, on a CPU: a kernel is an ordinary function, each thread of a block a fiber
// that runs until it has to wait for others. Blocks run one after another.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

struct uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

#define __device__
#define __forceinline__ inline __attribute__((always_inline))

// A kernel's definition, `KERNEL(name, threads)(arguments) { .. }`, for blocks of at most `threads` threads. The build script
// looks for these two names in the preprocessed sources.
#define KERNEL(name, threads)                                  \
    extern const unsigned kernel_threads_##name = threads;     \
    void kernel_entry_##name
// The memory that the launch gives a block, and memory of a size that the kernel gives: a declaration each.
#define DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(lanes::dynamic_shared())
#define SHARED(type, name, count) static __thread type name[count]

// POD and __thread: no call stands between a kernel and its number.
extern __thread uint3 threadIdx;
extern __thread uint3 blockIdx;
extern __thread uint3 blockDim;
extern __thread uint3 gridDim;

namespace lanes {

// The largest value that a lane can show its warp.
constexpr unsigned SLOT = 64;

struct alignas(16) Slot {
    unsigned char bytes[SLOT];
};

// The number of this thread within its warp.
unsigned lane();

// Shows `value` to the warp and waits until all its lanes have done so; gives what they showed, by lane. The last lane to
// come runs `complete` on it first. All must name the same operation.
Slot* exchange(const char* operation, const void* value, unsigned bytes, void (*complete)(Slot*) = nullptr);

// Waits for the block.
void barrier();

void* dynamic_shared();

// Ends the launch with an error.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

template <typename T>
T shown_by(const char* operation, unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) <= SLOT, "the value is too large for a slot");
    if (mask != 0xffffffffu) {
        fail("%s with the mask %x: only whole warps are known here", operation, mask);
    }
    const Slot* slots = exchange(operation, &value, sizeof value);
    T shown;
    std::memcpy(&shown, slots[source].bytes, sizeof shown);
    return shown;
}

// Calls a kernel with its parameters as CUDA's launch functions get them.
template <typename... P, size_t... I>
void call(void (*kernel)(P...), void** parameters, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<P>*>(parameters[I])...);
}

template <typename... P>
void call(void (*kernel)(P...), void** parameters) {
    call(kernel, parameters, std::index_sequence_for<P...>{});
}

// The sizes of a kernel's parameters in bytes, ending with a zero.
template <typename... P>
const unsigned* parameter_sizes(void (*)(P...)) {
    static const unsigned sizes[] = {sizeof(P)..., 0};
    return sizes;
}

struct Kernel {
    const char* name;
    unsigned threads;
    void (*call)(void** parameters);
    const unsigned* (*sizes)();
};

// All kernels, in no order, ending with one without a name. The build script writes it.
extern const Kernel KERNELS[];

}  // namespace lanes

inline void __syncthreads() { lanes::barrier(); }

inline void __syncwarp(unsigned = 0xffffffffu) { lanes::exchange("__syncwarp", nullptr, 0); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
    return lanes::shown_by("__shfl_sync", mask, value, unsigned(source) % 32);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
    return lanes::shown_by("__shfl_xor_sync", mask, value, lanes::lane() ^ unsigned(distance));
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance) {
    const unsigned source = lanes::lane() + distance;
    return lanes::shown_by("__shfl_down_sync", mask, value, source < 32 ? source : lanes::lane());
}

template <typename T>
T __ldg(const T* address) {
    return *address;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
