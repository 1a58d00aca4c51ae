"""How stored labels are read and written: what is checked, and when, and by how many sets of workers."""

import builtins
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from conftest import snapshot
from refusals import refused
from students import noise_folder, small_student, stream
from validate import labels
from validate.augment import Views
from validate.label_writer import Writer
from validate.labels import StoredLabels
from validate.targets import Teachers

LINE = dict(epochs=3, seeds=2)


@pytest.fixture
def hashed(monkeypatch):
    """Of each shard, as seed0/00000.safetensors, how often it was read to be hashed; tensors are not read so."""
    found, plain = Counter(), builtins.open

    def noted(path, *more, **options):
        if str(path).endswith(".safetensors"):
            found["/".join(Path(path).parts[-2:])] += 1
        return plain(path, *more, **options)

    monkeypatch.setattr(builtins, "open", noted)
    return found


def test_the_shards_of_seeds_that_are_to_be_trained_are_hashed_once(place, monkeypatch, hashed):
    monkeypatch.setattr("validate.label_writer.SHARD_BYTES", 1)  # a shard an epoch
    place.works("validate", save_labels=place / "labels", **LINE)
    shards = {f"seed{seed}/{number:05d}.safetensors" for seed in (0, 1) for number in range(3)}
    loading = dict(LINE, load_labels=place / "labels", teacher_path=None, output_dir=place / "loaded")

    hashed.clear()
    place.works("validate", **{**loading, "seeds": 1, "student_arch": "conv3"})
    assert hashed == {name: 1 for name in shards if name.startswith("seed0")}

    hashed.clear()
    place.works("validate", **loading, student_arch=["conv3", "conv2", "conv1"])
    assert hashed == {name: 1 for name in shards}, "once for three students, one of which has its seed 0"

    hashed.clear()
    assert place.works("validate", **loading, student_arch=["conv3", "conv2"]).count("is complete") == 4
    assert not hashed
    (place / "labels" / "seed1" / "00002.safetensors").unlink()
    place.works("validate", **loading, student_arch="conv3")
    refused(place, "validate", "seed1/00002.safetensors", **loading, student_arch=["conv3", "conv1_w16"])


@pytest.fixture
def noise(tmp_path, monkeypatch):
    """The batches of three epochs, three each, a teacher, and the stores of them: a shard an epoch."""
    monkeypatch.setattr("validate.label_writer.SHARD_BYTES", 1)
    batches = stream(noise_folder(tmp_path / "set"), epochs=3, batch_size=5)
    teachers = Teachers(batches.geometry, ("a",), ("0",), (small_student().eval(),), (batches.geometry,))

    def save(name, batches):
        Writer(str(tmp_path / name), teachers, None, False).save(batches)
        return StoredLabels(tmp_path / name, 0)

    return batches, save


def by_workers(batches):
    """The same batches, which other processes read ahead, further than a shard reaches."""
    return replace(batches, views=Views(batches.views.folder, batches.views.augmentation, 2))


def test_workers_start_once_for_all_shards(noise, monkeypatch):
    batches, save = noise
    started = []

    def loader(*given, **options):
        started.append(options["num_workers"])
        return DataLoader(*given, **options)

    alone, read = (
        save("alone", batches),
        {start: list(save("alone", batches).labelled(batches, start)) for start in (0, 4)},
    )
    monkeypatch.setattr("utils.data.loader.DataLoader", loader)
    stored = save("by workers", by_workers(batches))
    assert started == [2]
    one, other = (snapshot(found.folder) for found in (alone, stored))
    assert len(one) == 4 and {name: entry[0] for name, entry in one.items()} == {
        name: entry[0] for name, entry in other.items()
    }
    for start in (0, 4):
        started.clear()
        found = list(stored.labelled(by_workers(batches), start))
        assert started == [2] and len(found) == 9 - start
        for (step, target), (own_step, own_target) in zip(found, read[start]):
            assert torch.equal(step.images, own_step.images) and torch.equal(target, own_target)


def test_a_shard_is_opened_when_it_is_needed(noise, monkeypatch):
    batches, save = noise
    stored, opened, plain = save("labels", batches), [], labels.load_file
    monkeypatch.setattr(labels, "load_file", lambda path: opened.append(int(path.stem)) or plain(path))
    for start, expected in ((0, [1, 1, 1, 2, 2, 2, 3, 3, 3]), (4, [1, 1, 2, 2, 2]), (6, [1, 1, 1])):
        opened.clear()
        assert [len(opened) for _ in stored.labelled(batches, start)] == expected
        assert opened == list(range(3))[-expected[-1] :], "none of those that were seen"
