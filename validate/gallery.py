"""The report's gallery: for some classes the images of each set, starting ones above recovered ones, early to late."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from utils.images import ImageFolder, pick, read_rgb
from validate import collect
from validate.collect import Measured

LARGEST = 256  # pixels of an embedded image; larger ones are reduced


@dataclass
class Strip:
    """Some images of one class of one set, in rank order."""

    title: str
    images: list[tuple[str, str]]  # (data URI, caption)
    pixelated: bool  # small images are enlarged without smoothing, so that what is seen is what is stored


@dataclass
class Block:
    name: str  # of the class
    strips: list[Strip]


def blocks(measured: list[Measured], classes: int, images: int) -> list[Block]:
    """At most so many classes, and images of each set; sets that are no longer on disk are left out."""
    folders: dict[str, tuple[Path, list[int] | None]] = {}
    for entry in measured:
        title, folder = f"{entry.facts['method']}, IPC {entry.facts['ipc']}", entry.set_dir
        if title in folders or not folder.is_dir():
            continue
        if start := collect.start_of(folder):
            folders[f"{title}: start"] = (start, None)
        folders[title] = (folder, collect.updates(folder))
    sets = {title: (ImageFolder(folder, "set"), updates) for title, (folder, updates) in folders.items()}
    names = sorted({name for folder, _ in sets.values() for name in folder.classes})
    result = []
    for name in (names[i] for i in pick(len(names), classes)):
        strips = [_strip(title, folder, name, updates, images) for title, (folder, updates) in sets.items()
                  if name in folder.classes]
        result.append(Block(name, strips))
    return result


def _strip(title: str, folder: ImageFolder, name: str, updates: list[int] | None, images: int) -> Strip:
    paths = folder.of_class(folder.classes.index(name))
    shown, small = [], True
    for rank in pick(len(paths), images):
        image = read_rgb(folder.root / paths[rank])
        small &= max(image.size) <= LARGEST // 2
        caption = f"{name}, {title}, rank {rank}" + (f", {updates[rank]} updates" if updates and rank < len(updates) else "")
        shown.append((_uri(image), caption))
    return Strip(title, shown, small)


def _uri(image: Image.Image) -> str:
    image.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return png_uri(buffer.getvalue())


def png_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
