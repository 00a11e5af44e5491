"""How weight matrices lie in the file, in panels of 16 outputs: docs/encoder-file.md, section "Sections".

Matrices are [outputs, inputs]. Filled up, they have a multiple of 16 outputs and a multiple of 4 inputs; what fills up
is zero in a right file, which `unpacked` and `unpacked_4` leave to their caller to check.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PANEL, QUAD = 16, 4  # outputs, and inputs of an output, that lie side by side


def filled_up(outputs: int, inputs: int) -> tuple[int, int]:
    """Outputs and inputs of the filled up matrix."""
    return -(-outputs // PANEL) * PANEL, -(-inputs // QUAD) * QUAD


def groups(inputs: int, group: int) -> int:
    """G, groups of `group` inputs; the last may be smaller."""
    return -(-inputs // group)


def length(outputs: int, inputs: int) -> int:
    """Bytes of a matrix with weights of 8 bits."""
    rows, columns = filled_up(outputs, inputs)
    return rows * columns


def length_4(outputs: int, inputs: int, group: int) -> int:
    """Bytes of a matrix with weights of 4 bits, its scales included."""
    rows, columns = filled_up(outputs, inputs)
    return rows // PANEL * (PANEL * groups(inputs, group) + 32 * (columns // QUAD))


def larger(matrix: NDArray, rows: int, columns: int) -> NDArray:
    """The matrix with zeros behind and below it."""
    full = np.zeros((rows, columns), matrix.dtype)
    full[: matrix.shape[0], : matrix.shape[1]] = matrix
    return full


def in_panels(full: NDArray) -> NDArray:
    """A filled up matrix as [panels, quads, 16, 4]."""
    rows, columns = full.shape
    return full.reshape(rows // PANEL, PANEL, columns // QUAD, QUAD).transpose(0, 2, 1, 3)


def in_rows(panels: NDArray) -> NDArray:
    """The filled up matrix of [panels, quads, 16, 4]."""
    count, quads = panels.shape[:2]
    return panels.transpose(0, 2, 1, 3).reshape(count * PANEL, quads * QUAD)


def packed(weights: NDArray[np.int8]) -> bytes:
    """The panels of weights of 8 bits, i8 [outputs, inputs]."""
    return in_panels(larger(weights, *filled_up(*weights.shape))).tobytes()


def unpacked(content: bytes, inputs: int) -> NDArray[np.int8]:
    """The filled up matrix of these panels."""
    quads = filled_up(0, inputs)[1] // QUAD
    return in_rows(np.frombuffer(content, "i1").reshape(-1, quads, PANEL, QUAD))


def packed_4(q: NDArray[np.int8], scales: NDArray[np.uint8]) -> bytes:
    """The panels of weights of 4 bits: integers −8 … 7, i8 [outputs, inputs], and scales, u8 [outputs, groups]."""
    rows, columns = filled_up(*q.shape)
    of_panels = larger(scales, rows, scales.shape[1]).reshape(rows // PANEL, PANEL, -1).transpose(0, 2, 1)
    nibbles = in_panels(larger(q, rows, columns)).astype("u1") & 15
    integers = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    return b"".join(s.tobytes() + i.tobytes() for s, i in zip(of_panels, integers))


def unpacked_4(content: bytes, inputs: int, group: int) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """The filled up integers of these panels, and the scales, [filled up outputs, groups]."""
    quads, count = filled_up(0, inputs)[1] // QUAD, groups(inputs, group)
    panels = np.frombuffer(content, "u1").reshape(-1, PANEL * count + 32 * quads)
    scales = panels[:, : PANEL * count].reshape(-1, count, PANEL).transpose(0, 2, 1).reshape(-1, count)
    pairs = panels[:, PANEL * count :].reshape(-1, quads, PANEL, QUAD // 2)
    nibbles = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1, quads, PANEL, QUAD).astype("i1")
    return in_rows(np.where(nibbles < 8, nibbles, nibbles - 16).astype("i1")), scales
