// Relations between tokens: the base's targets and the new model's logits. Inputs f32 or bf16, results f32.
#include "device.cuh"

constexpr u32 NO_PATCH = 0xffffffffu;

// The `top_k` patches that the class token attends to most, best first: index [B, top_k] of qkv [B, prefix + L, 3 T]. A
// patch's rank is its logit's mean over heads, which is scale / heads times the product of the whole rows; of equal ones the
// lower number comes first. Where a logit is NaN the image's indices are all NO_PATCH.
// Launch: blocks of 256 threads, one for each image, shared memory for T + L floats. `factor` is scale / heads.
template <typename T>
__device__ __forceinline__ void rank_queries(const T* qkv, u32* index, u32 prefix, u32 patches, u32 width, u32 top_k,
                                             float factor) {
    DYNAMIC_SHARED(float, memory);
    SHARED(u32, scratch, 8);
    float* query = memory;
    float* means = memory + width;
    qkv += u64(blockIdx.x) * (prefix + patches) * 3 * width;
    index += u64(blockIdx.x) * top_k;
    for (u32 at = threadIdx.x; at < width; at += blockDim.x) {
        query[at] = to_float(qkv[at]);
    }
    __syncthreads();
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (u32 patch = warp; patch < patches; patch += blockDim.x / 32) {
        const T* key = qkv + u64(prefix + patch) * 3 * width + width;
        float sum = 0.0f;
        for (u32 at = lane; at < width; at += 32) {
            sum += query[at] * to_float(key[at]);
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            means[patch] = sum * factor;
        }
    }
    __syncthreads();
    u32 bad = 0;
    for (u32 patch = threadIdx.x; patch < patches; patch += blockDim.x) {
        bad += means[patch] != means[patch];
    }
    if (block_sum(bad, scratch) > 0) {
        for (u32 at = threadIdx.x; at < top_k; at += blockDim.x) {
            index[at] = NO_PATCH;
        }
        return;
    }
    for (u32 patch = threadIdx.x; patch < patches; patch += blockDim.x) {
        const float mean = means[patch];
        u32 better = 0;
        for (u32 other = 0; other < patches; ++other) {
            better += means[other] > mean || (means[other] == mean && other < patch);
        }
        if (better < top_k) {
            index[better] = patch;
        }
    }
}

KERNEL(rank_queries_f32, 256)
(const float* qkv, u32* index, u32 prefix, u32 patches, u32 width, u32 top_k, float factor) {
    rank_queries(qkv, index, prefix, patches, width, top_k, factor);
}
KERNEL(rank_queries_bf16, 256)
(const bf16* qkv, u32* index, u32 prefix, u32 patches, u32 width, u32 top_k, float factor) {
    rank_queries(qkv, index, prefix, patches, width, top_k, factor);
}

// Logits [B, queries, heads, L] = scale · q k^T, each head by itself. Rows of q and k lie `row` elements apart, images
// `image` elements; k begins with the first patch. Without `index` row r of the queries is row r; with it, row 0 is row 0 (the
// class token) and row r the patch index[B, queries - 1][r - 1], `prefix` rows further; a patch that does not exist gives NaN.
// Launch: blocks of 256 threads; block (x, y, z) has keys 64 x and on, head y % heads, queries 16 (y / heads) and on, image z.
template <typename T>
__device__ __forceinline__ void relation_logits(const T* q, u64 q_image, u32 q_row, const T* k, u64 k_image, u32 k_row,
                                                const u32* index, u32 prefix, float* out, u32 queries, u32 heads,
                                                u32 patches, u32 head_width, float scale) {
    constexpr u32 KEYS = 64, QUERIES = 16, DEPTH = 32, STRIDE = DEPTH + 1;
    SHARED(float, query_tile, QUERIES * STRIDE);
    SHARED(float, key_tile, KEYS * STRIDE);
    const u32 head = blockIdx.y % heads, first_query = blockIdx.y / heads * QUERIES, first_key = blockIdx.x * KEYS;
    const u32 image = blockIdx.z, key = threadIdx.x % KEYS, quarter = threadIdx.x / KEYS;
    q += image * q_image + head * head_width;
    k += image * k_image + head * head_width;
    float sums[4] = {};
    for (u32 depth = 0; depth < head_width; depth += DEPTH) {
        __syncthreads();
        for (u32 at = threadIdx.x; at < QUERIES * DEPTH; at += blockDim.x) {
            const u32 query = first_query + at / DEPTH, channel = depth + at % DEPTH;
            u32 row = query;
            bool exists = true;
            if (index != nullptr && query > 0 && query < queries) {
                const u32 patch = index[u64(image) * (queries - 1) + query - 1];
                row = prefix + patch;
                exists = patch < patches;
            }
            float value = exists ? 0.0f : INFINITE - INFINITE;
            if (exists && query < queries && channel < head_width) {
                value = to_float(q[u64(row) * q_row + channel]);
            }
            query_tile[at / DEPTH * STRIDE + at % DEPTH] = value;
        }
        for (u32 at = threadIdx.x; at < KEYS * DEPTH; at += blockDim.x) {
            const u32 patch = first_key + at / DEPTH, channel = depth + at % DEPTH;
            const bool inside = patch < patches && channel < head_width;
            key_tile[at / DEPTH * STRIDE + at % DEPTH] = inside ? to_float(k[u64(patch) * k_row + channel]) : 0.0f;
        }
        __syncthreads();
        for (u32 channel = 0; channel < DEPTH; ++channel) {
            const float value = key_tile[key * STRIDE + channel];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                sums[i] += query_tile[(quarter * 4 + i) * STRIDE + channel] * value;
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const u32 query = first_query + quarter * 4 + i, patch = first_key + key;
        if (query < queries && patch < patches) {
            out[((u64(image) * queries + query) * heads + head) * patches + patch] = scale * sums[i];
        }
    }
}

KERNEL(relation_logits_f32, 256)
(const float* q, u64 q_image, u32 q_row, const float* k, u64 k_image, u32 k_row, const u32* index, u32 prefix, float* out,
 u32 queries, u32 heads, u32 patches, u32 head_width, float scale) {
    relation_logits(q, q_image, q_row, k, k_image, k_row, index, prefix, out, queries, heads, patches, head_width, scale);
}
KERNEL(relation_logits_bf16, 256)
(const bf16* q, u64 q_image, u32 q_row, const bf16* k, u64 k_image, u32 k_row, const u32* index, u32 prefix, float* out,
 u32 queries, u32 heads, u32 patches, u32 head_width, float scale) {
    relation_logits(q, q_image, q_row, k, k_image, k_row, index, prefix, out, queries, heads, patches, head_width, scale);
}

// The gradient of q [B, queries, T] in relation_logits from `grad` [B, queries, heads, L] and k [B, 1 + L, T].
// Launch: blocks of 256 threads; block (x, y) has query x of image y.
template <typename T>
__device__ __forceinline__ void relation_gradient_q(const float* grad, const T* k, float* grad_q, u32 heads, u32 patches,
                                                    u32 head_width, float scale) {
    const u32 width = heads * head_width;
    const u64 row = u64(blockIdx.y) * gridDim.x + blockIdx.x;
    k += (u64(blockIdx.y) * (1 + patches) + 1) * width;
    for (u32 at = threadIdx.x; at < width; at += blockDim.x) {
        const float* from = grad + (row * heads + at / head_width) * patches;
        float sum = 0.0f;
        for (u32 patch = 0; patch < patches; ++patch) {
            sum += from[patch] * to_float(k[u64(patch) * width + at]);
        }
        grad_q[row * width + at] = scale * sum;
    }
}

KERNEL(relation_gradient_q_f32, 256)
(const float* grad, const float* k, float* grad_q, u32 heads, u32 patches, u32 head_width, float scale) {
    relation_gradient_q(grad, k, grad_q, heads, patches, head_width, scale);
}
KERNEL(relation_gradient_q_bf16, 256)
(const float* grad, const bf16* k, float* grad_q, u32 heads, u32 patches, u32 head_width, float scale) {
    relation_gradient_q(grad, k, grad_q, heads, patches, head_width, scale);
}

// The gradient of k [B, 1 + L, T] in relation_logits from `grad` [B, queries, heads, L] and q [B, queries, T]; that of the
// class token is zero: no logit is its own. Launch: blocks of 256 threads; block (x, y) has token x of image y.
template <typename T>
__device__ __forceinline__ void relation_gradient_k(const float* grad, const T* q, float* grad_k, u32 queries, u32 heads,
                                                    u32 patches, u32 head_width, float scale) {
    const u32 width = heads * head_width, token = blockIdx.x, image = blockIdx.y;
    q += u64(image) * queries * width;
    for (u32 at = threadIdx.x; at < width; at += blockDim.x) {
        float sum = 0.0f;
        for (u32 query = 0; token > 0 && query < queries; ++query) {
            const u64 row = (u64(image) * queries + query) * heads + at / head_width;
            sum += grad[row * patches + token - 1] * to_float(q[u64(query) * width + at]);
        }
        grad_k[(u64(image) * (1 + patches) + token) * width + at] = scale * sum;
    }
}

KERNEL(relation_gradient_k_f32, 256)
(const float* grad, const float* q, float* grad_k, u32 queries, u32 heads, u32 patches, u32 head_width, float scale) {
    relation_gradient_k(grad, q, grad_k, queries, heads, patches, head_width, scale);
}
KERNEL(relation_gradient_k_bf16, 256)
(const float* grad, const bf16* q, float* grad_k, u32 queries, u32 heads, u32 patches, u32 head_width, float scale) {
    relation_gradient_k(grad, q, grad_k, queries, heads, patches, head_width, scale);
}

// softmax(scale · x) of every row of x [rows, L]. Launch: blocks of 256 threads, 8 rows each.
KERNEL(softmax_rows, 256)(const float* x, float* y, u32 rows, u32 patches, float scale) {
    const u32 row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    x += u64(row) * patches;
    y += u64(row) * patches;
    float most = -INFINITE;
    for (u32 at = lane; at < patches; at += 32) {
        const float v = x[at] * scale;
        most = v > most ? v : most;
    }
    most = warp_max(most);
    float sum = 0.0f;
    for (u32 at = lane; at < patches; at += 32) {
        sum += expf(x[at] * scale - most);
    }
    const float reciprocal = 1.0f / warp_sum(sum);
    for (u32 at = lane; at < patches; at += 32) {
        y[at] = expf(x[at] * scale - most) * reciprocal;
    }
}

// The sum of a column over the block's eight rows of threads.
__device__ __forceinline__ float column_total(float x, float* scratch) {
    __syncthreads();
    scratch[threadIdx.y * 32 + threadIdx.x] = x;
    __syncthreads();
    float sum = 0.0f;
    for (u32 eighth = 0; eighth < 8; ++eighth) {
        sum += scratch[eighth * 32 + threadIdx.x];
    }
    return sum;
}

// Features x [B, L, width] normalized over the patches, each image and channel by itself: unbiased variance, eps under the
// root. Launch: blocks of 32 x 8 threads; block (x, y) has channels 32 x and on of image y.
KERNEL(normalize_features, 256)(const float* x, float* y, u32 patches, u32 width, float eps) {
    SHARED(float, scratch, 256);
    const u32 channel = blockIdx.x * 32 + threadIdx.x;
    const u64 image = u64(blockIdx.y) * patches * width;
    const bool inside = channel < width;
    float sum = 0.0f;
    for (u32 patch = threadIdx.y; inside && patch < patches; patch += 8) {
        sum += x[image + u64(patch) * width + channel];
    }
    const float mean = column_total(sum, scratch) / float(patches);
    float squares = 0.0f;
    for (u32 patch = threadIdx.y; inside && patch < patches; patch += 8) {
        const float distance = x[image + u64(patch) * width + channel] - mean;
        squares += distance * distance;
    }
    const float rstd = 1.0f / sqrtf(column_total(squares, scratch) / float(patches - 1) + eps);
    for (u32 patch = threadIdx.y; inside && patch < patches; patch += 8) {
        const u64 at = image + u64(patch) * width + channel;
        y[at] = (x[at] - mean) * rstd;
    }
}
