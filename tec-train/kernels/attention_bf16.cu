// Attention and its gradient on tensor cores: factors of products in bf16, sums and softmax in f32. Tensors are stored as bf16,
// or as f32, which is rounded on the way into shared memory. Scores and probabilities stay in registers.
//
// All kernels: q, k, v of image b, head h, row r begin at `b * image + h * width + r * row` elements, so that joined and
// separate projections use the same kernels; k and v share their strides. Blocks of 128 threads over 64 rows, 16 to each of
// the 4 warps. `WIDTH` is the head width rounded up to an instance, a multiple of 16. Launch: grid (tiles of 64 rows,
// heads, images), dynamic shared memory as noted; a row of a tile is WIDTH + 8 elements of bf16.
#include "mma.cuh"

constexpr u32 ROWS = 64, THREADS = 128;
constexpr float LOG2_E = 1.44269504f;

template <u32 WIDTH>
constexpr u32 STRIDE = WIDTH + 8;

__device__ __forceinline__ float exp2_fast(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

__device__ __forceinline__ void copy8(const bf16* from, bf16* to) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
}

__device__ __forceinline__ void copy8(const float* from, bf16* to) {
    float x[8];
    load8(from, x);
    store8(to, x);
}

// Rows `first` and on of one head into a tile of COUNT rows, zeros where there are none.
template <u32 WIDTH, u32 COUNT, typename T>
__device__ __forceinline__ void load_tile(const T* head, u32 row_stride, u32 first, u32 rows, u32 width, bf16* tile) {
    const bool eights = width % 8 == 0 && row_stride % 8 == 0 && is_aligned(head, 16);
#pragma unroll 4
    for (u32 at = 8 * threadIdx.x; at < COUNT * WIDTH; at += 8 * THREADS) {
        const u32 row = at / WIDTH, channel = at % WIDTH;
        const T* from = head + u64(first + row) * row_stride + channel;
        bf16* to = tile + row * STRIDE<WIDTH> + channel;
        const bool inside = first + row < rows;
        if (inside && eights && channel < width) {
            copy8(from, to);
        } else {
            float x[8] = {};
            if (inside && !eights) {
#pragma unroll
                for (u32 i = 0; i < 8; ++i) {
                    x[i] = channel + i < width ? to_float(from[i]) : 0.0f;
                }
            }
            store8(to, x);
        }
    }
}

// Writes a warp's 16 rows of sums, times a factor a row, to rows `first` and on of one head.
template <u32 WIDTH, typename T>
__device__ __forceinline__ void write_rows(T* head, u32 row_stride, u32 first, u32 rows, u32 width,
                                           const float (&sums)[WIDTH / 8][4], float factor, float factor8) {
    const u32 lane = threadIdx.x % 32;
    const bool pairs = width % 2 == 0 && row_stride % 2 == 0 && is_aligned(head, 2 * sizeof(T));
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 row = first + lane / 4 + 8 * half;
        if (row >= rows) {
            continue;
        }
        T* to = head + u64(row) * row_stride;
        const float scale = half == 0 ? factor : factor8;
#pragma unroll
        for (u32 n = 0; n < WIDTH / 8; ++n) {
            const u32 channel = 8 * n + lane % 4 * 2;
            const float low = sums[n][2 * half] * scale, high = sums[n][2 * half + 1] * scale;
            if (pairs && channel < width) {
                store2(to + channel, low, high);
            } else if (!pairs) {
                if (channel < width) {
                    store(to + channel, low);
                }
                if (channel + 1 < width) {
                    store(to + channel + 1, high);
                }
            }
        }
    }
}

// The largest and the sum over the four lanes of a row.
__device__ __forceinline__ float largest_of_four(float x) {
#pragma unroll
    for (u32 distance = 1; distance < 4; distance *= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, x, distance);
        x = other > x ? other : x;
    }
    return x;
}

__device__ __forceinline__ float sum_of_four(float x) {
#pragma unroll
    for (u32 distance = 1; distance < 4; distance *= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

// Takes tokens that do not exist out of scores whose first column is token `start`.
template <u32 COLUMNS>
__device__ __forceinline__ void mask(float (&s)[COLUMNS / 8][4], u32 start, u32 tokens) {
    if (start + COLUMNS <= tokens) {
        return;
    }
#pragma unroll
    for (u32 n = 0; n < COLUMNS / 8; ++n) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (start + 8 * n + threadIdx.x % 4 * 2 + i % 2 >= tokens) {
                s[n][i] = -INFINITE;
            }
        }
    }
}

// The largest scores of a lane's two rows, those of before included.
template <u32 COLUMNS>
__device__ __forceinline__ void raise(float (&most)[2], const float (&s)[COLUMNS / 8][4]) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        float largest = most[half];
#pragma unroll
        for (u32 n = 0; n < COLUMNS / 8; ++n) {
            largest = s[n][2 * half] > largest ? s[n][2 * half] : largest;
            largest = s[n][2 * half + 1] > largest ? s[n][2 * half + 1] : largest;
        }
        most[half] = largest_of_four(largest);
    }
}

// Takes another tile of scores and of their probabilities' gradients into a lane's parts of its two rows' statistics: the
// largest score, the sum of e^(score - largest), and that sum weighted by the gradients.
template <u32 COLUMNS>
__device__ __forceinline__ void add_statistics(float (&most)[2], float (&mass)[2], float (&mean)[2],
                                               const float (&s)[COLUMNS / 8][4], const float (&dp)[COLUMNS / 8][4],
                                               float scale2) {
    const float before[2] = {most[0], most[1]};
    raise<COLUMNS>(most, s);
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const float correction = exp2_fast((before[half] - most[half]) * scale2), top = most[half] * scale2;
        mass[half] *= correction;
        mean[half] *= correction;
#pragma unroll
        for (u32 n = 0; n < COLUMNS / 8; ++n) {
#pragma unroll
            for (u32 i = 2 * half; i < 2 * half + 2; ++i) {
                const float p = exp2_fast(s[n][i] * scale2 - top);
                mass[half] += p;
                mean[half] += p * dp[n][i];
            }
        }
    }
}

// Puts the lanes' parts together: the logarithm of each row's denominator and the mean of its gradients.
__device__ __forceinline__ void finish_statistics(const float (&most)[2], const float (&mass)[2], float (&mean)[2],
                                                  float (&logs)[2], float scale2) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const float sum = sum_of_four(mass[half]);
        mean[half] = sum_of_four(mean[half]) / sum;
        logs[half] = most[half] * scale2 + log2f(sum);
    }
}

// Turns scores into their gradients (but for the scale): P · (dP - mean).
template <u32 COLUMNS>
__device__ __forceinline__ void score_gradients(float (&s)[COLUMNS / 8][4], const float (&dp)[COLUMNS / 8][4],
                                                const float (&mean)[2], const float (&logs)[2], float scale2) {
#pragma unroll
    for (u32 n = 0; n < COLUMNS / 8; ++n) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            s[n][i] = exp2_fast(s[n][i] * scale2 - logs[i / 2]) * (dp[n][i] - mean[i / 2]);
        }
    }
}

// softmax(q k^T · scale) v: rows of the block are queries. Shared memory: 3 tiles.
template <u32 WIDTH, typename T>
__device__ __forceinline__ void attention(const T* q, u64 q_image, u32 q_row, const T* k, const T* v, u64 kv_image,
                                          u32 kv_row, T* out, u64 out_image, u32 out_row, u32 queries, u32 tokens, u32 width,
                                          float scale) {
    DYNAMIC_SHARED(bf16, memory);
    bf16* q_tile = memory;
    bf16* k_tile = q_tile + ROWS * STRIDE<WIDTH>;
    bf16* v_tile = k_tile + ROWS * STRIDE<WIDTH>;
    const u32 first = blockIdx.x * ROWS, warp_row = threadIdx.x / 32 * 16;
    const u64 head = u64(blockIdx.y) * width, image = blockIdx.z;
    // Whole warps without a query only help to load.
    const bool works = first + warp_row < queries;
    const float scale2 = scale * LOG2_E;
    k += image * kv_image + head;
    v += image * kv_image + head;
    load_tile<WIDTH, ROWS>(q + image * q_image + head, q_row, first, queries, width, q_tile);
    float sums[WIDTH / 8][4] = {}, most[2] = {-INFINITE, -INFINITE}, mass[2] = {};
    for (u32 start = 0; start < tokens; start += ROWS) {
        __syncthreads();
        load_tile<WIDTH, ROWS>(k, kv_row, start, tokens, width, k_tile);
        load_tile<WIDTH, ROWS>(v, kv_row, start, tokens, width, v_tile);
        __syncthreads();
        if (!works) {
            continue;
        }
        float s[ROWS / 8][4];
        rows_by_rows<WIDTH, STRIDE<WIDTH>, ROWS>(s, q_tile + warp_row * STRIDE<WIDTH>, k_tile, tokens - start);
        mask<ROWS>(s, start, tokens);
        const float before[2] = {most[0], most[1]};
        raise<ROWS>(most, s);
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const float correction = exp2_fast((before[half] - most[half]) * scale2), top = most[half] * scale2;
            float sum = 0.0f;
#pragma unroll
            for (u32 n = 0; n < ROWS / 8; ++n) {
#pragma unroll
                for (u32 i = 2 * half; i < 2 * half + 2; ++i) {
                    s[n][i] = exp2_fast(s[n][i] * scale2 - top);
                    sum += s[n][i];
                }
            }
            mass[half] = mass[half] * correction + sum;
#pragma unroll
            for (u32 n = 0; n < WIDTH / 8; ++n) {
                sums[n][2 * half] *= correction;
                sums[n][2 * half + 1] *= correction;
            }
        }
        add_weighted_rows<ROWS, STRIDE<WIDTH>, WIDTH>(sums, s, v_tile, tokens - start);
    }
    if (works) {
        const float factor = 1.0f / sum_of_four(mass[0]), factor8 = 1.0f / sum_of_four(mass[1]);
        write_rows<WIDTH>(out + image * out_image + head, out_row, first + warp_row, queries, width, sums, factor, factor8);
    }
}

// The gradient of q from that of the result. Rows of the block are queries; first their statistics: `log_mass`, the logarithm
// of the softmax's denominator (to base 2), and `delta` = Σ_j P_j dP_j, both [B, heads, queries], which the gradients of k and
// v need too. Shared memory: 4 tiles.
template <u32 WIDTH, typename T>
__device__ __forceinline__ void gradient_q(const T* q, u64 q_image, u32 q_row, const T* k, const T* v, u64 kv_image,
                                           u32 kv_row, const T* grad, u64 grad_image, u32 grad_row, T* grad_q,
                                           float* log_mass, float* delta, u32 queries, u32 tokens, u32 width, float scale) {
    DYNAMIC_SHARED(bf16, memory);
    bf16* q_tile = memory;
    bf16* grad_tile = q_tile + ROWS * STRIDE<WIDTH>;
    bf16* k_tile = grad_tile + ROWS * STRIDE<WIDTH>;
    bf16* v_tile = k_tile + ROWS * STRIDE<WIDTH>;
    const u32 first = blockIdx.x * ROWS, warp_row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const u64 head = u64(blockIdx.y) * width, image = blockIdx.z;
    const bool works = first + warp_row < queries;
    const float scale2 = scale * LOG2_E;
    const bf16* own_q = q_tile + warp_row * STRIDE<WIDTH>;
    const bf16* own_grad = grad_tile + warp_row * STRIDE<WIDTH>;
    k += image * kv_image + head;
    v += image * kv_image + head;
    load_tile<WIDTH, ROWS>(q + image * q_image + head, q_row, first, queries, width, q_tile);
    load_tile<WIDTH, ROWS>(grad + image * grad_image + head, grad_row, first, queries, width, grad_tile);
    float most[2] = {-INFINITE, -INFINITE}, mass[2] = {}, mean[2] = {};
    float s[ROWS / 8][4], dp[ROWS / 8][4];
    for (u32 start = 0; start < tokens; start += ROWS) {
        __syncthreads();
        load_tile<WIDTH, ROWS>(k, kv_row, start, tokens, width, k_tile);
        load_tile<WIDTH, ROWS>(v, kv_row, start, tokens, width, v_tile);
        __syncthreads();
        if (!works) {
            continue;
        }
        rows_by_rows<WIDTH, STRIDE<WIDTH>, ROWS>(s, own_q, k_tile, tokens - start);
        rows_by_rows<WIDTH, STRIDE<WIDTH>, ROWS>(dp, own_grad, v_tile, tokens - start);
        mask<ROWS>(s, start, tokens);
        add_statistics<ROWS>(most, mass, mean, s, dp, scale2);
    }
    float logs[2] = {};
    if (works) {
        finish_statistics(most, mass, mean, logs, scale2);
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 query = first + warp_row + lane / 4 + 8 * half;
            if (lane % 4 == 0 && query < queries) {
                const u64 at = (image * gridDim.y + blockIdx.y) * queries + query;
                log_mass[at] = logs[half];
                delta[at] = mean[half];
            }
        }
    }
    float sums[WIDTH / 8][4] = {};
    for (u32 start = 0; start < tokens; start += ROWS) {
        if (tokens > ROWS) {  // else the tiles and products are those of before
            __syncthreads();
            load_tile<WIDTH, ROWS>(k, kv_row, start, tokens, width, k_tile);
            load_tile<WIDTH, ROWS>(v, kv_row, start, tokens, width, v_tile);
            __syncthreads();
            if (works) {
                rows_by_rows<WIDTH, STRIDE<WIDTH>, ROWS>(s, own_q, k_tile, tokens - start);
                rows_by_rows<WIDTH, STRIDE<WIDTH>, ROWS>(dp, own_grad, v_tile, tokens - start);
                mask<ROWS>(s, start, tokens);
            }
        }
        if (!works) {
            continue;
        }
        score_gradients<ROWS>(s, dp, mean, logs, scale2);
        add_weighted_rows<ROWS, STRIDE<WIDTH>, WIDTH>(sums, s, k_tile, tokens - start);
    }
    if (works) {
        write_rows<WIDTH>(grad_q + image * q_image + head, q_row, first + warp_row, queries, width, sums, scale, scale);
    }
}

// Queries of a tile in gradients of k and v: as many as leave registers for two sets of sums.
template <u32 WIDTH>
constexpr u32 QUERIES = WIDTH > 48 ? 32 : 64;

// Adds what a tile of queries gives to the gradients of a warp's 16 tokens; `logs` and `means` are the queries' statistics.
template <u32 WIDTH>
__device__ __forceinline__ void add_queries(float (&k_sums)[WIDTH / 8][4], float (&v_sums)[WIDTH / 8][4], const bf16* own_k,
                                            const bf16* own_v, const bf16* q_tile, const bf16* grad_tile, const float* logs,
                                            const float* means, u32 used, float scale2) {
    constexpr u32 N = QUERIES<WIDTH>;
    const u32 column = threadIdx.x % 4 * 2;
    float p[N / 8][4], dp[N / 8][4];
    rows_by_rows<WIDTH, STRIDE<WIDTH>, N>(p, own_k, q_tile, used);
#pragma unroll
    for (u32 n = 0; n < N / 8; ++n) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            p[n][i] = exp2_fast(p[n][i] * scale2 - logs[8 * n + column + i % 2]);
        }
    }
    add_weighted_rows<N, STRIDE<WIDTH>, WIDTH>(v_sums, p, grad_tile, used);
    rows_by_rows<WIDTH, STRIDE<WIDTH>, N>(dp, own_v, grad_tile, used);
#pragma unroll
    for (u32 n = 0; n < N / 8; ++n) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            p[n][i] *= dp[n][i] - means[8 * n + column + i % 2];
        }
    }
    add_weighted_rows<N, STRIDE<WIDTH>, WIDTH>(k_sums, p, q_tile, used);
}

// The gradients of k and v. Rows of the block are tokens. Shared memory: 4 tiles and 2 ROWS floats.
template <u32 WIDTH, typename T>
__device__ __forceinline__ void gradient_kv(const T* q, u64 q_image, u32 q_row, const T* k, const T* v, u64 kv_image,
                                            u32 kv_row, const T* grad, u64 grad_image, u32 grad_row, T* grad_k, T* grad_v,
                                            const float* log_mass, const float* delta, u32 queries, u32 tokens, u32 width,
                                            float scale) {
    DYNAMIC_SHARED(bf16, memory);
    bf16* k_tile = memory;
    bf16* v_tile = k_tile + ROWS * STRIDE<WIDTH>;
    bf16* q_tile = v_tile + ROWS * STRIDE<WIDTH>;
    bf16* grad_tile = q_tile + ROWS * STRIDE<WIDTH>;
    float* logs = reinterpret_cast<float*>(grad_tile + ROWS * STRIDE<WIDTH>);
    float* means = logs + ROWS;
    const u32 first = blockIdx.x * ROWS, warp_row = threadIdx.x / 32 * 16;
    const u64 head = u64(blockIdx.y) * width, image = blockIdx.z;
    const u64 statistics = (image * gridDim.y + blockIdx.y) * queries;
    const bool works = first + warp_row < tokens;
    const float scale2 = scale * LOG2_E;
    q += image * q_image + head;
    grad += image * grad_image + head;
    load_tile<WIDTH, ROWS>(k + image * kv_image + head, kv_row, first, tokens, width, k_tile);
    load_tile<WIDTH, ROWS>(v + image * kv_image + head, kv_row, first, tokens, width, v_tile);
    float k_sums[WIDTH / 8][4] = {}, v_sums[WIDTH / 8][4] = {};
    for (u32 start = 0; start < queries; start += QUERIES<WIDTH>) {
        __syncthreads();
        load_tile<WIDTH, QUERIES<WIDTH>>(q, q_row, start, queries, width, q_tile);
        load_tile<WIDTH, QUERIES<WIDTH>>(grad, grad_row, start, queries, width, grad_tile);
        if (threadIdx.x < QUERIES<WIDTH>) {
            const u32 query = start + threadIdx.x;
            // A query that does not exist has no probabilities.
            logs[threadIdx.x] = query < queries ? log_mass[statistics + query] : INFINITE;
            means[threadIdx.x] = query < queries ? delta[statistics + query] : 0.0f;
        }
        __syncthreads();
        if (works) {
            add_queries<WIDTH>(k_sums, v_sums, k_tile + warp_row * STRIDE<WIDTH>, v_tile + warp_row * STRIDE<WIDTH>, q_tile,
                               grad_tile, logs, means, queries - start, scale2);
        }
    }
    if (works) {
        const u64 at = image * kv_image + head;
        write_rows<WIDTH>(grad_k + at, kv_row, first + warp_row, tokens, width, k_sums, scale, scale);
        write_rows<WIDTH>(grad_v + at, kv_row, first + warp_row, tokens, width, v_sums, 1.0f, 1.0f);
    }
}

// All three gradients where there are at most ROWS queries and tokens: each tensor is read once. One block for each head of
// each image. Shared memory: 4 tiles and 2 ROWS floats.
template <u32 WIDTH, typename T>
__device__ __forceinline__ void gradient_short(const T* q, u64 q_image, u32 q_row, const T* k, const T* v, u64 kv_image,
                                               u32 kv_row, const T* grad, u64 grad_image, u32 grad_row, T* grad_q, T* grad_k,
                                               T* grad_v, u32 queries, u32 tokens, u32 width, float scale) {
    DYNAMIC_SHARED(bf16, memory);
    bf16* k_tile = memory;
    bf16* v_tile = k_tile + ROWS * STRIDE<WIDTH>;
    bf16* q_tile = v_tile + ROWS * STRIDE<WIDTH>;
    bf16* grad_tile = q_tile + ROWS * STRIDE<WIDTH>;
    float* all_logs = reinterpret_cast<float*>(grad_tile + ROWS * STRIDE<WIDTH>);
    float* all_means = all_logs + ROWS;
    const u32 warp_row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const u64 head = u64(blockIdx.y) * width, image = blockIdx.z;
    const float scale2 = scale * LOG2_E;
    load_tile<WIDTH, ROWS>(q + image * q_image + head, q_row, 0, queries, width, q_tile);
    load_tile<WIDTH, ROWS>(grad + image * grad_image + head, grad_row, 0, queries, width, grad_tile);
    load_tile<WIDTH, ROWS>(k + image * kv_image + head, kv_row, 0, tokens, width, k_tile);
    load_tile<WIDTH, ROWS>(v + image * kv_image + head, kv_row, 0, tokens, width, v_tile);
    __syncthreads();
    // A query that does not exist has no probabilities.
    float logs[2] = {INFINITE, INFINITE}, mean[2] = {};
    if (warp_row < queries) {
        float s[ROWS / 8][4], dp[ROWS / 8][4], sums[WIDTH / 8][4] = {}, most[2] = {-INFINITE, -INFINITE}, mass[2] = {};
        rows_by_rows<WIDTH, STRIDE<WIDTH>, ROWS>(s, q_tile + warp_row * STRIDE<WIDTH>, k_tile, tokens);
        rows_by_rows<WIDTH, STRIDE<WIDTH>, ROWS>(dp, grad_tile + warp_row * STRIDE<WIDTH>, v_tile, tokens);
        mask<ROWS>(s, 0, tokens);
        add_statistics<ROWS>(most, mass, mean, s, dp, scale2);
        finish_statistics(most, mass, mean, logs, scale2);
        score_gradients<ROWS>(s, dp, mean, logs, scale2);
        add_weighted_rows<ROWS, STRIDE<WIDTH>, WIDTH>(sums, s, k_tile, tokens);
        write_rows<WIDTH>(grad_q + image * q_image + head, q_row, warp_row, queries, width, sums, scale, scale);
    }
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 query = warp_row + lane / 4 + 8 * half;
        if (lane % 4 == 0) {
            all_logs[query] = query < queries ? logs[half] : INFINITE;
            all_means[query] = query < queries ? mean[half] : 0.0f;
        }
    }
    __syncthreads();
    if (warp_row >= tokens) {
        return;
    }
    float k_sums[WIDTH / 8][4] = {}, v_sums[WIDTH / 8][4] = {};
    for (u32 start = 0; start < queries; start += QUERIES<WIDTH>) {
        add_queries<WIDTH>(k_sums, v_sums, k_tile + warp_row * STRIDE<WIDTH>, v_tile + warp_row * STRIDE<WIDTH>,
                           q_tile + start * STRIDE<WIDTH>, grad_tile + start * STRIDE<WIDTH>, all_logs + start,
                           all_means + start, queries - start, scale2);
    }
    const u64 at = image * kv_image + head;
    write_rows<WIDTH>(grad_k + at, kv_row, warp_row, tokens, width, k_sums, scale, scale);
    write_rows<WIDTH>(grad_v + at, kv_row, warp_row, tokens, width, v_sums, 1.0f, 1.0f);
}

#define KERNELS_OF(WIDTH, NAME, T)                                                                                           \
    KERNEL(attention_##NAME##_bf16_##WIDTH, 128)                                                                             \
    (const T* q, u64 q_image, u32 q_row, const T* k, const T* v, u64 kv_image, u32 kv_row, T* out, u64 out_image,            \
     u32 out_row, u32 queries, u32 tokens, u32 width, float scale) {                                                         \
        attention<WIDTH>(q, q_image, q_row, k, v, kv_image, kv_row, out, out_image, out_row, queries, tokens, width, scale); \
    }                                                                                                                        \
    KERNEL(attention_gradient_q_##NAME##_bf16_##WIDTH, 128)                                                                  \
    (const T* q, u64 q_image, u32 q_row, const T* k, const T* v, u64 kv_image, u32 kv_row, const T* grad, u64 grad_image,    \
     u32 grad_row, T* grad_q, float* log_mass, float* delta, u32 queries, u32 tokens, u32 width, float scale) {              \
        gradient_q<WIDTH>(q, q_image, q_row, k, v, kv_image, kv_row, grad, grad_image, grad_row, grad_q, log_mass, delta,    \
                          queries, tokens, width, scale);                                                                    \
    }                                                                                                                        \
    KERNEL(attention_gradient_kv_##NAME##_bf16_##WIDTH, 128)                                                                 \
    (const T* q, u64 q_image, u32 q_row, const T* k, const T* v, u64 kv_image, u32 kv_row, const T* grad, u64 grad_image,    \
     u32 grad_row, T* grad_k, T* grad_v, const float* log_mass, const float* delta, u32 queries, u32 tokens, u32 width,      \
     float scale) {                                                                                                          \
        gradient_kv<WIDTH>(q, q_image, q_row, k, v, kv_image, kv_row, grad, grad_image, grad_row, grad_k, grad_v, log_mass,  \
                           delta, queries, tokens, width, scale);                                                            \
    }                                                                                                                        \
    KERNEL(attention_gradient_short_##NAME##_bf16_##WIDTH, 128)                                                              \
    (const T* q, u64 q_image, u32 q_row, const T* k, const T* v, u64 kv_image, u32 kv_row, const T* grad, u64 grad_image,    \
     u32 grad_row, T* grad_q, T* grad_k, T* grad_v, u32 queries, u32 tokens, u32 width, float scale) {                       \
        gradient_short<WIDTH>(q, q_image, q_row, k, v, kv_image, kv_row, grad, grad_image, grad_row, grad_q, grad_k, grad_v, \
                              queries, tokens, width, scale);                                                                \
    }

#define KERNELS_OF_WIDTH(WIDTH)   \
    KERNELS_OF(WIDTH, bf16, bf16) \
    KERNELS_OF(WIDTH, f32, float)

// All widths take a minute to compile; a program that knows its own defines HEAD_WIDTH.
#ifdef HEAD_WIDTH
#define EXPANDED(WIDTH) KERNELS_OF_WIDTH(WIDTH)
EXPANDED(HEAD_WIDTH)
#else
KERNELS_OF_WIDTH(16)
KERNELS_OF_WIDTH(32)
KERNELS_OF_WIDTH(48)
KERNELS_OF_WIDTH(64)
KERNELS_OF_WIDTH(80)
KERNELS_OF_WIDTH(96)
KERNELS_OF_WIDTH(128)
#endif
