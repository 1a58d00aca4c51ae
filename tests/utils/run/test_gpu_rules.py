"""What is decided for a GPU, asked of stand-ins for one: precision, graphs, same bytes, who shares it, what failed."""

import contextlib
import io

import pytest
import torch

from utils.run import device as module
from utils.run import distributed
from utils.run.device import Runtime, transfer
from utils.run.errors import UserError
from utils.run.memory import is_out_of_memory

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "name, capability, precision",
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), "bf16"),
        ("NVIDIA A100-SXM4-40GB", (8, 0), "bf16"),
        ("NVIDIA GeForce RTX 3090", (8, 6), "bf16"),
        ("Tesla T4", (7, 5), "fp16"),  # emulates bf16
        ("Tesla V100-SXM2-16GB", (7, 0), "fp16"),
        ("NVIDIA GeForce GTX 1660 Ti", (7, 5), "fp32"),  # its convolutions in fp16 give NaN
        ("Tesla P100-PCIE-16GB", (6, 0), "fp32"),
    ],
)
def test_auto_is_the_precision_that_the_card_has_a_unit_for(monkeypatch, name, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert module._fastest_precision(GPU) == precision


@pytest.mark.parametrize("precision, capability, said", [("fp32", (8, 0), True), ("fp32", (7, 0), False)])
def test_tf32_is_said(monkeypatch, precision, capability, said):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert str(Runtime(GPU, precision, "off")) == f"cuda:0 fp32{' (convolutions in TF32)' if said else ''}"
    assert str(Runtime(GPU, "bf16", "off")) == "cuda:0 bf16"


# --- same bytes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def backends(monkeypatch):
    """_configure_backends for a GPU that only seems to be there; afterwards all is as it was."""
    monkeypatch.setattr(module, "_start_gpu", lambda device: None)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what is set below is taken back, too
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    filled, benchmark = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    yield lambda deterministic: module._configure_backends(GPU, deterministic)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark = filled, benchmark


def test_what_the_cpu_does_beside_a_gpu_takes_no_more_threads_than_the_job_may(backends, monkeypatch):
    asked = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "available_cpus", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    backends(False)
    assert asked == [3]


def test_same_bytes_need_no_memory_to_be_filled(backends, monkeypatch):
    backends(True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.backends.cudnn.benchmark, "its choice is by time"
    assert module.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_without_the_promise_the_fastest_kernels_are_searched(backends):
    backends(False)
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
    assert "CUBLAS_WORKSPACE_CONFIG" not in module.os.environ


def test_a_run_that_need_not_repeat_is_another_run_on_a_gpu_alone():
    plain = {"precision": "bf16", "compile": "off"}
    assert Runtime(GPU, "bf16", "off", deterministic=False).identity == {**plain, "deterministic": "off"}
    assert Runtime(GPU, "bf16", "off").identity == plain
    assert Runtime(torch.device("cpu"), "bf16", "off", deterministic=False).identity == plain


def test_on_a_cpu_the_flag_changes_nothing(place):
    for name, value in (("on", "on"), ("off", "off")):
        place.works("recover", syn_dir=place / name, deterministic=value)
    one, other = (sorted((place / name).glob("*/*.png")) for name in ("on", "off"))
    assert len(one) == 12 and [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    assert "is complete" in place.works("recover", syn_dir=place / "on", deterministic="off"), "the same run"


# --- CUDA graphs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def graphs(monkeypatch):
    """torch.compile as a CUDA graph is: what a call returns lies where the next call of any graph writes."""
    asked, memory = [], torch.zeros(8)

    def compile(function, mode=None):
        asked.append(mode)

        def replay(*tensors):
            found = function(*tensors)
            parts = found if isinstance(found, tuple) else (found,)
            kept = tuple(memory[: part.numel()].view(part.shape).copy_(part) for part in parts)
            return kept if isinstance(found, tuple) else kept[0]

        return replay if mode == "reduce-overhead" else function

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(module, "_has_compiler", lambda device: True)
    monkeypatch.setattr(module, "_forbid_timed_choices", lambda: None)
    return asked


@pytest.mark.parametrize("function", [lambda x: 2 * x, lambda x: (2 * x,)])
def test_what_a_graph_returned_outlives_the_next_replay(graphs, function):
    runtime = Runtime(GPU, "fp32", "on")
    one, other = runtime.compiled(function, 1), runtime.compiled(lambda x: -x, 1)
    first = one(torch.tensor([1.0, 2.0]))
    one(torch.tensor([5.0, 6.0]))
    other(torch.tensor([7.0, 8.0]))
    assert (first[0] if isinstance(first, tuple) else first).tolist() == [2.0, 4.0]
    assert graphs == ["reduce-overhead"] * 2


def test_no_graphs_where_they_are_not_wanted_or_ranks_train_together(graphs, monkeypatch):
    Runtime(GPU, "fp32", "on").compiled(torch.sin, 1, graphs=False)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    Runtime(GPU, "fp32", "on").compiled(torch.sin, 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    Runtime(torch.device("cpu"), "fp32", "on").compiled(torch.sin, 1)
    assert graphs == [None] * 3


@pytest.mark.parametrize("present, compiles", [((), False), (("gcc",), True), (("clang",), True)])
def test_a_gpu_needs_a_compiler_of_c(monkeypatch, present, compiles):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(module.shutil, "which", lambda name: name if name in present else None)
    assert Runtime(GPU, "bf16", "auto").compiles(10**6) == compiles


# --- what fails ------------------------------------------------------------------------------------------------------


def test_a_card_that_this_pytorch_was_not_built_for_is_named(monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "zeros", fails)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    with pytest.raises(UserError, match="--device cuda:0: .*it is sm_70, and this PyTorch .* for sm_75, sm_90"):
        module._start_gpu(GPU)


def test_a_busy_card_is_one_line(monkeypatch):
    def fails(device):
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "set_device", fails)
    with pytest.raises(UserError, match=r"--device cuda:0: cannot be used \(CUDA error: .* unavailable\); another"):
        module._start_gpu(GPU)


@pytest.mark.parametrize(
    "text",
    ["GET was unable to find an engine to execute this computation", "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"],
)
@pytest.mark.parametrize("free, believed", [(1, True), (50, False)])
def test_vague_errors_are_of_memory_where_none_is_left(monkeypatch, text, free, believed):
    assert not is_out_of_memory(RuntimeError(text)), "without a GPU"
    monkeypatch.setattr("utils.run.memory.uses_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 100))
    assert is_out_of_memory(RuntimeError(text)) == believed
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"))


# --- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gpus, ranks, rank, number, alone",
    [(1, 2, 1, 0, False), (2, 2, 1, 1, True), (4, 1, 0, 3, True), (2, 3, 2, 0, False)],
)
def test_ranks_share_a_gpu_where_there_are_too_few(monkeypatch, gpus, ranks, rank, number, alone):
    said = io.StringIO()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    with contextlib.redirect_stdout(said):
        assert distributed._has_own_gpu(torch.device("cuda", number)) == alone
    assert ("share" in said.getvalue()) != alone


def test_one_gpu_for_all_ranks_is_refused_where_each_could_have_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="--device cuda:0: processes that train together need a GPU each"):
        distributed._has_own_gpu(torch.device("cuda", 0))


def test_what_is_on_the_device_is_not_copied():
    tensor = torch.ones(3)
    assert transfer(tensor, torch.device("cpu")) is tensor


@pytest.mark.slow
def test_compiled_kernels_are_not_chosen_by_time(monkeypatch):
    """In a compiled step, too: a kernel that was faster by chance sums in another order."""
    from torch._inductor import config

    if not hasattr(config, "deterministic"):
        pytest.skip("this PyTorch has no such setting")
    before, asked = config.deterministic, []
    monkeypatch.setattr(torch, "compile", lambda function, mode=None: asked.append(config.deterministic) or function)
    monkeypatch.setattr(module, "_has_compiler", lambda device: True)
    try:
        for deterministic in (False, True):
            Runtime(GPU, "bf16", "on", deterministic).compiled(torch.sin, 1)
    finally:
        config.deterministic = before
    assert asked == [before, True]
