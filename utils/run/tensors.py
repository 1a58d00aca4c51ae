"""Files of tensors with the facts about them: what one stage measured for another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from utils.run.errors import UserError
from utils.run.files import replacing

FACTS = "facts"


def write(path: str | Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Write safetensors. The same content gives the same bytes, for which its metadata are one text."""
    content = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(content, {FACTS: json.dumps(facts, sort_keys=True)}))


def read(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a file, on the CPU, and the facts. Raises UserError for a file that `write` did not write."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()[FACTS])
            return {name: file.get_tensor(name) for name in file.keys()}, dict(facts)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception:  # whatever a damaged file makes the reader raise
        raise UserError(f"{path}: is not a whole file of tensors that a stage has written; make it anew") from None
