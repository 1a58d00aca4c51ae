"""Images: reading, checking, resizing and writing them."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from utils.run.errors import UserError
from utils.run.files import replacing

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
MAX_PIXELS = 100_000_000  # an image that claims more is refused before it is decoded
MIN_SIZE = 8  # pixels of an input
SMALL_SIZE = 64  # pixels; up to this size images get the small-image stem, the padded crop, and a place in memory


def read_rgb(path: Path) -> Image.Image:
    """The image at `path` as RGB; palette, grayscale (8 and 16 bit), CMYK and RGBA are converted.

    Raises UserError if the file is missing, not an image, cut off, or claims more than MAX_PIXELS.
    """
    image = _open(path)
    try:
        if image.mode.startswith("I;16") or image.mode == "I":
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
    except Exception as error:
        raise _unreadable(path, error) from None


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) by the header. Raises UserError as `read_rgb` does."""
    with _open(path) as image:
        return image.size


def probe(path: Path) -> tuple[int, int]:
    """Read every byte of the image, and return its (width, height). Raises UserError as `read_rgb` does."""
    image = _open(path)
    size = image.size
    # A JPEG decoded at an eighth of its size still reads every byte, at a third of the time.
    image.draft("RGB", (1, 1))
    try:
        image.load()
    except Exception as error:
        raise _unreadable(path, error) from None
    return size


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
    except Exception as error:
        raise _unreadable(path, error) from None
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{path}: claims {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; remove it")
    return image


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = (
        "no such file"
        if isinstance(error, FileNotFoundError)
        else "not an image"
        if type(error).__name__ == "UnidentifiedImageError"
        else str(error) or type(error).__name__
    )
    return UserError(f"{path}: cannot be read ({reason}); replace it or remove it")


def common_size(sizes: Sequence[tuple[int, int]]) -> int:
    """The input size in pixels that suits images of these (width, height): their own if small, 224 otherwise."""
    largest = max(min(size) for size in sizes)
    return max(largest, MIN_SIZE) if largest <= SMALL_SIZE else 224


def resize_for_test(size: int) -> v2.Transform:
    """The field's way to test: the shorter side to size // 7 * 8 (32 for 32, 72 for 64, 256 for 224), then the centre.

    Sizes just below a multiple of 7 would become smaller than the crop: they are left as they are.
    """
    return v2.Compose([v2.Resize(max(size, size // 7 * 8)), v2.CenterCrop(size)])


def resize_whole(size: int) -> v2.Transform:
    """The shorter side to `size`, then the centre: an image of that size as it stands."""
    return v2.Compose([v2.Resize(size), v2.CenterCrop(size)])


def to_batch(images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB images of one size -> uint8 (N, 3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def save_image(path: str | Path, pixels: torch.Tensor) -> None:
    """Write uint8 (3, H, W) by the format of the path's ending: lossless PNG, or JPEG of quality 95."""
    with replacing(path) as temporary:
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
        image.save(temporary, **({} if temporary.suffix == ".png" else {"quality": 95, "subsampling": 0}))
