"""What each setting does to a unit, against loops written here; and the recipes of the data sets."""

import json
import math
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import INPUT, ROOT, images
from helpers import CPU, recipe
from recover import methods
from recover.earlylate import EarlyLate
from recover.engine import Engine, Recovery, Start
from recover.objectives.base import Objective
from recover.settings import Settings
from recover.views import View, draw_views
from result_files import write_manifest
from utils.data.geometry import Geometry
from utils.run.errors import UserError

SIZE = 6
WIDE = Geometry(SIZE, (0.5,) * 3, (1 / 200,) * 3, num_classes=4, classes=None, stem="cifar")  # from -100 to 100
NARROW = Geometry(SIZE, (0.5,) * 3, (0.5,) * 3, num_classes=4, classes=None, stem="cifar")  # from -1 to 1
STILL = dict(crop="none", flip=False, iterations=6, round_iterations=0)


class Towards3(Objective):
    def forward(self, batch):
        return 0.5 * (batch.images - 3.0).square().sum()


def start():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) - 0.5


def optimised(space=WIDE, **changed):
    settings = recipe(**{**STILL, **changed})
    engine = Engine(Towards3(), space, EarlyLate(2, **settings.schedule), CPU, settings, steps=6)
    return Recovery(engine, Start(start(), torch.arange(2), [0, 0]), 0).run(lambda *_: None)


def by_hand(decay=0.0, decoupled=False, constant=False, difference=False, clamp=None):
    """Six steps of Adam in float64; the decay acts on what is learnt."""
    base = start().double()
    learnt = torch.zeros_like(base) if difference else base.clone()
    momentum, squares = torch.zeros_like(base), torch.zeros_like(base)
    for step in range(1, 7):
        image = base + learnt if difference else learnt
        gradient = image - 3.0 + (0 if decoupled else decay * learnt)
        momentum, squares = 0.5 * momentum + 0.5 * gradient, 0.9 * squares + 0.1 * gradient**2
        rate = 0.25 if constant else 0.25 * (1 + math.cos(math.pi * (step - 1) / 6)) / 2
        learnt = learnt * (1 - rate * decay) if decoupled else learnt
        learnt = learnt - rate * (momentum / (1 - 0.5**step)) / ((squares / (1 - 0.9**step)).sqrt() + 1e-8)
        if clamp:
            learnt = (base + learnt).clamp(-clamp, clamp) - base if difference else learnt.clamp(-clamp, clamp)
    return base + learnt if difference else learnt


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(), dict()),
        (dict(optimizer="adamw", weight_decay=0.3), dict(decay=0.3, decoupled=True)),
        (dict(weight_decay=0.3), dict(decay=0.3)),
        (dict(lr_schedule="constant"), dict(constant=True)),
        (dict(learn="difference"), dict(difference=True)),
        (
            dict(learn="difference", optimizer="adamw", weight_decay=0.3),
            dict(decay=0.3, decoupled=True, difference=True),
        ),
    ],
)
def test_the_optimiser_and_what_it_learns(settings, expected):
    torch.testing.assert_close(optimised(**settings).double(), by_hand(**expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learn", ["image", "difference"])
def test_pixels_are_clamped_unless_told_otherwise(learn):
    free, held = (optimised(NARROW, learn=learn, clamp=clamp, lr_schedule="constant") for clamp in (False, True))
    assert free.max() > 1.2 and held.max() <= 1 + 1e-6
    expected = [by_hand(constant=True, difference=learn == "difference", clamp=clamp) for clamp in (None, 1.0)]
    torch.testing.assert_close(free.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(held.double(), expected[1], rtol=1e-5, atol=1e-5)


# --- views -------------------------------------------------------------------------------------------------------


def drawn(count=600, **changed):
    return draw_views([12] * count, [0.3] * count, recipe(**changed), "settings")


@pytest.mark.parametrize("offset", [(0, 0), (-4, 0), (3, -2), (4, 4)])
def test_a_padded_crop_shows_zeros_around_the_image(offset):
    image = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)) + 1
    rows, columns = View((*offset, 12, 12), False, (0, 0)).matrices(12, torch.device("cpu"))
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    top, left = offset[0] + 4, offset[1] + 4
    assert torch.equal(rows @ image @ columns, padded[..., top : top + 12, left : left + 12])


def test_padded_crops_reach_four_pixels_beyond_each_edge():
    views = drawn(crop="padded")
    for axis in range(2):
        assert {view.crop[axis] for view in views} == set(range(-4, 5))
    assert {view.crop[2:] for view in views} == {(12, 12)}


def test_no_crop_and_no_flip_show_the_image_as_it_is():
    assert set(drawn(crop="none", flip=False)) == {View((0, 0, 12, 12), False, (0, 0))}
    rows, columns = View((0, 0, 12, 12), False, (0, 0)).matrices(12, torch.device("cpu"))
    assert torch.equal(rows, torch.eye(12)) and torch.equal(columns, torch.eye(12))
    assert {view.flip for view in drawn(crop="none")} == {True, False}


@pytest.mark.parametrize(
    "settings, rolls",
    [
        (dict(jitter=4), range(-4, 5)),
        (dict(jitter=4, jitter_low=0), range(0, 5)),
        (dict(jitter=3, jitter_low=2), range(2, 4)),
        (dict(jitter=2, jitter_low=2), range(2, 3)),
        (dict(jitter=0, jitter_low=-2), range(-2, 1)),
        (dict(), range(0, 1)),
    ],
)
def test_rolls_lie_between_both_bounds(settings, rolls):
    for axis in range(2):
        assert {view.roll[axis] for view in drawn(**settings)} == set(rolls)


# --- recipes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, where, expected",
    [
        # peers' tables: SRe2L, CDA, FADRM.
        ("sre2l", ("imagenet1k",), dict(iterations=4000, lr=0.25, r_bn=0.01, crop="resized", jitter=32, jitter_low=0)),
        ("sre2l", ("cifar100",), dict(iterations=1000, lr=0.25, r_bn=0.01, crop="none", flip=False, jitter=4)),
        ("sre2l", ("cifar10",), dict(iterations=1000, crop="none", flip=False, jitter=4, jitter_low=0)),
        ("sre2l", (None, 32), dict(iterations=1000, crop="none", flip=False, jitter=4, jitter_low=0)),
        ("sre2l", ("tinyimagenet",), dict(iterations=4000, lr=0.1, r_bn=1, crop="resized", jitter=4, jitter_low=None)),
        ("sre2l", (None, 224), dict(iterations=4000, crop="resized", flip=True, jitter=0)),
        ("cda", ("imagenet1k",), dict(iterations=4000, lr=0.25, r_bn=0.01, milestone=1, init="noise", jitter=32)),
        ("cda", ("tinyimagenet",), dict(iterations=4000, lr=0.4, r_bn=0.05, milestone=1, init="noise")),
        ("cda", ("tinyimagenet",), dict(jitter=4, jitter_low=0)),
        ("fadrm", ("imagenet1k",), dict(iterations=2000, stages=4, lr=0.25, r_bn=0.01, jitter=32, jitter_low=0)),
        ("fadrm", ("imagenette",), dict(iterations=2000, stages=4, lr=0.05)),
        ("fadrm", ("tinyimagenet",), dict(iterations=1000, stages=2, stage_sizes=(1.0,), lr=0.01, jitter=4)),
        ("fadrm+", ("tinyimagenet",), dict(iterations=2000, stages=4, stage_sizes=(1.0,), lr=0.25, combine="turn")),
        ("fadrm+", ("imagenette",), dict(iterations=2000, lr=0.25, batch_by="index", min_crop=0.08, milestone=0)),
        ("wmdd", ("imagenet1k",), dict(iterations=2000, lr=0.25, r_bn=0.01, init="noise", jitter=32, jitter_low=0)),
        (
            "wmdd",
            ("imagenet1k",),
            dict(min_crop=0.08, milestone=0, round_iterations=0, batch_by="class"),
        ),
        ("wmdd", ("imagenette",), dict(iterations=2000, lr=0.25, r_bn=10)),
        ("wmdd", ("tinyimagenet",), dict(iterations=2000, lr=0.1, r_bn=1, options={"per_class": True})),
        ("cim", ("imagenet1k",), dict(iterations=200, optimizer="adamw", lr=0.01, weight_decay=0.01, clamp=False)),
        ("cim", ("cifar10",), dict(learn="difference", options={"augment": "crop_cutout_flip"})),
        ("delt+", ("cifar10",), dict(iterations=100, round_iterations=20, lr=0.1, r_bn=0.01, milestone=1)),
        ("mosaic", ("cifar10",), dict(iterations=40, optimizer="adamw", lr=0.05, weight_decay=0.01, clamp=False)),
        ("fadrm", (None, 64), dict(iterations=2000, stages=4, stage_sizes=(1.0,), lr=0.25, jitter=4, jitter_low=0)),
    ],
)
def test_the_recipes_of_the_data_sets(name, where, expected):
    found = Settings.of(methods.recipes(*where)[name])
    assert {setting: getattr(found, setting) for setting in expected} == expected


def test_fadrms_sizes_are_200_and_224_pixels():
    assert [round(224 * share) for share in methods.METHODS["fadrm"]["stage_sizes"]] == [200, 224]


@pytest.mark.parametrize("dataset", [None, "cifar10", "tinyimagenet", "imagenet1k"])
def test_delt_is_the_same_everywhere(dataset):
    assert methods.recipes(dataset)["delt"] == methods.METHODS["delt"]


def test_an_unknown_data_set_is_refused():
    with pytest.raises(UserError, match="nosuch"):
        methods.recipes("nosuch")


def ask(*words):
    line = [sys.executable, "-X", "importtime", "-m", "recover.methods", *words]
    done = subprocess.run(line, cwd=ROOT, text=True, capture_output=True)
    assert "| torch" not in done.stderr
    return done


@pytest.mark.parametrize(
    "words, expected",
    [
        (["delt"], ["--criterion medium", "", "true", "delt"]),
        (["rded"], ["--criterion top --candidates 300 --crops 5 --tiles 1", "", "false", "rded"]),
        (["rded", "imagenette"], ["--criterion top --candidates 300 --crops 5 --tiles 2", "", "false", "rded"]),
        (["fadrm", "224"], ["--criterion medium --candidates 300 --crops 5 --tiles 2", "", "true", "fadrm"]),
        (["fadrm+", "cifar10"], ["--criterion medium --candidates 300 --crops 5 --tiles 1", "", "true", "fadrm"]),
        (["sre2l"], ["", "", "true", "sre2l"]),
        (["cda", "cifar10"], ["--criterion medium", "", "true", "cda"]),
        (["cda", "imagenet1k"], ["", "", "true", "cda"]),
        (["wmdd", "cifar10"], ["", "--batch-size 64 --per-class", "true", "wmdd"]),
    ],
)
def test_bash_reads_what_a_method_needs(words, expected):
    lines = ask("--needs", *words).stdout
    script = f'{lines}\nprintf "%s\\n" "$NEEDS_RANKING" "$NEEDS_STATISTICS" "$NEEDS_RECOVERS" "$NEEDS_PROTOCOL"'
    done = subprocess.run(["bash", "-euc", script], text=True, capture_output=True)
    assert done.stdout.split("\n")[:-1] == expected, shlex.quote(lines)


@pytest.mark.parametrize("size, ranking", [(32, "--criterion random"), (64, "--criterion random"), (300, "--tiles 2")])
def test_the_images_of_a_folder_say_what_a_method_needs(tmp_path, size, ranking):
    (tmp_path / "train" / "ant" / "deeper").mkdir(parents=True)
    (tmp_path / "train" / "ant" / "0.txt").write_text("no image")
    Image.new("RGB", (size + 100, size)).save(tmp_path / "train" / "ant" / "deeper" / "1.png")
    assert ranking in ask("--needs", "edc", tmp_path / "train").stdout
    assert "--criterion random" in ask("--needs", "edc", tmp_path / "nowhere").stdout, "nothing says it"


def test_the_iterations_of_a_recipe():
    lines = ask("--needs", "delt", "cifar10").stdout.splitlines()
    assert {"NEEDS_ITERATIONS=4000", "NEEDS_ROUND_ITERATIONS=500"} < set(lines)
    assert "NEEDS_ITERATIONS=75" in ask("--needs", "edc", "cifar10").stdout
    assert "NEEDS_ITERATIONS=0" in ask("--needs", "rded").stdout


@pytest.mark.parametrize("method, package", [("wmdd", "ot"), ("delt", None)])
def test_a_package_that_a_method_needs_is_missing_or_not(method, package):
    """Where no module `ot` can be found, bash is told which package is missing and how to get it."""
    program = "import sys; from recover import methods; sys.argv[1:] = ['--needs', sys.argv[1]]; methods.main()"
    hidden = f"import sys; sys.modules['{package}'] = None; {program}"
    done = subprocess.run([sys.executable, "-c", hidden, method], cwd=ROOT, text=True, capture_output=True)
    script = f'{done.stdout}\necho "$NEEDS_PACKAGE:$NEEDS_MISSING"'
    found = subprocess.run(["bash", "-euc", script], text=True, capture_output=True).stdout.strip()
    if package is None:
        assert found == ":"
    else:
        assert found.startswith("POT:POT, which is not installed: bash scripts/setup.sh requirements-methods.txt")


def test_help_says_which_method_needs_a_package(place):
    outcome = place.run("recover", help=True)
    said = "".join(outcome.out.split())  # lines end within words, too
    assert "wmddalsoneedsthepackagePOT(bashscripts/setup.shrequirements-methods.txt,orpipinstallPOT)" in said


def test_the_needs_of_an_unknown_method_are_an_error():
    done = ask("--needs", "nosuch")
    assert done.returncode == 2 and not done.stdout and "method 'nosuch' is not known" in done.stderr


@pytest.mark.parametrize(
    "content, expected",
    [
        (dict(arguments={"method": "delt"}, method="delt+"), "delt"),
        (dict(arguments={"method": "theirs"}), ""),
        (dict(method="delt"), ""),
        (dict(arguments={"method": ["delt"]}), ""),
    ],
)
def test_a_set_says_what_was_asked_for_when_it_was_made(tmp_path, content, expected):
    write_manifest(tmp_path / "set", **content)
    assert ask("--made", tmp_path / "set").stdout == f"{expected}\n"
    write_manifest(tmp_path / "shared" / "train", **content)
    (tmp_path / "shared" / "share.json").touch()
    assert ask("--made", tmp_path / "shared").stdout == f"{expected}\n"
    (tmp_path / "set" / "manifest.json").write_text("damaged")
    assert ask("--made", tmp_path / "set").stdout == ask("--made", tmp_path / "nowhere").stdout == "\n"


# --- the command line --------------------------------------------------------------------------------------------


def settings_of(place):
    return json.loads((place.syn / "manifest.json").read_text())


def test_flags_win_over_the_recipe_and_show_in_the_name(place):
    flags = dict(optimizer="adamw", weight_decay=0.5, lr_schedule="constant", learn="difference", clamp="off")
    flags |= dict(crop="padded", flip="off", jitter=2, jitter_low=-1, stages=2, blend=0.25)
    place.works("recover", iterations=4, **flags)
    found = settings_of(place)
    values = {**flags, "clamp": False, "flip": False}
    assert {name: found["settings"][name] for name in values} == values
    words = found["method"].split()
    assert words[0] == "delt" and {f"{name}={value}" for name, value in values.items()} <= set(words)


def test_fadrm_from_images_to_images(place):
    """Of 14 pixels, so of one size: it blends half of the start three times, and takes a step in each stage."""
    place.works("recover", method="fadrm", iterations=4, round_iterations=None)
    found = settings_of(place)
    assert found["method"] == "fadrm iterations=4" and found["settings"]["stage_sizes"] == [1.0]
    assert len(images(place.syn)) == len(images(place.init)) == 12
    place.works("recover", method="fadrm", iterations=4, round_iterations=None, stages=1, syn_dir=place / "plain")
    place.works("recover", method="fadrm", iterations=4, round_iterations=None, blend=1, syn_dir=place / "start")

    def far(folder):
        pairs = zip(sorted(folder.glob("*/*.png")), sorted(place.init.glob("*/*.png")), strict=True)
        return np.mean([np.abs(pixels(one) - pixels(two)).mean() for one, two in pairs])

    # All of the start: what is left is the last step, by a seventh of the rate.
    assert far(place / "start") < far(place.syn) < far(place / "plain")


def test_settings_of_the_data_set_that_the_teacher_or_the_start_names(place):
    """SRe2L's code has r_bn 1 for Tiny-ImageNet, and another one for small images in general."""

    def made(name):
        place.works("recover", method="sre2l", syn_dir=place / name, iterations=2, round_iterations=0)
        return json.loads((place / name / "manifest.json").read_text())["settings"]

    unknown = made("unknown")
    (place.init / "manifest.json").write_text(json.dumps({"arguments": {"dataset": "tinyimagenet"}}))
    by_start = made("by start")
    (place.init / "manifest.json").unlink()
    content = torch.load(place.teacher, weights_only=True)
    torch.save({**content, "dataset": "tinyimagenet"}, place.teacher)
    by_teacher = made("by teacher")
    said = {"r_bn": 1.0, "lr": 0.1, "jitter": 4}
    assert all(by_start[name] == by_teacher[name] == value for name, value in said.items())
    assert unknown["r_bn"] != 1


def pixels(path):
    image = Image.open(path).convert("RGB")
    return np.asarray(image.resize((INPUT, INPUT), Image.Resampling.BILINEAR)).astype(float)


@pytest.mark.parametrize(
    "line, words",
    [
        (dict(jitter=2, jitter_low=3), ["--jitter-low 3", "--jitter 2"]),
        (dict(jitter_low="x"), ["--jitter-low", "whole number"]),
        (dict(stages=3), ["--iterations 8", "--stages 3", "6 or 9"]),
        (dict(stages=2, stage_sizes=[0.5]), ["--stage-sizes", "share has to be 1"]),
        (dict(stages=2, stage_sizes=[0.5, 1]), ["--stage-sizes", "conv3", "cannot take 7"]),
        (dict(stage_sizes=[1.5]), ["--stage-sizes", "1.5"]),
        (dict(statistics=["none.safetensors"]), ["--statistics none.safetensors", "squeeze.statistics"]),
        (dict(optimizer="sgd"), ["--optimizer", "adamw"]),
        (dict(clamp="true"), ["--clamp", "on", "off"]),
    ],
)
def test_settings_that_do_not_fit_are_refused(place, line, words):
    outcome = place.run("recover", **line)
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert not place.syn.exists()
