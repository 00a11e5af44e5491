"""Float operations where a rule decides that ordinary values hide: `relation_edges`, `adapters_edges`, `kept`.

Features and levels so small that the epsilon under the root matters, attention that is full of ties, logits whose
exponentials overflow, numbers of visible patches next to a whole number. Everything is float64 of inputs that are f32,
stored as f32. The names are those of `relation`, `adapters` (tests/goldens/README.md).
(Gao et al.: Towards sustainable self-supervised learning, 2022, section 3.)
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Case = dict[str, NDArray]
Random = np.random.Generator

FEATURE_EPS = 1e-6
ADAPTER_EPS = 1e-5
TOP_K = 5
TEMPERATURE = 0.75
GROUPS = 4


def softmax(x: NDArray) -> NDArray:
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def relation_inputs(random: Random) -> Case:
    """Two images, three heads, 13 patches, 10 channels."""
    images, heads, patches, width = 2, 3, 13, 10
    logits = random.normal(0, 60, (images, heads, 1 + patches, 1 + patches))
    # The class token's rows: few distinct sums, so that the rank is a matter of ties.
    logits[:, :, 0] = random.integers(0, 3, logits[:, :, 0].shape)
    features = random.normal(0, 1, (images, patches, width)) * 10.0 ** -np.linspace(0, 5, width)
    mask = np.array([random.permutation(patches) >= 4 + image for image in range(images)])
    case = {
        "attention_logits": logits,
        "features": features,
        "mask": mask,
        "pred_features": random.normal(0, 1, features.shape),
        "pred_logits": random.normal(0, 100, (images, 1 + TOP_K, heads, patches)),
    }
    return {name: value.astype(np.float32) for name, value in case.items()}


def relation(case: Case) -> Case:
    """Targets, both losses and their gradients with respect to the predictions."""
    wide = {name: value.astype(np.float64) for name, value in case.items()}
    logits, features, mask = wide["attention_logits"], wide["features"], wide["mask"]
    rank = logits[:, :, 0, 1:].mean(axis=1)
    index = np.argsort(-rank, axis=1, kind="stable")[:, :TOP_K]
    rows = [[0, *(1 + index[image])] for image in range(len(index))]
    picked = np.stack([logits[image][:, row, 1:].swapaxes(0, 1) for image, row in enumerate(rows)])
    target = softmax(picked / TEMPERATURE)

    spread = np.sqrt(features.var(axis=1, ddof=1, keepdims=True) + FEATURE_EPS)
    normalized = (features - features.mean(axis=1, keepdims=True)) / spread
    error = (wide["pred_features"] - normalized) * mask[:, :, None]
    width = features.shape[2]

    prediction = wide["pred_logits"]
    largest = prediction.max(axis=-1, keepdims=True)
    log_sum = largest + np.log(np.exp(prediction - largest).sum(axis=-1, keepdims=True))
    count = prediction[..., 0].size
    floats = {
        "picked_logits": picked,
        "attention_target": target,
        "normalized_features": normalized,
        "feature_loss": (error**2).sum() / width / mask.sum(),
        "grad_pred_features": 2 * error / width / mask.sum(),
        "attention_loss": (target * (log_sum - prediction)).sum() / count,
        "grad_pred_logits": (softmax(prediction) * target.sum(axis=-1, keepdims=True) - target) / count,
    }
    expected = {name: np.atleast_1d(value).astype(np.float32) for name, value in floats.items()}
    return {"query_index": index.astype(np.int64), **expected}


def adapters_inputs(random: Random) -> Case:
    """Width 8, 12 levels in four groups; tokens from usual size to very small, and so is what a group adds."""
    width, depth, hidden = 8, 12, 5
    joined, part = width * depth, width * depth // GROUPS
    case = {
        "token": random.normal(0, 1, (1, 1, width)),
        "levels": random.normal(0, 1, (1, 9, joined)) * 10.0 ** -np.linspace(0, 4, 9)[None, :, None],
    }

    def mlp(prefix: str, size: float) -> None:
        case[f"{prefix}.fc1.weight"] = random.normal(0, 0.5, (hidden, width))
        case[f"{prefix}.fc1.bias"] = random.normal(0, size, hidden)
        case[f"{prefix}.fc2.weight"] = random.normal(0, 0.5, (width, hidden))
        case[f"{prefix}.fc2.bias"] = random.normal(0, size, width)

    mlp("input", 1)
    for norm, size in (("before", joined), ("after", width)):
        case[f"encoder.adap_{norm}.weight"] = random.normal(1, 0.1, size)
        case[f"encoder.adap_{norm}.bias"] = random.normal(0, 0.1, size)
    for group in range(GROUPS):
        case[f"encoder.fuse_fcs.{group}.weight"] = random.normal(0, 3e-4, (width, part))
        case[f"encoder.fuse_fcs.{group}.bias"] = random.normal(0, 3e-4, width)
        mlp(f"encoder.adap_mlps.{group}", 3e-4)
    return {name: value.astype(np.float32) for name, value in case.items()}


def adapters(case: Case) -> Case:
    """What the input adapter and the encoder adapter make of them."""
    wide = {name: value.astype(np.float64) for name, value in case.items()}

    def linear(name: str, x: NDArray) -> NDArray:
        return x @ wide[f"{name}.weight"].T + wide[f"{name}.bias"]

    def mlp(name: str, x: NDArray) -> NDArray:
        x = linear(f"{name}.fc1", x)
        return linear(f"{name}.fc2", 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))

    def norm(name: str, x: NDArray) -> NDArray:
        spread = np.sqrt(x.var(axis=-1, keepdims=True) + ADAPTER_EPS)
        return (x - x.mean(axis=-1, keepdims=True)) / spread * wide[f"{name}.weight"] + wide[f"{name}.bias"]

    parts = np.split(norm("encoder.adap_before", wide["levels"]), GROUPS, axis=-1)
    fused = [linear(f"encoder.fuse_fcs.{group}", part) for group, part in enumerate(parts)]
    total = sum(y + mlp(f"encoder.adap_mlps.{group}", y) for group, y in enumerate(fused))
    floats = {"merged_token": mlp("input", wide["token"]), "adapted": norm("encoder.adap_after", total)}
    return {name: value.astype(np.float32) for name, value in floats.items()}


def kept_inputs(random: Random) -> Case:
    """Usual and random mask ratios; every product that is whole but for the rounding of f64, up to 300 patches."""
    pairs = [(196, 0.75), (196, 0.9), (49, 0.6), (1, 0.0), (256, 0.0), (64, 1 - 1 / 64)]
    pairs += [(patches, cents / 100) for cents in range(5, 100, 5) for patches in range(20, 301, 20)]
    pairs += [(int(random.integers(20, 2000)), float(random.uniform(0, 0.9))) for _ in range(100)]
    return {
        "patches": np.array([patches for patches, _ in pairs], dtype=np.uint32),
        "ratio": np.array([ratio for _, ratio in pairs], dtype=np.float64),
    }


def kept(case: Case) -> Case:
    """int(L * (1 - ratio)) in f64, as the published programs compute it."""
    return {"kept": (case["patches"].astype(np.float64) * (1 - case["ratio"])).astype(np.uint32)}


EDGES = {
    "relation_edges": (relation_inputs, relation, {"top_k": TOP_K, "att_tau": TEMPERATURE}),
    "adapters_edges": (adapters_inputs, adapters, {"adapters": GROUPS}),
    "kept": (kept_inputs, kept, {}),
}


def tensors(name: str, random: Random) -> Case:
    """All tensors of a file."""
    inputs, expected, _ = EDGES[name]
    case = inputs(random)
    return {**case, **expected(case)}
