"""Compares decoding and cropping with PIL's, file by file.

usage: compare.py PIXELS FOLDER [--tec TEC]

PIXELS is the built example (cargo build --release -p tec-image --example pixels: target/release/examples/pixels), FOLDER holds
JPEG and PNG files. With a MANIFEST.tsv in FOLDER and TEC, the built command, also prints what `tec inspect --json` says of each
file beside the manifest's PIL_decode. Needs pillow and numpy.
"""
import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

args = argparse.ArgumentParser()
args.add_argument("pixels")
args.add_argument("folder", type=Path)
args.add_argument("--tec")
args = args.parse_args()


def pil(path):
    try:
        image = Image.open(path)
        image.load()
        kind = f"{image.format} {image.mode}" + (" progressive" if image.info.get("progressive") else "")
        return kind, ImageOps.exif_transpose(image).convert("RGB"), "ok"
    except OSError as error:
        return "refused", None, str(error)


def inspect(path):
    done = subprocess.run([args.tec, "inspect", "--json", path], capture_output=True, text=True)
    return json.loads(done.stdout or "{}")


files = sorted(p for p in args.folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
jobs, seen = [], []
for number, path in enumerate(files):
    kind, image, outcome = pil(path)
    width, height = image.size if image else (1, 1)
    # Of many sizes and places, as random crops are.
    cw, ch = max(1, width * (40 + number % 37) // 100), max(1, height * (45 + number % 31) // 100)
    box = (width * (number % 5) // 20, height * (number % 7) // 30, cw, ch)
    jobs += [str(path), *map(str, box)]
    seen.append((path, kind, image, outcome, box))
manifest = {}
if (args.folder / "MANIFEST.tsv").exists():
    for line in (args.folder / "MANIFEST.tsv").read_text().splitlines()[1:]:
        fields = line.split("\t")
        manifest[fields[0]] = fields[8]
classes = {}
with tempfile.TemporaryDirectory() as out:
    subprocess.run([args.pixels, out, *jobs], check=True)
    print(f"pillow {PIL.__version__}\n\n| file | manifest | PIL | tec | largest difference |\n|---|---|---|---|---|")
    for number, (path, kind, image, outcome, (left, top, cw, ch)) in enumerate(seen):
        whole = Path(out) / f"{number}.whole"
        ours, largest = "refused", ""
        if whole.exists():
            ours, data = "ok", np.frombuffer(whole.read_bytes(), np.uint8)
            width, height, channels = data[:12].view("<u4")
            pixels = np.broadcast_to(data[12:].reshape(height, width, channels), (height, width, 3)).astype(int)
            crop = np.frombuffer((Path(out) / f"{number}.crop").read_bytes(), np.uint8).reshape(224, 224, channels)
            if image is not None and image.size == (width, height):
                off = np.abs(pixels - np.asarray(image))
                theirs = image.crop((left, top, left + cw, top + ch)).resize((224, 224), Image.Resampling.BICUBIC)
                crops = np.abs(np.broadcast_to(crop, (224, 224, 3)).astype(int) - np.asarray(theirs))
                largest = str(off.max())
                found = classes.setdefault(kind, [0, 0, 0, 0, 0])
                found[:] = [found[0] + 1, max(found[1], off.max()), found[2] + off.mean(), max(found[3], crops.max()),
                            found[4] + crops.mean()]
        if args.tec:
            facts = inspect(path)
            ours = ("ok" if facts.get("decoded") else f"refused: {facts.get('reason')}") + (
                ", damaged" if facts.get("damaged") else "")
        if len(seen) < 60:
            print(f"| {path.name} | {manifest.get(path.name, '')} | {outcome} | {ours} | {largest} |")
print("\n| PIL's mode | files | decoded: largest, mean difference | crop resized to 224: largest, mean difference |\n|---|---|---|---|")
for kind, (count, largest, mean, crop, crop_mean) in sorted(classes.items()):
    print(f"| {kind} | {count} | {largest}, {mean / count:.4f} | {crop}, {crop_mean / count:.4f} |")
