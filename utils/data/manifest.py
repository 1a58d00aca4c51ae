"""Manifests: what the folder of a selection or of a synthetic set says of itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from utils.run.errors import UserError
from utils.run.files import read_json

MANIFEST = "manifest.json"
KEEP = "keep"  # of --short-classes

_SHA256 = re.compile(r"[0-9a-f]{64}")


def read(folder: str | Path) -> dict[str, Any]:
    """The manifest in `folder`; empty for a folder without one. Raises UserError where it is not readable."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a manifest (a JSON object); remove it, or give another folder")
    return content


def image_digests(folder: str | Path) -> dict[str, str]:
    """The SHA-256 of the images in `folder` that its manifest gives: path relative to the folder -> digest.

    Empty where there is no manifest, or where it says nothing of the kind. Raises UserError as `read` does.
    """
    content = read(folder)
    found = {**_entries(content, "sha256")}
    for path, entry in _entries(content, "images").items():  # those of a synthetic set, with more than a digest
        found.setdefault(path, entry.get("sha256") if isinstance(entry, dict) else None)
    return {path: value for path, value in found.items() if isinstance(value, str) and _SHA256.fullmatch(value)}


def kept_ipc(folder: str | Path) -> int | None:
    """The images per class of a selection whose short classes were kept as they are; None for any other folder.

    Raises UserError as `read` does.
    """
    settings = _entries(read(folder), "settings")
    ipc = settings.get("ipc") if settings.get("short_classes") == KEEP else None
    return ipc if isinstance(ipc, int) and ipc > 0 else None


def seconds(content: dict[str, Any]) -> float | None:
    """The seconds that a record gives; None where it gives no number of them."""
    value = content.get("seconds")
    return float(value) if type(value) in (int, float) and 0 <= value < 1e12 else None


def _entries(content: dict[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}
