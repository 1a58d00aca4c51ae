"""The selected images on disk."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

from utils.run.files import replacing, sha256, shortened


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
