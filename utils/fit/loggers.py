"""Loggers: curves in TensorBoard or Weights & Biases, for those who asked for them."""

from __future__ import annotations

import contextlib
import re
import secrets
from pathlib import Path
from typing import Any

from utils.run import distributed, packages
from utils.run.errors import UserError
from utils.run.files import digest, make_folder, read_json, write_json

KINDS = ("tensorboard", "wandb")
PROJECT = "delt"


class Logger:
    """Takes numbers and keeps none of them; what a stage has when nothing was asked for.

    A context: what was added is on disk, or sent, at its end. Work that ends by an error or a signal goes on with the
    same curves when it resumes: its first step is the next point of each, and takes the place of any later ones.
    """

    def add(self, step: int, **values: float) -> None:
        """One point of each curve, at steps from 1 on."""

    def close(self) -> None:
        """What was added is on disk, or sent, afterwards."""

    def forget(self) -> None:
        """The work is complete: the same again has curves of its own."""

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.close()
        if kind is None:
            self.forget()


class _TensorBoard(Logger):
    def __init__(self, folder: Path, name: str, settings: dict[str, Any]):
        self.folder, self.settings, self.writer = folder / name, settings, None

    def add(self, step: int, **values: float) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # TensorBoard leaves out what an earlier process wrote from this step on.
            self.writer = SummaryWriter(str(self.folder), purge_step=step)
            if step == 1:
                text = "\n".join(f"    {key}: {value}" for key, value in self.settings.items())
                self.writer.add_text("settings", text, step)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # the state that is saved next is not ahead of the curves, however this process ends

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class _WandB(Logger):
    def __init__(self, folder: Path, name: str, settings: dict[str, Any]):
        import wandb

        make_folder(folder)
        self.note = folder / f".{name}.wandb.json"
        try:
            self.run = wandb.init(
                project=PROJECT,
                name=name,
                dir=str(folder),
                config=settings,
                reinit="finish_previous",
                id=self._id(digest(settings)),
                resume="allow",
            )
        except wandb.errors.Error as error:
            raise UserError(f"--log wandb: {error}; log in by `wandb login`, or set WANDB_MODE=offline") from None

    def add(self, step: int, **values: float) -> None:
        self.run.log(values, step=step)  # wandb leaves out the steps that it has

    def close(self) -> None:
        self.run.finish()

    def forget(self) -> None:
        self.note.unlink(missing_ok=True)

    def _id(self, settings: str) -> str:
        """Of the run at wandb: that of the interrupted work of these settings, else a new one."""
        with contextlib.suppress(UserError, TypeError, AttributeError):
            kept = read_json(self.note)
            if kept.get("settings") == settings and re.fullmatch(r"[0-9a-f]{16}", kept.get("id")):
                return kept["id"]
        kept = {"settings": settings, "id": secrets.token_hex(8)}
        write_json(self.note, kept)
        return kept["id"]


def check(kind: str | None) -> None:
    """Raises UserError if the package of `kind` is missing; before hours of work."""
    if kind is not None:
        packages.needed(kind, f"curves by --log {kind}")


def start(kind: str | None, folder: str | Path, name: str, settings: dict[str, Any]) -> Logger:
    """The logger of one model, under `folder`. Raises UserError where wandb cannot start."""
    if kind is None or distributed.get_rank():
        return Logger()
    return (_TensorBoard if kind == "tensorboard" else _WandB)(Path(folder), name, settings)
