"""Stages of resolutions: resized and blended pixel by pixel, an optimiser of their own, one cosine, and resume."""

import math
import shutil
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from helpers import CPU, Dying, Interrupted, recipe, small_net
from recover.earlylate import EarlyLate
from recover.engine import Engine, Recovery, Start
from recover.objectives.base import Objective
from recover.objectives.batchnorm import BatchNormMatching
from recover.resolutions import Stages, resized
from utils.data.geometry import Geometry
from utils.nets import models
from utils.nets.teacher import Teacher
from utils.run.errors import UserError
from utils.run.resume import State

SIZE = 8
WIDE = Geometry(SIZE, (0.5,) * 3, (1 / 200,) * 3, num_classes=4, classes=None, stem="cifar")  # from -100 to 100
# Views that show the images as they are.
STILL = dict(crop="none", flip=False)
# 12 iterations in 4 stages, at 6, 8, 6 and 8 pixels.
STAGES = dict(iterations=12, round_iterations=0, stages=4, stage_sizes=(0.75, 1.0), blend=0.5)


def start(count, seed=0):
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) - 0.5


class Recorded(Objective):
    """Half the squared distance to 3, and what it was called with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, batch):
        self.seen.append(batch.images.detach().clone())
        return 0.5 * (batch.images - 3.0).square().sum()


def recovery(objective, starts, images, space=WIDE, **changed):
    settings = recipe(**{**STAGES, **STILL, **changed})
    engine = Engine(objective, space, EarlyLate(len(starts), **settings.schedule), CPU, settings, steps=12)
    return Recovery(engine, Start(images, torch.arange(len(starts)) % 4, starts), 0, "recover", 0)


def quiet(*_):
    pass


def bilinear(image, size):
    """(3, S, S) -> (3, size, size) pixel by pixel: the centre of each new pixel between its four old neighbours."""
    old = image.shape[-1]
    result = torch.zeros(3, size, size, dtype=torch.float64)

    def between(position):
        place = max((position + 0.5) * old / size - 0.5, 0.0)
        low = min(int(place), old - 1)
        return low, min(low + 1, old - 1), place - low

    for y in range(size):
        top, bottom, down = between(y)
        for x in range(size):
            left, right, across = between(x)
            upper = (1 - across) * image[:, top, left] + across * image[:, top, right]
            lower = (1 - across) * image[:, bottom, left] + across * image[:, bottom, right]
            result[:, y, x] = (1 - down) * upper + down * lower
    return result


def adam(image, first, last, lr=0.25, iterations=12):
    """Adam that begins at `first` and ends before `last`; the rate is one cosine of all iterations."""
    momentum, squares = torch.zeros_like(image), torch.zeros_like(image)
    for step, iteration in enumerate(range(first, last), start=1):
        gradient = image - 3.0
        momentum = 0.5 * momentum + 0.5 * gradient
        squares = 0.9 * squares + 0.1 * gradient**2
        rate = lr * (1 + math.cos(math.pi * iteration / iterations)) / 2
        image = image - rate * (momentum / (1 - 0.5**step)) / ((squares / (1 - 0.9**step)).sqrt() + 1e-8)
    return image


def by_hand(original, blend=0.5, sizes=(6, 8, 6, 8)):
    """The images (3, S, S) that the four stages begin with, and the last one."""
    image, begun = bilinear(original, sizes[0]), []
    for stage, size in enumerate(sizes):
        if stage:
            image = (1 - blend) * bilinear(image, size) + blend * bilinear(original, size)
        begun.append(image)
        image = adam(image, 3 * stage, 3 * stage + 3)
    return begun, image


def test_resizing_is_bilinear():
    images = start(2)
    for size in (5, 6, 8, 11):
        found = resized(images, size)
        for index in range(2):
            torch.testing.assert_close(found[index].double(), bilinear(images[index].double(), size), atol=1e-6, rtol=0)


@pytest.mark.parametrize("blend", [0.5, 0.0, 0.2])
def test_stages_are_resized_blended_and_optimised_anew(blend):
    """Adam begins anew in each stage, the cosine goes on; the last stage's result is not blended."""
    images, objective = start(3), Recorded()
    result = recovery(objective, [0, 0, 0], images.clone(), blend=blend).run(quiet)
    assert [batch.shape[-1] for batch in objective.seen] == [6] * 3 + [8] * 3 + [6] * 3 + [8] * 3
    for index in range(3):
        begun, last = by_hand(images[index].double(), blend)
        for stage, expected in enumerate(begun):
            torch.testing.assert_close(objective.seen[3 * stage][index].double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result[index].double(), last, rtol=1e-5, atol=1e-5)


def test_one_size_blends_as_well():
    images, objective = start(1), Recorded()
    result = recovery(objective, [0], images.clone(), stage_sizes=(1.0,)).run(quiet)
    _, last = by_hand(images[0].double(), sizes=(8,) * 4)
    torch.testing.assert_close(result[0].double(), last, rtol=1e-5, atol=1e-5)


def test_an_image_that_has_not_joined_is_its_start():
    """With rounds, too: a late group's first stage begins with the untouched image, resized once."""
    images, objective = start(2), Recorded()
    result = recovery(objective, [0, 6], images.clone(), round_iterations=6).run(quiet)
    assert [len(batch) for batch in objective.seen] == [1] * 6 + [2] * 6
    late = bilinear(images[1].double(), 6)
    torch.testing.assert_close(objective.seen[6][1].double(), late, rtol=1e-5, atol=1e-6)
    late = 0.5 * bilinear(adam(late, 6, 9), 8) + 0.5 * images[1].double()
    torch.testing.assert_close(result[1].double(), adam(late, 9, 12), rtol=1e-5, atol=1e-5)


def test_an_image_that_joins_as_a_stage_begins_is_its_start():
    """Not what is left of it after the size of the stage before."""
    images, objective = start(2), Recorded()
    recovery(objective, [0, 3], images.clone(), round_iterations=3).run(quiet)
    assert objective.seen[3].shape == (2, 3, 8, 8)
    torch.testing.assert_close(objective.seen[3][1], images[1])


def test_a_difference_begins_at_zero_in_each_stage():
    """AdamW's decay pulls what was added since the stage began, not the image."""
    images = start(1)
    found = [
        recovery(Recorded(), [0], images.clone(), learn="difference", optimizer="adamw", weight_decay=decay).run(quiet)
        for decay in (0.0, 0.5)
    ]
    _, last = by_hand(images[0].double())
    torch.testing.assert_close(found[0][0].double(), last, rtol=1e-5, atol=1e-5)
    # Without a gradient nothing is added, and nothing is left to decay.
    idle = recovery(Recorded(), [0], images.clone(), learn="difference", optimizer="adamw", weight_decay=0.5, lr=0.0)
    begun = images[0].double()
    for size in (6, 8, 6, 8):
        begun = 0.5 * bilinear(begun, size) + 0.5 * bilinear(images[0].double(), size)
    torch.testing.assert_close(idle.run(quiet)[0].double(), begun, rtol=1e-5, atol=1e-5)
    assert (found[1] < found[0]).all(), "pulled back from 3"


def test_views_fit_the_size_of_their_stage():
    loop = recovery(Recorded(), [0], start(1), crop="resized", flip=True, min_crop=0.3, milestone=0.0)
    sizes = [6] * 3 + [8] * 3 + [6] * 3 + [8] * 3
    for view, size in zip(loop.views, sizes, strict=True):
        top, left, height, width = view.crop
        assert top + height <= size and left + width <= size
    assert max(view.crop[0] + view.crop[2] for view in loop.views[3:6] + loop.views[9:]) > 6


def network_recovery(learn):
    teacher = Teacher(small_net(), "net", WIDE, "0" * 64)
    views = dict(crop="resized", flip=True, jitter=2, learn=learn, optimizer="adamw", weight_decay=0.01)
    return recovery(BatchNormMatching(teacher, 0.05, 10.0), [0, 0, 6, 6], start(4), round_iterations=6, **views)


@pytest.mark.parametrize("learn", ["image", "difference"])
@pytest.mark.parametrize("steps", [2, 3, 4, 6, 8, 9, 11])
def test_a_unit_resumes_inside_a_stage_and_across_it(tmp_path, steps, learn):
    """Saved after so many steps: within a stage, and after its last one."""
    whole = network_recovery(learn).run(quiet)
    with pytest.raises(Interrupted):
        network_recovery(learn).run(quiet, Dying(tmp_path / "unit.state", steps))
    resumed = network_recovery(learn)
    assert torch.equal(resumed.run(quiet, State(tmp_path / "unit.state", {}, minutes=99)), whole)


@pytest.mark.parametrize(
    "changed, words",
    [
        (dict(iterations=10), ["--iterations 10", "--stages 4", "8 or 12"]),
        (dict(stages=3), ["--stage-sizes", "6 pixels", "8"]),
        (dict(stage_sizes=(0.5,)), ["--stage-sizes", "4 pixels", "8"]),
    ],
)
def test_stages_that_do_not_fit_are_refused(changed, words):
    with pytest.raises(UserError) as error:
        Stages.of(recipe(**{**STAGES, **changed}), SIZE)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_a_teacher_that_cannot_take_a_size_is_named():
    stages = Stages.of(recipe(**STAGES, **STILL), 16)  # of 12 and 16 pixels
    space = Geometry(16, (0.5,) * 3, (0.5,) * 3, num_classes=4, classes=None, stem="cifar")
    conv, resnet = (Teacher(models.build(arch, 4, 16, "cifar"), arch, space, "") for arch in ("conv3", "resnet18"))
    stages.check([resnet])
    with pytest.raises(UserError, match="conv3 was made for 16 pixels and cannot take 12"):
        stages.check([resnet, conv])
    Stages.of(recipe(stages=2, iterations=12), 16).check([conv])


COMPILED = """
import sys
sys.path.insert(0, "tests")
import torch
from helpers import recipe, small_net
from recover.earlylate import EarlyLate
from recover.engine import Engine, Recovery, Start
from recover.objectives.base import combined
from recover.objectives.batchnorm import BatchNormMatching
from utils.data.geometry import Geometry
from utils.nets.teacher import Teacher
from utils.run.device import Runtime

space = Geometry(8, (0.5,) * 3, (0.5,) * 3, 4, None, "cifar")
settings = recipe(iterations=8, round_iterations=4, stages=4, stage_sizes=(0.75, 1.0), jitter=1)
images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
results = []
for compile in ("off", "on"):
    teachers = [Teacher(small_net(seed=seed), "net", space, "") for seed in (0, 1)]
    objective = combined([BatchNormMatching(teacher, 0.05, 10.0) for teacher in teachers], "turn")
    runtime = Runtime(torch.device("cpu"), "fp32", compile)
    engine = Engine(objective, space, EarlyLate(5, **settings.schedule), runtime, settings, 8)
    results.append(Recovery(engine, Start(images, torch.arange(5) % 4, [0, 0, 0, 4, 4]), 0).run(lambda *_: None))
torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
def test_each_size_is_compiled_once_for_teachers_in_turn():
    """Whatever the number of images: two sizes; teachers of one shape share what is compiled, or have two."""
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) in (2, 4)
