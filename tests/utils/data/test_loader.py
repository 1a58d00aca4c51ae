"""Batches: the counts of a schedule, where it resumes, what each rank takes of it, and batches for tests."""

import errno
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from conftest import ROOT
from helpers import few, noise
from squeeze.augment import augmentation as squeeze_augmentation
from students import geometry, protocol
from utils.data.image_folder import ImageFolder
from utils.data.loader import AugmentedBatches, BatchSchedule, EvalBatches
from utils.run import distributed
from utils.run.errors import UserError
from validate.augment import Augmentation, Views

schedules = st.builds(BatchSchedule, images=st.integers(1, 40), batch_size=st.integers(1, 12), epochs=st.integers(1, 4))


def plain_loop(schedule):
    """(epoch, size) of each batch where each epoch's permutation is cut into batches, a single last image left out."""
    found = []
    for epoch in range(schedule.epochs):
        left, first = schedule.images, True
        while left:
            size = min(schedule.batch_size, left)
            # A single image is a batch only where batches are that small, or the set is.
            if size > 1 or schedule.batch_size == 1 or first:
                found.append((epoch, size))
            left, first = left - size, False
    return found


@few
@given(schedules)
def test_counts_are_those_of_a_plain_loop(schedule):
    batches = plain_loop(schedule)
    sizes = [size for _, size in batches]
    assert schedule.steps == len(batches)
    assert schedule.steps_per_epoch == sum(epoch == 0 for epoch, _ in batches)
    assert schedule.images_per_epoch == sum(size for epoch, size in batches if epoch == 0)
    assert [schedule.size(number) for number in range(schedule.steps)] == sizes
    before = [sum(sizes[:number]) for number in range(schedule.steps + 1)]
    assert [schedule.images_before(number) for number in range(schedule.steps + 1)] == before


@few
@given(schedules)
def test_the_keys_are_a_permutation_of_each_epoch(schedule):
    keys = list(schedule.keys((3, "squeeze")))
    assert [len(batch) for _, batch in keys] == [size for _, size in plain_loop(schedule)]
    assert len({name for name, _ in keys}) == len(keys), "each batch has a random stream of its own"
    for epoch in range(schedule.epochs):
        images = [index for name, batch in keys for index in batch if name[-2] == epoch]
        assert len(images) == len(set(images)) == schedule.images_per_epoch
        assert set(images) <= set(range(schedule.images))


@few
@given(schedules, st.data())
def test_keys_from_a_start_are_the_tail_of_all_keys(schedule, data):
    start = data.draw(st.integers(0, schedule.steps))
    everything = list(schedule.keys((0, "x")))
    assert list(schedule.keys((0, "x"), start)) == everything[start:]
    # Of some epochs, as the shards of stored labels take them.
    first = data.draw(st.integers(0, schedule.epochs - 1))
    epochs = range(first, data.draw(st.integers(first + 1, schedule.epochs)))
    steps = schedule.steps_per_epoch
    own = everything[epochs.start * steps : epochs.stop * steps]
    skip = data.draw(st.integers(0, len(own)))
    assert list(schedule.keys((0, "x"), skip, epochs)) == own[skip:]


def test_orders_differ_between_epochs_and_streams():
    schedule = BatchSchedule(30, 30, 2)
    orders = [tuple(batch) for names in ((0, "x"), (1, "x"), (0, "y")) for _, batch in schedule.keys(names)]
    assert len(set(orders)) == 6


# --- ranks --------------------------------------------------------------------------------------------------------


def as_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr(distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world_size)


@few
@given(st.integers(1, 20), st.integers(2, 5))
def test_the_local_batches_are_a_partition_of_the_batch(count, world_size):
    batch, taken, means = list(range(100, 100 + count)), [], []
    with pytest.MonkeyPatch.context() as monkeypatch:
        for rank in range(world_size):
            as_rank(monkeypatch, rank, world_size)
            own = distributed.local_batch(batch)
            counted = count // world_size + (rank < count % world_size)
            taken += own[:counted]
            # The rest is padding, for BatchNorm's variance, and comes of the same batch.
            assert set(own) <= set(batch) and len(own) == max(counted, min(2, counted + count))
            # A loss of 1 for what counts, and of 1000 for the padding: the ranks' average is 1.
            losses = torch.tensor([1.0] * counted + [1000.0] * (len(own) - counted))
            means.append(float(distributed.global_mean(losses, count)))
    assert sum(means) / world_size == pytest.approx(1)
    assert sorted(taken) == batch


def test_the_ranks_of_a_run_draw_from_streams_of_their_own(monkeypatch):
    keys = list(BatchSchedule(9, 4, 1).keys((0, "x")))
    assert list(distributed.local_batches(keys)) == keys, "a single process takes the batches as they are"
    names = set()
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        own = list(distributed.local_batches(keys))
        assert [batch[: len(whole[rank::2])] for (_, batch), (_, whole) in zip(own, keys)] == [
            whole[rank::2] for _, whole in keys
        ]
        names |= {name for name, _ in own}
    assert len(names) == 2 * len(keys)


# --- images -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        for number in range(5):
            noise(tmp_path / name / f"{number}.png", 10 * (name == "b") + number, 8)
    return ImageFolder(tmp_path, "--train-dir")


def pixels(folder, index):
    with Image.open(folder.root / folder.paths[index]) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_batches_for_tests_are_the_images_in_order(folder):
    for batch_size, sizes in ((4, [4, 4, 2]), (10, [10]), (256, [10])):
        batches = EvalBatches(folder, 8, batch_size, workers=0)
        assert len(batches) == len(sizes)
        for _ in range(2):  # the second time from memory
            found = list(batches)
            assert [len(images) for images, _ in found] == sizes
            assert torch.equal(
                torch.cat([images for images, _ in found]), torch.stack([pixels(folder, k) for k in range(10)])
            )
            assert torch.cat([labels for _, labels in found]).tolist() == [0] * 5 + [1] * 5


def test_batches_by_class_hold_one_class_each(folder):
    batches = EvalBatches(folder, 8, 3, workers=0, by_class=True)
    assert [labels.tolist() for _, labels in batches] == [[0] * 3, [0] * 2, [1] * 3, [1] * 2]
    assert [batches.of_class(label) for label in range(2)] == [[0, 1], [2, 3]]
    [(images, labels)] = batches.read([3])
    assert labels.tolist() == [1, 1] and torch.equal(images[0], pixels(folder, 8))


def test_ranks_test_every_image_once(folder, monkeypatch):
    seen = []
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        seen += [image for images, _ in EvalBatches(folder, 8, 2, workers=0) for image in images]
    expected = torch.stack([pixels(folder, k) for k in range(10)])
    assert sorted(image.sum().item() for image in seen) == sorted(image.sum().item() for image in expected)


def brighter(image):
    """An augmentation that draws from torch's global generator."""
    return image.point(lambda value: value // 2 + int(torch.randint(100, ())))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_augmented_batch_depends_on_its_key_alone(folder, workers):
    torch.manual_seed(workers)
    batches = AugmentedBatches(folder, brighter, workers)
    whole = list(batches.stream(4, 2, 7, "squeeze"))
    assert [len(images) for images, _ in whole] == [4, 4, 2] * 2
    assert not torch.equal(whole[0][0].sort(0).values, whole[3][0].sort(0).values)
    for start in (1, 4):
        again = list(batches.stream(4, 2, 7, "squeeze", start=start))
        assert len(again) == 6 - start
        for (images, labels), (others, other_labels) in zip(again, whole[start:]):
            assert torch.equal(images, others) and torch.equal(labels, other_labels)
    in_this_process = next(iter(AugmentedBatches(folder, brighter, 0).stream(4, 2, 7, "squeeze")))
    assert torch.equal(in_this_process[0], whole[0][0])


@few
@given(st.integers(1, 12), st.integers(1, 12))
def test_no_batch_of_a_single_image_but_where_there_is_no_other(images, batch_size):
    """BatchNorm has no variance for it."""
    assume(batch_size > 1 and images > 1)
    schedule = BatchSchedule(images, batch_size, 1)
    assert all(len(batch) > 1 for _, batch in schedule.keys(("x",)))


def parent(image):
    """An image that says whose child the worker is: as many low bits of the id as its three channels hold."""
    return Image.new("RGB", (8, 8), tuple(os.getppid().to_bytes(8, "little")[:3]))


@pytest.mark.parametrize("ranks, forked_here", [(1, True), (2, False)])
def test_workers_of_ranks_are_not_forked_from_a_process_with_connections(folder, monkeypatch, ranks, forked_here):
    batches = AugmentedBatches(folder, parent, workers=1)
    keys = [(("x",), [0])]
    monkeypatch.setattr(distributed, "get_world_size", lambda: ranks)
    [(images, _)] = batches.batches(keys)
    own = list(os.getpid().to_bytes(8, "little")[:3])
    assert (images[0, :, 0, 0].tolist() == own) == forked_here


@pytest.mark.parametrize("size", [8, 72])
def test_what_stages_read_with_can_be_sent_to_a_worker_that_shares_no_memory(folder, size):
    """Ranks' workers get it so: the transforms of squeeze, students and tests, and the folder without its images."""
    folder.load()
    wide = geometry(len(folder.classes), input_size=size)
    sources = [AugmentedBatches(folder, squeeze_augmentation(size, 4)), EvalBatches(folder, size)]
    for config in "none", "torchvision", "rand-m6-n2-mstd1.0":
        settings = protocol(rand_augment=config, tiles=2, shuffle_patches=2)
        sources.append(Views(folder, Augmentation(settings, wide)))
    for source in sources:
        sent = pickle.loads(pickle.dumps(source))
        assert source.folder.in_memory and not sent.folder.in_memory
        key = range(3) if isinstance(source, EvalBatches) else (("x",), [2, 0, 1])
        for found, expected in zip(sent[key], source[key]):
            assert torch.equal(found, expected)


def test_a_batch_that_cannot_be_sent_is_not_waited_for(folder, monkeypatch):
    """As where shared memory is full: the worker's sending thread meets the error, and nobody else."""
    batches = EvalBatches(folder, 8, workers=1)
    monkeypatch.setattr(EvalBatches, "__getitem__", lambda self, key: lambda: "nothing that can be pickled")
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits"))
    signal.alarm(30)
    try:
        with pytest.raises(UserError, match="was killed, mostly for lack of memory or of shared memory"):
            list(batches)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_not_taken_for_full_shared_memory(folder, workers):
    """Keys may come from work that takes pieces in a folder (validate/label_writer.py)."""

    def keys():
        yield (("x",), [0])
        raise OSError(errno.ENOSPC, "No space left on device", "labels/.shards")

    with pytest.raises(OSError, match="labels/.shards"):
        list(AugmentedBatches(folder, lambda image: image, workers).batches(keys()))


def test_batches_that_are_kept_hold_no_descriptors(folder):
    """What a worker sends lies in shared memory, with a file descriptor a tensor as long as it is there."""
    batches = EvalBatches(folder, 8, batch_size=1, workers=2)
    first = [(images.clone(), labels.clone()) for images, labels in batches]
    assert len(first) > 2 and not any(tensor.is_shared() for batch in batches._kept for tensor in batch)
    for (images, labels), (others, again) in zip(first, batches):
        assert torch.equal(images, others) and torch.equal(labels, again)


@pytest.mark.slow
def test_a_large_test_set_with_few_descriptors(tmp_path):
    """`ulimit -n 128`, two workers, and batches by the hundreds that are kept."""
    noise(tmp_path / "a" / "0.png", 0)
    for number in range(1, 300):
        os.link(tmp_path / "a" / "0.png", tmp_path / "a" / f"{number}.png")
    code = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        "from utils.data.image_folder import ImageFolder\nfrom utils.data.loader import EvalBatches\n"
        "batches = EvalBatches(ImageFolder(sys.argv[1], 'it'), 8, 1, 2)\n"
        "print([sum(len(images) for images, _ in batches) for _ in range(2)])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.strip() == "[300, 300]", done.stderr
