"""Inputs of the operations' golden vectors, and what is expected of them: `integer.safetensors`.

`INPUTS` makes the cases of each operation, dictionaries of inputs; `EXPECTED` computes the outputs from the inputs
alone, as `check.py` does again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

import operations as op
import panels
from rounding import clamp8, clamp16, ints, isqrt, reciprocal, rounded, times

Random = np.random.Generator
Case = dict[str, NDArray]

I32_MIN, I32_MAX = -(1 << 31), (1 << 31) - 1
SCORE_MAX = 402_653_184
IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))


def i8(values: ArrayLike) -> NDArray[np.int8]:
    return np.array(values, dtype=np.int8)


def i16(values: ArrayLike) -> NDArray[np.int16]:
    return np.array(values, dtype=np.int16)


def i32(values: ArrayLike) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def u8(values: ArrayLike) -> NDArray[np.uint8]:
    return np.array(values, dtype=np.uint8)


def u32(values: ArrayLike) -> NDArray[np.uint32]:
    return np.array(values, dtype=np.uint32)


def of_all_lengths(random: Random, longest: int, count: int) -> list[int]:
    """`count` random numbers of each bit length 1 … longest."""
    return [
        (1 << (length - 1)) + int(random.integers(0, 1 << (length - 1), dtype=np.uint64))
        for length in range(1, longest + 1)
        for _ in range(count)
    ]


def round_cases(random: Random) -> Iterator[Case]:
    for shift in range(63):
        half = (1 << shift) >> 1
        products = [0, 1, -1, 1 << 62, -(1 << 62), (1 << 62) - 1, 1 - (1 << 62)]
        for k in (0, 1, 2, 5, -1, -2, -3, int(random.integers(0, 1 << 20))):
            tie = (k << shift) + half
            products += [p for p in (tie - 1, tie, tie + 1) if abs(p) <= 1 << 62]
        products += [p * s for p, s in zip(of_all_lengths(random, 61, 1)[::4], (1, -1) * 16)]
        yield {"product": np.array(products, dtype=np.int64), "shift": u32([shift] * len(products))}


def scale_cases(random: Random) -> Iterator[Case]:
    extremes = (0, 1, -1, I32_MAX, I32_MIN, 1 << 30, -(1 << 30))
    rows = [(v, m, s) for v in extremes for m in extremes for s in (0, 1, 31, 55, 62)]
    for shift in range(63):
        for _ in range(12):
            # Results of up to 2^19, where there are such: as large as i8 and i16, and somewhat larger.
            total = min(62, shift + int(random.integers(2, 20)))
            bits = int(random.integers(max(1, total - 31), min(31, total - 1) + 1))
            value, multiplier = (int(random.integers(1 << (n - 1), 1 << n)) for n in (bits, total - bits))
            rows.append((value * int(random.choice([-1, 1])), multiplier * int(random.choice([-1, 1])), shift))
    values, multipliers, shifts = zip(*rows)
    yield {"value": i32(values), "multiplier": i32(multipliers), "shift": u32(shifts)}


def sqrt_cases(random: Random) -> Iterator[Case]:
    roots = of_all_lengths(random, 32, 4) + [(1 << 32) - 1]
    values = [0, 1, 2, 3, (1 << 64) - 1] + of_all_lengths(random, 64, 8)
    values += [r * r + d for r in roots for d in (-1, 0, 1)]
    values += [(1 << n) + d for n in range(1, 64) for d in (-1, 0, 1)]
    yield {"value": np.array(values, dtype=np.uint64)}


def reciprocal_cases(random: Random) -> Iterator[Case]:
    divisors = list(range(1, 300)) + [(1 << 32) - 1, (1 << 32) - 2] + of_all_lengths(random, 32, 16)
    divisors += [(1 << n) + d for n in range(2, 32) for d in (-1, 0, 1)]
    yield {"divisor": u32(divisors)}


def linear_case(tokens: ArrayLike, weight: ArrayLike, bias: ArrayLike, multiplier: ArrayLike, shift: int) -> Case:
    return {
        "tokens": i8(tokens), "weight": i8(weight), "bias": i32(bias), "multiplier": i32(multiplier),
        "shift": u32([shift]),
    }


def linear_cases(random: Random) -> Iterator[Case]:
    lengths = list(range(1, 41)) + [63, 64, 65, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097]
    for number, k in enumerate(lengths):
        t, o = (number % 9 + 1, (number * 5) % 11 + 1) if k < 1000 else (number % 4 + 1, number % 3 + 1)
        tokens = random.integers(-128, 128, (t, k))
        weight = random.integers(-127, 128, (o, k))
        bias = random.integers(-100 * k, 100 * k + 1, o)
        peak = int(np.abs(tokens @ weight.T + bias).max())
        # Results to about ±300 or ±40,000: the ones saturate i8, the others i16, a little.
        target = 300 if number % 2 else 40000
        shift = min(62, max(0, (peak * (1 << 31) // target).bit_length() - 1))
        multiplier = random.integers(1 << 29, 1 << 31, o) * random.choice([-1, 1, 1], o)
        yield linear_case(tokens, weight, bias, multiplier, shift)
    ends = [1 << 30, -(1 << 30), 0]
    for k, t in ((4097, 1), (64, 2), (33, 3)):
        for q, w in ((-128, -127), (127, 127), (-128, 127), (127, -127)):
            yield linear_case(np.full((t, k), q), np.full((3, k), w), ends, [I32_MAX, I32_MIN, 1 << 20], 55)
    tokens = random.integers(-128, 128, (4, 20))
    weight = random.integers(-127, 128, (8, 20))
    biases = [1 << 30, -(1 << 30), 1 << 30, -(1 << 30), 1000, -1000, 0, 77]
    multipliers = [I32_MAX, I32_MAX, I32_MIN, I32_MIN, 0, 1, -1, 3]
    for shift in (0, 1, 31, 44, 46, 53, 55, 61, 62):
        yield linear_case(tokens, weight, biases, multipliers, shift)


def norm_case(tokens: ArrayLike, epsilon: int, multiplier: ArrayLike, offset: ArrayLike, bits: int) -> Case:
    return {
        "tokens": i16(tokens), "epsilon": np.array([epsilon], dtype=np.uint64), "multiplier": i32(multiplier),
        "offset": i32(offset), "bits": u32([bits]),
    }


def norm_cases(random: Random) -> Iterator[Case]:
    widths = list(range(1, 18)) + [31, 32, 33, 64, 192, 384, 1000, 4097]
    for number, d in enumerate(widths):
        rows = [random.integers(-(1 << b), 1 << b, d) for b in ((15, 11) if d < 1000 else (13,))]
        rows += [np.full(d, 123), np.where(np.arange(d) % 2 == 0, 32767, -32768)] if d < 1000 else []
        rows += [np.where(np.arange(d) == d // 2, -32768, 32767)]
        epsilon = (1, 1 << 59, d * d * 67, int(random.integers(1, 1 << 59)))[number % 4]
        bits = (16, 45, 30, 37, 41)[number % 5]
        top = min(31, max(1, bits - 14))
        multiplier = random.integers(-(1 << top), (1 << top), d)
        yield norm_case(rows, epsilon, multiplier, random.integers(-(1 << 22), 1 << 22, d), bits)
    d = 24
    ends = np.tile([I32_MAX, I32_MIN, 0, 1, -1, 1 << 30], 4)
    rows = [np.full(d, -32768), np.full(d, 32767), np.full(d, 0), np.where(np.arange(d) == 3, 32767, -32768)]
    rows += [np.arange(d), np.where(np.arange(d) == 23, 1, 0), random.integers(-32768, 32768, d)]
    for epsilon in (1, 2, 3, 4, 1 << 58, 1 << 59):
        for bits in (16, 45):
            yield norm_case(rows, epsilon, ends, np.roll(ends, epsilon % 5 + 1), bits)
    yield norm_case(rows, d * d, np.full(d, 1 << 14), np.zeros(d), 29)


def softmax_case(
    scores: ArrayLike, multiplier: int, shift: int, values: ArrayLike, attention_multiplier: ArrayLike,
    attention_shift: int,
) -> Case:
    return {
        "scores": i32(scores), "multiplier": i32([multiplier]), "shift": u32([shift]), "values": i8(values),
        "attention_multiplier": i32(attention_multiplier), "attention_shift": u32([attention_shift]),
    }


def softmax_cases(random: Random) -> Iterator[Case]:
    for number, n in enumerate((1, 2, 3, 7, 8, 9, 50, 257, 4097)):
        t, w = (5, number % 7 + 1) if n < 4000 else (4, 3)
        huge = np.zeros((2, n), dtype=np.int64)
        huge[0, n // 2], huge[1] = SCORE_MAX, -SCORE_MAX
        huge[1, n - 1] = SCORE_MAX
        spread = random.integers(-20000, 20001, (t - 3, n))
        scores = np.concatenate([spread, np.full((1, n), (-1) ** number * SCORE_MAX), huge])
        values = random.integers(-128, 128, (w, n))
        values[0] = (127, -128)[number % 2]
        attention = random.integers(1 << 29, 1 << 31, w) * random.choice([-1, 1], w)
        attention_shift = (45, 46, 43, 47)[number % 4]
        ways = ((I32_MAX, 38 + number % 4), (0, 0), (I32_MAX, (0, 62)[number % 2]))
        for multiplier, shift in ways if n < 4000 else ways[:1]:
            yield softmax_case(scores, multiplier, shift, values, attention, attention_shift)
    # Every entry of the table, and the ties between entries.
    line = -np.arange(1200)[None, :]
    yield softmax_case(line, 1, 0, np.ones((1, 1200)), [1 << 20], 36)
    yield softmax_case(line, 1, 1, np.tile([-1, 2], 600)[None, :], [I32_MAX], 47)
    yield softmax_case(line, 3, 2, np.full((1, 1200), -128), [I32_MIN], 0)
    yield softmax_case(line[:, :40], 1 << 20, 18, np.full((3, 40), 127), [I32_MAX, 0, I32_MIN], 62)


def gelu_cases(random: Random) -> Iterator[Case]:
    ordered = np.arange(-128, 128)
    for table in (ordered, ordered[::-1], random.integers(-128, 128, 256)):
        for x in (ordered, random.permutation(ordered)):
            yield {"table": i8(table), "x": i8(x)}


def pixel_cases(random: Random) -> Iterator[Case]:
    special = [0.0, np.inf, np.nan, 1e-45, 1e-38, 1e30, 3.4028235e38, 1.0, 0.5]
    special += [-x for x in special] + [2.0, 255.0, 256.0, 32768.0, 4294967296.0]
    for mean, std in (*IMAGENET, (0.0, 1.0), (0.5, 0.5), (-0.25, 1 / 255)):
        halves = np.arange(-1, 257) + 0.5
        x = ((halves / 255 - mean) / std).astype(np.float32)
        values = [np.array(special, dtype=np.float32), x]
        for end in (np.float32(np.inf), np.float32(-np.inf)):
            near = x
            for _ in range(2):
                near = np.nextafter(near, end)
                values.append(near)
        values.append((random.integers(-4000, 4001, 100) / 1000).astype(np.float32))
        yield {
            "value": np.concatenate(values),
            "std": np.array([std], dtype=np.float32),
            "mean": np.array([mean], dtype=np.float32),
        }


def int4_case(q: ArrayLike, scale: ArrayLike, group: int) -> Case:
    return {"q": i8(q), "scale": u8(scale), "group": u32([group])}


def int4_cases(random: Random) -> Iterator[Case]:
    # Every integer with every scale, once: 64 outputs with four scales each.
    yield int4_case(np.tile(np.arange(-8, 8), (64, 4)), np.arange(256).reshape(64, 4), 16)
    shapes = [
        (1, 1, 4), (1, 4, 4), (2, 5, 4), (3, 7, 8), (15, 8, 8), (16, 9, 8), (17, 10, 8), (16, 16, 16), (31, 33, 12),
        (33, 30, 12), (48, 24, 24), (7, 65, 20), (5, 127, 64), (9, 64, 128), (18, 14, 8), (4, 3, 65536), (2, 257, 256),
        (1, 1025, 32), (20, 100, 100),
    ]
    for o, k, group in shapes:
        scale = random.integers(0, 256, (o, panels.groups(k, group)))
        yield int4_case(random.integers(-8, 8, (o, k)), scale, group)
    for q in (-8, -1, 7):
        yield int4_case(np.full((17, 6), q), np.full((17, 2), 255), 4)


def expect_scale(c: Case) -> Case:
    scaled = rounded(times(c["value"], c["multiplier"]), c["shift"])
    return {"scaled": scaled, "i8": clamp8(scaled), "i16": clamp16(scaled)}


def expect_reciprocal(c: Case) -> Case:
    pairs = np.array([reciprocal(d) for d in c["divisor"].tolist()], dtype=np.int64)
    return {"mantissa": pairs[:, 0], "shift": u32(pairs[:, 1])}


def expect_linear(c: Case) -> Case:
    result = op.linear(c["tokens"], c["weight"], c["bias"], c["multiplier"], int(c["shift"][0]))
    return {"i8": clamp8(result), "i16": clamp16(result)}


def expect_norm(c: Case) -> Case:
    bits = int(c["bits"][0])
    n = op.normalized(c["tokens"], int(c["epsilon"][0]))
    y = op.affine(n, c["multiplier"], c["offset"], bits)
    return {"normalized": i32(n), "affine": y, "i8": clamp8(rounded(y, bits))}


def expect_softmax(c: Case) -> Case:
    weights = op.softmax(c["scores"], int(c["multiplier"][0]), int(c["shift"][0]))
    mean = op.average(weights, c["values"])
    out = op.attended(mean, c["attention_multiplier"], int(c["attention_shift"][0]))
    return {"weights": weights, "sum": u32(ints(weights).sum(axis=1)), "mean": i32(mean), "out": out}


def expect_int4(c: Case) -> Case:
    weight = op.from_4_bits(c["q"], c["scale"], int(c["group"][0]))
    return {"weight": weight, "packed": np.frombuffer(panels.packed_4(c["q"], c["scale"]), np.uint8)}


INPUTS: dict[str, Callable[[Random], Iterator[Case]]] = {
    "round": round_cases,
    "scale": scale_cases,
    "sqrt": sqrt_cases,
    "reciprocal": reciprocal_cases,
    "linear": linear_cases,
    "norm": norm_cases,
    "softmax": softmax_cases,
    "gelu": gelu_cases,
    "pixel": pixel_cases,
    "int4": int4_cases,
}

EXPECTED: dict[str, Callable[[Case], Case]] = {
    "round": lambda c: {"rounded": rounded(c["product"], c["shift"])},
    "scale": expect_scale,
    "sqrt": lambda c: {"root": u32([isqrt(v) for v in c["value"].tolist()])},
    "reciprocal": expect_reciprocal,
    "linear": expect_linear,
    "norm": expect_norm,
    "softmax": expect_softmax,
    "gelu": lambda c: {"y": op.gelu(c["x"], c["table"])},
    "pixel": lambda c: {"pixel": op.pixels_of(c["value"], c["std"][0], c["mean"][0])},
    "int4": expect_int4,
}
