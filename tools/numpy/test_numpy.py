"""Self-checks of the numpy encoder: `python -m unittest discover -s tools/numpy -p "test_*.py"`.

Values computed by hand, laws, the document's ranges, and the operations once more in unbounded integers, one number at
a time.
"""

from __future__ import annotations

import math
import struct
import tempfile
import unittest
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

import check
import edges
import encoder_file
import functions
import noise
import operations as op
import vectors
from encoder import encode
from rounding import clamp8, clamp16, isqrt, matmul, reciprocal, rounded, times


def plain_round(product: int, shift: int) -> int:
    """The document's formula, in Python's integers."""
    return math.floor(Fraction(product + ((1 << shift) >> 1), 1 << shift))


def limit(value: int, bits: int) -> int:
    """clamp8 and clamp16 of one number."""
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, value))


def forged(data: bytes, offset: int, value: bytes) -> bytes:
    """The file with other bytes at an offset, and a checksum that agrees."""
    changed = data[:offset] + value + data[offset + len(value) :]
    return changed[:16] + struct.pack("<I", encoder_file.checksum(changed)) + changed[20:]


class Rounding(unittest.TestCase):
    def test_ties_go_up(self) -> None:
        for product, shift, expected in (
            (3, 1, 2), (-3, 1, -1), (-1, 1, 0), (1, 1, 1), (5, 2, 1), (6, 2, 2), (-6, 2, -1), (-7, 2, -2), (7, 0, 7),
            (1 << 62, 62, 1), (1 << 61, 62, 1), ((1 << 61) - 1, 62, 0), (-(1 << 61), 62, 0), (-(1 << 61) - 1, 62, -1),
        ):
            self.assertEqual(int(rounded(product, shift)), expected, (product, shift))
            self.assertEqual(plain_round(product, shift), expected)

    def test_wraparound_is_refused(self) -> None:
        with self.assertRaises(OverflowError):
            times(1 << 40, 1 << 30)
        with self.assertRaises(OverflowError):
            rounded((1 << 63) - 1, 5)
        with self.assertRaises(OverflowError):
            matmul(np.full((1, 2), 1 << 30), np.full((2, 1), 1 << 30))
        with self.assertRaises(ValueError):
            rounded(1, 63)
        with self.assertRaises(TypeError):
            rounded(np.array([1.0]), 3)

    def test_isqrt(self) -> None:
        for value in [*range(2000), (1 << 64) - 1, 1 << 62, (1 << 62) - 1]:
            root = isqrt(value)
            self.assertTrue(root * root <= value < (root + 1) ** 2)

    def test_reciprocal(self) -> None:
        self.assertEqual(reciprocal(1), (1 << 31, 31))
        self.assertEqual(reciprocal(3), ((1 << 32) // 3, 32))
        self.assertEqual(reciprocal(1 << 31), (1 << 31, 62))
        for d in [*range(1, 3000), (1 << 32) - 1, 4095, 16777215]:
            mantissa, shift = reciprocal(d)
            self.assertTrue(1 << 30 <= mantissa <= 1 << 31)
            self.assertTrue(2 * abs(mantissa * d - (1 << shift)) <= d)

    def test_clamps(self) -> None:
        self.assertEqual(clamp8(np.array([-129, -128, 127, 128])).tolist(), [-128, -128, 127, 127])
        self.assertEqual(clamp16(np.array([-32769, 32768, 5])).tolist(), [-32768, 32767, 5])


class Operations(unittest.TestCase):
    def test_exponentials(self) -> None:
        self.assertEqual(len(op.EXPONENTIALS), 578)
        self.assertEqual(op.EXPONENTIALS[[0, 64, 128, 576, 577]].tolist(), [4095, 1506, 554, 1, 0])
        ties = [abs(4095 * math.exp(-t / 64) % 1 - 0.5) for t in range(578)]
        self.assertGreater(min(ties), 1e-3)

    def test_pixels(self) -> None:
        x = np.array([0, 0.5, 1, 2, -1, 0.49999997 / 255, 0.5 / 255, np.inf, -np.inf, np.nan], dtype=np.float32)
        one, zero = np.float32(1), np.float32(0)
        self.assertEqual(op.pixels_of(x, one, zero).tolist(), [0, 128, 255, 255, 0, 0, 1, 255, 0, -1])

    def test_linear_by_hand(self) -> None:
        # (10 + 2·3 + 5·−1) · 3 = 33; 33 / 4 = 8.25
        q = np.array([[3, -1]], dtype=np.int8)
        self.assertEqual(op.linear(q, np.array([[2, 5]]), np.array([10]), np.array([3]), 2).tolist(), [[8]])

    def test_weights_of_4_bits_by_hand(self) -> None:
        # −8·255 + 8 = −2032, 2032 / 16 = 127; 7·255 + 8 = 1793 = 112·16 + 1; −1·8 + 8 = 0; −1·9 + 8 = −1, below zero.
        q, scales = np.array([[-8, 7, -1, -1, -1]], dtype=np.int8), np.array([[255, 8]], dtype=np.uint8)
        self.assertEqual(op.from_4_bits(q, scales, 4).tolist(), [[-127, 112, -16, -16, 0]])
        self.assertEqual(op.from_4_bits(q, np.array([[9, 0]], dtype=np.uint8), 4).tolist(), [[-4, 4, -1, -1, 0]])

    def test_norm_by_hand(self) -> None:
        # Mean 2, deviation 1: ±1 with 20 fractional bits, but for ε.
        n = op.normalized(np.array([[1, 3, 1, 3]], dtype=np.int16), 1)
        self.assertTrue((np.abs(n) < 1 << 20).all() and (np.abs(n) > 0.96 * (1 << 20)).all())
        self.assertEqual(op.normalized(np.full((1, 5), 77, dtype=np.int16), 1).tolist(), [[0] * 5])
        self.assertEqual(op.affine(np.array([[3]]), np.array([5]), np.array([7]), 18).tolist(), [[15 + 28]])

    def test_attention_of_equal_scores(self) -> None:
        weights = op.softmax(np.zeros((1, 3)).astype(np.int32), 5, 0)
        self.assertEqual(weights.tolist(), [[4095] * 3])
        means = op.average(weights, np.array([[1, 2, 3], [-128, -128, -128]]))
        self.assertEqual(means.tolist(), [[2 << 16, -128 << 16]])

    def test_widest_norm(self) -> None:
        x = np.full((1, 24576), 32767, dtype=np.int16)
        x[0, 5] = -32768
        n = op.normalized(x, 1)
        self.assertTrue(1 << 27 < int(np.abs(n).max()) < 157 << 20)


class Floats(unittest.TestCase):
    def test_kept_truncates_what_f64_makes_of_it(self) -> None:
        case = {"patches": np.array([196, 10, 180], dtype=np.uint32), "ratio": np.array([0.75, 0.9, 0.3])}
        # 10 * (1 - 0.9) is just below one.
        self.assertEqual(edges.kept(case)["kept"].tolist(), [49, 0, 125])

    def test_gradients_are_those_of_differences(self) -> None:
        random = np.random.default_rng(5)
        for op in ("layer_norm", "softmax", "gelu"):
            for case in functions.FUNCTIONS[op][0](random):
                function = functions.FUNCTIONS[op][1]
                step = 1e-6 * np.abs(case["x"]).max()
                direction = random.normal(0, 1, case["x"].shape)
                ends = [function({**case, "x": case["x"] + sign * step * direction})["out"] for sign in (1, -1)]
                slope = ((ends[0] - ends[1]) / (2 * step) * case["grad_out"]).sum()
                along = (function(case)["grad_x"] * direction).sum()
                self.assertAlmostEqual(along, slope, delta=1e-4 * (1 + abs(slope)))


class Noise(unittest.TestCase):
    def test_known_answers(self) -> None:
        """Random123's known answers of Philox4x32-10."""
        self.assertEqual(noise.philox((0, 0, 0, 0), (0, 0)), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8))
        ones = 0xFFFFFFFF
        expected = (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
        self.assertEqual(noise.philox((ones,) * 4, (ones, ones)), expected)


class Vectors(unittest.TestCase):
    """Golden vectors against the formulas once more, in unbounded integers, one number at a time."""

    tensors: dict[str, np.ndarray]

    @classmethod
    def setUpClass(cls) -> None:
        cls.tensors = vectors.integer_tensors(vectors.DEFAULT_SEED)

    def cases(self, operation: str) -> list[dict]:
        cases: dict[str, dict] = {}
        for name, value in self.tensors.items():
            of, number, what = name.split(".")
            if of == operation:
                cases.setdefault(number, {})[what] = value
        return list(cases.values())

    def test_round(self) -> None:
        for case in self.cases("round"):
            for p, s, r in zip(*(case[name].tolist() for name in ("product", "shift", "rounded"))):
                self.assertEqual(plain_round(p, s), r)

    def test_linear(self) -> None:
        for case in self.cases("linear"):
            weight, bias, multiplier = (case[name].tolist() for name in ("weight", "bias", "multiplier"))
            for t, q in enumerate(case["tokens"].tolist()):
                for o, row in enumerate(weight):
                    total = bias[o] + sum(w * x for w, x in zip(row, q))
                    result = plain_round(total * multiplier[o], int(case["shift"][0]))
                    self.assertEqual((limit(result, 8), limit(result, 16)), (case["i8"][t, o], case["i16"][t, o]))

    def test_norm(self) -> None:
        for case in self.cases("norm"):
            d, a = case["tokens"].shape[1], int(case["bits"][0])
            m, o = case["multiplier"].tolist(), case["offset"].tolist()
            for t, x in enumerate(case["tokens"].tolist()):
                v = d * sum(c * c for c in x) - sum(x) ** 2 + int(case["epsilon"][0])
                e = max(k for k in range(0, 64, 2) if v << k < 1 << 64)
                r, shift = reciprocal(isqrt(v << e))
                self.assertEqual(shift, 62)
                n = [plain_round((d * c - sum(x)) * r, 42 - e // 2) for c in x]
                y = [n[c] * m[c] + (o[c] << (a - 16)) for c in range(d)]
                self.assertEqual(n, case["normalized"][t].tolist())
                self.assertEqual(y, case["affine"][t].tolist())
                self.assertEqual([limit(plain_round(c, a), 8) for c in y], case["i8"][t].tolist())

    def test_softmax(self) -> None:
        for case in self.cases("softmax"):
            multiplier, shift = int(case["multiplier"][0]), int(case["shift"][0])
            values, after = case["values"].tolist(), case["attention_multiplier"].tolist()
            for t, scores in enumerate(case["scores"].tolist()):
                index = [min(plain_round((max(scores) - s) * multiplier, shift), 577) for s in scores]
                weights = [round(4095 * math.exp(-k / 64)) for k in index]
                r, s = reciprocal(sum(weights))
                mean = [plain_round(sum(w * v for w, v in zip(weights, row)) * r, s - 16) for row in values]
                out = [limit(plain_round(x * m, int(case["attention_shift"][0])), 8) for x, m in zip(mean, after)]
                self.assertEqual(weights, case["weights"][t].tolist())
                self.assertEqual(sum(weights), case["sum"][t])
                self.assertEqual((mean, out), (case["mean"][t].tolist(), case["out"][t].tolist()))


    def test_int4(self) -> None:
        pairs = set()
        for case in self.cases("int4"):
            q, scales, group = case["q"].tolist(), case["scale"].tolist(), int(case["group"][0])
            outputs, inputs = case["q"].shape
            of_panel = 16 * -(-inputs // group) + 32 * -(-inputs // 4)
            packed = case["packed"].copy()
            self.assertEqual(len(packed), -(-outputs // 16) * of_panel)
            for o in range(outputs):
                for k in range(inputs):
                    s, start = scales[o][k // group], o // 16 * of_panel
                    pairs.add((q[o][k], s))
                    self.assertEqual(case["weight"][o, k], math.floor(Fraction(q[o][k] * s + 8, 16)))
                    self.assertEqual(case["packed"][start + k // group * 16 + o % 16], s)
                    place = start + 16 * len(scales[o]) + k // 4 * 32 + o % 16 * 2 + k % 4 // 2
                    self.assertEqual(case["packed"][place] >> 4 * (k % 2) & 15, q[o][k] % 16)
                    packed[start + k // group * 16 + o % 16] = 0
                    packed[place] &= 0xF0 if k % 2 == 0 else 0x0F
            self.assertFalse(packed.any(), "zeros to fill up")
        self.assertEqual(len(pairs), 16 * 256)


class Encoders(unittest.TestCase):
    """What the made encoders are made for."""

    def stages(self, number: int) -> dict[str, np.ndarray]:
        """Values of each stage, all images in one."""
        tensors, _ = vectors.encoder_tensors(*vectors.made_encoder(vectors.DEFAULT_SEED, number))
        stages: dict[str, list[np.ndarray]] = {}
        for name, value in tensors.items():
            image, _, stage = name.partition(".")
            if image.isdigit() and stage not in ("pixels", "normalized"):
                stages.setdefault(stage, []).append(value.ravel())
        return {name: np.concatenate(values) for name, values in stages.items()}

    def test_saturation_at_both_ends(self) -> None:
        for number in (3, 6):
            for name, values in self.stages(number).items():
                limits = np.iinfo(values.dtype)
                if not name.endswith(("weights", "hidden", "block.1.scaled")):
                    self.assertEqual((values.min(), values.max()), (limits.min, limits.max), name)

    def test_spread(self) -> None:
        for number in (0, 1, 4, 5):
            for name, values in self.stages(number).items():
                limits = np.iinfo(values.dtype)
                at_limits = float(((values == limits.min) | (values == limits.max)).mean())
                self.assertLess(at_limits, 0.15, name)
                self.assertGreater(len(np.unique(values)), 25, name)
            if "logits" in self.stages(number):
                self.assertGreater(float(self.stages(number)["logits"].std()), 8000)

    def test_logits(self) -> None:
        """The head's formulas once more, one number at a time, of the class token (4) and of the mean (5)."""
        for number, output in ((4, "class"), (5, "mean")):
            data, images = vectors.made_encoder(vectors.DEFAULT_SEED, number)
            c = encoder_file.read(data)
            bits, shift = c["head_bits"], c["head_shift"]
            m, o = c["head_norm_multipliers"].tolist(), c["head_norm_offsets"].tolist()
            weights, biases, after = (c[f"head_{what}"].tolist() for what in ("weights", "biases", "multipliers"))
            self.assertEqual(len(weights), c["classes"])
            for image in images:
                trace = encode(c, image)
                e = trace[output].tolist()
                q = [limit(plain_round(x * m[i] + (o[i] << (bits - 16)), bits), 8) for i, x in enumerate(e)]
                sums = [biases[k] + sum(w * x for w, x in zip(row, q)) for k, row in enumerate(weights)]
                logits = [limit(plain_round(s * after[k], shift), 16) for k, s in enumerate(sums)]
                self.assertEqual(trace["logits"].tolist(), logits)

    def test_outputs_with_fc_norm(self) -> None:
        """Class token and patches as they leave the last block, the mean from them, one number at a time."""
        for number in (5, 6):
            data, images = vectors.made_encoder(vectors.DEFAULT_SEED, number)
            c = encoder_file.read(data)
            for image in images:
                trace = encode(c, image)
                tokens = trace[f"block.{c['depth'] - 1}.tokens"].tolist()
                self.assertEqual([trace["class"].tolist(), *trace["patches"].tolist()], tokens)
                r, s = reciprocal(len(tokens) - 1)
                x = [limit(plain_round(sum(column) * r, s), 16) for column in zip(*tokens[1:])]
                d, a = len(x), c["norm_bits"]
                v = d * sum(n * n for n in x) - sum(x) ** 2 + c["epsilon"]
                e = max(k for k in range(0, 64, 2) if v << k < 1 << 64)
                root = reciprocal(isqrt(v << e))[0]
                n = [plain_round((d * value - sum(x)) * root, 42 - e // 2) for value in x]
                m, o = c["norm_multipliers"].tolist(), c["norm_offsets"].tolist()
                y = [n[i] * m[i] + (o[i] << (a - 16)) for i in range(d)]
                self.assertEqual(trace["mean"].tolist(), [limit(plain_round(k, a - c["mean_bits"]), 16) for k in y])

    def test_weights_of_4_bits_stand_for_those_of_8(self) -> None:
        for number in (4, 6):
            data, images = vectors.made_encoder(vectors.DEFAULT_SEED, number)
            c = encoder_file.read(data)
            wide = c | {"group": 0, "blocks": [dict(block) for block in c["blocks"]]}
            for block in wide["blocks"]:
                for layer in ("qkv", "proj", "fc1", "fc2"):
                    q, scales = block[f"{layer}_weights"], block.pop(f"{layer}_scales").tolist()
                    rows = [
                        [(x * scales[o][k // c["group"]] + 8) // 16 for k, x in enumerate(row)]
                        for o, row in enumerate(q.reshape(-1, q.shape[-1]).tolist())
                    ]
                    block[f"{layer}_weights"] = np.array(rows, dtype=np.int8).reshape(q.shape)
            again = encoder_file.write(wide)
            self.assertGreater(len(again), len(data))
            expected, computed = encode(c, images[0]), encode(encoder_file.read(again), images[0])
            self.assertEqual(expected.keys(), computed.keys())
            self.assertTrue(all((computed[name] == expected[name]).all() for name in expected))

    def test_grey_images(self) -> None:
        for number in (1, 4):
            constants = encoder_file.read(vectors.made_encoder(vectors.DEFAULT_SEED, number)[0])
            size, channels = constants["image_size"], constants["channels"]
            grey = np.arange(size * size, dtype=np.uint8).reshape(size, size)
            expected = encode(constants, np.stack([grey] * channels, axis=2))
            self.assertTrue(all((value == expected[name]).all() for name, value in encode(constants, grey).items()))


class Files(unittest.TestCase):
    def test_round_trip(self) -> None:
        for number in range(len(vectors.PLANS)):
            data, _ = vectors.made_encoder(vectors.DEFAULT_SEED, number)
            self.assertEqual(encoder_file.write(encoder_file.read(data)), data)

    def test_empty_name(self) -> None:
        data, images = vectors.made_encoder(vectors.DEFAULT_SEED, 2)
        constants = encoder_file.read(data) | {"name": ""}
        unnamed = encoder_file.write(constants)
        self.assertEqual(len(unnamed) % 16, 0)
        again, before = encode(encoder_file.read(unnamed), images[0]), encode(encoder_file.read(data), images[0])
        self.assertTrue(all((again[name] == before[name]).all() for name in before))

    def test_refusals(self) -> None:
        data, _ = vectors.made_encoder(vectors.DEFAULT_SEED, 2)
        for position in range(0, len(data), 7):
            flipped = bytearray(data)
            flipped[position] ^= 1
            with self.assertRaises(encoder_file.Refused):
                encoder_file.read(bytes(flipped))
        for length in (0, 8, 143, 144, 200, len(data) - 1):
            with self.assertRaises(encoder_file.Refused):
                encoder_file.read(data[:length])
        for offset, value in (
            (8, 1), (20, 1), (24, 6), (24, 0), (28, 0), (32, 2), (44, 4), (48, 0), (52, 2), (56, 2), (100, 8), (104, 1),
        ):
            with self.assertRaises(encoder_file.Refused):
                encoder_file.read(forged(data, offset, struct.pack("<I", value)))

    def refused(self, number: int, message: str, *changes: tuple[int, bytes]) -> None:
        """The file of a made encoder is refused, for this reason, once these bytes are changed."""
        data = vectors.made_encoder(vectors.DEFAULT_SEED, number)[0]
        for offset, value in changes:
            data = forged(data, offset, value)
        with self.assertRaisesRegex(encoder_file.Refused, message):
            encoder_file.read(data)

    def test_refused_headers(self) -> None:
        u32 = partial(struct.pack, "<I")
        for number, offset, value, message in (
            (0, 8, u32(2), "version: 4 expected"),
            (0, 56, u32(2), "fc_norm: 2"),
            (0, 75, b"\x01", "logit_bits without a head: 1"),
            (0, 112, b"\x10", "head_bits without a head: 16"),
            (0, 113, b"\x01", "head_shift without a head: 1"),
            (0, 114, b"\x01", "reserved bytes"),
            (0, 143, b"\x01", "reserved bytes"),
            (4, 75, struct.pack("b", -17), "logit_bits: -17"),
            (4, 75, struct.pack("b", 45), "logit_bits: 45"),
            (4, 100, u32(48), "number of sections: 53 expected, not 48"),
            (4, 104, u32(65537), "classes: 65537"),
            (4, 104, u32(0), "logit_bits without a head"),
            (4, 104, u32(11), "section table"),
            (4, 108, u32(65540), "group: 65540"),
            (4, 108, u32(6), "group: a multiple of 4"),
            (4, 108, u32(0), "section table"),
            (4, 108, u32(4), "section table"),
            (4, 112, b"\x0f", "head_bits: 15"),
            (4, 112, b"\x2e", "head_bits: 46"),
            (4, 113, b"\x3f", "shift of the head: 63"),
            (5, 70, struct.pack("b", 40), "mean_bits: 40, allowed -16 … 39"),
        ):
            self.refused(number, message, (offset, value))
        # The mean's shift of all four patches would be 1, that of one patch 0 − 1: s is 33 and 31.
        self.refused(0, "shift of the mean of 1 patches: -1", (71, struct.pack("b", -12)), (70, struct.pack("b", 20)))

    def test_refused_sections(self) -> None:
        data = vectors.made_encoder(vectors.DEFAULT_SEED, 4)[0]
        count = struct.unpack_from("<I", data, 100)[0]
        entries = [struct.unpack_from("<2H3I", data, 144 + 16 * n) for n in range(count)]
        at = {(kind, block): (offset, length) for kind, block, offset, length, _ in entries}
        # qkv: 14 inputs make two groups and four quads; of 42 outputs, the last panel has ten. A panel has 160 bytes.
        qkv, length = at[19, 1]
        self.assertEqual(length, 3 * 160)
        for place in (320 + 10, 320 + 15, 320 + 16 + 10):
            self.refused(4, "qkv_weights: zeros as scales beyond", (qkv + place, b"\x01"))
        for place in (32 + 3 * 32 + 1, 320 + 32 + 20, 320 + 159):  # inputs 14, 15 of output 0; outputs 42 and 47
            self.refused(4, "qkv_weights: zeros beyond the matrix", (qkv + place, b"\x01"))
            self.refused(4, "qkv_weights: zeros beyond the matrix", (qkv + place, b"\x10"))
        # fc2: 27 inputs, so that a byte holds one of them and one that fills up. Four groups, seven quads.
        fc2, length = at[33, 0]
        self.assertEqual(length, 4 * 16 + 7 * 32)
        self.refused(4, "fc2_weights: zeros beyond the matrix", (fc2 + 64 + 6 * 32 + 1, b"\x10"))
        encoder_file.read(forged(data, fc2 + 64 + 6 * 32 + 1, b"\x08"))
        head, biases = at[69, 0][0], at[70, 0][0]
        self.refused(4, "head_weights: weights are −127 … 127", (head, b"\x80"))
        self.refused(4, "head_weights: zeros beyond", (head + 10 * 4, b"\x01"))
        self.refused(4, "head_biases: at most 2\\^30", (biases, struct.pack("<i", -(1 << 30) - 1)))
        self.refused(4, "name: UTF-8", (at[66, 0][0], b"\xff"))
        self.refused(4, "padding before section 48: 0", (at[67, 0][0] - 1, b"\x01"))

    def test_bytes_after_a_head(self) -> None:
        data = vectors.made_encoder(vectors.DEFAULT_SEED, 4)[0]
        for other in (data + b"\0", data[:-1]):
            with self.assertRaisesRegex(encoder_file.Refused, "file ends|not within"):
                encoder_file.read(forged(other, 12, struct.pack("<I", len(other))))

    def test_empty_name_before_a_head(self) -> None:
        data, images = vectors.made_encoder(vectors.DEFAULT_SEED, 5)
        constants = encoder_file.read(data)
        unnamed = encoder_file.write(constants | {"name": ""})
        # The files may be equally long: the weights after the name begin at a multiple of 64.
        self.assertIn(constants["name"].encode(), data)
        self.assertNotIn(constants["name"].encode(), unnamed)
        again = encode(encoder_file.read(unnamed), images[0])
        self.assertTrue(all((again[name] == value).all() for name, value in encode(constants, images[0]).items()))

    def test_writer_refuses(self) -> None:
        constants = encoder_file.read(vectors.made_encoder(vectors.DEFAULT_SEED, 4)[0])
        first, *others = constants["blocks"]
        for change, message in (
            ({"proj_weights": first["proj_weights"] + np.int8(8)}, "proj_weights: integers of 4 bits"),
            ({"proj_scales": first["proj_scales"][:, :1]}, "proj_scales: shape"),
            ({"proj_scales": first["proj_scales"].astype(np.int32) + 1000}, "proj_scales: not all numbers"),
        ):
            with self.assertRaisesRegex(encoder_file.Refused, message):
                encoder_file.write(constants | {"blocks": [first | change, *others]})
        with self.assertRaisesRegex(encoder_file.Refused, "bytes of the name"):
            encoder_file.write(constants | {"name": "é" * 128})

    def test_check_notices_one_value(self) -> None:
        data, images = vectors.made_encoder(vectors.DEFAULT_SEED, 0)
        tensors, metadata = vectors.encoder_tensors(data, images)
        tensors["1.block.1.keys"] = tensors["1.block.1.keys"].copy()
        tensors["1.block.1.keys"].flat[3] ^= 1
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "encoder_0.safetensors"
            path.write_bytes(vectors.file_bytes(tensors, metadata))
            groups = dict(check.check_encoder("e", *check.load(path)))
            self.assertEqual({name: g.differing for name, g in groups.items() if g.differing}, {"e/block.1.keys": 1})


if __name__ == "__main__":
    unittest.main()
