// Products of bf16 matrices on tensor cores, by warps: tiles in shared memory, sums in registers.
//
// In a tile of 16 x 8 sums lane 4 g + t holds, of rows g and g + 8, columns 2 t and 2 t + 1 (PTX, "Matrix fragments for
// mma.m16n8k16"). Rows of tiles in shared memory are STRIDE elements apart, chosen so that eight of them touch all banks.
#pragma once

#include "device.cuh"

// c += a · b: a 16 x 16 by rows, b 16 x 8 by columns.
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    struct Share {
        u32 a[4], b[2];
        float c[4];
    };
    Share share = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
    lanes::Slot* slots = lanes::exchange("mma", &share, sizeof share, [](lanes::Slot* shown) {
        float left[16][16], right[16][8];
        for (u32 lane = 0; lane < 32; ++lane) {
            const Share& from = reinterpret_cast<const Share&>(shown[lane]);
            const u32 g = lane / 4, t = lane % 4;
            for (u32 i = 0; i < 4; ++i) {
                float* pair = &left[g + i % 2 * 8][2 * t + i / 2 * 8];
                unpack(from.a[i], pair[0], pair[1]);
            }
            for (u32 i = 0; i < 2; ++i) {
                unpack(from.b[i], right[2 * t + 8 * i][g], right[2 * t + 8 * i + 1][g]);
            }
        }
        for (u32 row = 0; row < 16; ++row) {
            float sums[8] = {};
            for (u32 k = 0; k < 16; ++k) {
                for (u32 column = 0; column < 8; ++column) {
                    sums[column] += left[row][k] * right[k][column];
                }
            }
            for (u32 column = 0; column < 8; ++column) {
                Share& to = reinterpret_cast<Share&>(shown[row % 8 * 4 + column / 2]);
                to.c[row / 8 * 2 + column % 2] += sums[column];
            }
        }
    });
    const Share& done = reinterpret_cast<const Share&>(slots[lanes::lane()]);
    for (u32 i = 0; i < 4; ++i) {
        c[i] = done.c[i];
    }
#endif
}

// Four matrices of 8 x 8: matrix i has its rows where lanes 8 i to 8 i + 7 say, 16 bytes each. Lane 4 g + t gets the elements
// 2 t and 2 t + 1 of row g of each; TRANSPOSED, of column g.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(u32 (&m)[4], const bf16* row) {
#ifdef __CUDACC__
    const u32 address = u32(__cvta_generic_to_shared(row));
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                     : "r"(address)
                     : "memory");
    }
#else
    if (!is_aligned(row, 16)) {
        lanes::fail("ldmatrix of a row that is not aligned to 16 bytes");
    }
    const lanes::Slot* slots = lanes::exchange("ldmatrix", &row, sizeof row);
    const u32 g = lanes::lane() / 4, t = lanes::lane() % 4;
    const auto element = [slots](u32 row, u32 column) {
        const bf16* elements;
        std::memcpy(&elements, slots[row].bytes, sizeof elements);
        return u32(elements[column].bits);
    };
    for (u32 i = 0; i < 4; ++i) {
        const u32 low = TRANSPOSED ? element(8 * i + 2 * t, g) : element(8 * i + g, 2 * t);
        const u32 high = TRANSPOSED ? element(8 * i + 2 * t + 1, g) : element(8 * i + g, 2 * t + 1);
        m[i] = low | high << 16;
    }
#endif
}

// s = A · B^T for 16 rows of A and COLUMNS rows of B, DEPTH elements long; of B only the first `used` rows, to whole 16, are
// looked at, other sums are zero.
template <u32 DEPTH, u32 STRIDE, u32 COLUMNS>
__device__ __forceinline__ void rows_by_rows(float (&s)[COLUMNS / 8][4], const bf16* a, const bf16* b, u32 used) {
    const u32 lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
    a += (matrix % 2 * 8 + row) * STRIDE + matrix / 2 * 8;
    b += (matrix / 2 * 8 + row) * STRIDE + matrix % 2 * 8;
#pragma unroll
    for (u32 n = 0; n < COLUMNS / 8; ++n) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    }
#pragma unroll
    for (u32 k = 0; k < DEPTH; k += 16) {
        u32 left[4];
        load_matrices<false>(left, a + k);
#pragma unroll
        for (u32 n = 0; n < COLUMNS / 16; ++n) {
            if (16 * n < used) {
                u32 right[4];
                load_matrices<false>(right, b + 16 * n * STRIDE + k);
                mma(s[2 * n], left, right[0], right[1]);
                mma(s[2 * n + 1], left, right[2], right[3]);
            }
        }
    }
}

// o += W · B for weights W, 16 rows of DEPTH sums as rows_by_rows leaves them, here rounded to bf16, and DEPTH rows of B,
// COLUMNS elements long; of B only the first `used` rows, to whole 16, are looked at.
template <u32 DEPTH, u32 STRIDE, u32 COLUMNS>
__device__ __forceinline__ void add_weighted_rows(float (&o)[COLUMNS / 8][4], const float (&w)[DEPTH / 8][4], const bf16* b,
                                                  u32 used) {
    const u32 lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
    b += (matrix % 2 * 8 + row) * STRIDE + matrix / 2 * 8;
#pragma unroll
    for (u32 k = 0; k < DEPTH / 16; ++k) {
        if (16 * k < used) {
            // What a lane holds of two neighboring tiles of sums is what it needs of a matrix of 16 x 16.
            const u32 left[4] = {to_bf16x2(w[2 * k][0], w[2 * k][1]), to_bf16x2(w[2 * k][2], w[2 * k][3]),
                                 to_bf16x2(w[2 * k + 1][0], w[2 * k + 1][1]), to_bf16x2(w[2 * k + 1][2], w[2 * k + 1][3])};
#pragma unroll
            for (u32 n = 0; n < COLUMNS / 16; ++n) {
                u32 right[4];
                load_matrices<true>(right, b + 16 * k * STRIDE + 16 * n);
                mma(o[2 * n], left, right[0], right[1]);
                mma(o[2 * n + 1], left, right[2], right[3]);
            }
        }
    }
}
