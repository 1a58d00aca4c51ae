"""As many workers and threads as the job may use: by affinity, by cgroup, and shared among local processes."""

import os
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from helpers import gray
from utils.data.image_folder import ImageFolder
from utils.data.loader import AugmentedBatches
from utils.run import cpus, launch
from utils.run.cpus import available_cpus
from utils.run.device import Runtime


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A job on 12 CPUs of a machine of 64, in no cgroup yet."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)))
    monkeypatch.setattr(cpus, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpus, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def put(tmp_path, own, **files):
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        path = tmp_path / "cgroup" / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_the_affinity_counts_and_not_the_machine():
    assert available_cpus() == 12


@pytest.mark.parametrize(
    "quota, count",
    [("max 100000", 12), ("300000 100000", 3), ("150000 100000", 2), ("50000 100000", 1), ("9900000 100000", 12)],
)
def test_the_quota_of_cgroup_2(tmp_path, quota, count):
    put(tmp_path, "0::/slurm/job7\n", slurm__job7__cpuDOTmax=quota)
    assert available_cpus() == count


def test_the_quota_of_a_cgroup_above_counts_too(tmp_path):
    put(tmp_path, "0::/slurm/job7/step0\n", slurm__job7__cpuDOTmax="400000 100000", slurm__cpuDOTmax="800000 100000")
    assert available_cpus() == 4


def test_a_container_s_own_root(tmp_path):
    put(tmp_path, "0::/\n", cpuDOTmax="200000 100000")
    assert available_cpus() == 2


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("path, own", [("docker/1", "/docker/1"), ("", "/docker/1"), ("", "/")])
def test_the_quota_of_cgroup_1(tmp_path, mount, path, own):
    """In a container the cgroup's folder is often the mount itself."""
    put(tmp_path, f"4:memory:{own}\n3:cpu,cpuacct:{own}\n0::{own}\n")
    folder = tmp_path / "cgroup" / mount / path
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("500000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cpus() == 5
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert available_cpus() == 12


@pytest.mark.parametrize("local, count", [("1", 12), ("4", 3), ("5", 2), ("100", 1), ("nonsense", 12)])
def test_local_processes_share_them(monkeypatch, local, count):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert available_cpus() == count


@pytest.mark.parametrize("local, workers", [("1", 8), ("4", 3)])
def test_workers(tmp_path, monkeypatch, local, workers):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    gray(tmp_path / "set/a/x.png", 1)
    folder = ImageFolder(tmp_path / "set", "it")
    assert AugmentedBatches(folder, lambda image: image).workers == workers
    assert AugmentedBatches(folder, lambda image: image, 5).workers == 5


def test_threads_are_no_more_than_the_job_may_use(tmp_path, monkeypatch):
    put(tmp_path, "0::/job\n", job__cpuDOTmax="200000 100000")
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Runtime.create("cpu")
    assert asked == [2]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    Runtime.create("cpu")
    assert asked == [2], "what the user says holds"


@pytest.mark.parametrize("processes, threads", [("1", 12), ("3", 4), ("40", 1)])
def test_the_launcher_gives_each_process_its_share(processes, threads):
    assert launch.threads(["--standalone", "--nproc-per-node", processes, "-m", "recover"]) == threads


GPU = ("is_available", "device_count", "current_device", "set_device", "get_device_properties", "_lazy_init")


@pytest.mark.parametrize("stage", ["squeeze", "ranking", "recover", "validate"])
def test_a_stage_on_the_cpu_asks_for_no_gpu(place, monkeypatch, stage):
    def touched(*args, **kwargs):
        import traceback

        callers = [frame.filename for frame in traceback.extract_stack()]
        if any(name.startswith(str(ROOT / part)) for name in callers[-2:] for part in ("utils", stage)):
            raise AssertionError("a GPU was asked for")
        return 0

    for name in GPU:
        monkeypatch.setattr(torch.cuda, name, touched)
    place.works(stage, workers=0)


@pytest.mark.parametrize(
    "words, hidden",
    [
        (["--device", "cpu"], True),
        (["--device=cpu"], True),
        (["--device", "cuda", "--device", "cpu"], True),
        (["--device", "cuda"], False),
        (["--device", "auto"], False),
        ([], False),
    ],
)
def test_libraries_find_no_gpu_where_a_cpu_was_asked_for(words, hidden):
    code = (
        "import os, sys\nfrom utils.run import entry\n"
        "def main(): print('hidden' if os.environ.get('CUDA_VISIBLE_DEVICES') == '' else 'seen')\n"
        "entry.run(main)"
    )
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, env=env, text=True, capture_output=True)
    assert done.stdout.strip() == ("hidden" if hidden else "seen")
