"""The operations of docs/integer-encoder.md, on whole arrays: input, linear layers, LayerNorm, attention, GELU.

T tokens, K inputs, O outputs, D width, N keys, W width of a head.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rounding import Ints, clamp8, fits, ints, isqrt, matmul, plus, reciprocal, rounded, times

Bytes = NDArray[np.int8]
Halfs = NDArray[np.int16]

EXPONENTIALS: Ints = np.array([math.floor(4095 * math.exp(-t / 64) + 0.5) for t in range(578)], dtype=np.int64)
"""The table E of section "Block", step 4."""


def pixels_of(values: NDArray[np.float32], std: np.float32, mean: np.float32) -> Halfs:
    """Section "Input": normalized f32 values of one channel, any shape, to pixels 0 … 255; −1 stands for the error."""
    if values.dtype != np.float32:
        raise TypeError("f32 expected")
    with np.errstate(all="ignore"):
        a = np.float32(255) * np.float32(std)
        b = np.float32(255) * np.float32(mean)
        product = values * a
        y = product + b
    assert y.dtype == np.float32
    # Limiting first changes nothing (0 and 255 are integers), and y + 0.5 is exact in float64 or has the same floor.
    limited = np.clip(y.astype(np.float64), 0, 255)
    error = np.isnan(y)
    return np.where(error, -1, np.floor(np.where(error, 0, limited) + 0.5)).astype(np.int16)


def from_4_bits(q: NDArray, scales: NDArray, group: int) -> Bytes:
    """The weights that integers −8 … 7, [O, K], and scales 0 … 255, [O, ⌈K / group⌉], stand for: i8 [O, K]."""
    of_each = ints(scales)[:, np.arange(q.shape[1]) // group]
    weights = plus(times(q, of_each), 8) >> 4
    assert weights.size == 0 or -127 <= weights.min() and weights.max() <= 112
    return weights.astype(np.int8)


def sums(inputs: NDArray, weights: NDArray, biases: NDArray) -> Ints:
    """Biases plus products, before the multiplier: inputs i8 [T, K], weights i8 [O, K], biases i32 [O] → [T, O]."""
    return plus(matmul(inputs, ints(weights).T), biases)


def linear(inputs: NDArray, weights: NDArray, biases: NDArray, multipliers: NDArray, shift: int) -> Ints:
    """Section "Linear layers", not yet limited: [T, K] → [T, O]."""
    return rounded(times(sums(inputs, weights, biases), multipliers), shift)


def normalized(tokens: NDArray, epsilon: int) -> Ints:
    """n of section "LayerNorm": tokens i16 [T, D] → [T, D], 20 fractional bits."""
    x = ints(tokens)
    width = x.shape[1]
    fits(width * width << 30, "D · sum of squares")
    first = x.sum(axis=1)
    second = (x * x).sum(axis=1)
    factors, shifts = [], []
    for s1, s2 in zip(first.tolist(), second.tolist()):
        variance = width * s2 - s1 * s1 + epsilon
        if not 1 <= variance < 1 << 61:
            raise OverflowError(f"V = {variance}")
        even = (64 - variance.bit_length()) // 2 * 2
        factor, shift = reciprocal(isqrt(variance << even))
        assert shift == 62
        factors.append(factor)
        shifts.append(42 - even // 2)
    distance = plus(times(x, width), -first[:, None])
    return rounded(times(distance, np.array(factors)[:, None]), np.array(shifts)[:, None])


def affine(n: Ints, multipliers: NDArray, offsets: NDArray, bits: int) -> Ints:
    """y of section "LayerNorm": [T, D] → [T, D], `bits` fractional bits."""
    return plus(times(n, multipliers), times(offsets, 1 << (bits - 16)))


def norm(tokens: NDArray, epsilon: int, multipliers: NDArray, offsets: NDArray, bits: int) -> Bytes:
    """LayerNorm within the blocks: tokens i16 [T, D] → i8 [T, D]."""
    return clamp8(rounded(affine(normalized(tokens, epsilon), multipliers, offsets, bits), bits))


def softmax(scores: NDArray, multiplier: int, shift: int) -> Halfs:
    """Weights of step 4: scores [T, N] → i16 [T, N]."""
    scores = ints(scores)
    distance = plus(scores.max(axis=1, keepdims=True), -scores)
    index = np.minimum(rounded(times(distance, multiplier), shift), 577)
    return EXPONENTIALS[index].astype(np.int16)


def average(weights: NDArray, values: NDArray) -> Ints:
    """Mean of step 4: weights i16 [T, N], values i8 [W, N], one row a channel → [T, W], 16 fractional bits."""
    total = matmul(weights, ints(values).T)
    inverse = [reciprocal(int(s)) for s in ints(weights).sum(axis=1)]
    factors = np.array([[r] for r, _ in inverse])
    shifts = np.array([[s - 16] for _, s in inverse])
    return rounded(times(total, factors), shifts)


def attended(mean: NDArray, multipliers: NDArray, shift: int) -> Bytes:
    """Out of step 4: means [T, W], multipliers i32 [W] → i8 [T, W]; W may be the channels of one head or of all."""
    return clamp8(rounded(times(mean, multipliers), shift))


def gelu(values: NDArray, table: NDArray) -> Bytes:
    """Step 7: values i8, any shape, table i8 [256] → i8 of the same shape."""
    return np.asarray(table, dtype=np.int8)[ints(values) + 128]
