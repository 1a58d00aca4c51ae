"""Curves for TensorBoard or Weights & Biases, for those who asked for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.run import distributed
from utils.run.errors import UserError
from utils.run.files import make_folder

KINDS = ("tensorboard", "wandb")
PROJECT = "delt"


class Curves:
    """Takes numbers and keeps none of them; what a stage has when nothing was asked for."""

    def add(self, step: int, **values: float) -> None:
        """One point of each curve."""

    def close(self) -> None:
        """What was added is on disk, or sent, afterwards."""


class _TensorBoard(Curves):
    def __init__(self, folder: Path, name: str, settings: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / name))
        self.writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def add(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WandB(Curves):
    def __init__(self, folder: Path, name: str, settings: dict[str, Any]):
        import wandb

        make_folder(folder)
        try:
            self.run = wandb.init(
                project=PROJECT, name=name, dir=str(folder), config=settings, reinit="finish_previous"
            )
        except wandb.errors.Error as error:
            raise UserError(f"--log wandb: {error}; log in by `wandb login`, or set WANDB_MODE=offline") from None

    def add(self, step: int, **values: float) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


def check(kind: str | None) -> None:
    """Raises UserError if the package of `kind` is missing; before hours of work."""
    if kind is None:
        return
    try:
        __import__(kind)
    except ImportError:
        raise UserError(
            f"--log {kind}: the package is not installed; run `pip install {kind}`, or leave --log out"
        ) from None


def start(kind: str | None, folder: str | Path, name: str, settings: dict[str, Any]) -> Curves:
    """The curves of one model, under `folder`. Raises UserError where wandb cannot start."""
    if kind is None or distributed.get_rank():
        return Curves()
    return (_TensorBoard if kind == "tensorboard" else _WandB)(Path(folder), name, settings)
