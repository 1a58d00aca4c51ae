"""A run whose comparison can be worked out by hand."""

import json

from helpers import noise
from result_files import DIGEST, write_manifest, write_result
from validate.report import collect, comparison

NAMES = [f"{label}/{position:03d}_x.png" for label in ("ant", "moth") for position in range(2)]
SOFT, HARD = {"labels": "soft", "lr": 0.001}, {"labels": "hard", "lr": 0.001}


def images(folder):
    """Two classes of two images; their bytes."""
    for number, name in enumerate(NAMES):
        noise(folder / name, number)
    return sum(path.stat().st_size for path in folder.glob("*/*.png"))


def recovered(folder, start, seconds, **arguments):
    images(folder)
    write_manifest(
        folder,
        settings={"iterations": 200, "round_iterations": 100, "init": "images" if start else "noise"},
        arguments={"init_dir": str(start) if start else None, **arguments},
        units=1,
        seconds=seconds,
        images={name: {"round": 0, "sha256": DIGEST} for name in NAMES},
        finished=True,
    )


def selected(folder, seconds):
    images(folder)
    write_manifest(folder, settings={"criterion": "medium", "ipc": 2}, seconds=seconds, finished=True)


def measured(run, method, protocol, top1, settings=SOFT, **changes):
    seeds = tuple(enumerate(top1))
    place = {"syn_dir": str(run / method), "ipc": 2, "epochs": 30, **changes}
    write_result(run, method, protocol, seeds, settings=settings, **place)


def make_run(run):
    """delt from a selection, with statistics of two teachers; random images; both under two protocols."""
    selected(run / "medium", 12)
    selected(run / "random", 0)
    for name, seconds in (("a", 5.5), ("b", 2)):
        (run / f"{name}.json").write_text(json.dumps({"seconds": seconds}))
    statistics = [str(run / "a.safetensors"), str(run / "b.safetensors")]
    recovered(run / "delt", run / "medium", 60, statistics=statistics)
    measured(run, "delt", "delt", (44.0, 46.0, 48.0))
    measured(run, "random", "delt", (40.0, 43.0))
    measured(run, "delt", "hard", (30.0,), HARD)
    measured(run, "random", "hard", (31.0, 33.0), HARD)
    (run / "diversity" / "delt").mkdir(parents=True)
    lines = [
        "method,class,images,similarity,extractor,syn_dir",
        f"delt,ant,2,0.5,conv3,{run / 'delt'}",
        f"delt,moth,2,0.7,conv3,{run / 'delt'}",
        "",
    ]
    (run / "diversity" / "delt" / "diversity.csv").write_text("\n".join(lines))


def table(run):
    frame = comparison.table(collect.read([run]))
    return {(row["method"], row["protocol"]): row for _, row in frame.iterrows()}


def rows_of(run):
    frame = comparison.table(collect.read([run]))
    return {(row["method"], row["protocol"], row["ipc"]): row for _, row in frame.iterrows()}
