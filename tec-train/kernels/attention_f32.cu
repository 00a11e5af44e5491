// Attention and its gradient in f32, without tensor cores. Scores and probabilities stay in shared memory and registers.
//
// All kernels: q, k, v of image b, head h, row r begin at `b * image + h * head_width + r * row` elements, so that joined and
// separate projections use the same kernels; k and v share their strides. Blocks of 256 threads over 32 rows: thread
// (r, c) = (number / 8, number % 8) has row r, and of a tile of 32 others c, c + 8, c + 16, c + 24. `WIDTH` is the head width
// rounded up to an instance. Launch: grid (tiles of 32 rows, heads, images), dynamic shared memory as noted.
#include "device.cuh"

constexpr u32 TILE = 32, THREADS = 256;

template <u32 WIDTH>
constexpr u32 STRIDE = WIDTH + 4;  // 16-byte accesses by 8 neighbors touch all banks

// Rows `first` and on of one head into a tile [TILE][STRIDE], zeros where there are none.
template <u32 WIDTH>
__device__ __forceinline__ void load_tile(const float* head, u32 row_stride, u32 first, u32 rows, u32 width, float* tile) {
    const bool fours = width % 4 == 0 && row_stride % 4 == 0 && is_aligned(head, 16);
    for (u32 at = 4 * threadIdx.x; at < TILE * WIDTH; at += 4 * THREADS) {
        const u32 row = at / WIDTH, channel = at % WIDTH;
        const float* from = head + u64(first + row) * row_stride + channel;
        float x[4] = {};
        if (first + row < rows) {
            if (fours && channel < width) {
                load4(from, x);
            } else if (!fours) {
#pragma unroll
                for (u32 i = 0; i < 4; ++i) {
                    x[i] = channel + i < width ? from[i] : 0.0f;
                }
            }
        }
        store4(tile + row * STRIDE<WIDTH> + channel, x);
    }
}

// This thread's four products of row r of `a` with rows of `b`.
template <u32 WIDTH>
__device__ __forceinline__ void products(const float* a, const float* b, u32 r, u32 c, float (&s)[4]) {
    s[0] = s[1] = s[2] = s[3] = 0.0f;
#pragma unroll 4
    for (u32 channel = 0; channel < WIDTH; channel += 4) {
        float x[4], y[4];
        load4(a + r * STRIDE<WIDTH> + channel, x);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            load4(b + (c + 8 * j) * STRIDE<WIDTH> + channel, y);
            s[j] += x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3];
        }
    }
}

// Channels of a thread in sums over rows: 4 c + 32 i and the three behind, as many as are below WIDTH.
template <u32 WIDTH>
constexpr u32 PIECES = (WIDTH + 31) / 32;

// sums += Σ_j weights[r][j] · rows[j], of this thread's channels.
template <u32 WIDTH>
__device__ __forceinline__ void add_weighted(const float* weights, const float* rows, u32 r, u32 c,
                                             float (&sums)[PIECES<WIDTH>][4]) {
    for (u32 j = 0; j < TILE; ++j) {
        const float weight = weights[r * (TILE + 1) + j];
#pragma unroll
        for (u32 i = 0; i < PIECES<WIDTH>; ++i) {
            const u32 channel = 4 * c + 32 * i;
            if (channel < WIDTH) {
                float x[4];
                load4(rows + j * STRIDE<WIDTH> + channel, x);
#pragma unroll
                for (u32 n = 0; n < 4; ++n) {
                    sums[i][n] += weight * x[n];
                }
            }
        }
    }
}

// Writes this thread's channels of a row, times a factor.
template <u32 WIDTH>
__device__ __forceinline__ void write_row(float* row, const float (&sums)[PIECES<WIDTH>][4], u32 c, u32 width, float factor) {
#pragma unroll
    for (u32 i = 0; i < PIECES<WIDTH>; ++i) {
#pragma unroll
        for (u32 n = 0; n < 4; ++n) {
            const u32 channel = 4 * c + 32 * i + n;
            if (channel < width) {
                row[channel] = factor * sums[i][n];
            }
        }
    }
}

// The largest and the sum over the eight threads of a row.
__device__ __forceinline__ float largest_of_eight(float x) {
#pragma unroll
    for (u32 distance = 4; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, x, distance);
        x = other > x ? other : x;
    }
    return x;
}

__device__ __forceinline__ float sum_of_eight(float x) {
#pragma unroll
    for (u32 distance = 4; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, distance);
    }
    return x;
}

// softmax(q k^T · scale) v: rows of the block are queries. Shared memory: 2 tiles and TILE · (TILE + 1) floats.
template <u32 WIDTH>
__device__ __forceinline__ void attention(const float* q, u64 q_image, u32 q_row, const float* k, const float* v,
                                          u64 kv_image, u32 kv_row, float* out, u64 out_image, u32 out_row, u32 queries,
                                          u32 tokens, u32 width, float scale) {
    DYNAMIC_SHARED(float, memory);
    float* q_tile = memory;
    float* kv_tile = q_tile + TILE * STRIDE<WIDTH>;
    float* weights = kv_tile + TILE * STRIDE<WIDTH>;
    const u32 r = threadIdx.x / 8, c = threadIdx.x % 8, query = blockIdx.x * TILE + r;
    const u64 head = u64(blockIdx.y) * width, image = blockIdx.z;
    k += image * kv_image + head;
    v += image * kv_image + head;
    load_tile<WIDTH>(q + image * q_image + head, q_row, blockIdx.x * TILE, queries, width, q_tile);
    float sums[PIECES<WIDTH>][4] = {}, most = -INFINITE, mass = 0.0f;
    for (u32 start = 0; start < tokens; start += TILE) {
        __syncthreads();
        load_tile<WIDTH>(k, kv_row, start, tokens, width, kv_tile);
        __syncthreads();
        float s[4], largest = most;
        products<WIDTH>(q_tile, kv_tile, r, c, s);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            s[j] = start + c + 8 * j < tokens ? s[j] * scale : -INFINITE;
            largest = s[j] > largest ? s[j] : largest;
        }
        largest = largest_of_eight(largest);
        const float correction = expf(most - largest);
        most = largest;
        float sum = 0.0f;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            s[j] = expf(s[j] - most);
            sum += s[j];
            weights[r * (TILE + 1) + c + 8 * j] = s[j];
        }
        mass = mass * correction + sum_of_eight(sum);
#pragma unroll
        for (u32 i = 0; i < PIECES<WIDTH>; ++i) {
#pragma unroll
            for (u32 n = 0; n < 4; ++n) {
                sums[i][n] *= correction;
            }
        }
        __syncthreads();
        load_tile<WIDTH>(v, kv_row, start, tokens, width, kv_tile);
        __syncthreads();
        add_weighted<WIDTH>(weights, kv_tile, r, c, sums);
    }
    if (query < queries) {
        write_row<WIDTH>(out + image * out_image + head + u64(query) * out_row, sums, c, width, 1.0f / mass);
    }
}

// The gradient of q from that of the result. Rows of the block are queries; first their statistics: `log_mass`, the logarithm
// of the softmax's denominator, and `delta` = Σ_j P_j dP_j, both [B, heads, queries], which the gradients of k and v need too.
// Shared memory: 4 tiles and TILE · (TILE + 1) floats.
template <u32 WIDTH>
__device__ __forceinline__ void gradient_q(const float* q, u64 q_image, u32 q_row, const float* k, const float* v,
                                           u64 kv_image, u32 kv_row, const float* grad, u64 grad_image, u32 grad_row,
                                           float* grad_q, float* log_mass, float* delta, u32 queries, u32 tokens, u32 width,
                                           float scale) {
    DYNAMIC_SHARED(float, memory);
    float* q_tile = memory;
    float* grad_tile = q_tile + TILE * STRIDE<WIDTH>;
    float* k_tile = grad_tile + TILE * STRIDE<WIDTH>;
    float* v_tile = k_tile + TILE * STRIDE<WIDTH>;
    float* weights = v_tile + TILE * STRIDE<WIDTH>;
    const u32 r = threadIdx.x / 8, c = threadIdx.x % 8, first = blockIdx.x * TILE, query = first + r;
    const u64 head = u64(blockIdx.y) * width, image = blockIdx.z;
    k += image * kv_image + head;
    v += image * kv_image + head;
    load_tile<WIDTH>(q + image * q_image + head, q_row, first, queries, width, q_tile);
    load_tile<WIDTH>(grad + image * grad_image + head, grad_row, first, queries, width, grad_tile);
    float most = -INFINITE, mass = 0.0f, mean = 0.0f, s[4], dp[4];
    for (u32 start = 0; start < tokens; start += TILE) {
        __syncthreads();
        load_tile<WIDTH>(k, kv_row, start, tokens, width, k_tile);
        load_tile<WIDTH>(v, kv_row, start, tokens, width, v_tile);
        __syncthreads();
        products<WIDTH>(q_tile, k_tile, r, c, s);
        products<WIDTH>(grad_tile, v_tile, r, c, dp);
        float largest = most, sum = 0.0f, weighted = 0.0f;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            s[j] = start + c + 8 * j < tokens ? s[j] * scale : -INFINITE;
            largest = s[j] > largest ? s[j] : largest;
        }
        largest = largest_of_eight(largest);
        const float correction = expf(most - largest);
        most = largest;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            const float p = expf(s[j] - most);
            sum += p;
            weighted += p * dp[j];
        }
        mass = mass * correction + sum_of_eight(sum);
        mean = mean * correction + sum_of_eight(weighted);
    }
    const float reciprocal = 1.0f / mass;
    mean *= reciprocal;
    if (c == 0 && query < queries) {
        const u64 at = (image * gridDim.y + blockIdx.y) * queries + query;
        log_mass[at] = most + logf(mass);
        delta[at] = mean;
    }
    float sums[PIECES<WIDTH>][4] = {};
    for (u32 start = 0; start < tokens; start += TILE) {
        if (tokens > TILE) {  // else the tiles and products are those of before
            __syncthreads();
            load_tile<WIDTH>(k, kv_row, start, tokens, width, k_tile);
            load_tile<WIDTH>(v, kv_row, start, tokens, width, v_tile);
            __syncthreads();
            products<WIDTH>(q_tile, k_tile, r, c, s);
            products<WIDTH>(grad_tile, v_tile, r, c, dp);
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                s[j] = start + c + 8 * j < tokens ? s[j] * scale : -INFINITE;
            }
        }
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            weights[r * (TILE + 1) + c + 8 * j] = expf(s[j] - most) * reciprocal * (dp[j] - mean);
        }
        __syncwarp();  // a row of weights belongs to eight neighbors
        add_weighted<WIDTH>(weights, k_tile, r, c, sums);
        __syncwarp();
    }
    if (query < queries) {
        write_row<WIDTH>(grad_q + image * q_image + head + u64(query) * q_row, sums, c, width, scale);
    }
}

// The gradients of k and v. Rows of the block are tokens. Shared memory: 4 tiles, TILE · (TILE + 1) floats and 2 TILE.
template <u32 WIDTH>
__device__ __forceinline__ void gradient_kv(const float* q, u64 q_image, u32 q_row, const float* k, const float* v,
                                            u64 kv_image, u32 kv_row, const float* grad, u64 grad_image, u32 grad_row,
                                            float* grad_k, float* grad_v, const float* log_mass, const float* delta,
                                            u32 queries, u32 tokens, u32 width, float scale) {
    DYNAMIC_SHARED(float, memory);
    float* q_tile = memory;
    float* grad_tile = q_tile + TILE * STRIDE<WIDTH>;
    float* k_tile = grad_tile + TILE * STRIDE<WIDTH>;
    float* v_tile = k_tile + TILE * STRIDE<WIDTH>;
    float* weights = v_tile + TILE * STRIDE<WIDTH>;
    float* masses = weights + TILE * (TILE + 1);
    float* means = masses + TILE;
    const u32 r = threadIdx.x / 8, c = threadIdx.x % 8, first = blockIdx.x * TILE, token = first + r;
    const u64 head = u64(blockIdx.y) * width, image = blockIdx.z;
    const u64 statistics = (image * gridDim.y + blockIdx.y) * queries;
    q += image * q_image + head;
    grad += image * grad_image + head;
    load_tile<WIDTH>(k + image * kv_image + head, kv_row, first, tokens, width, k_tile);
    load_tile<WIDTH>(v + image * kv_image + head, kv_row, first, tokens, width, v_tile);
    float k_sums[PIECES<WIDTH>][4] = {}, v_sums[PIECES<WIDTH>][4] = {};
    for (u32 start = 0; start < queries; start += TILE) {
        __syncthreads();
        load_tile<WIDTH>(q, q_row, start, queries, width, q_tile);
        load_tile<WIDTH>(grad, grad_row, start, queries, width, grad_tile);
        if (threadIdx.x < TILE) {
            const u32 query = start + threadIdx.x;
            // A query that does not exist has no probabilities.
            masses[threadIdx.x] = query < queries ? log_mass[statistics + query] : INFINITE;
            means[threadIdx.x] = query < queries ? delta[statistics + query] : 0.0f;
        }
        __syncthreads();
        float s[4], dp[4];
        products<WIDTH>(k_tile, q_tile, r, c, s);
        products<WIDTH>(v_tile, grad_tile, r, c, dp);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            s[j] = expf(s[j] * scale - masses[c + 8 * j]);
            weights[r * (TILE + 1) + c + 8 * j] = s[j];
        }
        __syncwarp();
        add_weighted<WIDTH>(weights, grad_tile, r, c, v_sums);
        __syncwarp();
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            weights[r * (TILE + 1) + c + 8 * j] = s[j] * (dp[j] - means[c + 8 * j]);
        }
        __syncwarp();
        add_weighted<WIDTH>(weights, q_tile, r, c, k_sums);
        __syncwarp();
    }
    if (token < tokens) {
        const u64 at = image * kv_image + head + u64(token) * kv_row;
        write_row<WIDTH>(grad_k + at, k_sums, c, width, scale);
        write_row<WIDTH>(grad_v + at, v_sums, c, width, 1.0f);
    }
}

#define KERNELS_OF_WIDTH(WIDTH)                                                                                                \
    KERNEL(attention_f32_f32_##WIDTH, 256)                                                                                     \
    (const float* q, u64 q_image, u32 q_row, const float* k, const float* v, u64 kv_image, u32 kv_row, float* out,             \
     u64 out_image, u32 out_row, u32 queries, u32 tokens, u32 width, float scale) {                                            \
        attention<WIDTH>(q, q_image, q_row, k, v, kv_image, kv_row, out, out_image, out_row, queries, tokens, width, scale);   \
    }                                                                                                                          \
    KERNEL(attention_gradient_q_f32_f32_##WIDTH, 256)                                                                          \
    (const float* q, u64 q_image, u32 q_row, const float* k, const float* v, u64 kv_image, u32 kv_row, const float* grad,      \
     u64 grad_image, u32 grad_row, float* grad_q, float* log_mass, float* delta, u32 queries, u32 tokens, u32 width,           \
     float scale) {                                                                                                            \
        gradient_q<WIDTH>(q, q_image, q_row, k, v, kv_image, kv_row, grad, grad_image, grad_row, grad_q, log_mass, delta,      \
                          queries, tokens, width, scale);                                                                      \
    }                                                                                                                          \
    KERNEL(attention_gradient_kv_f32_f32_##WIDTH, 256)                                                                         \
    (const float* q, u64 q_image, u32 q_row, const float* k, const float* v, u64 kv_image, u32 kv_row, const float* grad,      \
     u64 grad_image, u32 grad_row, float* grad_k, float* grad_v, const float* log_mass, const float* delta, u32 queries,       \
     u32 tokens, u32 width, float scale) {                                                                                     \
        gradient_kv<WIDTH>(q, q_image, q_row, k, v, kv_image, kv_row, grad, grad_image, grad_row, grad_k, grad_v, log_mass,    \
                           delta, queries, tokens, width, scale);                                                              \
    }

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
