"""The f32 functions that training is made of, their gradients, and resized position tables: `functions.safetensors`.

Float64 of inputs that are f32, stored as f32. Tensors are named OP.N.NAME, as in `integer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from edges import softmax

Case = dict[str, NDArray]
Random = np.random.Generator

WIDTHS = (1, 2, 5, 7, 8, 9, 17, 96)
GRIDS = ((1, 3), (4, 7), (7, 4), (14, 5), (5, 5), (6, 12))
ERF = np.vectorize(math.erf)


def layer_norm_inputs(random: Random) -> Iterator[Case]:
    # Of one or two channels the gradient is what epsilon leaves of a difference: rounding errors, in f32.
    for width in WIDTHS[2:]:
        # Spreads for which epsilon is small, about as large as the variance, and larger.
        spread = np.array([[2.0], [1e-3], [1e-4]])
        yield {
            "x": random.normal(0, 1, (3, width)) * spread + random.normal(0, 1, (3, 1)) * spread,
            "weight": random.normal(0, 1, width),
            "bias": random.normal(0, 1, width),
            "epsilon": np.array([1e-6]),
            "grad_out": random.normal(0, 1, (3, width)) * spread,
        }


def layer_norm(case: Case) -> Case:
    x, weight, up = case["x"], case["weight"], case["grad_out"]
    scale = 1 / np.sqrt(x.var(axis=1, keepdims=True) + case["epsilon"])
    normal = (x - x.mean(axis=1, keepdims=True)) * scale
    inner = up * weight
    along = inner.mean(axis=1, keepdims=True) + normal * (inner * normal).mean(axis=1, keepdims=True)
    return {
        "out": normal * weight + case["bias"],
        "grad_x": scale * (inner - along),
        "grad_weight": (up * normal).sum(axis=0),
        "grad_bias": up.sum(axis=0),
    }


def softmax_inputs(random: Random) -> Iterator[Case]:
    for width in WIDTHS:
        x = random.normal(0, 3, (4, width)) + np.array([[0], [300], [-300], [3]])
        yield {"x": x, "width": width, "scale": np.array([0.7]), "grad_out": random.normal(0, 1, (4, width))}


def softmax_and_gradient(case: Case) -> Case:
    scaled, up = case["x"] * case["scale"], case["grad_out"]
    p = softmax(scaled)
    largest = scaled.max(axis=1)
    return {
        "out": p,
        "grad_x": case["scale"] * p * (up - (p * up).sum(axis=1, keepdims=True)),
        "log_sum": largest + np.log(np.exp(scaled - largest[:, None]).sum(axis=1)),
    }


def gelu_inputs(random: Random) -> Iterator[Case]:
    # One range a case: an error is measured against the largest value.
    for largest in (1e-3, 0.3, 1.0, 3.0, 6.0):
        yield {"x": random.uniform(-largest, largest, 200), "grad_out": random.normal(0, 1, 200)}


def gelu(case: Case) -> Case:
    x = case["x"]
    below = 0.5 * (1 + ERF(x / math.sqrt(2)))
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return {"out": x * below, "grad_x": case["grad_out"] * (below + x * density), "exp": np.exp(x), "erf": ERF(x)}


def linear_inputs(random: Random) -> Iterator[Case]:
    for width in WIDTHS:
        x, weight = random.normal(0, 1, (3, width)), random.normal(0, 1, (4, width))
        bias, grad_out = random.normal(0, 1, 4), random.normal(0, 1, (3, 4))
        yield {"x": x, "width": width, "weight": weight, "bias": bias, "grad_out": grad_out}


def linear(case: Case) -> Case:
    grad_out = case["grad_out"]
    return {
        "out": case["x"] @ case["weight"].T + case["bias"],
        "grad_x": grad_out @ case["weight"],
        "grad_weight": grad_out.T @ case["x"],
        "grad_bias": grad_out.sum(axis=0),
    }


def resize_inputs(random: Random) -> Iterator[Case]:
    for start, end in GRIDS:
        for antialias in (0, 1):
            table = random.normal(0, 1, (start, start, 9))
            yield {"table": table, "sizes": np.array([start, end, 9, antialias], dtype=np.uint32)}


def cubic(x: float, a: float) -> float:
    """Keys' kernel."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resampling(start: int, end: int, antialias: bool) -> NDArray:
    """The matrix [end, start] of PyTorch's bicubic `interpolate` along one axis, align_corners=False."""
    matrix, step = np.zeros((end, start)), start / end
    for row in range(end):
        center = step * (row + 0.5)
        if antialias:
            widening = max(step, 1.0)
            first = max(int(center - 2 * widening + 0.5), 0)
            last = min(int(center + 2 * widening + 0.5), start)
            taps = [(at, cubic((at + 0.5 - center) / widening, -0.5)) for at in range(first, last)]
            total = sum(weight for _, weight in taps)
            taps = [(at, weight / total) for at, weight in taps]
        else:
            first = math.floor(center - 0.5) - 1
            taps = [(at, cubic(at + 0.5 - center, -0.75)) for at in range(first, first + 4)]
        for at, weight in taps:
            matrix[row, min(max(at, 0), start - 1)] += weight
    return matrix


def resize(case: Case) -> Case:
    start, end, _, antialias = (int(size) for size in case["sizes"])
    matrix = resampling(start, end, antialias == 1)
    return {"out": np.einsum("yi,xj,ijc->yxc", matrix, matrix, case["table"])}


FUNCTIONS: dict[str, tuple[Callable[[Random], Iterator[Case]], Callable[[Case], Case]]] = {
    "layer_norm": (layer_norm_inputs, layer_norm),
    "softmax": (softmax_inputs, softmax_and_gradient),
    "gelu": (gelu_inputs, gelu),
    "linear": (linear_inputs, linear),
    "resize": (resize_inputs, resize),
}


def stored(value: NDArray | int) -> NDArray:
    """A tensor as its file has it: sizes u32, everything else f32."""
    value = np.atleast_1d(value)
    return value.astype(np.uint32 if value.dtype.kind in "iu" else np.float32)


def expected(op: str, case: Case) -> Case:
    """What follows from a case's tensors."""
    wide = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in case.items()}
    return {name: stored(value) for name, value in FUNCTIONS[op][1](wide).items()}


def tensors(random: Random) -> Case:
    """All tensors of the file."""
    found: Case = {}
    for op, (inputs, _) in FUNCTIONS.items():
        for number, values in enumerate(inputs(random)):
            case = {name: stored(value) for name, value in values.items()}
            for name, value in {**case, **expected(op, case)}.items():
                found[f"{op}.{number}.{name}"] = value
    return found
