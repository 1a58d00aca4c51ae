"""Cuts Fashion-MNIST to the first 1,000 training and 200 test images of each class.

    python scripts/embedded/cut.py FOLDER_OF_THE_FOUR_GZ_FILES [OUTPUT]

The output is a numpy array (class, image, 28, 28) of bytes, each class's training images first, compressed by xz.
"""

import io
import lzma
import os
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from utils.data.datasets import DATASETS  # noqa: E402
from utils.data.layouts import read_idx  # noqa: E402

CUT = DATASETS["fashion_mnist_cut"]


def cut(folder):
    parts = []
    for prefix, count in zip(("train", "t10k"), CUT.images):
        images, labels = (read_idx(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        if images is None or labels is None:
            sys.exit(
                f"cut: {folder} lacks Fashion-MNIST's {prefix}-images-idx3-ubyte.gz or {prefix}-labels-idx1-ubyte.gz"
            )
        parts.append([images[labels == k][: count // CUT.classes] for k in range(CUT.classes)])
    return np.concatenate(parts, axis=1)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__.splitlines()[2].strip())
    plain = io.BytesIO()
    np.save(plain, cut(Path(sys.argv[1])))
    # Of xz, bz2, PNG and lossless WebP mosaics, xz with four literal context bits was the smallest.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
    output = Path(sys.argv[2]) if len(sys.argv) == 3 else HERE / CUT.source
    partial = output.with_name(output.name + ".partial")
    partial.write_bytes(lzma.compress(plain.getvalue(), lzma.FORMAT_XZ, filters=filters))
    os.replace(partial, output)
    print(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
