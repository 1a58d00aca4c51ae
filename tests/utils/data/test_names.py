"""Names in one block of bytes: as a list of them, but that workers do not copy."""

import gc
import os
import pickle
from pathlib import Path

import pytest

from utils.data import image_folder
from utils.data.image_folder import ImageFolder
from utils.data.names import Names

ROLLUP = Path("/proc/self/smaps_rollup")
WORDS = ["ant/0.png", "moth/ü 1.png", "", "漢/字.png", "zebra/2.png"]


@pytest.mark.parametrize("words", [WORDS, WORDS[:1], []])
def test_they_are_what_a_list_is(words):
    names = Names(iter(words))
    assert names == words and words == names and list(names) == words and len(names) == len(words)
    assert names != [*words, "more"] and names == pickle.loads(pickle.dumps(names))
    for index in range(-len(words), len(words)):
        assert names[index] == words[index]
    for part in (slice(None), slice(1, 3), slice(0, None, 2), slice(None, None, -1), slice(4, 99)):
        assert names[part] == words[part]
    for beyond in (len(words), -len(words) - 1):
        with pytest.raises(IndexError):
            names[beyond]


def own_megabytes():
    """Of this process alone: what it has written to since it was forked."""
    fields = dict(line.split(":") for line in ROLLUP.read_text().splitlines()[1:])
    return int(fields["Private_Dirty"].split()[0]) / 1024


@pytest.mark.skipif(not ROLLUP.exists(), reason="this system does not say which pages a process copied")
def test_a_forked_worker_does_not_copy_the_names_that_it_reads(tmp_path, monkeypatch):
    """In a list some 90 bytes each: 18 MB of 200,000."""
    (tmp_path / "ant").mkdir()
    found = [f"ant/{number:030d}.png" for number in range(200_000)]
    monkeypatch.setattr(image_folder, "_image_files", lambda *_: found)
    folder = ImageFolder(tmp_path, "--train-dir")
    child = os.fork()
    if child == 0:
        code = 2
        try:
            gc.disable()
            before = own_megabytes()
            assert sum(len(folder.paths[index]) for index in range(len(folder))) == 38 * 200_000
            code = 0 if own_megabytes() - before < 4 else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
