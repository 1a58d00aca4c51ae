"""Steps of recover on a GPU: loss and gradient are those of the CPU, eager, compiled and as CUDA graphs; no waiting."""

import pytest
import torch

from on_gpu import DEVICE, alone, gpu, needs_gpu
from small_objectives import OBJECTIVES, engine, recovery, step
from utils.run.device import Runtime

pytestmark = needs_gpu
PRECISIONS = ["fp32", "bf16", "fp16"]
COUNTS = (2, 4, 6, 8)  # images of a step, as rounds add them


def of_cpu(name, folder, precision):
    made = engine(name, folder, Runtime(torch.device("cpu"), precision, "off"))
    made.reset(0, "recover", 0)
    return [step(made, count, number) for number, count in enumerate(COUNTS)]


def error(found, expected):
    found, expected = found.double().cpu(), expected.double().cpu()
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("precision", [*PRECISIONS, "tf32"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_are_those_of_the_cpu(name, precision, tmp_path):
    """As near as the same precision is on the CPU, thrice; TF32 has the mantissa of fp16.

    The gradient of a distance in features has their differences' signs, of which rounding turns one or another.
    """
    full = of_cpu(name, tmp_path, "fp32")
    like = {"tf32": "fp16"}.get(precision, precision)
    rounded = of_cpu(name, tmp_path, like) if like != "fp32" else full
    tf32 = precision == "tf32"
    with gpu("fp32" if tf32 else precision, tf32=tf32) as runtime:
        made = engine(name, tmp_path, runtime)
        made.reset(0, "recover", 0)
        found = [step(made, count, number) for number, count in enumerate(COUNTS)]
    for part, floor in enumerate((1e-4, 1e-3)):  # of the loss, of the gradient
        times = 10 if name == "features" and precision != "fp32" and part else 3
        allowed = floor + times * max(error(low[part], high[part]) for low, high in zip(rounded, full))
        for own, expected in zip(found, full, strict=True):
            assert error(own[part], expected[part]) <= allowed


def replayed(name, precision, folder):
    """In a process of its own: batches that grow, and again; each result outlives those after it."""
    with gpu(precision) as runtime:
        made = {how: engine(name, folder, Runtime(runtime.device, precision, how)) for how in ("off", "on")}
        found = {how: [] for how in made}
        for how, one in made.items():
            one.reset(0, "recover", 0)
            for turn in range(3):
                for number, count in enumerate(COUNTS):
                    loss, gradient = step(one, count, (number + turn) % 12)
                    found[how].append((loss, gradient.clone()))
        bounds = {"fp32": (1e-4, 1e-3), "bf16": (0.02, 0.1), "fp16": (0.005, 0.05)}[precision]
        for (loss, gradient), (expected, slope) in zip(found["on"], found["off"], strict=True):
            assert error(loss, expected) <= bounds[0], (loss, expected)
            assert error(gradient, slope) <= bounds[1], (error(gradient, slope), slope.norm())
        if DEVICE == "cuda":
            from torch._inductor import cudagraph_trees

            assert cudagraph_trees.get_manager(runtime.device.index or 0, False) is not None, "graphs were replayed"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, precision",
    [
        ("batchnorm", "fp32"),
        ("measured", "bf16"),
        ("statistics", "bf16"),
        ("features", "fp32"),
        ("wasserstein", "fp16"),
    ],
)
def test_compiled_and_replayed_steps_are_the_eager_ones(name, precision, tmp_path):
    alone("import test_steps_on_gpu as t; t.replayed(*sys.argv[1:])", name, precision, tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_does_not_wait_for_the_gpu(name, precision, tmp_path):
    with gpu(precision) as runtime:
        unit = recovery(engine(name, tmp_path, runtime))
        for _ in range(5):
            unit.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):  # in the second one images join
                unit.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert unit.images().isfinite().all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_unit_repeats_to_the_byte(name, precision, tmp_path, recwarn):
    repeated(name, precision, tmp_path, "off")
    assert not [str(one.message) for one in recwarn if "deterministic" in str(one.message)]


@pytest.mark.slow
@pytest.mark.parametrize("name, precision", [("features", "bf16"), ("statistics", "fp32")])
def test_a_compiled_unit_repeats_to_the_byte(name, precision, tmp_path):
    alone("import test_steps_on_gpu as t; t.repeated(*sys.argv[1:])", name, precision, tmp_path, "on")


def repeated(name, precision, folder, compile):
    with gpu(precision, compile, tf32=True) as runtime:
        made = engine(name, folder, runtime)
        one, again = (recovery(made).run(lambda *_: None) for _ in range(2))
    assert one.isfinite().all() and torch.equal(one, again)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_unit_of_what_need_not_repeat(precision, tmp_path):
    with gpu(precision, deterministic="off", tf32=True) as runtime:
        assert recovery(engine("batchnorm", tmp_path, runtime)).run(lambda *_: None).isfinite().all()
