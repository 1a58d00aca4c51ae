"""python -m benchmarks.winograd: a frozen 3x3 convolution, direct against Winograd, forward and backward, in fp32."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Callable

import torch
from torch import nn

from benchmarks.pairs import median_and_range, seconds
from utils import cli
from utils.nets.winograd import WinogradConv2d
from utils.run.device import Runtime


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.winograd", description=__doc__)
    parser.add_argument("--images", type=cli.positive, default=100)
    parser.add_argument("--pairs", type=cli.positive, default=10)
    args = parser.parse_args()
    runtime = Runtime.create("cpu", "fp32", "off")
    for channels, size in ((64, 32), (128, 16), (256, 8), (512, 4), (512, 7)):
        conv = runtime.place(nn.Conv2d(channels, channels, 3, padding=1, bias=False)).requires_grad_(False)
        images = torch.randn(args.images, channels, size, size).contiguous(memory_format=torch.channels_last)
        images.requires_grad_()

        def both_ways(layer: nn.Module) -> Callable[[], object]:
            return lambda: torch.autograd.grad(layer(images).sum(), images)

        direct, winograd = both_ways(conv), both_ways(WinogradConv2d(conv))
        pairs = [(timed(direct), timed(winograd)) for _ in range(args.pairs + 1)][1:]
        plain, ours = (statistics.median(side) for side in zip(*pairs))
        print(
            f"{channels} channels, {size} x {size}, {args.images} images: direct {seconds(plain)}, "
            f"Winograd {seconds(ours)}, ratio {median_and_range([a / b for a, b in pairs])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
