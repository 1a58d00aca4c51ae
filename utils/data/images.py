"""Images: reading, checking, resizing and writing them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from utils.data.pixel_range import colour_layout, colour_to_8_bits, is_deep, seems_shallow, to_8_bits
from utils.data.png import is_described_behind
from utils.run.errors import UserError, first_line
from utils.run.files import replacing

MAX_PIXELS = 100_000_000  # an image that claims more is refused before it is decoded
MAX_PIXELS_VARIABLE = "DELT_MAX_PIXELS"  # in the environment: another limit
LONGEST = 16  # times the shorter side; of a longer image only the middle is resized

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit would warn, and end at another number of pixels: see _check_size

_ORIENTATION = 0x0112  # the tag of EXIF
_QUARTER_TURNS = (5, 6, 7, 8)  # its values that swap width and height


def read_rgb(path: Path) -> Image.Image:
    """The image at `path` as a person sees it, in RGB: turned as its EXIF orientation says.

    Palette, grayscale and CMYK are converted; pixels of 16 bits, 32 bits and floats too (utils/data/pixel_range). What
    is transparent shows white. Raises UserError if the file is missing, not an image, cut off, or claims more than the
    limit of pixels.
    """
    image = _open(path)
    try:
        layout = colour_layout(image)
        image.load()
        if layout:
            image.info.pop("transparency", None)  # a colour of 16 bits, of which 8 are here
        if layout and seems_shallow(image):
            alpha = image.getchannel("A") if "A" in image.getbands() else None
            image = colour_to_8_bits(image, _open(path), layout)
            if alpha and alpha.getextrema()[1] >= 64:  # else nobody knows which value is opaque
                image.putalpha(alpha)
        if _orientation(image) in range(2, 9):
            ImageOps.exif_transpose(image, in_place=True)
        if is_deep(image):
            image = to_8_bits(image)
        elif image.has_transparency_data:
            image = _on_white(image)
        return image.convert("RGB")
    except Exception as error:
        raise _unreadable(path, error) from None


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) as seen, without decoding it if that can be. Raises UserError as `read_rgb` does."""
    with _open(path) as image:
        return _seen_size(path, image)


def probe(path: Path) -> tuple[int, int]:
    """Read every byte of the image; return its (width, height) as seen. Raises UserError as `read_rgb` does."""
    image = _open(path)
    if is_deep(image) or colour_layout(image):  # its values decide whether it can be shown
        return read_rgb(path).size
    size = image.size
    # A JPEG decoded at an eighth of its size still reads every byte, at a third of the time.
    reduced = image.draft("RGB", (1, 1)) is not None
    try:
        image.load()
        if not reduced:
            size = image.size  # TIFF turns itself
        return size[::-1] if _orientation(image) in _QUARTER_TURNS else size
    except Exception as error:
        raise _unreadable(path, error) from None


def _seen_size(path: Path, image: Image.Image) -> tuple[int, int]:
    try:
        if image.format == "PNG" and is_described_behind(path):
            image.load()
        # Not PNG's own method, which would decode every image to see whether the tag stands behind its pixels.
        turned = image.format != "TIFF" and Image.Image.getexif(image).get(_ORIENTATION) in _QUARTER_TURNS
    except Exception as error:
        raise _unreadable(path, error) from None
    return image.size[::-1] if turned else image.size


def _on_white(image: Image.Image) -> Image.Image:
    """An image with transparency as a white page shows it; where all of it is opaque it keeps its colours."""
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=alpha)
    return white


def _orientation(image: Image.Image) -> int:
    """Of an image that is loaded, which TIFF has turned by then."""
    return image.getexif().get(_ORIENTATION, 1)


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        if image.format == "TIFF":
            image.filename = ""  # Pillow maps a file by its name, and then with the rows of the turned image
    except Exception as error:
        raise _unreadable(path, error) from None
    _check_size(path, image)
    return image


def _check_size(path: Path, image: Image.Image) -> None:
    if image.width * image.height > (limit := max_pixels()):
        raise UserError(
            f"{path}: claims {image.width} x {image.height} pixels, more than {limit:,}; remove it, make it smaller, "
            f"or set {MAX_PIXELS_VARIABLE}={image.width * image.height} in the environment to read it"
        )


def max_pixels() -> int:
    """The limit in force. Raises UserError where the environment says no number."""
    said = os.environ.get(MAX_PIXELS_VARIABLE) or str(MAX_PIXELS)
    if not said.replace("_", "").isdecimal() or int(said) < 1:
        raise UserError(f"{MAX_PIXELS_VARIABLE}={said}: is not a whole number of pixels of 1 or more")
    return int(said)


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = (
        "no such file"
        if isinstance(error, FileNotFoundError)
        else "not an image"
        if type(error).__name__ == "UnidentifiedImageError"
        else first_line(error)
    )
    return UserError(f"{path}: cannot be read ({reason}); replace it or remove it")


def resize_for_test(size: int) -> v2.Transform:
    """The field's way to test: the shorter side to size // 7 * 8 (32 for 32, 72 for 64, 256 for 224), then the centre.

    Sizes just below a multiple of 7 would become smaller than the crop: they are left as they are.
    """
    return v2.Compose([middle, v2.Resize(max(size, size // 7 * 8)), v2.CenterCrop(size)])


def resize_whole(size: int) -> v2.Transform:
    """The shorter side to `size`, then the centre: an image of that size as it stands."""
    return v2.Compose([middle, v2.Resize(size), v2.CenterCrop(size)])


def middle(image: Image.Image) -> Image.Image:
    """The image itself; of one longer than LONGEST times its shorter side the square in the middle and some around it.

    A crop from the centre follows the resize, and a strip enlarged as a whole would take gigabytes.
    """
    short, long = sorted(image.size)
    if long <= LONGEST * short:
        return image
    kept = 4 * short + long % 2  # an even number is cut off, so that the centre stays where it is
    start = (long - kept) // 2
    box = (start, 0, start + kept, short) if image.width == long else (0, start, short, start + kept)
    return image.crop(box)


def to_batch(images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB images of one size -> uint8 (N, 3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def save_image(path: str | Path, pixels: torch.Tensor) -> None:
    """Write uint8 (3, H, W) by the format of the path's ending: lossless PNG, or JPEG of quality 95.

    The caller, who has many to write, sees to it that the file is on disk (utils/run/files.py).
    """
    with replacing(path, flushed=False) as temporary:
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
        image.save(temporary, **({} if temporary.suffix == ".png" else {"quality": 95, "subsampling": 0}))
