"""The whole encoder of docs/integer-encoder.md, with every layer's values (section "Layers by name").

The constants are the dictionary of `encoder_file.py`. S image size, C channels, L patches, N = L + 1 tokens, D width, H
heads, W = D / H.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from operations import affine, attended, average, gelu, linear, norm, normalized, pixels_of, softmax
from rounding import clamp8, clamp16, ints, matmul, plus, reciprocal, rounded, times

Constants = dict[str, Any]
Trace = dict[str, NDArray]


def pixels_from_normalized(constants: Constants, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Section "Input": f32 [S, S, C] → u8 [S, S, C]; raises where the document says error."""
    std, mean = constants["std"], constants["mean"]
    pixels = np.stack([pixels_of(image[:, :, c], std[c], mean[c]) for c in range(constants["channels"])], axis=2)
    if (pixels < 0).any():
        raise ValueError("the image has values that are not numbers")
    return pixels.astype(np.uint8)


def patch_inputs(constants: Constants, pixels: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Inputs of the patch projection: u8 [S, S, C] → i8 [L, P·P·C]."""
    size, patch, channels = constants["image_size"], constants["patch_size"], constants["channels"]
    if pixels.shape != (size, size, channels) or pixels.dtype != np.uint8:
        raise ValueError(f"u8 [{size}, {size}, {channels}] expected, not {pixels.dtype} {list(pixels.shape)}")
    grid = size // patch
    tiles = pixels.reshape(grid, patch, grid, patch, channels).transpose(0, 2, 1, 3, 4)
    return (tiles.reshape(grid * grid, patch * patch * channels).astype(np.int16) - 128).astype(np.int8)


def embedding(constants: Constants, inputs: NDArray[np.int8]) -> NDArray[np.int16]:
    """Section "Embedding": i8 [L, P·P·C] → tokens i16 [N, D]."""
    weights = constants["patch_weights"].reshape(constants["dim"], -1)
    names = ("patch_biases", "patch_multipliers", "patch_shift")
    projected = linear(inputs, weights, *(constants[name] for name in names))
    patches = clamp16(plus(constants["positions"], clamp16(projected)))
    return np.concatenate([constants["class_token"][None, :], patches])


def norm_of(block: Constants, layer: str, tokens: NDArray[np.int16]) -> NDArray[np.int8]:
    """Steps 2 and 6, `layer` norm1 or norm2: tokens i16 [N, D] → i8 [N, D]."""
    return norm(tokens, block["epsilon"], *(block[f"{layer}_{what}"] for what in ("multipliers", "offsets", "bits")))


def heads_of(constants: Constants, block: Constants, q: NDArray[np.int8]) -> NDArray[np.int8]:
    """Step 3: i8 [N, D] → i8 [3, H, N, W], queries, keys and values."""
    dim, heads = constants["dim"], constants["heads"]
    weights = block["qkv_weights"].reshape(3 * dim, dim)
    flat = clamp8(linear(q, weights, block["qkv_biases"], block["qkv_multipliers"], block["qkv_shift"]))
    return flat.reshape(-1, 3, heads, dim // heads).transpose(1, 2, 0, 3)


def scores_of(queries: NDArray[np.int8], keys: NDArray[np.int8]) -> NDArray[np.int64]:
    """Scores of step 4, all heads: i8 [H, N, W] twice → [H, N, N]."""
    return matmul(queries, ints(keys).transpose(0, 2, 1))


def means_of(
    constants: Constants, block: Constants, qkv: NDArray[np.int8]
) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Step 4 up to the mean: i8 [3, H, N, W] → weights i16 [H, N, N] and means [N, D], head by head."""
    queries, keys, values = qkv
    scores = scores_of(queries, keys)
    multipliers, shift = block["softmax_multipliers"], block["softmax_shift"]
    weights = [softmax(scores[head], int(multipliers[head]), shift) for head in range(constants["heads"])]
    means = [average(of_head, values[head].T) for head, of_head in enumerate(weights)]
    return np.stack(weights), np.concatenate(means, axis=1)


def residual(tokens: NDArray[np.int16], q: NDArray[np.int8], block: Constants, layer: str) -> NDArray[np.int16]:
    """Steps 5 and 8: tokens i16 [N, D] plus the layer's outputs of q, i8 [N, K]."""
    names = [f"{layer}_{what}" for what in ("weights", "biases", "multipliers", "shift")]
    return clamp16(plus(tokens, clamp16(linear(q, *(block[name] for name in names)))))


def encode_block(constants: Constants, block: Constants, tokens: NDArray[np.int16]) -> Trace:
    """Section "Block": tokens i16 [N, D] → the block's stages; `tokens` of the result enter the next block."""
    scaled = rounded(tokens, block["drop"]).astype(np.int16)
    norm1 = norm_of(block, "norm1", scaled)
    qkv = heads_of(constants, block, norm1)
    weights, means = means_of(constants, block, qkv)
    attention = attended(means, block["attention_multipliers"], block["attention_shift"])
    after_attention = residual(scaled, attention, block, "proj")
    norm2 = norm_of(block, "norm2", after_attention)
    fc1 = clamp8(linear(norm2, block["fc1_weights"], block["fc1_biases"], block["fc1_multipliers"], block["fc1_shift"]))
    hidden = gelu(fc1, block["gelu_table"])
    return {
        "scaled": scaled,
        "norm1": norm1,
        "queries": qkv[0],
        "keys": qkv[1],
        "values": qkv[2].transpose(0, 2, 1),
        "weights": weights,
        "attention": attention,
        "attended": after_attention,
        "norm2": norm2,
        "fc1": fc1,
        "hidden": hidden,
        "tokens": residual(after_attention, hidden, block, "fc2"),
    }


def outputs(constants: Constants, tokens: NDArray[np.int16]) -> Trace:
    """Section "Outputs": tokens i16 [N, D] → class i16 [D], patches i16 [L, D], mean i16 [D]."""
    bits = constants["norm_bits"]
    n = normalized(tokens, constants["epsilon"])
    y = affine(n, constants["norm_multipliers"], constants["norm_offsets"], bits)
    patches = clamp16(rounded(y[1:], bits - constants["patch_bits"]))
    factor, shift = reciprocal(len(patches))
    total = ints(patches).sum(axis=0)
    mean = rounded(times(total, factor), shift + constants["patch_bits"] - constants["mean_bits"])
    return {
        "class": clamp16(rounded(y[0], bits - constants["class_bits"])),
        "mean": clamp16(mean),
        "patches": patches,
    }


def encode(constants: Constants, image: NDArray) -> Trace:
    """Every stage of an image, u8 or normalized f32 [S, S, C]: embedding, block.B.STAGE, class, mean, patches.

    Their shapes are in section "Layers by name".
    """
    pixels = image if image.dtype == np.uint8 else pixels_from_normalized(constants, image)
    tokens = embedding(constants, patch_inputs(constants, pixels))
    trace = {"embedding": tokens}
    for number, block in enumerate(constants["blocks"]):
        stages = encode_block(constants, block, tokens)
        trace.update({f"block.{number}.{name}": value for name, value in stages.items()})
        tokens = stages["tokens"]
    trace.update(outputs(constants, tokens))
    return {name: np.ascontiguousarray(value) for name, value in trace.items()}
