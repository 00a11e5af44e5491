"""Makes the small files of this folder with the programs that users make theirs with.

usage: make.py FOLDER      (needs pillow and pyarrow)
"""
import io
import json
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

out = Path(sys.argv[1])


def image(number, kind):
    """20 + number by 12 + number pixels, a gradient that starts at `number`."""
    width, height = 20 + number, 12 + number
    data = bytes((number + 3 * x + 5 * y + 70 * c) % 256 for y in range(height) for x in range(width) for c in range(3))
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), data).save(file, kind)
    return file.getvalue()


def tar(name, members, format):
    with tarfile.open(out / name, "w", format=format) as file:
        for path, data in members:
            info = tarfile.TarInfo(path)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


long = "/".join(["a-rather-long-folder-name"] * 6) + "/d.png"
first = [("train/a.jpg", image(0, "JPEG")), ("train/a.cls", b"10\n"), ("train/b.PNG", image(1, "PNG")),
         ("train/b.json", json.dumps({"label": 2}).encode()), ("train/b.txt", b"a caption"),
         ("train/c.jpeg", image(2, "JPEG")), ("train/c.json", json.dumps({"cls": "10"}).encode()),
         ("README", b"what this is")]
second = [(long, image(3, "PNG")), (long.replace(".png", ".cls"), b"2"),
          ("train/e.jpg", image(4, "JPEG")), ("train/e.cls", b"2")]
tar("shard-00.tar", first, tarfile.PAX_FORMAT)
tar("shard-01.tar", second, tarfile.PAX_FORMAT)
tar("gnu.tar", second[:1], tarfile.GNU_FORMAT)

images = [image(number, "PNG" if number % 2 else "JPEG") for number in range(5)]
# As `datasets` writes it: a struct of bytes and path, class names in the metadata.
features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["ape", "bee", "cat"], "_type": "ClassLabel"}}}}
schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
                   metadata={"huggingface": json.dumps(features)})
rows = [{"image": {"bytes": data, "path": f"{number}.img"}, "label": number % 3} for number, data in enumerate(images)]
pq.write_table(pa.Table.from_pylist(rows, schema), out / "hf.parquet", row_group_size=2, data_page_size=1)
# A plain binary column with a missing image, other names, other encodings and pages.
table = pa.table({"img": pa.array([images[0], None, *images[2:]], pa.binary()), "labels": pa.array([7, 0, 1, 2, 7], pa.int32())})
pq.write_table(table, out / "plain.parquet", compression="zstd", use_dictionary=False, data_page_size=1, write_batch_size=1,
               write_page_index=True, data_page_version="2.0")
print("python", sys.version.split()[0], "pyarrow", pa.__version__)
