"""Reader and writer of `encoder.tec`: docs/encoder-file.md.

Both use one dictionary of constants. Its keys are the numbers of the header (`HEADER_NUMBERS`, `mean`, `std`, `name`),
the sections outside the blocks by name, and `blocks`, a list of dictionaries with the numbers of the scales (`SCALES`,
`epsilon`) and the sections of a block by name. Arrays have the document's types and shapes.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Constants = dict[str, Any]

MAGIC = bytes.fromhex("544543454E431A0A")
HEADER_LENGTH = 144
ENTRY_LENGTH = 16
PANEL, QUAD = 16, 4  # outputs, and inputs of an output, that lie side by side
GEOMETRY = ("image_size", "patch_size", "channels", "dim", "depth", "heads", "hidden")
HEADER_NUMBERS = GEOMETRY + (
    "embedding", "mean_kind", "epsilon", "residual_bits", "class_bits", "mean_bits", "patch_bits", "patch_shift",
    "norm_bits",
)
HEADER = struct.Struct("<8s4I9IQ4b4B3f3fI40s")
SCALES = (
    "norm1_bits", "qkv_shift", "softmax_shift", "attention_shift", "proj_shift", "norm2_bits", "fc1_shift", "fc2_shift",
    "drop",
)
SCALES_SECTION = struct.Struct("<9B7sQ8s")


class Refused(ValueError):
    """The bytes are not an encoder; the message says what was expected."""


class Section(NamedTuple):
    """What the layout says about one section; `dtype` is empty for bytes."""

    kind: int
    block: int
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        """Bytes, without padding behind them."""
        if self.name.endswith("_weights"):
            outputs, inner = self.matrix
            return -(-outputs // PANEL) * PANEL * -(-inner // QUAD) * QUAD
        size = np.dtype(self.dtype).itemsize if self.dtype else 1
        return size * int(np.prod(self.shape, dtype=np.int64))

    @property
    def matrix(self) -> tuple[int, int]:
        """Outputs and inputs of a weight matrix."""
        axes = 1 if self.name == "patch_weights" else len(self.shape) - 1
        return int(np.prod(self.shape[:axes])), int(np.prod(self.shape[axes:]))


def require(right: bool, what: str) -> None:
    """Raises `Refused` unless `right`."""
    if not right:
        raise Refused(what)


def within(value: int, low: int, high: int, what: str) -> None:
    """Raises `Refused` unless low ≤ value ≤ high."""
    require(low <= value <= high, f"{what}: {value}, allowed {low} … {high}")


def check_numbers(constants: Constants) -> None:
    """The column "allowed" of the header's table."""
    h = constants
    within(h["patch_size"], 1, 256, "patch_size")
    require(h["channels"] in (1, 3), "channels: 1 or 3")
    within(h["patch_size"] ** 2 * h["channels"], 1, 65536, "inputs of a patch")
    require(h["image_size"] >= 1 and h["image_size"] % h["patch_size"] == 0, "image_size: a multiple of patch_size")
    patches = (h["image_size"] // h["patch_size"]) ** 2
    within(patches, 1, 4096, "patches")
    within(h["dim"], 1, 24576, "dim")
    within(h["depth"], 1, 24576, "depth")
    within(h["dim"] * h["depth"], 1, 24576, "dim · depth")
    require(h["heads"] >= 1 and h["dim"] % h["heads"] == 0, "heads: a divisor of dim")
    within(h["hidden"], 1, 65536, "hidden")
    within(h["embedding"], 0, 1, "embedding")
    within(h["mean_kind"], 0, 0, "kind of mean")
    within(h["epsilon"], 1, 1 << 59, "epsilon")
    within(h["norm_bits"], 16, 45, "norm_bits")
    within(h["patch_shift"], 0, 62, "shift of the patch projection")
    within(h["residual_bits"], -16, 24, "residual_bits")
    within(h["class_bits"], -16, h["norm_bits"] - 1, "class_bits")
    within(h["patch_bits"], -16, h["norm_bits"] - 1, "patch_bits")
    within(h["mean_bits"], -16, 44, "mean_bits")
    shift = 30 + patches.bit_length() + h["patch_bits"] - h["mean_bits"]
    within(shift, 1, 62, "shift of the mean")
    for what in ("mean", "std"):
        values = np.asarray(h[what], dtype=np.float32)
        finite = values.shape == (h["channels"],) and bool(np.isfinite(values).all())
        require(finite, f"{what}: a finite number a channel")
    smallest = np.finfo(np.float32).smallest_normal
    require(bool((np.asarray(h["std"], dtype=np.float32) >= smallest).all()), "std: positive, normal")
    within(len(h["name"].encode()), 0, 255, "bytes of the name")


def check_content(section: Section, array: NDArray) -> None:
    """What the section's numbers may be."""
    if section.name.endswith("_weights"):
        require(bool((array > -128).all()), f"{section.name}: weights are −127 … 127")
    elif section.name.endswith("_biases"):
        require(bool((np.abs(array.astype(np.int64)) <= 1 << 30).all()), f"{section.name}: at most 2^30")
    elif section.name == "softmax_multipliers":
        require(bool((array >= 0).all()), "softmax multipliers: not negative")


def check_scales(block: Constants) -> None:
    """What the numbers of a block's scales may be."""
    for name in SCALES:
        low, high = (16, 45) if name.endswith("bits") else (0, 15) if name == "drop" else (0, 62)
        within(block[name], low, high, name)
    within(block["epsilon"], 1, 1 << 59, "epsilon of a block")


def layout(h: Constants) -> list[Section]:
    """All sections, in their order, from the header alone."""
    dim, heads, hidden, patch, channels = h["dim"], h["heads"], h["hidden"], h["patch_size"], h["channels"]
    patches = (h["image_size"] // patch) ** 2
    sections = [
        Section(1, 0, "patch_weights", "i1", (dim, patch, patch, channels)),
        Section(2, 0, "patch_biases", "<i4", (dim,)),
        Section(3, 0, "patch_multipliers", "<i4", (dim,)),
        Section(4, 0, "class_token", "<i2", (dim,)),
        Section(5, 0, "positions", "<i2", (patches, dim)),
    ]
    for block in range(h["depth"]):
        of_block: list[tuple[str, str, tuple[int, ...]]] = [
            ("scales", "", (SCALES_SECTION.size,)),
            ("norm1_multipliers", "<i4", (dim,)),
            ("norm1_offsets", "<i4", (dim,)),
            ("qkv_weights", "i1", (3, heads, dim // heads, dim)),
            ("qkv_biases", "<i4", (3 * dim,)),
            ("qkv_multipliers", "<i4", (3 * dim,)),
            ("softmax_multipliers", "<i4", (heads,)),
            ("attention_multipliers", "<i4", (dim,)),
            ("proj_weights", "i1", (dim, dim)),
            ("proj_biases", "<i4", (dim,)),
            ("proj_multipliers", "<i4", (dim,)),
            ("norm2_multipliers", "<i4", (dim,)),
            ("norm2_offsets", "<i4", (dim,)),
            ("fc1_weights", "i1", (hidden, dim)),
            ("fc1_biases", "<i4", (hidden,)),
            ("fc1_multipliers", "<i4", (hidden,)),
            ("gelu_table", "i1", (256,)),
            ("fc2_weights", "i1", (dim, hidden)),
            ("fc2_biases", "<i4", (dim,)),
            ("fc2_multipliers", "<i4", (dim,)),
        ]
        sections += [Section(16 + n, block, *entry) for n, entry in enumerate(of_block)]
    return sections + [
        Section(64, 0, "norm_multipliers", "<i4", (dim,)),
        Section(65, 0, "norm_offsets", "<i4", (dim,)),
        Section(66, 0, "name", "", (len(h["name"].encode()),)),
    ]


def aligned(offset: int) -> int:
    """`offset` rounded up to a multiple of 16."""
    return -(-offset // 16) * 16


def panels(array: NDArray, section: Section) -> bytes:
    """A weight matrix as the file has it: 16 outputs side by side, of each four inputs side by side, zeros to fill up."""
    outputs, inner = section.matrix
    rows, columns = -(-outputs // PANEL) * PANEL, -(-inner // QUAD) * QUAD
    full = np.zeros((rows, columns), "i1")
    full[:outputs, :inner] = array.reshape(outputs, inner)
    return full.reshape(rows // PANEL, PANEL, columns // QUAD, QUAD).transpose(0, 2, 1, 3).tobytes()


def unpacked(content: bytes, section: Section) -> NDArray:
    """The matrix of these panels, of the section's shape."""
    outputs, inner = section.matrix
    quads = -(-inner // QUAD)
    full = np.frombuffer(content, "i1").reshape(-1, quads, PANEL, QUAD).transpose(0, 2, 1, 3).reshape(-1, quads * QUAD)
    require(not full[outputs:].any() and not full[:, inner:].any(), f"{section.name}: zeros beyond the matrix")
    return full[:outputs, :inner].reshape(section.shape)


def checksum(data: bytes) -> int:
    """CRC-32 of all bytes but the four of the checksum."""
    return zlib.crc32(data[20:], zlib.crc32(data[:16]))


def write(constants: Constants) -> bytes:
    """The file of these constants; raises `Refused` for what a reader would refuse."""
    check_numbers(constants)
    require(len(constants["blocks"]) == constants["depth"], "blocks: as many as depth says")
    sections = layout(constants)
    table, body = b"", b""
    end = HEADER_LENGTH + ENTRY_LENGTH * len(sections)
    for section in sections:
        source = constants["blocks"][section.block] if 16 <= section.kind < 64 else constants
        if section.name == "scales":
            check_scales(source)
            content = SCALES_SECTION.pack(*(source[name] for name in SCALES), b"", source["epsilon"], b"")
        elif section.name == "name":
            content = constants["name"].encode()
        else:
            array = np.asarray(source[section.name])
            require(array.shape == section.shape, f"{section.name}: shape {section.shape}, not {array.shape}")
            exact = array.astype(section.dtype)
            require(bool((exact == array).all()), f"{section.name}: not all numbers are {section.dtype}")
            check_content(section, exact)
            content = panels(exact, section) if section.name.endswith("_weights") else exact.tobytes()
        offset = aligned(end)
        table += struct.pack("<2H3I", section.kind, section.block, offset, section.length, 0)
        body += bytes(offset - end) + content
        end = offset + section.length
    unused = [0.0] * (3 - constants["channels"])
    numbers = [constants[name] for name in HEADER_NUMBERS]
    header = HEADER.pack(
        MAGIC, 2, end, 0, 0, *numbers, len(constants["name"].encode()), 0,
        *(float(v) for v in constants["mean"]), *unused, *(float(v) for v in constants["std"]), *unused,
        len(sections), b"",
    )
    data = header + table + body
    assert len(data) == end
    return data[:16] + struct.pack("<I", checksum(data)) + data[20:]


def read_header(data: bytes) -> Constants:
    """Everything of the header, checked, with the name."""
    require(len(data) >= HEADER_LENGTH, "length: a header has 144 bytes")
    magic, version, length, crc, flags, *rest = HEADER.unpack_from(data)
    require(magic == MAGIC, "magic")
    require(version == 2, f"version: 2 expected, not {version}")
    require(length == len(data), f"length: {length} expected, {len(data)} bytes came")
    require(crc == checksum(data), "checksum")
    numbers = dict(zip(HEADER_NUMBERS, rest))
    name_length, reserved = rest[len(HEADER_NUMBERS) : len(HEADER_NUMBERS) + 2]
    require(flags == 0 and reserved == 0 and not any(data[104:144]), "flags and reserved bytes: 0")
    require(numbers["channels"] in (1, 3), "channels: 1 or 3")
    floats = np.frombuffer(data, "<f4", 6, 76)
    unused = np.concatenate([floats[numbers["channels"] : 3], floats[3 + numbers["channels"] :]])
    require(not any(unused.tobytes()), "mean and standard deviation of unused channels: +0")
    numbers["mean"] = floats[: numbers["channels"]].copy()
    numbers["std"] = floats[3 : 3 + numbers["channels"]].copy()
    try:
        numbers["name"] = data[len(data) - name_length :].decode()
    except UnicodeDecodeError as error:
        raise Refused("name: UTF-8") from error
    check_numbers(numbers)
    count = struct.unpack_from("<I", data, 100)[0]
    require(count == 8 + 20 * numbers["depth"], "number of sections: 8 + 20 · depth")
    require(HEADER_LENGTH + ENTRY_LENGTH * count <= len(data), "length: the section table is longer than the file")
    return numbers


def read(data: bytes) -> Constants:
    """The constants of a file; raises `Refused` for anything but exactly the layout the header demands."""
    constants = read_header(data)
    blocks: list[Constants] = [{} for _ in range(constants["depth"])]
    sections = layout(constants)
    end = HEADER_LENGTH + ENTRY_LENGTH * len(sections)
    for number, section in enumerate(sections):
        offset = aligned(end)
        entry = struct.unpack_from("<2H3I", data, HEADER_LENGTH + ENTRY_LENGTH * number)
        expected = (section.kind, section.block, offset, section.length, 0)
        require(entry == expected, f"entry {number} of the section table: {expected} expected, not {entry}")
        require(offset + section.length <= len(data), f"section {number} is not within the file")
        require(not any(data[end:offset]), f"padding before section {number}: 0")
        end = offset + section.length
        content = data[offset:end]
        target = blocks[section.block] if 16 <= section.kind < 64 else constants
        if section.name == "scales":
            *scales, zeros, epsilon, more_zeros = SCALES_SECTION.unpack(content)
            require(not any(zeros) and not any(more_zeros), "scales: reserved bytes are 0")
            target.update(zip(SCALES, scales), epsilon=epsilon)
            check_scales(target)
        elif section.name != "name":
            array = np.frombuffer(content, section.dtype)
            matrix = section.name.endswith("_weights")
            array = unpacked(content, section) if matrix else array.reshape(section.shape)
            check_content(section, array)
            target[section.name] = array
    require(end == len(data), "length: the file ends with the last section")
    constants["blocks"] = blocks
    return constants
