"""python -m benchmarks.ranking: scoring a folder of images, plain against ours."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Callable

from benchmarks import material
from benchmarks.pairs import Comparison, add_machine, compare, machine_of, settled
from benchmarks.plain import plain_scores
from ranking.score import Scorer
from utils import cli
from utils.data.datasets import SMALL_SIZE
from utils.data.image_folder import ImageFolder
from utils.nets.frozen import frozen
from utils.run.device import Runtime

CLASSES, BATCH = 10, 256
LONG = 5000  # batches of ImageNet-1K: what a compilation is weighed against


def _stem(size: int) -> str:
    return "cifar" if size <= SMALL_SIZE else "imagenet"


def plain_pass(place: str, arch: str, size: int, device: str) -> Callable[[], None]:
    network = material.network(arch, CLASSES, size, _stem(size))
    return lambda: plain_scores(network, place, material.geometry(CLASSES, size, _stem(size)), BATCH, device)


def our_pass(place: str, arch: str, size: int, **machine: str) -> Callable[[], None]:
    runtime = settled(Runtime.create(**machine), LONG)
    network = runtime.compiled(frozen(material.network(arch, CLASSES, size, _stem(size)), runtime), LONG)
    geometry = material.geometry(CLASSES, size, _stem(size))
    scorer = Scorer(network, geometry, replace(runtime, compile="off"), BATCH, None)  # it is compiled by now

    def work() -> None:
        folder = ImageFolder(place, "the benchmark's images")
        folder.check()
        with tempfile.TemporaryDirectory() as parts:
            scorer.score(folder, Path(parts), {})

    return work


def passes(arch: str, size: int, images: int, pairs: int, machine: dict) -> Comparison:
    """Passes over so many images, from the listing of the folder to the table; the images are decoded in each."""
    with tempfile.TemporaryDirectory() as place:
        material.images(Path(place) / "train", CLASSES, images // CLASSES, size)
        side = dict(place=f"{place}/train", arch=arch, size=size, device=machine["device"])
        return compare((plain_pass, side), (our_pass, side | machine), pairs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranking", description=__doc__)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=cli.positive, default=32, help="pixels")
    parser.add_argument("--images", type=cli.positive, default=2560, help="in a sample")
    parser.add_argument("--pairs", type=cli.positive, default=5)
    add_machine(parser)
    args = parser.parse_args()
    found = passes(args.arch, args.size, args.images, args.pairs, machine_of(args))
    print(f"ranking {args.arch}, {args.images} images of {args.size} px in batches of {BATCH}: {found}")


if __name__ == "__main__":
    main()
