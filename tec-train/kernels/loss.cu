// The two losses, f32. Each is a value for each row first, then one block adds these in a fixed order, in f64.
#include "device.cuh"

// The mean squared error of each removed patch over its channels, zero of the others, which are not looked at: pred and target
// [rows, width], removed and errors [rows]. Launch: blocks of 256 threads, 8 rows each.
KERNEL(feature_loss_rows, 256)
(const float* pred, const float* target, const float* removed, float* errors, u32 rows, u32 width) {
    const u32 row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    const float weight = removed[row];
    float sum = 0.0f;
    if (weight != 0.0f) {
        for (u32 at = lane; at < width; at += 32) {
            const float error = pred[u64(row) * width + at] - target[u64(row) * width + at];
            sum += error * error;
        }
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        errors[row] = weight == 0.0f ? 0.0f : weight * (sum / float(width));
    }
}

// out[0] = the sum of `values` over that of `weights`, out[1] = one over that; where `weights` is null, the number of values.
// Launch: one block of 256 threads.
KERNEL(weighted_mean, 256)(const float* values, const float* weights, float* out, u32 n) {
    SHARED(double, scratch, 8);
    double sum = 0.0, total = 0.0;
    for (u32 at = threadIdx.x; at < n; at += blockDim.x) {
        sum += double(values[at]);
        total += weights == nullptr ? 1.0 : double(weights[at]);
    }
    sum = block_sum(sum, scratch);
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) {
        out[0] = float(sum / total);
        out[1] = float(1.0 / total);
    }
}

// The gradient of pred in the feature loss: 2 upstream scale / width · removed · (pred - target), where scale = mean[1] of
// weighted_mean; zero at visible patches. Launch: blocks of 256 threads, one for each row.
KERNEL(feature_loss_gradient, 256)
(const float* pred, const float* target, const float* removed, const float* upstream, const float* mean, float* grad,
 u32 width) {
    const float weight = removed[blockIdx.x];
    const float scale = 2.0f * (*upstream * mean[1]) / float(width) * weight;
    for (u32 at = threadIdx.x; at < width; at += blockDim.x) {
        const u64 place = u64(blockIdx.x) * width + at;
        grad[place] = weight == 0.0f ? 0.0f : scale * (pred[place] - target[place]);
    }
}

// The largest value of a row and the sum of e^(x - largest), by a warp.
__device__ __forceinline__ float largest_and_mass(const float* x, u32 width, u32 lane, float& mass) {
    float most = -INFINITE;
    for (u32 at = lane; at < width; at += 32) {
        most = x[at] > most ? x[at] : most;
    }
    most = warp_max(most);
    mass = 0.0f;
    for (u32 at = lane; at < width; at += 32) {
        mass += expf(x[at] - most);
    }
    mass = warp_sum(mass);
    return most;
}

// The cross-entropy of each row, -Σ target · log softmax(pred): pred and target [rows, width], losses [rows].
// Launch: blocks of 256 threads, 8 rows each.
KERNEL(relation_loss_rows, 256)(const float* pred, const float* target, float* losses, u32 rows, u32 width) {
    const u32 row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    pred += u64(row) * width;
    target += u64(row) * width;
    float mass;
    const float most = largest_and_mass(pred, width, lane, mass);
    const float log_sum = most + logf(mass);
    float sum = 0.0f;
    for (u32 at = lane; at < width; at += 32) {
        sum += target[at] * (log_sum - pred[at]);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        losses[row] = sum;
    }
}

// The gradient of pred in the mean of relation_loss_rows: upstream / rows · (softmax(pred) · Σ target - target).
// Launch: blocks of 256 threads, 8 rows each.
KERNEL(relation_loss_gradient, 256)
(const float* pred, const float* target, const float* upstream, float* grad, u32 rows, u32 width) {
    const u32 row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    pred += u64(row) * width;
    target += u64(row) * width;
    grad += u64(row) * width;
    float mass;
    const float most = largest_and_mass(pred, width, lane, mass);
    float targets = 0.0f;
    for (u32 at = lane; at < width; at += 32) {
        targets += target[at];
    }
    const float factor = warp_sum(targets) / mass, scale = *upstream / float(rows);
    for (u32 at = lane; at < width; at += 32) {
        grad[at] = scale * (expf(pred[at] - most) * factor - target[at]);
    }
}
