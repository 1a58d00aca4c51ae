"""Steps accumulated from parts of a batch, and labels by the statistics of the same parts, against plain loops."""

import copy
import json
import math

import pytest
import torch
from launching import launch
from torch import nn

from conftest import snapshot
from helpers import CPU, small_net
from students import geometry, noise_folder, small_student, stream
from utils.fit.loop import Training
from utils.nets.batch_statistics import with_batch_statistics
from utils.nets.teacher import Teacher
from utils.run import distributed
from utils.run.device import Runtime
from validate.label_writer import Writer
from validate.labels import StoredLabels
from validate.stream import spans
from validate.targets import Teachers, accumulated, hard_labelled, student_losses
from validate.train import train

FADRM = dict(batch_size=8, accumulate=2, teacher_statistics="batch", rand_augment="none", min_scale=0.5, epochs=2)


def teachers(*seeds):
    return Teachers.of([Teacher(small_net(seed=seed), "net", geometry(), str(seed)) for seed in seeds], CPU)


def trained(batches, source, student=None):
    student = student or small_student()
    training = Training("student", batches.schedule, CPU, geometry(), parts=accumulated(batches.protocol))
    return student, train(student, source, batches, training)


def close(one, other, **bounds):
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], **bounds)


# --- parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images, count, sizes",
    [(16, 2, [8, 8]), (7, 2, [4, 3]), (8, 3, [3, 3, 2]), (3, 2, [3]), (5, 3, [3, 2]), (6, 1, [6]), (1, 2, [1])],
)
def test_a_batch_in_even_parts_of_two_images_at_least(images, count, sizes):
    parts = spans(images, count)
    assert [part.stop - part.start for part in parts] == sizes
    assert sum((list(range(images))[part] for part in parts), []) == list(range(images))


# --- labels ------------------------------------------------------------------------------------------------------


def test_the_teacher_normalises_by_each_half_and_stays_as_it_was(tmp_path):
    batches = stream(noise_folder(tmp_path), **FADRM)
    labelling, before = teachers(1, 2), [copy.deepcopy(small_net(seed=seed)).state_dict() for seed in (1, 2)]
    for step, target in labelling.labelled(batches):
        logits = []
        for half in step.images.split(len(step.images) // 2):
            trained = [small_net(seed=seed).train() for seed in (1, 2)]  # a copy's running statistics may move
            logits.append(sum(network(half) for network in trained) / 2)
        torch.testing.assert_close(target, (torch.cat(logits) / 20).softmax(1), rtol=1e-4, atol=1e-6)
    for network, kept in zip(labelling.networks, before):
        assert all(torch.equal(kept[name], tensor) for name, tensor in network.state_dict().items())
    other = stream(noise_folder(tmp_path), **{**FADRM, "teacher_statistics": "running"})
    pairs = zip(teachers(1, 2).labelled(other), labelling.labelled(batches), strict=True)
    assert all(not torch.allclose(one, two, atol=1e-3) for (_, one), (_, two) in pairs)


def test_what_batch_statistics_leave_alone():
    """Dropout stays off, and the network itself has its running statistics."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    images = torch.rand(5, 3, 4, 4)
    expected = network[0](images)
    mean, var = expected.mean((0, 2, 3), keepdim=True), expected.var((0, 2, 3), keepdim=True, unbiased=False)
    found = with_batch_statistics(network)(images)
    torch.testing.assert_close(found, (expected - mean) / (var + 1e-5).sqrt(), rtol=1e-4, atol=1e-5)
    assert network[1].running_mean is not None and int(network[1].num_batches_tracked) == 0


# --- steps -------------------------------------------------------------------------------------------------------


def test_two_steps_are_those_of_a_plain_loop(tmp_path):
    """12 images in batches of 8 and 4: BatchNorms see halves of 4 and of 2, teacher's and student's alike."""
    batches = stream(noise_folder(tmp_path), **{**FADRM, "epochs": 1}, lr=0.01, lr_schedule="half-cosine")
    assert batches.schedule.steps == 2
    found, _ = trained(batches, lambda start: teachers(1).labelled(batches, start))

    student, teacher = small_student().train(), small_net(seed=1).train()
    decayed, others = ([p for p in student.parameters() if (p.ndim > 1) == many] for many in (True, False))
    optimizer = torch.optim.AdamW([dict(params=decayed, weight_decay=0.01), dict(params=others, weight_decay=0)], 0.01)
    for step in batches.draw(range(1)):
        optimizer.zero_grad()
        for half in step.images.split(len(step.images) // 2):
            target, logits = (teacher(half).detach() / 20).softmax(1), student(half)
            losses = (target * (target.log() - (logits / 20).log_softmax(1))).sum(1)
            (losses.sum() / len(step.images)).backward()
        optimizer.step()
    close(found, student, rtol=1e-4, atol=1e-5)
    alone, _ = trained(
        stream(noise_folder(tmp_path), **{**FADRM, "epochs": 1, "accumulate": 1}, lr=0.01, lr_schedule="half-cosine"),
        lambda start: teachers(1).labelled(batches, start),
    )
    difference = max((a - b).abs().max() for a, b in zip(alone.parameters(), found.parameters()))
    assert difference > 1e-3, "BatchNorm of the whole batch teaches something else"


def test_parts_without_batchnorm_change_nothing(tmp_path):
    """The gradient is that of the mean over the whole batch, and so is the loss that is recorded."""

    def student():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

    folder, results = noise_folder(tmp_path), []
    for accumulate in (1, 2, 3):
        batches = stream(folder, batch_size=5, accumulate=accumulate, epochs=2, rand_augment="none")
        results.append(trained(batches, lambda start: teachers(1).labelled(batches, start), student()))
    for network, result in results[1:]:
        close(network, results[0][0], rtol=1e-4, atol=1e-6)
        losses = [[entry["loss"] for entry in one.curve] for one in (result, results[0][1])]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_weights_of_images_are_over_the_mean_of_the_whole_batch(tmp_path):
    batches = stream(noise_folder(tmp_path), batch_size=8, accumulate=2, epochs=1, rand_augment="none")
    weights = torch.arange(1.0, 13.0)
    step, target = next(iter(teachers(1).labelled(batches)))
    losses = student_losses(batches.protocol, weights)
    parts = accumulated(batches.protocol)((step, target))
    student = small_student().eval()
    assert [len(part.images) for part, _ in parts] == [4, 4]
    found = torch.cat([losses(student, part) for part in parts])
    torch.testing.assert_close(found, losses(student, (step, target)), rtol=1e-5, atol=1e-7)


def test_padding_of_a_part_does_not_count(monkeypatch):
    """Rank 1 of 2 has images 1 and 3 of five, in parts; a padded one behind them is not counted."""
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    losses = torch.tensor([1.0, 10.0, 100.0])
    whole = distributed.global_mean(losses, 5)
    pieces = distributed.global_mean(losses[:1], 5), distributed.global_mean(losses[1:], 5, 1)
    assert whole.item() == pytest.approx(11 * 2 / 5) and sum(pieces).item() == pytest.approx(11 * 2 / 5)
    assert distributed.global_mean(losses[2:], 5, 2).item() == 0


# --- labels on disk, and the command line ------------------------------------------------------------------------


def test_stored_labels_are_those_of_the_halves(tmp_path):
    batches = stream(noise_folder(tmp_path / "set"), **FADRM)
    Writer(str(tmp_path / "labels"), teachers(1), None, False).save(batches)
    stored = StoredLabels(tmp_path / "labels", 0)
    stored.check(batches)
    pairs = zip(stored.labelled(batches), teachers(1).labelled(batches), strict=True)
    for (step, kept), (shown, live) in pairs:
        torch.testing.assert_close(step.images, shown.images)
        torch.testing.assert_close(kept, live, rtol=2e-3, atol=2e-3)


LINE = dict(protocol="fadrm", epochs=2)


@pytest.mark.parametrize(
    "saved, loaded", [({}, dict(accumulate=1)), ({}, dict(teacher_statistics="running")), (dict(protocol="rded"), {})]
)
def test_labels_of_other_halves_are_refused(place, saved, loaded):
    line = dict(LINE, batch_size=6, min_scale=1)
    place.works("validate", save_labels=place / "labels", **{**line, **saved})
    loading = dict(load_labels=place / "labels", teacher_path=None, student_arch="conv3", output_dir=place / "loaded")
    outcome = place.run("validate", **{**line, **loading, **loaded})
    assert outcome.code == 2 and "another run" in outcome.err and len(outcome.err.splitlines()) == 1, outcome.err
    assert "accumulate" in outcome.err or "teacher_statistics" in outcome.err


def test_a_student_of_stored_halves_is_the_same(place):
    place.works("validate", **LINE, save_labels=place / "labels", output_dir=place / "saved")
    loading = dict(load_labels=place / "labels", teacher_path=None, student_arch="conv3")
    place.works("validate", **LINE, **loading, output_dir=place / "loaded")
    curves = []
    for name in ("saved", "loaded"):
        [path] = (place / name / "results").glob("*.json")
        found = json.loads(path.read_text())
        assert found["protocol"] == "fadrm epochs=2 stored" and found["settings"]["batch_size"] == 10
        curves.append(found["seeds"][0]["curve"])
    assert curves[0] == curves[1] and all(math.isfinite(entry["loss"]) for entry in curves[0])


@pytest.mark.slow
def test_labels_by_batches_are_for_one_process(place):
    done = launch(place, "validate", 2, **LINE)
    assert done.returncode == 2 and "--protocol fadrm epochs=2" in done.stderr and "one process" in done.stderr
    assert not (place / "measured").exists()


def test_hard_labels_have_no_statistics(place):
    outcome = place.run("validate", protocol="hard", teacher_statistics="batch")
    assert outcome.code == 2 and "--teacher-statistics does nothing without --labels soft" in outcome.err


def test_a_protocol_that_reads_no_temperature_is_the_same_with_one(place):
    """Another name and digest would part its rows from those that were measured alike."""
    place.works("validate", protocol=["delt", "hard"])
    said = place.works("validate", protocol=["delt", "hard", "gvbsm"], temperature=4)
    assert said.count("reads no --temperature") == 2 and "validate: hard epochs=2 reads no --temperature" in said
    found = [json.loads(path.read_text()) for path in (place / "measured" / "results").glob("*.json")]
    names = {"delt epochs=2", "hard epochs=2", "delt epochs=2 temperature=4.0", "gvbsm epochs=2"}
    assert {one["protocol"] for one in found} == names and len(found) == 4


def test_a_flag_shows_in_the_names_of_those_protocols_alone_that_read_it(place):
    """Of the others the result is the one that was measured without it."""
    place.works("validate", protocol="hard")
    flags = dict(class_weight=0.1, teacher_statistics="batch", tile_share=0.5)
    outcome = place.run("validate", protocol=["delt", "edc", "mosaic", "hard"], lr_factor=0.5, **flags)
    assert outcome.code == 2 and "--lr-factor does nothing without --lr-schedule steps" in outcome.err
    said = place.works("validate", protocol=["delt", "edc", "mosaic", "hard"], **flags)
    read = {flag: said.count(f" reads no --{flag}") for flag in ("class-weight", "teacher-statistics", "tile-share")}
    assert read == {"class-weight": 3, "teacher-statistics": 1, "tile-share": 3}
    assert "validate: hard epochs=2 reads no --class-weight" in said and "seed 0 is complete" in said
    found = [json.loads(path.read_text())["protocol"] for path in (place / "measured" / "results").glob("*.json")]
    assert sorted(found) == [
        "delt epochs=2 teacher_statistics=batch",
        "edc epochs=2 teacher_statistics=batch class_weight=0.1",
        "hard epochs=2",
        "mosaic epochs=2 teacher_statistics=batch tile_share=0.5",
    ]


def test_a_shared_flag_that_no_protocol_reads_is_left_out(place):
    """The result is the one that was measured without it."""
    flags = dict(class_weight=0.1, lr_factor=0.5)
    for protocol in "hard", ["delt", "hard"]:
        place.works("validate", protocol=protocol)
        before = snapshot(place / "measured")
        assert place.run("validate", protocol=protocol, **flags).code == 2
        said = place.works("validate", protocol=protocol, shared=True, **flags)
        assert all(f"validate: hard epochs=2 reads no --{flag}\n" in said for flag in ("class-weight", "lr-factor"))
        assert "seed 0 is complete" in said and snapshot(place / "measured").keys() == before.keys()


def test_accumulated_steps_of_a_protocol_of_ones_own(place):
    place.works("validate", accumulate=3, protocol="hard")
    [path] = (place / "measured" / "results").glob("*.json")
    assert json.loads(path.read_text())["protocol"] == "hard epochs=2 accumulate=3"


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_that_are_added_up_are_not_those_of_cuda_graphs(tmp_path, monkeypatch, parts):
    """A graph's next replay would write over the gradients of the parts before it."""
    asked = []
    monkeypatch.setattr(Runtime, "compiled", lambda self, f, steps, graphs=True: (asked.append(graphs), f)[1])
    batches = stream(noise_folder(tmp_path), batch_size=8, accumulate=parts, epochs=1)
    trained(batches, lambda start: hard_labelled(batches, start))
    assert asked == [parts == 1]
