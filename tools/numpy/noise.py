"""Philox4x32-10 noise and the masks that follow from it: `noise.safetensors`.

Key: the seed's low and high word. Counter: (index div 4, sample, epoch, stream); word index mod 4 is the value. The
uniform value is the upper 24 bits times 2^-24. A mask is the stable ascending argsort of the uniform values.
(Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, 2011; `tec_core::philox` and `tec_core::mask`.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Case = dict[str, NDArray]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds on one block."""
    a, b, c, d = counter
    low, high = key
    for _ in range(10):
        first, second = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b, c, d = (second >> 32) ^ b ^ low, second & MASK, (first >> 32) ^ d ^ high, first & MASK
        low, high = (low + WEYL[0]) & MASK, (high + WEYL[1]) & MASK
    return a, b, c, d


def words(seed: int, epoch: int, sample: int, stream: int, count: int) -> NDArray[np.uint32]:
    """The first words of a sample's noise."""
    key = (seed & MASK, seed >> 32)
    blocks = (philox((number, sample, epoch, stream), key) for number in range((count + 3) // 4))
    return np.array([word for block in blocks for word in block][:count], dtype=np.uint32)


def expected(case: Case) -> Case:
    """What follows from `seed` u64 [1], `place` u32 [3] (epoch, sample, stream), `patches` and `keep` u32 [1]."""
    epoch, sample, stream = (int(value) for value in case["place"])
    patches, keep = int(case["patches"][0]), int(case["keep"][0])
    random = words(int(case["seed"][0]), epoch, sample, stream, patches)
    uniform = ((random >> np.uint32(8)).astype(np.float64) * 2.0**-24).astype(np.float32)
    order = np.argsort(uniform, kind="stable")
    restore = np.argsort(order, kind="stable")
    return {
        "words": random,
        "uniform": uniform,
        "order": order.astype(np.uint32),
        "restore": restore.astype(np.uint32),
        "removed": (restore >= keep).astype(np.float32),
    }


def inputs(random: np.random.Generator) -> Iterator[Case]:
    """Seeds, epochs, samples and streams, the ends of their ranges among them."""
    places = [(0, 0, 0, 0), (2**64 - 1, MASK, MASK, 3), (1, 0, 0, 0), (2**32, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)]
    places += [(int(random.integers(0, 2**63)), *map(int, random.integers(0, 2**20, 2)), n % 4) for n in range(10)]
    for number, (seed, epoch, sample, stream) in enumerate(places):
        patches = (196, 49, 64, 1, 2, 3, 5, 256)[number % 8]
        yield {
            "seed": np.array([seed], dtype=np.uint64),
            "place": np.array([epoch, sample, stream], dtype=np.uint32),
            "patches": np.array([patches], dtype=np.uint32),
            "keep": np.array([max(1, patches // 4)], dtype=np.uint32),
        }
