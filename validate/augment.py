"""What a student sees: RandAugment, crop and flip of each image, then CutMix or MixUp of the batch.

Crop, flip and mix are drawn first and applied afterwards, so that what was drawn can be stored with the teacher's
labels and shown again (validate/labels.py).
"""

from __future__ import annotations

import math
from typing import Callable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.distributions import Beta
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import RandAugment, functional

from utils.data.geometry import Geometry
from utils.data.image_folder import ImageFolder
from utils.data.images import to_batch
from utils.data.loader import AugmentedBatches
from utils.data.tiles import edges
from utils.run.errors import UserError, first_line
from utils.run.seeds import seeded
from validate.protocols import SQUARED, Protocol

BATCH_AUGMENTS = ("none", "dsa")
ALPHA = {"cutmix": 1.0, "mixup": 0.8, "none": None}  # the parameter of both sides of the Beta distribution
TORCHVISION = "torchvision"  # its RandAugment, of 2 operations and magnitude 9 of 30
RATIO = (3 / 4, 4 / 3)  # aspect ratios of the crop, as torchvision's default


class Augmentation:
    """RGB image -> RGB image of `size` pixels, in two parts: `distort`, which only its random stream describes, and a
    view, which five numbers do."""

    def __init__(self, protocol: Protocol, geometry: Geometry):
        """Raises UserError for another configuration of RandAugment than timm's, "torchvision" or "none"."""
        self.size, self.flip, self.patches = geometry.input_size, protocol.flip, protocol.shuffle_patches
        self.scale, self.is_whole = (protocol.min_scale, protocol.max_scale), shows_all(protocol)
        self.tiles, self.tile_share = protocol.tiles, protocol.tile_share
        self.augments_batches = protocol.batch_augment != "none"
        self.rand_augment = _rand_augment(protocol.rand_augment, self.size, geometry.mean)

    @property
    def is_recorded(self) -> bool:
        """Whether the five numbers of a view describe all that is drawn."""
        return self.rand_augment is None and self.patches == 1 and not self.augments_batches

    def distort(self, image: Image.Image) -> Image.Image:
        """RandAugment, then RDED's shuffle of the tiles; draws from the global generators."""
        if self.patches > 1:
            if self.is_whole:  # or the square in the middle would be of strips that lost their places
                top, left, height, width = _square(image.height, image.width)
                image = image.crop((left, top, left + width, top + height))
            image = _shuffled(image, self.patches)
        return self.rand_augment(image) if self.rand_augment else image

    def draw(self, width: int, height: int) -> tuple[int, int, int, int, int]:
        """A view of an image of this size: top, left, height and width of the crop in pixels, and 1 for a flip.

        Without crops it is the square in the middle, as the teacher and the other stages see an image, or its tile.
        """
        crop = _square(height, width) if self.is_whole else (0, 0, height, width)
        if self.tiles > 1 and torch.rand(()) < self.tile_share:
            row, column = torch.randint(self.tiles, (2,)).tolist()
            top, left, height, width = crop
            heights, widths = edges(height, self.tiles), edges(width, self.tiles)
            crop = (top + sum(heights[:row]), left + sum(widths[:column]), heights[row], widths[column])
        if not self.is_whole:
            top, left, height, width = crop
            shape = torch.empty(3, height, width, device="meta")
            inner = RandomResizedCrop.get_params(shape, list(self.scale), list(RATIO))
            crop = (top + inner[0], left + inner[1], *inner[2:])
        return *crop, int(torch.rand(()) < self.flip)

    def view(self, image: Image.Image, view: tuple[int, int, int, int, int]) -> Image.Image:
        *crop, flip = view
        image = functional.resized_crop(image, *crop, [self.size, self.size])
        return functional.horizontal_flip(image) if flip else image


def shows_all(protocol: Protocol) -> bool:
    """Whether views are whole images, but for tiles, and not random crops."""
    return (protocol.min_scale, protocol.max_scale) == (1.0, 1.0)


def squared(protocol: Protocol, folder: ImageFolder) -> dict[str, str]:
    """What tells records of the images in `folder` from those of earlier versions, which squashed whole images.

    Nothing where they are square, or shown in random crops: there is no difference.
    """
    is_cut = shows_all(protocol) and any(width != height for width, height in folder.load())
    return {SQUARED: "the square in the middle"} if is_cut else {}


def _square(height: int, width: int) -> tuple[int, int, int, int]:
    """The square in the middle: top, left, height and width in pixels, rounded as torchvision's CenterCrop does."""
    side = min(height, width)
    return round((height - side) / 2), round((width - side) / 2), side, side


def _rand_augment(config: str, size: int, mean: tuple) -> Callable | None:
    if config == "none":
        return None
    if config == TORCHVISION:
        return RandAugment()
    from timm.data import auto_augment  # here, as only this needs timm, which takes a second

    fill = tuple(round(255 * value) for value in mean)
    try:
        transform = auto_augment.rand_augment_transform(config, {"translate_const": int(size * 0.45), "img_mean": fill})
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"--rand-augment {config}: not a configuration of timm's RandAugment ({first_line(error)}); "
            f"for example rand-m6-n2-mstd1.0, or {TORCHVISION} for its own, or none"
        ) from None
    for operation in transform.ops:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """timm's operation asks for 0 bits at low magnitudes, one image in some ten thousand; newer Pillows refuse that."""
    return ImageOps.posterize(image, min(max(bits, 1), 8))


def _shuffled(image: Image.Image, patches: int) -> Image.Image:
    """The image cut into so many strips of columns, which change places, and then of rows, as RDED's code does.

    Pixels left over belong to the last strip.
    """
    pixels = np.asarray(image)
    for axis in (1, 0):
        width = pixels.shape[axis] // patches
        strips = np.split(pixels, [width * k for k in range(1, patches)], axis)
        pixels = np.concatenate([strips[k] for k in torch.randperm(patches).tolist()], axis)
    return Image.fromarray(pixels)


class Views(AugmentedBatches):
    """Augmented batches whose crops and flips are known: drawn here, or given in the key."""

    def __init__(self, folder: ImageFolder, augmentation: Augmentation, workers: int | None = None):
        super().__init__(folder, augmentation.distort, workers)
        self.augmentation = augmentation

    def __getitem__(self, key: tuple) -> tuple[torch.Tensor, ...]:
        """uint8 images (B, 3, S, S), labels (B,), indices (B,) and views (B, 5) of Augmentation.draw."""
        stream, indices, *recorded = key
        with seeded(*stream, "distort"):
            images = [self.transform(self.folder.read(index)) for index in indices]
        with seeded(*stream, "view"):
            views = recorded[0] if recorded else [self.augmentation.draw(*image.size) for image in images]
        batch = to_batch([self.augmentation.view(image, view) for image, view in zip(images, views)])
        indices = torch.as_tensor(indices)
        return batch, self.labels[indices], indices, torch.as_tensor(views)


def draw_mix(name: str, batch_size: int, size: int) -> torch.Tensor:
    """How a batch is mixed with itself rolled by one: (the image's own share, top, left, bottom, right), fp32.

    CutMix (Yun et al., 2019, algorithm 1) replaces the box; MixUp has none. Draws from torch's global generator.
    """
    if ALPHA[name] is None or batch_size < 2:
        return torch.tensor([1.0, 0, 0, 0, 0])
    own = float(Beta(ALPHA[name], ALPHA[name]).sample())
    if name == "mixup":
        return torch.tensor([own, 0, 0, 0, 0])
    y, x = torch.randint(size, (2,)).tolist()
    half = int(0.5 * math.sqrt(1 - own) * size)
    top, left, bottom, right = max(y - half, 0), max(x - half, 0), min(y + half, size), min(x + half, size)
    return torch.tensor([1 - (bottom - top) * (right - left) / size**2, top, left, bottom, right])


def mix(
    images: torch.Tensor, labels: torch.Tensor, drawn: torch.Tensor, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(images (B, 3, S, S), labels (B,)) -> (mixed images, label shares (B, classes)), as `draw_mix` says."""
    own, (top, left, bottom, right) = drawn[0].item(), drawn[1:].int().tolist()
    shares = torch.nn.functional.one_hot(labels, num_classes).float()
    if own == 1:
        return images, shares
    other = images.roll(1, 0)
    if bottom > top:
        images = images.clone()
        images[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    else:
        images = own * images + (1 - own) * other
    return images, own * shares + (1 - own) * shares.roll(1, 0)
