"""The whole encoder of docs/integer-encoder.md, with every layer's values (section "Layers by name").

The constants are the dictionary of `encoder_file.py`. S image size, C channels, L patches, N = L + 1 tokens, D width, H
heads, W = D / H.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from operations import affine, attended, average, from_4_bits, gelu, linear, norm, normalized, pixels_of, softmax
from rounding import Ints, clamp8, clamp16, ints, matmul, plus, reciprocal, rounded, times

Constants = dict[str, Any]
Trace = dict[str, NDArray]


def pixels_from_normalized(constants: Constants, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Section "Input": f32 [S, S, C] → u8 [S, S, C]; raises where the document says error."""
    std, mean = constants["std"], constants["mean"]
    pixels = np.stack([pixels_of(image[:, :, c], std[c], mean[c]) for c in range(constants["channels"])], axis=2)
    if (pixels < 0).any():
        raise ValueError("the image has values that are not numbers")
    return pixels.astype(np.uint8)


def pixels_from_grey(constants: Constants, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Section "Input": u8 [S, S] → u8 [S, S, C], channels that are all the same."""
    return np.repeat(image[:, :, None], constants["channels"], axis=2)


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


def matrix(constants: Constants, block: Constants, layer: str) -> NDArray[np.int8]:
    """The weights of a block's layer, i8 [O, K], whichever bits they have in the file."""
    weights = block[f"{layer}_weights"]
    rows = weights.reshape(-1, weights.shape[-1])
    return from_4_bits(rows, block[f"{layer}_scales"], constants["group"]) if constants["group"] else rows


def of_layer(constants: Constants, block: Constants, layer: str, q: NDArray[np.int8]) -> Ints:
    """A linear layer of a block, not yet limited: i8 [N, K] → [N, O]."""
    numbers = (block[f"{layer}_{what}"] for what in ("biases", "multipliers", "shift"))
    return linear(q, matrix(constants, block, layer), *numbers)


def heads_of(constants: Constants, block: Constants, q: NDArray[np.int8]) -> NDArray[np.int8]:
    """Step 3: i8 [N, D] → i8 [3, H, N, W], queries, keys and values."""
    dim, heads = constants["dim"], constants["heads"]
    flat = clamp8(of_layer(constants, block, "qkv", q))
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


def residual(
    constants: Constants, block: Constants, layer: str, tokens: NDArray[np.int16], q: NDArray[np.int8]
) -> NDArray[np.int16]:
    """Steps 5 and 8: tokens i16 [N, D] plus the layer's outputs of q, i8 [N, K]."""
    return clamp16(plus(tokens, clamp16(of_layer(constants, block, layer, q))))


def encode_block(constants: Constants, block: Constants, tokens: NDArray[np.int16]) -> Trace:
    """Section "Block": tokens i16 [N, D] → the block's stages; `tokens` of the result enter the next block."""
    scaled = rounded(tokens, block["drop"]).astype(np.int16)
    norm1 = norm_of(block, "norm1", scaled)
    qkv = heads_of(constants, block, norm1)
    weights, means = means_of(constants, block, qkv)
    attention = attended(means, block["attention_multipliers"], block["attention_shift"])
    after_attention = residual(constants, block, "proj", scaled, attention)
    norm2 = norm_of(block, "norm2", after_attention)
    fc1 = clamp8(of_layer(constants, block, "fc1", norm2))
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
        "tokens": residual(constants, block, "fc2", after_attention, hidden),
    }


def final_norm(constants: Constants, tokens: NDArray[np.int16]) -> Ints:
    """y of the final norm: tokens i16 [T, D] → [T, D], `norm_bits` fractional bits."""
    n = normalized(tokens, constants["epsilon"])
    return affine(n, constants["norm_multipliers"], constants["norm_offsets"], constants["norm_bits"])


def mean_of(patches: NDArray[np.int16], finer: int) -> NDArray[np.int16]:
    """The mean of patches i16 [L, D], with `finer` fractional bits fewer than theirs: i16 [D]."""
    factor, shift = reciprocal(len(patches))
    return clamp16(rounded(times(ints(patches).sum(axis=0), factor), shift + finer))


def outputs(constants: Constants, tokens: NDArray[np.int16]) -> Trace:
    """Section "Outputs", but for the logits: tokens i16 [N, D] → class i16 [D], patches i16 [L, D], mean i16 [D]."""
    bits = constants["norm_bits"]
    y = final_norm(constants, tokens)
    patches = clamp16(rounded(y[1:], bits - constants["patch_bits"]))
    return {
        "class": clamp16(rounded(y[0], bits - constants["class_bits"])),
        "mean": mean_of(patches, constants["patch_bits"] - constants["mean_bits"]),
        "patches": patches,
    }


def outputs_with_fc_norm(constants: Constants, tokens: NDArray[np.int16]) -> Trace:
    """The same outputs where the final norm is that of the mean alone."""
    y = final_norm(constants, mean_of(tokens[1:], 0)[None, :])[0]
    mean = clamp16(rounded(y, constants["norm_bits"] - constants["mean_bits"]))
    return {"class": tokens[0], "mean": mean, "patches": tokens[1:]}


def outputs_of(constants: Constants, tokens: NDArray[np.int16]) -> Trace:
    """Class, patches and mean of the tokens that leave the last block, as the header says."""
    return (outputs_with_fc_norm if constants["fc_norm"] else outputs)(constants, tokens)


def head_inputs(constants: Constants, embeddings: NDArray[np.int16]) -> NDArray[np.int8]:
    """q of the head: embeddings i16 [T, D] → i8 [T, D]."""
    bits = constants["head_bits"]
    y = affine(ints(embeddings), constants["head_norm_multipliers"], constants["head_norm_offsets"], bits)
    return clamp8(rounded(y, bits))


def logits(constants: Constants, made: Trace) -> NDArray[np.int16]:
    """Class logits i16 [classes] of the output that is meant as the embedding."""
    q = head_inputs(constants, made["mean" if constants["embedding"] else "class"][None, :])
    names = ("head_weights", "head_biases", "head_multipliers", "head_shift")
    return clamp16(linear(q, *(constants[name] for name in names)))[0]


def encode(constants: Constants, image: NDArray) -> Trace:
    """Every stage of an image: embedding, block.B.STAGE, class, mean, patches, and logits where there is a head.

    Images are u8 or normalized f32 [S, S, C], or grey u8 [S, S]. The stages' shapes are in section "Layers by name".
    """
    pixels = image if image.dtype == np.uint8 else pixels_from_normalized(constants, image)
    pixels = pixels_from_grey(constants, pixels) if pixels.ndim == 2 else pixels
    tokens = embedding(constants, patch_inputs(constants, pixels))
    trace = {"embedding": tokens}
    for number, block in enumerate(constants["blocks"]):
        stages = encode_block(constants, block, tokens)
        trace.update({f"block.{number}.{name}": value for name, value in stages.items()})
        tokens = stages["tokens"]
    trace.update(outputs_of(constants, tokens))
    if constants["classes"]:
        trace["logits"] = logits(constants, trace)
    return {name: np.ascontiguousarray(value) for name, value in trace.items()}
