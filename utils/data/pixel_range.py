"""Pixels of more than 8 bits as 8 bits: by the range of their format where it says one, else by their own."""

from __future__ import annotations

import numpy as np
from PIL import Image

BITS = (1, 2, 4, 8, 10, 12, 14, 16)  # depths that cameras, scanners and microscopes have
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_SGI = "SGI16"  # whose lower bytes Pillow does not give
_SWAPPED = ("RGB", "RGBX", "RGBA")  # layouts of 16 bits that Pillow reads in either order of bytes
_FULL_RANGE = ("PPM", "JPEG2000")  # Pillow has brought their integers to 16 bits, by the largest value they name


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow keeps this image in more than 8 bits. It never does so in colour."""
    return image.mode.startswith("I") or image.mode == "F"


def to_8_bits(image: Image.Image) -> Image.Image:
    """An image with one channel of 16 bits, 32 bits or floats (mode I, I;16 or F) -> mode L.

    Integers of up to 16 bits keep their 8 highest bits, of as many as their file says or else as their largest value
    needs (BITS): a 12-bit camera's files are 16-bit ones to Pillow. Other values are scaled from their smallest to
    their largest. Raises ValueError for values that are not finite.
    """
    tags = getattr(image, "tag_v2", None) or {}
    values = np.asarray(image)
    if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1 and tags.get(_BITS_PER_SAMPLE, (0,))[0] == 32:
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite numbers")
    if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) >= 2**16:
        found = _stretched(values)
    else:
        found = _highest_bits(values, 16 if image.format in _FULL_RANGE else _bits(values, tags))
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white
        found = 255 - found
    return Image.fromarray(found)


def colour_layout(image: Image.Image) -> str:
    """How the values of an image of 16 bits that Pillow cuts to 8 lie in its file, such as RGB;16B; "" for any other.

    To be asked before the image is read. It is an image in colour or with transparency, or one of SGI's.
    """
    if not image.tile or image.mode not in ("L", "LA", "RGB", "RGBA"):
        return ""
    tile = image.tile[0]
    args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    if tile.codec_name == "SGI16" or (tile.codec_name == "sgi_rle" and args[2] == 2):
        return _SGI
    layout = str(args[0]) if args else ""
    return layout if layout[-4:-1] == ";16" else ""


def seems_shallow(image: Image.Image) -> bool:
    """Whether no colour is above a quarter of 8 bits: 14 bits or less, if the image has 16 in its file."""
    colours = [extent for band, extent in zip(image.getbands(), _extents(image)) if band != "A"]
    return max(high for _, high in colours) < 64


def colour_to_8_bits(image: Image.Image, again: Image.Image, layout: str) -> Image.Image:
    """An image with a `colour_layout`, scaled as `to_8_bits` does it. `again`: the same image, opened and not read yet.

    Pillow keeps the higher byte of each value, and with the order of the bytes swapped it keeps the lower one. Of grey
    with transparency all bytes are read as if they were colours. Raises ValueError where Pillow has no way to them.
    """
    kind = layout.partition(";")[0]
    if kind == "LA":
        again.tile = [_with_layout(tile, "RGBA") for tile in again.tile]
        values = np.asarray(again).astype(np.uint16)
        values = (values[..., 0] << 8) + values[..., 1]
    elif kind in _SWAPPED:
        again.tile = [_with_layout(tile, layout[:-1] + ("B" if layout[-1] in "LN" else "L")) for tile in again.tile]
        high, low = (np.asarray(part)[..., :3].astype(np.uint16) for part in (image, again))
        values = (high << 8) + low
    else:
        raise ValueError(
            "it has 16 bits in its file and uses a few of them, which cannot be read from this kind of file; save it "
            "as PNG"
        )
    scaled = Image.fromarray(_highest_bits(values, _bits(values, {})))
    scaled.info = dict(image.info)  # with its EXIF
    return scaled


def _extents(image: Image.Image) -> list[tuple[int, int]]:
    found = image.getextrema()
    return [found] if len(image.getbands()) == 1 else list(found)


def _with_layout(tile: tuple, layout: str) -> tuple:
    args = layout if isinstance(tile.args, str) else (layout, *tile.args[1:])
    return tile._replace(args=args)


def _bits(values: np.ndarray, tags: dict) -> int:
    said = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    needed = next(bits for bits in BITS if int(values.max(initial=0)) < 2**bits)
    return said if needed <= said < 16 else needed


def _highest_bits(values: np.ndarray, bits: int) -> np.ndarray:
    values = values.astype(np.uint32)
    return (values >> (bits - 8) if bits >= 8 else values * 255 // (2**bits - 1)).astype(np.uint8)


def _stretched(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    if low == high:  # of one grey: as a share of 1, as a float image has it most often
        return np.full(values.shape, round(255 * min(max(low, 0.0), 1.0)), np.uint8)
    return ((values - low) * (255 / (high - low))).round().astype(np.uint8)
