"""The selected images on disk."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path
from typing import Any

from utils.data.image_folder import ImageFolder
from utils.run.files import replacing, sha256, shortened


def fault(chosen: Any, folder: ImageFolder, ipc: int, repeats: bool) -> str | None:
    """Why `chosen`, as a manifest has it, cannot be `ipc` images of each class of `folder`; None if it can be.

    A class with fewer images has all of them; with `repeats` they come again in their order.
    """
    if not isinstance(chosen, dict) or set(chosen) != set(folder.classes):
        return "its selection has other classes"
    for label, name in enumerate(folder.classes):
        paths, own = chosen[name], folder.of_class(label)
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            return f"its selection of class '{name}' is no list of paths"
        if unknown := sorted(set(paths) - set(own)):
            return f"it selects {unknown[0]}, which is not in class '{name}' of {folder.role} {folder.root}"
        distinct = min(ipc, len(own))
        count = ipc if repeats else distinct
        if len(paths) != count:
            return f"it selects {len(paths)} images of class '{name}', not {count}"
        if len(set(paths)) != distinct or paths != [paths[place % distinct] for place in range(count)]:
            return f"it selects an image of class '{name}' twice"
    return None


def copy(chosen: dict[str, list[str]], train_dir: Path, output_dir: Path) -> tuple[int, dict[str, str]]:
    """Copy the `chosen` images (class -> paths in `train_dir`) to output_dir/class/POSITION_name, byte for byte.

    Returns how many were not there yet, and the SHA-256 of each by its path in `output_dir`. The caller flushes them.
    """
    copied, digests = 0, {}
    for name, paths in chosen.items():
        width = max(3, len(str(len(paths) - 1)))
        (output_dir / name).mkdir(exist_ok=True)
        for position, path in enumerate(paths):
            target = output_dir / name / shortened(f"{position:0{width}d}_{Path(path).name}")
            if not (target.is_file() and filecmp.cmp(train_dir / path, target, shallow=False)):
                with replacing(target, flushed=False) as temporary:
                    shutil.copyfile(train_dir / path, temporary)
                copied += 1
            digests[target.relative_to(output_dir).as_posix()] = sha256(target)
    return copied, digests
