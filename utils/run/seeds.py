"""Random streams by name: every draw of every stage comes from one of them."""

from __future__ import annotations

import contextlib
import hashlib
import random
from typing import Iterator

import numpy as np
import torch


def stream_seed(*names: object) -> int:
    """A seed for the random stream with these names, e.g. stream_seed(seed, "recover", unit)."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*names: object) -> torch.Generator:
    """A CPU generator for the random stream with these names."""
    return torch.Generator().manual_seed(stream_seed(*names))


@contextlib.contextmanager
def seeded(*names: object, device: torch.device | None = None) -> Iterator[None]:
    """Run a block of library code that draws from the global generators on a named stream, then restore them.

    torchvision draws from torch's, timm's RandAugment from Python's and NumPy's, a network's dropout from that of its
    `device`. The host never waits for the device.
    """
    seed = stream_seed(*names)
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu = device if device is not None and device.type == "cuda" else None
    gpu_state = torch.cuda.get_rng_state(gpu) if gpu else None  # kept by the host
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if gpu:
        index = torch.cuda.current_device() if gpu.index is None else gpu.index
        torch.cuda.default_generators[index].manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if gpu:
            torch.cuda.set_rng_state(gpu_state, gpu)
