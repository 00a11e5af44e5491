"""Makes small encoders: random weights, and multipliers chosen from what the values of some images turn out to be.

Nothing here is part of the encoder's definition; any constants the file allows would do. Choosing them layer by layer
makes the values of every layer spread over the range they have, instead of vanishing or saturating, or saturate where
that is asked for. Only integers are used, so that the same seed gives the same encoder everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import panels
from encoder import (
    Constants,
    embedding,
    encode_block,
    head_inputs,
    heads_of,
    matrix,
    mean_of,
    means_of,
    norm_of,
    outputs_of,
    patch_inputs,
    scores_of,
)
from encoder_file import GEOMETRY, OF_HEAD
from operations import attended, from_4_bits, gelu, normalized, sums
from rounding import Ints, clamp8, rounded

Random = np.random.Generator
I32_MAX = (1 << 31) - 1


@dataclass(frozen=True)
class Plan:
    """What an encoder should be like. Targets are the largest absolute values wanted, before limiting."""

    name: str
    image_size: int
    patch_size: int
    channels: int
    dim: int
    depth: int
    heads: int
    hidden: int
    drops: tuple[int, ...]
    embedding: int = 0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    bytes_target: int = 120
    first_target: int = 12000
    residual_target: int = 5000
    output_target: int = 24000
    class_bits: int = 12
    mean_bits: int = 13
    patch_bits: int = 12
    table: str = "gelu"
    fc_norm: int = 0
    classes: int = 0
    group: int = 0
    logit_bits: int = 11
    logit_target: int = 20000

    @property
    def patches(self) -> int:
        """L."""
        return (self.image_size // self.patch_size) ** 2


def weights(random: Random, *shape: int) -> NDArray[np.int8]:
    """Random i8 weights, small ones more often than large ones; every row reaches ±127."""
    sum_of_three = random.integers(-42, 43, (3, *shape)).sum(axis=0)
    rows = sum_of_three.reshape(shape[0], -1)
    places = random.integers(0, rows.shape[1], shape[0])
    rows[np.arange(shape[0]), places] = random.choice([-127, 127], shape[0])
    return rows.reshape(shape).astype(np.int8)


def weights_4(random: Random, outputs: int, inputs: int, group: int) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Random integers of 4 bits, i8 [O, K], and their scales, u8 [O, groups]."""
    q = random.integers(-8, 8, (outputs, inputs)).astype(np.int8)
    return q, random.integers(0, 256, (outputs, panels.groups(inputs, group))).astype(np.uint8)


def around(random: Random, extent: int, *shape: int) -> Ints:
    """Random integers of at most `extent` in absolute value."""
    return random.integers(-extent, extent + 1, shape)


def fitting(random: Random, values: Ints, target: int) -> tuple[NDArray[np.int32], int]:
    """Multipliers i32 [O] and a shift that take values [T, O] to at most about `target`, some channels a little less.

    A third of the multipliers is negative.
    """
    peaks = [max(1, int(peak)) for peak in np.abs(values).max(axis=0)]
    parts = random.integers(70, 101, len(peaks)).tolist()
    shift = 62
    while any((target * part << shift) // (100 * peak) > I32_MAX for part, peak in zip(parts, peaks)):
        shift -= 1
    chosen = [(target * part << shift) // (100 * peak) for part, peak in zip(parts, peaks)]
    signs = np.where(random.integers(0, 3, len(peaks)) == 0, -1, 1)
    return (np.array(chosen) * signs).astype(np.int32), shift


def choose_linear(
    random: Random, into: Constants, layer: str, inputs: NDArray, outputs: tuple[int, ...], target: int, group: int = 0
) -> None:
    """Weights, biases, multipliers and shift of a layer for inputs i8 [T, K]; the weights' shape is `outputs` + [K].

    With `group`, the weights have 4 bits, and there are scales.
    """
    count = int(np.prod(outputs))
    width = inputs.shape[1]
    if group:
        in_file, into[f"{layer}_scales"] = weights_4(random, count, width, group)
        chosen = from_4_bits(in_file, into[f"{layer}_scales"], group)
    else:
        in_file = chosen = weights(random, count, width)
    biases = around(random, 400 * width, count).astype(np.int32)
    multipliers, shift = fitting(random, sums(inputs, chosen, biases), target)
    into[f"{layer}_weights"] = in_file.reshape(*outputs, width)
    into[f"{layer}_biases"] = biases
    into[f"{layer}_multipliers"] = multipliers
    into[f"{layer}_shift"] = shift


def choose_norm(
    random: Random, into: Constants, layer: str, tokens: NDArray, bits: int, target: int, finer: int = 0
) -> None:
    """Multipliers and offsets of a norm for tokens i16 [T, D]: y · 2^−(bits − finer) reaches about `target`."""
    choose_affine(random, into, layer, normalized(tokens, into["epsilon"]), bits, target, finer)


def choose_affine(
    random: Random, into: Constants, layer: str, n: NDArray, bits: int, target: int, finer: int = 0
) -> None:
    """Multipliers, offsets and bits for integers n [T, D]: y · 2^−(bits − finer) reaches about `target`."""
    peaks = [max(1 << 10, int(peak)) for peak in np.abs(n).max(axis=0)]
    signs = np.where(random.integers(0, 3, len(peaks)) == 0, -1, 1)
    multipliers = np.array([min(I32_MAX, (target << (bits - finer)) // peak) for peak in peaks]) * signs
    into[f"{layer}_multipliers"] = multipliers.astype(np.int32)
    into[f"{layer}_offsets"] = around(random, min(I32_MAX, (target << 13) >> finer), len(peaks)).astype(np.int32)
    into[f"{layer}_bits"] = bits


def choose_table(random: Random, kind: str) -> NDArray[np.int8]:
    """A GELU table i8 [256]: like the function, or random."""
    if kind == "random":
        return random.integers(-128, 128, 256).astype(np.int8)
    # x · max(0, min(1, 1/2 + x / 96)), scaled: near enough to GELU, in integers.
    x = np.arange(-128, 128)
    return clamp8(rounded(x * np.clip(48 + x, 0, 96) * 5, 8) - 118)


def choose_softmax(random: Random, scores: list[Ints]) -> tuple[NDArray[np.int32], int]:
    """Multipliers i32 [H] and shift for scores [H, N, N] of each image; the sharpest head reaches the table's end."""
    distances = np.stack([(s.max(axis=2, keepdims=True) - s).max(axis=(1, 2)) for s in scores])
    multipliers, shift = fitting(random, distances, 700)
    return np.abs(multipliers), shift


def choose_block(random: Random, plan: Plan, constants: Constants, number: int, tokens: list[NDArray]) -> Constants:
    """The constants of a block for the tokens i16 [N, D] of some images."""
    dim, target = plan.dim, plan.bytes_target
    epsilon_bits = int(random.integers(1, 40))
    block: Constants = {"drop": plan.drops[number], "epsilon": int(random.integers(1, 1 << epsilon_bits))}
    scaled = [rounded(t, block["drop"]).astype(np.int16) for t in tokens]

    choose_norm(random, block, "norm1", np.concatenate(scaled), int(random.integers(24, 43)), target)
    q = [norm_of(block, "norm1", t) for t in scaled]
    choose_linear(random, block, "qkv", np.concatenate(q), (3, plan.heads, dim // plan.heads), target, plan.group)

    qkv = [heads_of(constants, block, x) for x in q]
    scores = [scores_of(x[0], x[1]) for x in qkv]
    block["softmax_multipliers"], block["softmax_shift"] = choose_softmax(random, scores)
    means = np.concatenate([means_of(constants, block, x)[1] for x in qkv])
    block["attention_multipliers"], block["attention_shift"] = fitting(random, means, target)

    out = attended(means, block["attention_multipliers"], block["attention_shift"])
    choose_linear(random, block, "proj", out, (dim,), plan.residual_target, plan.group)
    projected = sums(out, matrix(constants, block, "proj"), block["proj_biases"]) * block["proj_multipliers"]
    after = np.concatenate(scaled) + np.clip(rounded(projected, block["proj_shift"]), -32768, 32767)
    after = np.clip(after, -32768, 32767)

    choose_norm(random, block, "norm2", after, int(random.integers(24, 43)), target)
    q2 = norm_of(block, "norm2", after.astype(np.int16))
    choose_linear(random, block, "fc1", q2, (plan.hidden,), target, plan.group)
    inner = sums(q2, matrix(constants, block, "fc1"), block["fc1_biases"]) * block["fc1_multipliers"]
    block["gelu_table"] = choose_table(random, plan.table)
    hidden = gelu(clamp8(rounded(inner, block["fc1_shift"])), block["gelu_table"])
    choose_linear(random, block, "fc2", hidden, (dim,), plan.residual_target, plan.group)
    return block


def choose_head(random: Random, plan: Plan, constants: Constants, embeddings: NDArray[np.int16]) -> None:
    """The constants of the classification head for embeddings i16 [T, D]."""
    constants["logit_bits"] = plan.logit_bits
    choose_affine(random, constants, "head_norm", embeddings, 30, plan.bytes_target)
    constants["head_bits"] = constants.pop("head_norm_bits")
    q = head_inputs(constants, embeddings)
    choose_linear(random, constants, "head", q, (plan.classes,), plan.logit_target)


def choose_encoder(random: Random, plan: Plan, images: list[NDArray[np.uint8]]) -> Constants:
    """The constants of an encoder for images u8 [S, S, C]."""
    dim, patch, channels = plan.dim, plan.patch_size, plan.channels
    planned = (*GEOMETRY, "name", "embedding", "class_bits", "mean_bits", "patch_bits", "fc_norm", "classes", "group")
    constants: Constants = {
        **{name: getattr(plan, name) for name in planned},
        **{name: 0 for name in OF_HEAD},
        "residual_bits": 10,
        "mean": np.array(plan.mean, dtype=np.float32),
        "std": np.array(plan.std, dtype=np.float32),
        "epsilon": int(random.integers(1, 1 << 30)),
        "blocks": [],
    }
    inputs = [patch_inputs(constants, image) for image in images]
    choose_linear(random, constants, "patch", np.concatenate(inputs), (dim,), plan.first_target)
    constants["patch_weights"] = constants["patch_weights"].reshape(dim, patch, patch, channels)
    constants["class_token"] = np.clip(around(random, plan.first_target, dim), -32768, 32767).astype(np.int16)
    positions = np.clip(around(random, plan.first_target // 2, plan.patches, dim), -32768, 32767)
    constants["positions"] = positions.astype(np.int16)
    tokens = [embedding(constants, x) for x in inputs]
    for number in range(plan.depth):
        block = choose_block(random, plan, constants, number, tokens)
        constants["blocks"].append(block)
        tokens = [encode_block(constants, block, t)["tokens"] for t in tokens]

    if plan.fc_norm:
        # Class token and patches leave as the residual stream has them.
        constants["class_bits"] = constants["patch_bits"] = constants["residual_bits"] - sum(plan.drops)
        pooled = np.stack([mean_of(t[1:], 0) for t in tokens])
        choose_norm(random, constants, "norm", pooled, 40, plan.output_target, plan.mean_bits)
    else:
        choose_norm(random, constants, "norm", np.concatenate(tokens), 40, plan.output_target, plan.class_bits)
    if plan.classes:
        made = [outputs_of(constants, t)["mean" if plan.embedding else "class"] for t in tokens]
        choose_head(random, plan, constants, np.stack(made))
    return constants
