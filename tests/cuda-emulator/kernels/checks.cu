// Kernels that show what the emulation does, and kernels that are wrong on purpose.
#include "device.cuh"

// out[i] of thread i of all: its numbers as digits, where no block has more than 10 threads along an axis.
KERNEL(check_numbers, 1024)(u32* out, u32 per_block) {
    const u32 block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const u32 thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * per_block + thread] = ((blockIdx.z * 10 + blockIdx.y) * 10 + blockIdx.x) * 1000 + threadIdx.z * 100 +
                                      threadIdx.y * 10 + threadIdx.x;
}

// Of each thread the values of three others of its warp: `lane ^ 5`, lane 7, `lane + 3` or its own.
KERNEL(check_shuffles, 256)(u32* out) {
    const u32 own = threadIdx.x * threadIdx.x;
    out[3 * threadIdx.x] = __shfl_xor_sync(ALL_LANES, own, 5);
    out[3 * threadIdx.x + 1] = __shfl_sync(ALL_LANES, own, 7);
    out[3 * threadIdx.x + 2] = __shfl_down_sync(ALL_LANES, own, 3);
}

// The sum of 0 to n - 1 through shared memory; thread i adds what thread i - 1 left.
KERNEL(check_barriers, 1024)(u32* out) {
    DYNAMIC_SHARED(u32, memory);
    for (u32 turn = 0; turn < blockDim.x; ++turn) {
        if (threadIdx.x == turn) {
            memory[turn] = turn + (turn > 0 ? memory[turn - 1] : 0);
        }
        __syncthreads();
    }
    out[threadIdx.x] = memory[blockDim.x - 1];
}

// What shared memory holds before it is written.
KERNEL(check_fresh_shared, 32)(float* out) {
    DYNAMIC_SHARED(float, memory);
    out[blockIdx.x] = memory[0];
    memory[0] = 1.0f;
}

// Half of the threads do not come to the barrier.
KERNEL(check_half_barrier, 256)(u32* out) {
    if (threadIdx.x < blockDim.x / 2) {
        return;
    }
    __syncthreads();
    out[threadIdx.x] = 1;
}

// Half of the threads wait for the block, the others for their warp.
KERNEL(check_barrier_and_shuffle, 256)(u32* out) {
    out[threadIdx.x] = 0;
    if (threadIdx.x % 32 < 16) {
        __syncthreads();
    } else {
        out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, threadIdx.x, 1);
    }
}

// Lanes of one warp in two operations.
KERNEL(check_two_operations, 32)(u32* out) {
    if (threadIdx.x < 16) {
        out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, threadIdx.x, 1);
    } else {
        __syncwarp();
    }
}

KERNEL(check_part_of_a_warp, 32)(u32* out) { out[threadIdx.x] = __shfl_xor_sync(0xffffu, threadIdx.x, 1); }

KERNEL(check_shared_overflow, 32)(u32 at) {
    DYNAMIC_SHARED(u32, memory);
    memory[at] = 7;
}

KERNEL(check_write, 1)(u32* out, u32 at) { out[at] = 7; }

// A barrier is missing between writing and reading.
KERNEL(check_missing_barrier, 64)(u32* out) {
    DYNAMIC_SHARED(u32, memory);
    memory[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = memory[(threadIdx.x + 32) % 64];
}
