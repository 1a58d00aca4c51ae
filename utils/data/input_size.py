"""The input size that the images of a command call for, where no flag, data set or checkpoint says one."""

from __future__ import annotations

from typing import Iterable, Sequence

from utils.data.image_folder import ImageFolder
from utils.data.manifest import MANIFEST, of_own_images
from utils.data.sizes import common_size, larger
from utils.run.errors import UserError


def said(folders: Iterable[str]) -> tuple[int, str] | None:
    """The input size in pixels that manifests in `folders` say, and who says it; None where none does.

    Raises UserError where two of them differ: what is compared is shown at one size.
    """
    found = {folder: size for folder in folders if (size := of_own_images(folder).input_size)}
    if not found:
        return None
    (first, size), *others = found.items()
    for folder, other in others:
        if other != size:
            raise UserError(
                f"{folder}: was made for inputs of {other} pixels by its {MANIFEST}, and {first} of {size}; "
                "give --input-size, at which both are shown, or take one of them alone"
            )
    return size, f"{first}/{MANIFEST}"


def of_images(folder: str, role: str, others: Iterable[str] = ()) -> tuple[int, str]:
    """What the manifests in `folder` and `others` say, else what suits the images in `folder`; and who says it.

    Raises UserError as `said` does, and where an image's header cannot be read. `role` names the folder in messages.
    """
    return said([folder, *others]) or suited(ImageFolder(folder, role).sizes(), "the images")


def suited(sizes: Sequence[tuple[int, int]], images: str) -> tuple[int, str]:
    """What suits images of these (width, height), and who says it: the `images`, and how many of them are larger."""
    return (size := common_size(sizes)), images + larger(sizes, size)
