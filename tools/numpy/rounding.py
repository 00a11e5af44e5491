"""Exact integer functions: docs/integer-encoder.md, section "Rounding".

Arrays are int64. Every function that could leave 64 bits looks at the values it got, in Python's unbounded integers,
and raises instead of wrapping around.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]

LIMIT = 1 << 63
"""One past the largest int64."""


def extent(values: NDArray) -> int:
    """The largest absolute value in `values`, as a Python int; 0 if there are none."""
    if values.size == 0:
        return 0
    return max(abs(int(values.min())), abs(int(values.max())))


def fits(bound: int, what: str) -> None:
    """Raises unless numbers of at most this absolute value are int64."""
    if bound >= LIMIT:
        raise OverflowError(f"{what}: {bound} needs more than 64 bits")


def ints(values: ArrayLike) -> Ints:
    """`values` as int64; refuses floating point and what does not fit."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"integers expected, not {array.dtype}")
    fits(extent(array), "integer")
    return array.astype(np.int64)


def times(a: ArrayLike, b: ArrayLike) -> Ints:
    """Elementwise product, broadcast."""
    a, b = ints(a), ints(b)
    fits(extent(a) * extent(b), "product")
    return a * b


def plus(a: ArrayLike, b: ArrayLike) -> Ints:
    """Elementwise sum, broadcast."""
    a, b = ints(a), ints(b)
    fits(extent(a) + extent(b), "sum")
    return a + b


def matmul(a: ArrayLike, b: ArrayLike) -> Ints:
    """Matrix product [..., M, K] · [..., K, N].

    In float64, where integers below 2^53 are exact: no partial sum, in whatever order, leaves that range.
    """
    a, b = ints(a), ints(b)
    bound = a.shape[-1] * extent(a) * extent(b)
    if bound >= 1 << 53:
        raise OverflowError(f"matrix product: {bound} is not exact in float64")
    return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int64)


def rounded(product: ArrayLike, shift: ArrayLike) -> Ints:
    """round(product, shift), elementwise, broadcast: floor((product + half) / 2^shift), half = 2^(shift−1) or 0."""
    product, shift = ints(product), ints(shift)
    if shift.size and (int(shift.min()) < 0 or int(shift.max()) > 62):
        raise ValueError("shifts are 0 … 62")
    half = (np.int64(1) << shift) >> 1
    fits(extent(product) + extent(half), "rounded product")
    return (product + half) >> shift


def isqrt(value: int) -> int:
    """The largest r with r² ≤ value."""
    return math.isqrt(value)


def reciprocal(divisor: int) -> tuple[int, int]:
    """(mantissa, shift) with 1 / divisor ≈ mantissa · 2^−shift, divisor ≥ 1."""
    if divisor < 1:
        raise ValueError("divisors are at least 1")
    bits = divisor.bit_length()
    return ((1 << (30 + bits)) + divisor // 2) // divisor, 30 + bits


def clamp8(values: Ints) -> NDArray[np.int8]:
    """Limited to −128 … 127."""
    return np.clip(values, -128, 127).astype(np.int8)


def clamp16(values: Ints) -> NDArray[np.int16]:
    """Limited to −32,768 … 32,767."""
    return np.clip(values, -32768, 32767).astype(np.int16)
