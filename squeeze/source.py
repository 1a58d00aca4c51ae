"""What the files of the real images have in common: squeeze.statistics and squeeze.barycenters write them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from utils import cli
from utils.data.image_folder import ImageFolder
from utils.nets.teacher import Teacher


def add_flags(parser: cli.Parser) -> None:
    """The images, and the file."""
    parser.add_argument("--train-dir", required=True, metavar="DIR", help="ImageFolder of the real images")
    parser.add_argument("--output", required=True, type=_safetensors, metavar="FILE.safetensors", help="file to write")


def identity(folder: ImageFolder, teacher: Teacher) -> dict[str, Any]:
    """The images and the teacher, as they decide every value of such a file."""
    images = {"classes": list(folder.classes), "images": folder.identity()}
    return {**teacher.identity(), "arch": teacher.arch, **images}


def _safetensors(text: str) -> Path:
    if not text.endswith(".safetensors") or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"'{text}': name a .safetensors file")
    return Path(text)
