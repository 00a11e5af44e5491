"""Writes the golden vectors of noise, of float operations at their edges, and of the integer encoder.

    python tools/numpy/vectors.py --out DIR [--seed N] [--encoder FILE [--image-seed N] [--images N]]

With the default seed these are exactly the files of tests/goldens. FILE is an encoder.tec, or a vector file that holds
one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

import edges
import encoder_file
import functions
import noise
from chooser import Plan, choose_encoder
from encoder import Constants, encode
from integer_vectors import EXPECTED, INPUTS

Random = np.random.Generator
Tensors = dict[str, NDArray]
DEFAULT_SEED = 20240607
LIMIT = 2_000_000

PLANS = (
    Plan("two blocks, whole multiples of four", 8, 4, 3, 8, 2, 2, 12, drops=(0, 1), mean_bits=12),
    Plan(
        "odd widths, one channel", 6, 2, 1, 15, 3, 5, 17, drops=(0, 1, 0), embedding=1, mean=(0.5,), std=(0.25,),
        mean_bits=12, patch_bits=11, class_bits=12, table="random",
    ),
    Plan("one patch", 5, 5, 3, 6, 1, 1, 1, drops=(0,), mean_bits=11),
    Plan(
        "saturating everywhere", 12, 3, 3, 16, 2, 4, 33, drops=(0, 2), embedding=1, bytes_target=280,
        first_target=60000, residual_target=90000, output_target=90000, mean_bits=15, patch_bits=12, class_bits=13,
        table="random",
    ),
    Plan("head, 4 bits", 8, 4, 3, 14, 2, 2, 27, drops=(0, 1), mean_bits=12, classes=10, group=8),
    Plan(
        "fc_norm and head, one channel", 9, 3, 1, 10, 2, 5, 24, drops=(0, 1), embedding=1, mean=(0.5,), std=(0.25,),
        mean_bits=12, fc_norm=1, classes=21, logit_bits=10,
    ),
    Plan(
        "fc_norm, 4 bits, saturating", 12, 4, 3, 20, 2, 4, 36, drops=(0, 2), embedding=1, bytes_target=280,
        first_target=60000, residual_target=90000, output_target=40000, mean_bits=12, table="random", fc_norm=1,
        group=36,
    ),
)
IMAGES = (
    ("noise", "smooth", "normalized", "normalized noise"),
    ("noise", "smooth", "black", "white", "checkerboard", "normalized", "normalized extremes"),
    ("noise", "smooth", "checkerboard", "normalized"),
    ("noise", "smooth", "black", "white", "normalized"),
    ("noise", "smooth", "checkerboard", "normalized", "normalized noise"),
    ("noise", "smooth", "black", "white", "checkerboard", "normalized", "normalized extremes"),
    ("noise", "smooth", "black", "white", "normalized"),
)
TRAINED_IMAGES = ("smooth", "normalized", "noise", "checkerboard")


def stream(seed: int, number: int) -> Random:
    """The random numbers of one file or operation, whatever the others take."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))


def pixels(random: Random, kind: str, size: int, channels: int) -> NDArray[np.uint8]:
    """An image u8 [S, S, C] of a kind."""
    shape = (size, size, channels)
    if kind == "black":
        return np.zeros(shape, dtype=np.uint8)
    if kind == "white":
        return np.full(shape, 255, dtype=np.uint8)
    if kind == "checkerboard":
        board = np.indices(shape).sum(axis=0) % 2
        return (board * 255).astype(np.uint8)
    if kind == "noise":
        return random.integers(0, 256, shape).astype(np.uint8)
    assert kind == "smooth"
    # Bilinear between a few random points, in integers, and a little noise.
    points = random.integers(0, 256, (5, 5, channels))
    at = np.arange(size) * 4 * 64 // max(1, size - 1)
    low, part = np.minimum(at // 64, 3), (at - np.minimum(at // 64, 3) * 64)[:, None]
    columns = points[low] * (64 - part[:, :, None]) + points[low + 1] * part[:, :, None]
    image = columns[:, low] * (64 - part) + columns[:, low + 1] * part
    return np.clip(image // 4096 + random.integers(-6, 7, shape), 0, 255).astype(np.uint8)


def image(random: Random, kind: str, constants: Constants) -> NDArray:
    """An image of a kind: u8, or f32 for those whose name begins with "normalized"."""
    size, channels = constants["image_size"], constants["channels"]
    if not kind.startswith("normalized"):
        return pixels(random, kind, size, channels)
    if kind == "normalized extremes":
        numbers = np.array([np.inf, -np.inf, 1e30, -1e30, 0, -0.0, 1e-45, 0.5, -0.5, 1, -1], dtype=np.float32)
        return numbers[random.integers(0, len(numbers), (size, size, channels))]
    wanted = pixels(random, "noise" if kind == "normalized noise" else "smooth", size, channels).astype(np.float32)
    # Not whole numbers, and some outside of 0 … 255.
    wanted += random.integers(-600, 601, wanted.shape).astype(np.float32) / np.float32(1000)
    mean, std = (np.asarray(constants[name], dtype=np.float32) for name in ("mean", "std"))
    return (wanted / np.float32(255) - mean) / std


def file_bytes(tensors: Tensors, metadata: dict[str, object]) -> bytes:
    """A safetensors file, its metadata as JSON strings in sorted order (the library's own order varies)."""
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    data = save(ordered)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header = {"__metadata__": {key: json.dumps(metadata[key]) for key in sorted(metadata)}, **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def noise_tensors(seed: int) -> Tensors:
    """The tensors of noise.safetensors."""
    cases = enumerate(noise.inputs(stream(seed, 300)))
    return {f"{n}.{name}": value for n, case in cases for name, value in {**case, **noise.expected(case)}.items()}


def integer_tensors(seed: int) -> Tensors:
    """The tensors of integer.safetensors."""
    tensors: Tensors = {}
    for number, (op, cases) in enumerate(INPUTS.items()):
        for n, case in enumerate(cases(stream(seed, number))):
            for name, value in {**case, **EXPECTED[op](case)}.items():
                tensors[f"{op}.{n}.{name}"] = value
    return tensors


def encoder_tensors(data: bytes, images: list[NDArray]) -> tuple[Tensors, dict[str, object]]:
    """The tensors and metadata of an encoder and its images."""
    constants = encoder_file.read(data)
    tensors: Tensors = {"encoder": np.frombuffer(data, dtype=np.uint8)}
    for number, one in enumerate(images):
        tensors[f"{number}.{'pixels' if one.dtype == np.uint8 else 'normalized'}"] = one
        tensors.update({f"{number}.{name}": value for name, value in encode(constants, one).items()})
    geometry = {name: constants[name] for name in encoder_file.GEOMETRY}
    return tensors, {"name": constants["name"], "geometry": geometry}


def made_encoder(seed: int, number: int) -> tuple[bytes, list[NDArray]]:
    """The file of encoder_NUMBER, and its images."""
    plan, random = PLANS[number], stream(seed, 100 + number)
    shape = {name: getattr(plan, name) for name in ("image_size", "channels", "mean", "std")}
    images = [image(random, kind, shape) for kind in IMAGES[number]]
    constants = choose_encoder(random, plan, [one for one in images if one.dtype == np.uint8])
    return encoder_file.write(constants), images


def encoder_bytes(path: Path) -> bytes:
    """The bytes of an encoder.tec, or those in a vector file."""
    if path.suffix == ".safetensors":
        return load_file(path)["encoder"].tobytes()
    return path.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden vectors that tools/numpy makes.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--encoder", type=Path, help="also write encoder_trained.safetensors, from this encoder.tec")
    parser.add_argument("--image-seed", type=int, default=DEFAULT_SEED, help="seed of the images of --encoder")
    parser.add_argument("--images", type=int, default=1, choices=range(1, 5), help="how many images for --encoder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    def put(name: str, tensors: Tensors, metadata: dict[str, object]) -> None:
        data = file_bytes(tensors, metadata)
        if len(data) >= LIMIT:
            raise SystemExit(f"{name}.safetensors would have {len(data)} bytes; the limit is {LIMIT}")
        (arguments.out / f"{name}.safetensors").write_bytes(data)
        print(f"{name}.safetensors: {len(tensors)} tensors, {len(data)} bytes")

    trained = encoder_bytes(arguments.encoder) if arguments.encoder else None
    put("noise", noise_tensors(arguments.seed), {"seed": arguments.seed})
    for number, (name, (_, _, metadata)) in enumerate(edges.EDGES.items()):
        put(name, edges.tensors(name, stream(arguments.seed, 400 + number)), metadata)
    put("functions", functions.tensors(stream(arguments.seed, 500)), {"seed": arguments.seed})
    put("integer", integer_tensors(arguments.seed), {"seed": arguments.seed})
    for number in range(len(PLANS)):
        put(f"encoder_{number}", *encoder_tensors(*made_encoder(arguments.seed, number)))
    if trained is not None:
        constants, random = encoder_file.read(trained), stream(arguments.image_seed, 200)
        images = [image(random, kind, constants) for kind in TRAINED_IMAGES[: arguments.images]]
        put("encoder_trained", *encoder_tensors(trained, images))


if __name__ == "__main__":
    main()
