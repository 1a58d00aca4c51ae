"""Several processes, started by torchrun as users start them: the same results, and an end that can be read."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from launching import ENV, LAUNCH, launch, ranks_of, started

from conftest import ROOT, images
from result_files import result

pytestmark = pytest.mark.slow


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# --- the same result -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3])
def test_recover_gives_the_same_bytes(place, ranks):
    place.works("recover", syn_dir=place / "one", batch_size=4)
    done = launch(place, "recover", ranks, batch_size=4)
    assert done.returncode == 0, done.stderr
    assert images(place.syn) == images(place / "one") and len(images(place.syn)) == 12
    one, several = (json.loads((folder / "manifest.json").read_text()) for folder in (place / "one", place.syn))
    assert one["images"] == several["images"] and several["finished"]
    assert (place.syn / "contact_sheet.png").read_bytes() == (place / "one" / "contact_sheet.png").read_bytes()


@pytest.mark.parametrize("criterion", ["medium", "k-center"])
def test_ranking_gives_the_same_bytes(place, criterion):
    """Three pieces by score, three classes by features: one for each rank."""
    line = dict(criterion=criterion, batch_size=2, **({} if criterion == "medium" else {"ranking_file": None}))
    place.works("ranking", **line)
    table = (place / "ranking.csv").read_bytes() if criterion == "medium" else None
    (place / "ranking.csv").unlink(missing_ok=True)
    done = launch(place, "ranking", 3, output_dir=place / "several", **line)
    assert done.returncode == 0, done.stderr
    assert images(place / "several") == images(place / "selected")
    assert table is None or (place / "ranking.csv").read_bytes() == table
    assert not list(place.root.glob(".*")), "neither pieces nor locks are left"


TOGETHER = """
import sys, torch
from torch import nn
from utils.data.geometry import Geometry
from utils.data.image_folder import ImageFolder
from utils.data.loader import AugmentedBatches, EvalBatches
from utils.fit.loop import Learner, Training
from utils.run import distributed
from utils.run.device import Runtime

folder, out = ImageFolder(sys.argv[1], "it"), sys.argv[2]
batch_size, parts = map(int, sys.argv[3:])
runtime, geometry = Runtime.create("cpu", "fp32", "off"), Geometry(16, (0.5,) * 3, (0.5,) * 3, 3, None, "cifar")
with distributed.process_group(runtime.device):
    torch.manual_seed(distributed.get_rank())  # rank 0's weights are everybody's
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    batches = AugmentedBatches(folder, lambda image: image, workers=0)
    shown = []
    def losses(forward, batch):
        shown.append(len(batch[1]))
        logits = forward(geometry.normalise(batch[0], runtime.device))
        return nn.functional.cross_entropy(logits, batch[1], reduction="none")
    test = EvalBatches(folder, 16, batch_size=4, workers=0)
    training = Training("x", batches.schedule(batch_size, 3), runtime, geometry, test, evaluations=1,
                        parts=lambda batch: list(zip(*(tensor.chunk(parts) for tensor in batch))))
    history = training.run(Learner(model, optimizer, scheduler),
                           lambda start: batches.stream(batch_size, 3, "order", start=start), losses)
    if distributed.is_main_process():
        torch.save({"model": model.state_dict(), "loss": [e["loss"] for e in history.epochs], "top1": history.top1,
                    "top5": history.top5, "shown": sum(shown)}, out)
"""


@pytest.mark.parametrize("ranks, batch_size, parts", [(3, 10, 1), (2, 8, 2)])
def test_ranks_train_as_one_process_does(place, ranks, batch_size, parts):
    """A network without BatchNorm; 21 images, so last batches of 5 and of 1 (which is left out, as ever)."""
    script = place / "together.py"
    script.write_text(TOGETHER)
    found = []
    for start in ([sys.executable], [*LAUNCH, "--nproc-per-node", str(ranks)]):
        out = place / f"{len(found)}.pth"
        line = [*start, str(script), str(place.train), str(out), str(batch_size), str(parts)]
        subprocess.run(line, cwd=ROOT, check=True, env={**ENV, "PYTHONPATH": str(ROOT)})
        found.append(torch.load(out))
    one, several = found
    for name in one["model"]:
        torch.testing.assert_close(several["model"][name], one["model"][name], rtol=1e-5, atol=1e-6)
    assert several["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert (several["top1"], several["top5"]) == (one["top1"], one["top5"])
    assert several["shown"] < one["shown"], "a rank has seen a part of the images only"


WITH_HEAD = """
from torch import nn
from squeeze.__main__ import main
from utils.nets import models
from utils.run import entry

class WithHead(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.auxiliary, self.last = nn.Linear(4, classes), nn.Linear(4, classes)

    def forward(self, x):
        features = self.body(x)
        self.auxiliary(features)
        return self.last(features)

models.NETWORKS["with_head"] = models.Network("with_head", lambda match, classes, size: WithHead(classes))
entry.run(main)
"""


def test_a_network_with_a_part_that_does_not_count_is_trained_by_one_process(place):
    script = place / "script.py"
    script.write_text(WITH_HEAD)
    for start, code in (([*LAUNCH, "--nproc-per-node", "2"], 2), ([sys.executable], 0)):
        done = subprocess.run(
            [*start, str(script), *place.command("squeeze", arch="with_head")],
            cwd=ROOT,
            text=True,
            capture_output=True,
            env={**ENV, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        if code:
            assert "error: 2 parameters of the network (auxiliary.weight, auxiliary.bias)" in done.stderr
            assert "train this network with one process" in done.stderr
        assert (place / "squeezed.pth").exists() == (code == 0)


SMALL_SHARDS = """
import validate.label_writer
from utils.run import entry
from validate.__main__ import main
validate.label_writer.SHARD_BYTES = 1
entry.run(main)
"""


def test_stored_labels_are_the_same_whoever_stores_them(place, monkeypatch):
    """Shards of one epoch, each by whoever is free; and students trained on their parts of each stored batch."""
    monkeypatch.setattr("validate.label_writer.SHARD_BYTES", 1)
    line = dict(mix="cutmix", epochs=3)
    place.works("validate", save_labels=place / "one", **line)
    script = place / "script.py"
    script.write_text(SMALL_SHARDS)
    words = place.command("validate", save_labels=place / "several", output_dir=place / "by two", **line)
    done = subprocess.run(
        [*LAUNCH, "--nproc-per-node", "2", str(script), *words],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**ENV, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    folders = [place / name / "seed0" for name in ("one", "several")]
    one, several = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == several and len(one) == 4, "three shards and the index"
    assert len((place / "by two" / "results.csv").read_text().splitlines()) == 2
    [run] = (place / "by two" / "results").glob("*.json")
    assert json.loads(run.read_text())["seeds"][0]["curve"][-1]["epoch"] == 3


NOTED = """
import builtins, os
from pathlib import Path
from utils.run import entry
from validate.__main__ import main
plain = builtins.open
def noted(path, *more, **options):
    if str(path).endswith(".safetensors"):  # hashed: tensors are not read so
        with plain(os.path.join(os.environ["NOTES"], "rank" + os.environ["RANK"]), "a") as file:
            print(Path(path).name, file=file)
    return plain(path, *more, **options)
builtins.open = noted
entry.run(main)
"""


def test_ranks_share_the_checking_of_stored_labels(place, monkeypatch):
    """Three shards of two ranks; what is wrong with the part of one is the error of both."""
    monkeypatch.setattr("validate.label_writer.SHARD_BYTES", 1)
    place.works("validate", save_labels=place / "labels", epochs=3)
    script = place / "script.py"
    script.write_text(NOTED)
    for damage, code in (("none", 0), ("of rank 1", 2)):
        notes = place / damage
        notes.mkdir()
        if code:
            (place / "labels" / "seed0" / "00001.safetensors").write_bytes(b"damaged")
        line = dict(load_labels=place / "labels", teacher_path=None, student_arch="conv3", epochs=3)
        done = subprocess.run(
            [*LAUNCH, "--nproc-per-node", "2", str(script), *place.command("validate", output_dir=notes, **line)],
            cwd=ROOT,
            text=True,
            capture_output=True,
            env={**ENV, "PYTHONPATH": str(ROOT), "NOTES": str(notes)},
            timeout=120,
        )
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        hashed = [sorted((notes / f"rank{rank}").read_text().split()) for rank in (0, 1)]
        assert hashed == [["00000.safetensors", "00002.safetensors"], ["00001.safetensors"]]
    [told] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "seed0/00001.safetensors: missing or damaged" in told and not list(notes.rglob("*.json"))


# --- killed, stopped and resumed -------------------------------------------------------------------------------------

LONG = dict(epochs=40, save_every=0)


@pytest.fixture(scope="module")
def whole(stock, tmp_path_factory):
    """The weights that two ranks come to without being disturbed."""
    out = tmp_path_factory.mktemp("whole") / "teacher.pth"
    done = launch(stock, "squeeze", 2, output=out, **LONG)
    assert done.returncode == 0, done.stderr
    return weights(out)


STATES = {"squeeze": ".squeezed.pth.state", "validate": "measured/results/.*_seed0.state"}


def when_training(place, launcher, stage="squeeze"):
    """Wait until the ranks have saved a state; their process ids."""
    until = time.monotonic() + 120
    while not list(place.root.glob(STATES[stage])):
        assert time.monotonic() < until and launcher.poll() is None
        time.sleep(0.02)
    return ranks_of(launcher)


def test_a_killed_rank_ends_the_job_and_the_same_command_resumes(place, whole):
    launcher = started(place, "squeeze", 2, workers=1, **LONG)
    os.kill(when_training(place, launcher)[1], signal.SIGKILL)
    killed = time.monotonic()
    _, told = launcher.communicate(timeout=60)
    assert time.monotonic() - killed < 15 and launcher.returncode not in (0, None)
    [line] = [line for line in told.splitlines() if line.startswith("error:")]
    assert "rank 1" in line and "SIGKILL" in line and "resumes" in line
    assert not any(word in told for word in ("Traceback", "leaked", "Warning")), told
    assert not (place / "squeezed.pth").exists()
    done = launch(place, "squeeze", 2, **LONG)
    assert done.returncode == 0 and equal(weights(place / "squeezed.pth"), whole)
    assert torch.load(place / "squeezed.pth", weights_only=True)["processes"] == 2


@pytest.mark.parametrize("stage", ["squeeze", "validate"])
def test_the_numbers_of_all_processes_that_trained_are_recorded(place, stage):
    launcher = started(place, stage, 2, **LONG)
    when_training(place, launcher, stage)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)
    said = place.works(stage, **LONG)
    if stage == "squeeze":
        assert torch.load(place / "squeezed.pth", weights_only=True)["processes"] == [1, 2]
    else:
        assert result(place)["seeds"][0]["processes"] == [1, 2] and "trained by 1 and 2 processes" in said


def test_a_killed_rank_is_replaced_where_restarts_are_allowed(place, whole):
    launcher = started(place, "squeeze", 2, restarts=1, **LONG)
    os.kill(when_training(place, launcher)[0], signal.SIGKILL)
    _, told = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, told
    assert equal(weights(place / "squeezed.pth"), whole)


def test_a_signal_to_the_launcher_saves(place, whole):
    launcher = started(place, "squeeze", 2, **LONG)
    when_training(place, launcher)
    launcher.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    _, told = launcher.communicate(timeout=60)
    assert time.monotonic() - asked < 15 and launcher.returncode == 128 + signal.SIGTERM
    [line] = [line for line in told.splitlines() if "SIGTERM" in line]
    assert line.startswith("stopped by SIGTERM") and "squeeze --train-dir" in line
    assert "Traceback" not in told and "error" not in told
    done = launch(place, "squeeze", 2, **LONG)
    assert done.returncode == 0 and equal(weights(place / "squeezed.pth"), whole)


def test_an_image_that_a_worker_of_a_rank_cannot_read_is_named_in_one_line(place):
    launcher = started(place, "squeeze", 2, workers=1, **LONG)
    when_training(place, launcher)
    (place.train / "moth" / "moth3.png").write_bytes(b"gone bad")
    _, told = launcher.communicate(timeout=60)
    [line] = [line for line in told.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: {place.train / 'moth' / 'moth3.png'}: ") and launcher.returncode == 2
    assert not any(word in told for word in ("Traceback", "leaked", "Warning")), told


def test_a_signal_to_one_rank_ends_the_job(place, whole):
    launcher = started(place, "squeeze", 2, **LONG)
    os.kill(when_training(place, launcher)[1], signal.SIGTERM)
    _, told = launcher.communicate(timeout=60)
    [line] = [line for line in told.splitlines() if line.startswith("error:")]
    assert "SIGTERM" in line and "resumes" in line and "Traceback" not in told
    done = launch(place, "squeeze", 2, **LONG)
    assert done.returncode == 0 and equal(weights(place / "squeezed.pth"), whole)


# --- what ranks cannot do --------------------------------------------------------------------------------------------


def test_synchronised_batchnorm_is_for_gpus(place):
    outcome = place.run("squeeze", sync_bn=True)
    assert outcome.code == 2 and "--sync-bn" in outcome.err and not (place / "squeezed.pth").exists()


def test_ranks_of_an_array_job_do_not_train(place):
    outcome = place.run("squeeze", {"RANK": "1", "WORLD_SIZE": "2"})
    assert outcome.code == 2 and "torchrun" in outcome.err
