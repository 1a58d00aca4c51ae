"""Several processes, started by torchrun as users start them: the same results, and an end that a person understands."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from benchmarks.kills import children
from conftest import ROOT, images

LAUNCH = [sys.executable, "-m", "utils.launch", "--standalone"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def words(place, stage, ranks, restarts=0, **changes):
    return [*LAUNCH, "--nproc-per-node", str(ranks), "--max-restarts", str(restarts), "-m", stage,
            *place.command(stage, **changes)]


def launch(place, stage, ranks, **changes):
    done = subprocess.run(words(place, stage, ranks, **changes), cwd=ROOT, text=True, capture_output=True, env=ENV)
    assert "Traceback" not in done.stderr
    return done


def started(place, stage, ranks, **changes):
    return subprocess.Popen(words(place, stage, ranks, **changes), cwd=ROOT, text=True, env=ENV, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# --- the same result ---------------------------------------------------------------------------------------------

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
    """Three parts by score, three classes by features: one for each rank."""
    line = dict(criterion=criterion, batch_size=2, **({} if criterion == "medium" else {"ranking_file": None}))
    place.works("ranking", **line)
    table = (place / "ranking.csv").read_bytes() if criterion == "medium" else None
    (place / "ranking.csv").unlink(missing_ok=True)
    done = launch(place, "ranking", 3, output_dir=place / "several", **line)
    assert done.returncode == 0, done.stderr
    assert images(place / "several") == images(place / "selected")
    assert table is None or (place / "ranking.csv").read_bytes() == table
    assert not list(place.root.glob(".*")), "neither parts nor locks are left"


TOGETHER = """
import sys, torch
from torch import nn
from utils import ranks
from utils.evaluate import accuracy
from utils.images import ImageFolder
from utils.loader import Batches, TestImages, Passes
from utils.runtime import Runtime
from utils.training import Training

folder, out, batch_size = ImageFolder(sys.argv[1], "it"), sys.argv[2], int(sys.argv[3])
runtime, facts = Runtime.create("cpu", "fp32", "off"), ((0.5,) * 3, (0.5,) * 3)
with ranks.joined(runtime.device):
    torch.manual_seed(ranks.rank())  # rank 0's weights are everybody's
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    passes = Passes(len(folder), batch_size, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    batches = Batches(folder, lambda image: image)
    shown = []
    def losses(forward, batch):
        shown.append(len(batch[1]))
        return nn.functional.cross_entropy(forward(runtime.normalised(batch[0], *facts)), batch[1], reduction="none")
    test = TestImages(folder, 16, batch_size=4)
    course = Training("x", passes, runtime, *facts, evaluations=1).run(
        model, optimizer, schedule, lambda start: batches.stream(batch_size, 3, "order", start=start), losses, test)
    if ranks.rank() == 0:
        torch.save({"model": model.state_dict(), "loss": [e["loss"] for e in course.curve], "top1": course.top1,
                    "top5": course.top5, "shown": sum(shown)}, out)
"""


@pytest.mark.parametrize("ranks, batch_size", [(2, 8), (3, 10)])
def test_ranks_train_as_one_process_does(place, ranks, batch_size):
    """A network without BatchNorm; 21 images, so last batches of 5 and of 1 (which is left out, as ever)."""
    script = place / "together.py"
    script.write_text(TOGETHER)
    found = []
    for start in ([sys.executable], [*LAUNCH, "--nproc-per-node", str(ranks)]):
        out = place / f"{len(found)}.pth"
        subprocess.run([*start, str(script), str(place.train), str(out), str(batch_size)], cwd=ROOT, check=True,
                       env={**ENV, "PYTHONPATH": str(ROOT)})
        found.append(torch.load(out))
    one, several = found
    for name in one["model"]:
        torch.testing.assert_close(several["model"][name], one["model"][name], rtol=1e-5, atol=1e-6)
    assert several["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert (several["top1"], several["top5"]) == (one["top1"], one["top5"])
    assert several["shown"] < one["shown"], "a rank has seen a part of the images only"


SMALL_SHARDS = """
import validate.labels
from utils import cli
from validate.__main__ import main
validate.labels.SHARD_BYTES = 1
cli.run(main)
"""


def test_stored_labels_are_the_same_whoever_stores_them(place, monkeypatch):
    """Shards of one epoch, by turns; and students trained on their shares of each stored batch."""
    monkeypatch.setattr("validate.labels.SHARD_BYTES", 1)
    line = dict(mix="cutmix", epochs=3)
    place.works("validate", save_labels=place / "one", **line)
    script = place / "script.py"
    script.write_text(SMALL_SHARDS)
    words = place.command("validate", save_labels=place / "several", output_dir=place / "by two", **line)
    done = subprocess.run([*LAUNCH, "--nproc-per-node", "2", str(script), *words], cwd=ROOT, text=True, capture_output=True,
                          env={**ENV, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    one, several = ({path.name: path.read_bytes() for path in (place / name / "seed0").iterdir()} for name in ("one", "several"))
    assert one == several and len(one) == 4, "three shards and the index"
    assert len((place / "by two" / "results.csv").read_text().splitlines()) == 2
    [run] = (place / "by two" / "results").glob("*.json")
    assert json.loads(run.read_text())["seeds"][0]["curve"][-1]["epoch"] == 3


# --- an end that a person understands ----------------------------------------------------------------------------

LONG = dict(epochs=40, save_every=0)


@pytest.fixture(scope="module")
def whole(stock, tmp_path_factory):
    """The weights that two ranks come to without being disturbed."""
    out = tmp_path_factory.mktemp("whole") / "teacher.pth"
    done = launch(stock, "squeeze", 2, output=out, **LONG)
    assert done.returncode == 0, done.stderr
    return weights(out)


def when_training(place, launcher):
    """Wait until the ranks have saved a state; their process ids."""
    until = time.monotonic() + 120
    while not (place / ".squeezed.pth.state").exists():
        assert time.monotonic() < until and launcher.poll() is None
        time.sleep(0.02)
    return children(launcher)


def test_a_killed_rank_ends_the_job_and_the_same_command_goes_on(place, whole):
    launcher = started(place, "squeeze", 2, **LONG)
    os.kill(when_training(place, launcher)[1], signal.SIGKILL)
    killed = time.monotonic()
    _, told = launcher.communicate(timeout=60)
    assert time.monotonic() - killed < 15 and launcher.returncode not in (0, None)
    lines = [line for line in told.splitlines() if line.startswith("error:")]
    assert lines and "goes on with it" in lines[-1] and "Traceback" not in told
    assert not (place / "squeezed.pth").exists()
    done = launch(place, "squeeze", 2, **LONG)
    assert done.returncode == 0 and equal(weights(place / "squeezed.pth"), whole)


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
    assert "stopped by SIGTERM" in told and "squeeze --train-dir" in told and "Traceback" not in told
    done = launch(place, "squeeze", 2, **LONG)
    assert done.returncode == 0 and equal(weights(place / "squeezed.pth"), whole)


def test_an_error_of_all_ranks_is_said_once(place):
    done = launch(place, "validate", 3, lr=1e30, mix="none")
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if "error" in line]
    assert line.startswith("error: conv3 seed 0: loss is") and "epoch 1, step 2" in line and "1e+30" in line
    assert not (place / "measured" / "results.csv").exists()


def test_an_error_does_not_stand_behind_the_bar_of_another_rank(place):
    """Which of them fails first is chance; rank 0 has the bar, and leaves its own line in good order."""
    for rank, start in (("0", "error: "), ("1", "\nerror: ")):
        outcome = place.run("ranking", {"RANK": rank, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}, ipc=99)
        assert outcome.code == 2 and outcome.err.startswith(start) and outcome.err.endswith("\n")


def test_synchronised_batchnorm_is_for_gpus(place):
    outcome = place.run("squeeze", sync_bn=True)
    assert outcome.code == 2 and "--sync-bn" in outcome.err and not (place / "squeezed.pth").exists()


def test_ranks_of_an_array_job_do_not_train(place):
    outcome = place.run("squeeze", {"RANK": "1", "WORLD_SIZE": "2"})
    assert outcome.code == 2 and "torchrun" in outcome.err
