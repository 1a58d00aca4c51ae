"""Other libraries' errors become one line of ours, also where they say nothing, or begin with an empty line."""

import sys

import pandas
import pytest
import torch
import torch.distributed
import torchvision
from PIL import Image
from torch.distributed import run
from torch.distributed.elastic.rendezvous import RendezvousError

from helpers import gray
from ranking import score
from utils import from_datasets, from_tensors
from utils.data.geometry import GeometryFlags
from utils.data.image_folder import ImageFolder
from utils.nets.teacher import load_teacher
from utils.run import device, distributed, entry, launch
from utils.run.errors import UserError, first_line
from validate.report import diversity


@pytest.mark.parametrize(
    "message, line", [("one", "one"), ("one\ntwo", "one"), ("\n one\ntwo", "one"), ("", "OSError"), ("\n", "OSError")]
)
def test_the_first_line_of_an_error(message, line):
    assert first_line(OSError(message)) == line


PLACES = {
    "a GPU": (torch.cuda, "set_device", RuntimeError, lambda _: device._start_gpu(torch.device("cuda", 0))),
    "weights": (
        torchvision.models,
        "get_model_weights",
        OSError,
        lambda _: load_teacher("resnet18", None, GeometryFlags(dataset="imagenet1k")),
    ),
    "a ranking file": (
        pandas,
        "read_csv",
        ValueError,
        lambda folder: score.read(folder / "x.csv", ImageFolder(folder, "--train-dir")),
    ),
    "diversity": (pandas, "read_csv", ValueError, lambda folder: diversity.read(folder / "x.csv")),
    "an image": (Image, "open", ValueError, lambda _: from_datasets.ending(b"", "a")),
    "tensors": (torch, "load", ValueError, lambda folder: from_tensors.read(folder / "x.pt")),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_error_that_says_nothing_is_one_line_that_names_its_kind(tmp_path, monkeypatch, place):
    gray(tmp_path / "a" / "x.png", 1)
    module, name, kind, work = PLACES[place]

    def fails(*_, **__):
        raise kind

    monkeypatch.setattr(module, name, fails)
    with pytest.raises(UserError, match=rf"\({kind.__name__}\)"):
        work(tmp_path)


def test_a_lost_connection_that_says_nothing(monkeypatch):
    def lost():
        raise torch.distributed.DistError

    monkeypatch.setattr(distributed, "launched", lambda: True)
    with pytest.raises(distributed.ConnectionLost, match="DistError"):
        entry._as_user_errors(lost)()


@pytest.mark.parametrize("cause, said", [(OSError(), "OSError"), (OSError("\n\nno such host\n"), "no such host")])
def test_machines_that_do_not_meet_for_a_reason_that_says_nothing(monkeypatch, capsys, cause, said):
    def never(args):
        raise RendezvousError("see inside") from cause

    monkeypatch.setattr(run, "run", never)
    monkeypatch.setattr(sys, "argv", "launch --nnodes 2 --rdzv-endpoint nowhere:29400 -m recover".split())
    with pytest.raises(SystemExit):
        launch.main()
    assert f": {said}; " in capsys.readouterr().err
