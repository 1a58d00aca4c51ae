"""How stored labels are read: what is checked, and when."""

import builtins
from collections import Counter
from pathlib import Path

import pytest

from refusals import refused

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
