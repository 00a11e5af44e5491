"""Makes small JPEG files and, as PNG, the RGB pixels that PIL sees in them.

usage: make.py FOLDER      (needs pillow; these files: pillow 13.0 with libjpeg-turbo 3.2)
"""
import io
import sys
from pathlib import Path

from PIL import Image

out = Path(sys.argv[1])


def photo(width, height, mode="RGB"):
    """Slopes, an edge and a little noise, so that every coefficient occurs."""
    state, data = 1, bytearray()
    for y in range(height):
        for x in range(width):
            for c in range(3):
                state = (state * 1103515245 + 12345) % 2**31
                data.append(min(255, (5 * x + 90 * c + (120 if x * 2 > y * 3 else 0) + 3 * y) % 230 + (state >> 20) % 24))
    return Image.frombytes("RGB", (width, height), bytes(data)).convert(mode)


def keep(name, data):
    (out / f"{name}.jpg").write_bytes(data)
    Image.open(io.BytesIO(data)).convert("RGB").save(out / f"{name}.png", optimize=True)


def jpeg(name, image, **how):
    file = io.BytesIO()
    image.save(file, "JPEG", **how)
    keep(name, file.getvalue())
    return file.getvalue()


jpeg("full", photo(37, 29), subsampling=0, quality=90)
jpeg("half", photo(37, 29), subsampling=1, quality=85)
jpeg("quarter", photo(45, 35), subsampling=2, quality=85)
jpeg("narrow", photo(3, 5), subsampling=2, quality=85)
jpeg("grey", photo(19, 23, "L"), quality=80)
jpeg("cmyk", photo(21, 17, "CMYK"), quality=85)
jpeg("progressive", photo(45, 35), subsampling=2, quality=85, progressive=True)
jpeg("progressive-grey", photo(19, 23, "L"), quality=80, progressive=True)
restarts = jpeg("restarts", photo(45, 35), subsampling=2, quality=60, restart_marker_blocks=2)
# The data end in the middle, but the image has an end: the rest is grey, until the next restart marker.
whole = jpeg("grey", photo(19, 23, "L"), quality=80)
keep("stops", whole[: len(whole) * 5 // 6] + b"\xff\xd9")
marker = restarts.index(b"\xff\xd1")
keep("gap", restarts[: marker - 12] + restarts[marker:])
