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
        for name, values in self.stages(3).items():
            limits = np.iinfo(values.dtype)
            if not name.endswith(("weights", "hidden", "block.1.scaled")):
                self.assertEqual((values.min(), values.max()), (limits.min, limits.max), name)

    def test_spread(self) -> None:
        for number in (0, 1):
            for name, values in self.stages(number).items():
                limits = np.iinfo(values.dtype)
                at_limits = float(((values == limits.min) | (values == limits.max)).mean())
                self.assertLess(at_limits, 0.15, name)
                self.assertGreater(len(np.unique(values)), 25, name)


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
            (8, 1), (20, 1), (24, 6), (24, 0), (28, 0), (32, 2), (44, 4), (48, 0), (52, 2), (56, 1), (100, 8), (104, 1),
        ):
            forged = bytearray(data)
            struct.pack_into("<I", forged, offset, value)
            struct.pack_into("<I", forged, 16, encoder_file.checksum(bytes(forged)))
            with self.assertRaises(encoder_file.Refused):
                encoder_file.read(bytes(forged))

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
