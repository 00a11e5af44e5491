// Layer normalization over rows, and sums down columns.
#include "device.cuh"

// A narrow row belongs to one warp, a wide one to a block. A thread keeps its elements of the row in shared memory: each reads back only what it wrote itself.

// The sum over the threads of a row: a warp, or where WIDE the whole block.
template <bool WIDE>
__device__ __forceinline__ float row_sum(float x, float* scratch) {
    return WIDE ? block_sum(x, scratch) : warp_sum(x);
}

// The mean and 1 / sqrt(variance + eps) of a row that this thread's elements of lie in `kept`: first the mean, then the mean
// squared distance from it.
template <bool WIDE>
__device__ __forceinline__ void statistics(const float* kept, u32 width, u32 thread, u32 threads, float eps, float* scratch,
                                           bool fours, float& mean, float& rstd) {
    float sum = 0.0f;
    if (fours) {
        for (u32 at = 4 * thread; at < width; at += 4 * threads) {
            float x[4];
            load4(kept + at, x);
            sum += (x[0] + x[1]) + (x[2] + x[3]);
        }
    } else {
        for (u32 at = thread; at < width; at += threads) {
            sum += kept[at];
        }
    }
    mean = row_sum<WIDE>(sum, scratch) / float(width);
    float squares = 0.0f;
    if (fours) {
        for (u32 at = 4 * thread; at < width; at += 4 * threads) {
            float x[4];
            load4(kept + at, x);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                squares += (x[i] - mean) * (x[i] - mean);
            }
        }
    } else {
        for (u32 at = thread; at < width; at += threads) {
            squares += (kept[at] - mean) * (kept[at] - mean);
        }
    }
    rstd = 1.0f / sqrtf(row_sum<WIDE>(squares, scratch) / float(width) + eps);
}

// Copies this thread's elements of a row to shared memory.
__device__ __forceinline__ void keep(const float* row, float* kept, u32 width, u32 thread, u32 threads, bool fours) {
    if (fours) {
#pragma unroll 4
        for (u32 at = 4 * thread; at < width; at += 4 * threads) {
            float x[4];
            load4(row + at, x);
            store4(kept + at, x);
        }
        return;
    }
    for (u32 at = thread; at < width; at += threads) {
        kept[at] = row[at];
    }
}

// y = (x - mean) · rstd · weight + bias: x and y [rows, width].
template <bool WIDE, typename T>
__device__ __forceinline__ void layer_norm(const float* x, const float* weight, const float* bias, T* y, u32 rows, u32 width,
                                           float eps) {
    DYNAMIC_SHARED(float, memory);
    SHARED(float, scratch, 8);
    const u32 threads = WIDE ? blockDim.x : 32;
    const u32 thread = threadIdx.x % threads, group = threadIdx.x / threads;
    const u32 row = blockIdx.x * (blockDim.x / threads) + group;
    if (row >= rows) {
        return;  // whole warps, or none where a block has a row
    }
    const bool fours = in_fours(x, width) && in_fours(y, width) && in_fours(weight, width) && in_fours(bias, width);
    float* kept = memory + group * ((width + 3) / 4 * 4);
    float mean, rstd;
    keep(x + u64(row) * width, kept, width, thread, threads, fours);
    statistics<WIDE>(kept, width, thread, threads, eps, scratch, fours, mean, rstd);
    y += u64(row) * width;
    if (fours) {
        for (u32 at = 4 * thread; at < width; at += 4 * threads) {
            float v[4], w[4], b[4];
            load4(kept + at, v);
            load4(weight + at, w);
            load4(bias + at, b);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                v[i] = (v[i] - mean) * rstd * w[i] + b[i];
            }
            store4(y + at, v);
        }
        return;
    }
    for (u32 at = thread; at < width; at += threads) {
        store(y + at, (kept[at] - mean) * rstd * weight[at] + bias[at]);
    }
}

// Launch: blocks of 256 threads, 8 rows each, shared memory for the 8 rows (`_wide`: one row each, memory for it), a row
// rounded up to 4 floats.
KERNEL(layer_norm_f32_f32, 256)
(const float* x, const float* weight, const float* bias, float* y, u32 rows, u32 width, float eps) {
    layer_norm<false>(x, weight, bias, y, rows, width, eps);
}
KERNEL(layer_norm_f32_bf16, 256)
(const float* x, const float* weight, const float* bias, bf16* y, u32 rows, u32 width, float eps) {
    layer_norm<false>(x, weight, bias, y, rows, width, eps);
}
KERNEL(layer_norm_f32_f32_wide, 256)
(const float* x, const float* weight, const float* bias, float* y, u32 rows, u32 width, float eps) {
    layer_norm<true>(x, weight, bias, y, rows, width, eps);
}
KERNEL(layer_norm_f32_bf16_wide, 256)
(const float* x, const float* weight, const float* bias, bf16* y, u32 rows, u32 width, float eps) {
    layer_norm<true>(x, weight, bias, y, rows, width, eps);
}

// The gradient of x from `grad`, that of y: rstd · (g - mean(g) - n · mean(g · n)), where g = grad · weight and n is the
// normalized row; `residual`, unless it is null, is added. Writes each row's mean and rstd to `stats` [rows, 2], for the
// gradients of weight and bias. grad_x may be residual.
template <bool WIDE, typename T>
__device__ __forceinline__ void layer_norm_gradient(const float* x, const float* weight, const T* grad, const float* residual,
                                                    float* grad_x, float* stats, u32 rows, u32 width, float eps) {
    DYNAMIC_SHARED(float, memory);
    SHARED(float, scratch, 8);
    const u32 threads = WIDE ? blockDim.x : 32;
    const u32 thread = threadIdx.x % threads, group = threadIdx.x / threads;
    const u32 row = blockIdx.x * (blockDim.x / threads) + group;
    if (row >= rows) {
        return;
    }
    const bool fours = in_fours(x, width) && in_fours(weight, width) && in_fours(grad, width) && in_fours(grad_x, width) &&
                       (residual == nullptr || in_fours(residual, width));
    float* kept = memory + group * ((width + 3) / 4 * 4);
    const u64 start = u64(row) * width;
    float mean, rstd;
    keep(x + start, kept, width, thread, threads, fours);
    statistics<WIDE>(kept, width, thread, threads, eps, scratch, fours, mean, rstd);
    if (thread == 0) {
        stats[2 * u64(row)] = mean;
        stats[2 * u64(row) + 1] = rstd;
    }
    grad += start;
    grad_x += start;
    residual = residual == nullptr ? nullptr : residual + start;
    float along_ones = 0.0f, along_normal = 0.0f;
    if (fours) {
        for (u32 at = 4 * thread; at < width; at += 4 * threads) {
            float v[4], w[4], g[4];
            load4(kept + at, v);
            load4(weight + at, w);
            load4(grad + at, g);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                along_ones += g[i] * w[i];
                along_normal += g[i] * w[i] * ((v[i] - mean) * rstd);
            }
        }
    } else {
        for (u32 at = thread; at < width; at += threads) {
            const float g = to_float(grad[at]) * weight[at];
            along_ones += g;
            along_normal += g * ((kept[at] - mean) * rstd);
        }
    }
    along_ones = row_sum<WIDE>(along_ones, scratch) / float(width);
    along_normal = row_sum<WIDE>(along_normal, scratch) / float(width);
    if (fours) {
        for (u32 at = 4 * thread; at < width; at += 4 * threads) {
            float v[4], w[4], g[4], r[4] = {};
            load4(kept + at, v);
            load4(weight + at, w);
            load4(grad + at, g);
            if (residual != nullptr) {
                load4(residual + at, r);
            }
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                v[i] = rstd * ((g[i] * w[i] - along_ones) - (v[i] - mean) * rstd * along_normal) + r[i];
            }
            store4(grad_x + at, v);
        }
        return;
    }
    for (u32 at = thread; at < width; at += threads) {
        const float g = to_float(grad[at]) * weight[at], normal = (kept[at] - mean) * rstd;
        const float more = residual == nullptr ? 0.0f : residual[at];
        grad_x[at] = rstd * ((g - along_ones) - normal * along_normal) + more;
    }
}

// Launch: as layer_norm.
KERNEL(layer_norm_gradient_f32, 256)
(const float* x, const float* weight, const float* grad, const float* residual, float* grad_x, float* stats, u32 rows,
 u32 width, float eps) {
    layer_norm_gradient<false>(x, weight, grad, residual, grad_x, stats, rows, width, eps);
}
KERNEL(layer_norm_gradient_bf16, 256)
(const float* x, const float* weight, const bf16* grad, const float* residual, float* grad_x, float* stats, u32 rows,
 u32 width, float eps) {
    layer_norm_gradient<false>(x, weight, grad, residual, grad_x, stats, rows, width, eps);
}
KERNEL(layer_norm_gradient_f32_wide, 256)
(const float* x, const float* weight, const float* grad, const float* residual, float* grad_x, float* stats, u32 rows,
 u32 width, float eps) {
    layer_norm_gradient<true>(x, weight, grad, residual, grad_x, stats, rows, width, eps);
}
KERNEL(layer_norm_gradient_bf16_wide, 256)
(const float* x, const float* weight, const bf16* grad, const float* residual, float* grad_x, float* stats, u32 rows,
 u32 width, float eps) {
    layer_norm_gradient<true>(x, weight, grad, residual, grad_x, stats, rows, width, eps);
}

// Sums of 32 columns over a block's rows: thread (x, y) adds every eighth row from row y on, then the eight sums of a column
// are added in their order. Two sums at once; `scratch` is [2][8][32].
__device__ __forceinline__ void add_eighths(float& a, float& b, float* scratch) {
    float* place = scratch + threadIdx.y * 32 + threadIdx.x;
    place[0] = a;
    place[256] = b;
    __syncthreads();
    a = b = 0.0f;
    for (u32 eighth = 0; eighth < 8; ++eighth) {
        a += scratch[eighth * 32 + threadIdx.x];
        b += scratch[256 + eighth * 32 + threadIdx.x];
    }
}

// Parts of the gradients of weight and bias: part p of `partial` [2, parts, width] has the sums of grad · normal, then those of
// grad, over rows p · rows_per_part and on.
template <typename T>
__device__ __forceinline__ void parameter_parts(const float* x, const float* stats, const T* grad, float* partial, u32 rows,
                                                u32 width, u32 rows_per_part) {
    SHARED(float, scratch, 512);
    const u32 column = blockIdx.x * 32 + threadIdx.x, part = blockIdx.y;
    const u32 first = part * rows_per_part;
    const u32 end = rows - first < rows_per_part ? rows : first + rows_per_part;
    float weight_sum = 0.0f, bias_sum = 0.0f;
    if (column < width) {
        for (u32 row = first + threadIdx.y; row < end; row += 8) {
            const float g = to_float(grad[u64(row) * width + column]);
            const float mean = stats[2 * u64(row)], rstd = stats[2 * u64(row) + 1];
            weight_sum += g * ((x[u64(row) * width + column] - mean) * rstd);
            bias_sum += g;
        }
    }
    add_eighths(weight_sum, bias_sum, scratch);
    if (threadIdx.y == 0 && column < width) {
        partial[u64(part) * width + column] = weight_sum;
        partial[(u64(gridDim.y) + part) * width + column] = bias_sum;
    }
}

// Launch: blocks of 32 x 8 threads, a block for 32 columns and a part.
KERNEL(layer_norm_parts_f32, 256)
(const float* x, const float* stats, const float* grad, float* partial, u32 rows, u32 width, u32 rows_per_part) {
    parameter_parts(x, stats, grad, partial, rows, width, rows_per_part);
}
KERNEL(layer_norm_parts_bf16, 256)
(const float* x, const float* stats, const bf16* grad, float* partial, u32 rows, u32 width, u32 rows_per_part) {
    parameter_parts(x, stats, grad, partial, rows, width, rows_per_part);
}

// Sums down the columns of x [rows, width], by parts of rows: `sums` [parts, width].
template <typename T>
__device__ __forceinline__ void column_sums(const T* x, float* sums, u32 rows, u32 width, u32 rows_per_part) {
    SHARED(float, scratch, 512);
    const u32 column = blockIdx.x * 32 + threadIdx.x, part = blockIdx.y;
    const u32 first = part * rows_per_part;
    const u32 end = rows - first < rows_per_part ? rows : first + rows_per_part;
    float sum = 0.0f, nothing = 0.0f;
    if (column < width) {
        for (u32 row = first + threadIdx.y; row < end; row += 8) {
            sum += to_float(x[u64(row) * width + column]);
        }
    }
    add_eighths(sum, nothing, scratch);
    if (threadIdx.y == 0 && column < width) {
        sums[u64(part) * width + column] = sum;
    }
}

// Launch: blocks of 32 x 8 threads, a block for 32 columns and a part.
KERNEL(column_sums_f32, 256)(const float* x, float* sums, u32 rows, u32 width, u32 rows_per_part) {
    column_sums(x, sums, rows, width, rows_per_part);
}
KERNEL(column_sums_bf16, 256)(const bf16* x, float* sums, u32 rows, u32 width, u32 rows_per_part) {
    column_sums(x, sums, rows, width, rows_per_part);
}
