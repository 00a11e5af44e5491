"""Recomputes the golden vectors that vectors.py wrote from their inputs and compares every value.

    python tools/numpy/check.py [DIR]

Prints one line a group; exits with 1 if anything differs.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

import edges
import encoder_file
import functions
import noise
from encoder import encode
from integer_vectors import EXPECTED

Tensors = dict[str, NDArray]


class Group:
    """Counts of one line of the report."""

    def __init__(self) -> None:
        self.cases = self.values = self.differing = 0

    def compare(self, expected: NDArray | None, computed: NDArray | None, close: bool = False) -> None:
        """Counts every value; if one is missing, or types or shapes differ, all values differ. `close` lets functions
        such as exp differ in their last bits from one numpy to the next."""
        one = expected if computed is None else computed
        assert one is not None
        self.values += one.size
        if expected is None or computed is None or expected.shape != computed.shape or expected.dtype != computed.dtype:
            self.differing += max(1, one.size)
        elif close:
            self.differing += int((np.abs(expected - computed) > 1e-6 * np.abs(expected).max()).sum())
        else:
            self.differing += int((expected != computed).sum())

    def line(self, name: str) -> str:
        cases = "1 case" if self.cases == 1 else f"{self.cases} cases"
        return f"{name}: {cases}, {self.values} values, {self.differing} differing"


def load(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a file."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def check_noise(tensors: Tensors) -> Iterator[tuple[str, Group]]:
    """One group."""
    group, cases = Group(), {}
    for name, tensor in tensors.items():
        number, what = name.split(".")
        cases.setdefault(int(number), {})[what] = tensor
    for case in cases.values():
        group.cases += 1
        for name, computed in noise.expected(case).items():
            group.compare(case.get(name), computed)
    yield "noise", group


def check_edges(name: str, tensors: Tensors) -> Iterator[tuple[str, Group]]:
    """One group a file."""
    group = Group()
    group.cases = 1
    for what, computed in edges.EDGES[name][1](tensors).items():
        group.compare(tensors.get(what), computed, close=computed.dtype == np.float32)
    yield name, group


def check_operations(
    prefix: str, tensors: Tensors, expect: dict[str, Callable[[Tensors], Tensors]]
) -> Iterator[tuple[str, Group]]:
    """One group an operation."""
    cases: dict[str, dict[int, Tensors]] = {}
    for name, tensor in tensors.items():
        op, number, what = name.split(".")
        cases.setdefault(op, {}).setdefault(int(number), {})[what] = tensor
    for op in sorted(set(cases) - set(expect)):
        raise SystemExit(f"unknown operation: {op}")
    for op, expected in expect.items():
        group = Group()
        for case in cases.get(op, {}).values():
            group.cases += 1
            for name, computed in expected(case).items():
                group.compare(case.get(name), computed, close=prefix == "functions")
        group.differing += group.cases == 0
        yield f"{prefix}/{op}", group


def check_encoder(name: str, tensors: Tensors, metadata: dict[str, str]) -> Iterator[tuple[str, Group]]:
    """One group for the file, then one a stage, all images together."""
    data = tensors["encoder"].tobytes()
    constants = encoder_file.read(data)
    group = Group()
    group.cases = 1
    group.compare(tensors["encoder"], np.frombuffer(encoder_file.write(constants), dtype=np.uint8))
    geometry = {what: constants[what] for what in encoder_file.GEOMETRY}
    group.differing += json.loads(metadata["geometry"]) != geometry
    group.differing += json.loads(metadata["name"]) != constants["name"]
    yield f"{name}/file written again", group

    images = sorted({int(key.split(".")[0]) for key in tensors if key[0].isdigit()})
    groups: dict[str, Group] = {}
    for image in images:
        prefix = f"{image}."
        inputs = [key for key in (f"{prefix}pixels", f"{prefix}normalized") if key in tensors]
        computed = encode(constants, tensors[inputs[0]])
        names = [key for key in tensors if key.startswith(prefix) and key not in inputs]
        expected = {key[len(prefix) :]: tensors[key] for key in names}
        for stage in [*computed, *(key for key in expected if key not in computed)]:
            group = groups.setdefault(stage, Group())
            group.cases += 1
            group.compare(expected.get(stage), computed.get(stage))
    if not images:
        raise SystemExit(f"{name}: no images")
    yield from ((f"{name}/{stage}", group) for stage, group in groups.items())


def check(directory: Path) -> int:
    """Prints the report of a directory's files; the number of differing values."""
    files = sorted(directory.glob("*.safetensors"))
    files = [path for path in files if re.fullmatch(r"noise|\w+_edges|kept|functions|integer|encoder_\w+", path.stem)]
    if not files:
        raise SystemExit(f"{directory}: no vector files of the integer encoder")
    differing = values = 0
    for path in files:
        tensors, metadata = load(path)
        if path.stem == "noise":
            groups = check_noise(tensors)
        elif path.stem in edges.EDGES:
            groups = check_edges(path.stem, tensors)
        elif path.stem == "functions":
            expect = {op: partial(functions.expected, op) for op in functions.FUNCTIONS}
            groups = check_operations("functions", tensors, expect)
        elif path.stem == "integer":
            groups = check_operations("integer", tensors, EXPECTED)
        else:
            groups = check_encoder(path.stem, tensors, metadata)
        for name, group in groups:
            print(group.line(name))
            differing += group.differing
            values += group.values
    print(f"{len(files)} files, {values} values, {differing} differing")
    return differing


def main() -> None:
    goldens = Path(__file__).resolve().parents[2] / "tests" / "goldens"
    if len(sys.argv) > 2:
        raise SystemExit("usage: check.py [DIR]")
    sys.exit(1 if check(Path(sys.argv[1]) if len(sys.argv) == 2 else goldens) else 0)


if __name__ == "__main__":
    main()
