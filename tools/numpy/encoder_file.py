"""Reader and writer of `encoder.tec`: docs/encoder-file.md.

Both use one dictionary of constants. Its keys are the numbers of the header (`HEADER_NUMBERS`, `mean`, `std`, `name`),
the sections outside the blocks by name, and `blocks`, a list of dictionaries with the numbers of the scales (`SCALES`,
`epsilon`) and the sections of a block by name. Arrays have the document's types and shapes. Without a head (`classes`
is 0) there are no sections `head_…`, and `logit_bits`, `head_bits` and `head_shift` are 0.

Where `group` is not 0, `qkv_weights`, `proj_weights`, `fc1_weights` and `fc2_weights` are integers of 4 bits, i8
−8 … 7 of the document's shape, and `qkv_scales`, `proj_scales`, `fc1_scales` and `fc2_scales` their scales, u8
[outputs, groups].
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import panels

Constants = dict[str, Any]

MAGIC = bytes.fromhex("544543454E431A0A")
HEADER_LENGTH = 144
ENTRY_LENGTH = 16
VERSION = 4
GEOMETRY = ("image_size", "patch_size", "channels", "dim", "depth", "heads", "hidden")
HEADER_NUMBERS = GEOMETRY + (
    "embedding", "fc_norm", "epsilon", "residual_bits", "class_bits", "mean_bits", "patch_bits", "patch_shift",
    "norm_bits", "logit_bits", "classes", "group", "head_bits", "head_shift",
)
OF_HEAD = ("logit_bits", "head_bits", "head_shift")
HEADER = struct.Struct("<8s4I9IQ4b3Bb3f3f3I2B30s")
HEADER_FIELDS = (
    "magic", "version", "length", "checksum", "flags",
    *GEOMETRY, "embedding", "fc_norm", "epsilon", "residual_bits", "class_bits", "mean_bits", "patch_bits",
    "patch_shift", "norm_bits", "name_length", "logit_bits", "mean_0", "mean_1", "mean_2", "std_0", "std_1", "std_2",
    "sections", "classes", "group", "head_bits", "head_shift", "reserved",
)
SCALES = (
    "norm1_bits", "qkv_shift", "softmax_shift", "attention_shift", "proj_shift", "norm2_bits", "fc1_shift", "fc2_shift",
    "drop",
)
SCALES_SECTION = struct.Struct("<9B7sQ8s")


class Refused(ValueError):
    """The bytes are not an encoder; the message says what was expected."""


class Section(NamedTuple):
    """What the layout says about one section; `dtype` is empty for bytes, `group` 0 but for weights of 4 bits."""

    kind: int
    block: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    group: int = 0

    @property
    def is_matrix(self) -> bool:
        """Whether it lies in panels."""
        return self.name.endswith("_weights")

    @property
    def scales(self) -> str:
        """What the constants call the scales of weights of 4 bits."""
        return self.name.removesuffix("_weights") + "_scales"

    @property
    def length(self) -> int:
        """Bytes, without padding behind them."""
        if self.is_matrix:
            return panels.length_4(*self.matrix, self.group) if self.group else panels.length(*self.matrix)
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
    within(h["fc_norm"], 0, 1, "fc_norm")
    within(h["epsilon"], 1, 1 << 59, "epsilon")
    within(h["norm_bits"], 16, 45, "norm_bits")
    within(h["patch_shift"], 0, 62, "shift of the patch projection")
    within(h["residual_bits"], -16, 24, "residual_bits")
    finest = 24 if h["fc_norm"] else h["norm_bits"] - 1
    within(h["class_bits"], -16, finest, "class_bits")
    within(h["patch_bits"], -16, finest, "patch_bits")
    check_mean(h, patches)
    check_head(h)
    within(h["group"], 0, 65536, "group")
    require(h["group"] % 4 == 0, "group: a multiple of 4")
    for what in ("mean", "std"):
        values = np.asarray(h[what], dtype=np.float32)
        finite = values.shape == (h["channels"],) and bool(np.isfinite(values).all())
        require(finite, f"{what}: a finite number a channel")
    smallest = np.finfo(np.float32).smallest_normal
    require(bool((np.asarray(h["std"], dtype=np.float32) >= smallest).all()), "std: positive, normal")


def check_mean(h: Constants, patches: int) -> None:
    """What `mean_bits` may be: without `fc_norm` for any number of patches up to all."""
    if h["fc_norm"]:
        within(h["mean_bits"], -16, h["norm_bits"] - 1, "mean_bits")
        return
    within(h["mean_bits"], -16, 44, "mean_bits")
    for count in (patches, 1):
        shift = 30 + count.bit_length() + h["patch_bits"] - h["mean_bits"]
        within(shift, 1, 62, f"shift of the mean of {count} patches")


def check_head(h: Constants) -> None:
    """What the numbers of the head may be."""
    within(h["classes"], 0, 65536, "classes")
    if h["classes"] == 0:
        for name in OF_HEAD:
            within(h[name], 0, 0, f"{name} without a head")
        return
    within(h["logit_bits"], -16, 44, "logit_bits")
    within(h["head_bits"], 16, 45, "head_bits")
    within(h["head_shift"], 0, 62, "shift of the head")


def check_content(section: Section, array: NDArray) -> None:
    """What the section's numbers may be."""
    if section.group:
        require(bool(((array >= -8) & (array <= 7)).all()), f"{section.name}: integers of 4 bits are −8 … 7")
    elif section.is_matrix:
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


def layout(h: Constants, name_length: int) -> list[Section]:
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
        for n, (name, dtype, shape) in enumerate(of_block):
            group = h["group"] if name.endswith("_weights") else 0
            sections.append(Section(16 + n, block, name, dtype, shape, group))
    sections += [
        Section(64, 0, "norm_multipliers", "<i4", (dim,)),
        Section(65, 0, "norm_offsets", "<i4", (dim,)),
        Section(66, 0, "name", "", (name_length,)),
    ]
    if h["classes"] == 0:
        return sections
    return sections + [
        Section(67, 0, "head_norm_multipliers", "<i4", (dim,)),
        Section(68, 0, "head_norm_offsets", "<i4", (dim,)),
        Section(69, 0, "head_weights", "i1", (h["classes"], dim)),
        Section(70, 0, "head_biases", "<i4", (h["classes"],)),
        Section(71, 0, "head_multipliers", "<i4", (h["classes"],)),
    ]


def aligned(offset: int, section: Section) -> int:
    """`offset` rounded up to where the section may begin: a multiple of 64 for weight matrices, of 16 for others."""
    boundary = 64 if section.is_matrix else 16
    return -(-offset // boundary) * boundary


def exact(source: Constants, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray:
    """An array of the constants in the file's type; refuses other shapes, and numbers the type does not have."""
    array = np.asarray(source[name])
    require(array.shape == shape, f"{name}: shape {shape}, not {array.shape}")
    converted = array.astype(dtype)
    require(bool((converted == array).all()), f"{name}: not all numbers are {dtype}")
    return converted


def section_bytes(section: Section, source: Constants) -> bytes:
    """The content of a section, checked."""
    if section.name == "scales":
        check_scales(source)
        return SCALES_SECTION.pack(*(source[name] for name in SCALES), b"", source["epsilon"], b"")
    if section.name == "name":
        return source["name"].encode()
    array = exact(source, section.name, section.dtype, section.shape)
    check_content(section, array)
    if not section.is_matrix:
        return array.tobytes()
    outputs, inner = section.matrix
    if not section.group:
        return panels.packed(array.reshape(outputs, inner))
    scales = exact(source, section.scales, "u1", (outputs, panels.groups(inner, section.group)))
    return panels.packed_4(array.reshape(outputs, inner), scales)


def read_section(section: Section, content: bytes, target: Constants) -> None:
    """Puts the content of a section into the constants, checked."""
    if section.name == "scales":
        *scales, zeros, epsilon, more_zeros = SCALES_SECTION.unpack(content)
        require(not any(zeros) and not any(more_zeros), "scales: reserved bytes are 0")
        target.update(zip(SCALES, scales), epsilon=epsilon)
        check_scales(target)
        return
    if section.name == "name":
        try:
            target["name"] = content.decode()
        except UnicodeDecodeError as error:
            raise Refused("name: UTF-8") from error
        return
    if section.is_matrix:
        array = read_matrix(section, content, target)
    else:
        array = np.frombuffer(content, section.dtype).reshape(section.shape)
    check_content(section, array)
    target[section.name] = array


def read_matrix(section: Section, content: bytes, target: Constants) -> NDArray:
    """The matrix of these panels, of the section's shape; scales of weights of 4 bits go into the constants."""
    outputs, inner = section.matrix
    if section.group:
        full, scales = panels.unpacked_4(content, inner, section.group)
        require(not scales[outputs:].any(), f"{section.name}: zeros as scales beyond the matrix")
        target[section.scales] = scales[:outputs]
    else:
        full = panels.unpacked(content, inner)
    require(not full[outputs:].any() and not full[:, inner:].any(), f"{section.name}: zeros beyond the matrix")
    return full[:outputs, :inner].reshape(section.shape)


def checksum(data: bytes) -> int:
    """CRC-32 of all bytes but the four of the checksum."""
    return zlib.crc32(data[20:], zlib.crc32(data[:16]))


def write(constants: Constants) -> bytes:
    """The file of these constants; raises `Refused` for what a reader would refuse."""
    check_numbers(constants)
    name_length = len(constants["name"].encode())
    within(name_length, 0, 255, "bytes of the name")
    require(len(constants["blocks"]) == constants["depth"], "blocks: as many as depth says")
    sections = layout(constants, name_length)
    table, body = b"", b""
    end = HEADER_LENGTH + ENTRY_LENGTH * len(sections)
    for section in sections:
        source = constants["blocks"][section.block] if 16 <= section.kind < 64 else constants
        content = section_bytes(section, source)
        assert len(content) == section.length
        offset = aligned(end, section)
        table += struct.pack("<2H3I", section.kind, section.block, offset, section.length, 0)
        body += bytes(offset - end) + content
        end = offset + section.length
    fields = {name: constants[name] for name in HEADER_NUMBERS} | {
        "magic": MAGIC, "version": VERSION, "length": end, "checksum": 0, "flags": 0, "name_length": name_length,
        "sections": len(sections), "reserved": b"",
    }
    for what in ("mean", "std"):
        numbers = [float(v) for v in constants[what]] + [0.0] * (3 - constants["channels"])
        fields |= {f"{what}_{c}": number for c, number in enumerate(numbers)}
    data = HEADER.pack(*(fields[name] for name in HEADER_FIELDS)) + table + body
    assert len(data) == end
    return data[:16] + struct.pack("<I", checksum(data)) + data[20:]


def read_header(data: bytes) -> tuple[Constants, int]:
    """Everything of the header, checked, and the name's length."""
    require(len(data) >= HEADER_LENGTH, f"length: a header has {HEADER_LENGTH} bytes")
    fields = dict(zip(HEADER_FIELDS, HEADER.unpack_from(data)))
    require(fields["magic"] == MAGIC, "magic")
    require(fields["version"] == VERSION, f"version: {VERSION} expected, not {fields['version']}")
    require(fields["length"] == len(data), f"length: {fields['length']} expected, {len(data)} bytes came")
    require(fields["checksum"] == checksum(data), "checksum")
    require(fields["flags"] == 0 and not any(fields["reserved"]), "flags and reserved bytes: 0")
    numbers = {name: fields[name] for name in HEADER_NUMBERS}
    require(numbers["channels"] in (1, 3), "channels: 1 or 3")
    floats = np.frombuffer(data, "<f4", 6, 76)
    unused = np.concatenate([floats[numbers["channels"] : 3], floats[3 + numbers["channels"] :]])
    require(not any(unused.tobytes()), "mean and standard deviation of unused channels: +0")
    numbers["mean"] = floats[: numbers["channels"]].copy()
    numbers["std"] = floats[3 : 3 + numbers["channels"]].copy()
    check_numbers(numbers)
    count = 8 + 20 * numbers["depth"] + (5 if numbers["classes"] else 0)
    require(fields["sections"] == count, f"number of sections: {count} expected, not {fields['sections']}")
    require(HEADER_LENGTH + ENTRY_LENGTH * count <= len(data), "length: the section table is longer than the file")
    return numbers, fields["name_length"]


def read(data: bytes) -> Constants:
    """The constants of a file; raises `Refused` for anything but exactly the layout the header demands."""
    constants, name_length = read_header(data)
    blocks: list[Constants] = [{} for _ in range(constants["depth"])]
    sections = layout(constants, name_length)
    end = HEADER_LENGTH + ENTRY_LENGTH * len(sections)
    for number, section in enumerate(sections):
        offset = aligned(end, section)
        entry = struct.unpack_from("<2H3I", data, HEADER_LENGTH + ENTRY_LENGTH * number)
        expected = (section.kind, section.block, offset, section.length, 0)
        require(entry == expected, f"entry {number} of the section table: {expected} expected, not {entry}")
        require(offset + section.length <= len(data), f"section {number} is not within the file")
        require(not any(data[end:offset]), f"padding before section {number}: 0")
        end = offset + section.length
        target = blocks[section.block] if 16 <= section.kind < 64 else constants
        read_section(section, data[offset:end], target)
    require(end == len(data), "length: the file ends with the last section")
    constants["blocks"] = blocks
    return constants
