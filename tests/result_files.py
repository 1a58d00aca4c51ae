"""Files of runs that never were, as the stages write them."""

import hashlib
import json

from helpers import noise

DIGEST = hashlib.sha256(b"").hexdigest()
COLUMNS = "dataset,method,ipc,teacher,student,protocol,seed,top1,best_top1,top5,epochs,seconds,syn_dir,settings"


def result(place, folder="measured"):
    """The JSON of the one result in an output folder of validate."""
    [path] = (place / folder / "results").glob("*.json")
    return json.loads(path.read_text())


def write_result(run, method="delt", protocol="delt", seeds=((0, 40.0), (1, 44.0)), name=None, **changes):
    """A result of validate. `changes` of the facts and, as `settings`, `arguments` and `processes`, of these."""
    settings, arguments = changes.pop("settings", {}), changes.pop("arguments", {})
    processes = changes.pop("processes", 1)
    facts = {
        "dataset": "cifar10",
        "ipc": 10,
        "teacher": "resnet18",
        "student": "resnet18",
        "epochs": 3,
        "method": method,
        "protocol": protocol,
        "syn_dir": str(run / "syn"),
        **changes,
    }
    students = [
        {
            "seed": seed,
            "top1": top1,
            "best_top1": top1 + 1,
            "top5": 90.0,
            "seconds": 5.0,
            "processes": processes,
            "curve": [{"epoch": 1, "loss": 0.5}, {"epoch": 3, "loss": 0.1, "top1": top1}],
        }
        for seed, top1 in seeds
    ]
    searched = protocol.endswith(" lr=search")
    said = {  # as validate has them: neither the IPC nor where the images are
        "recipe": protocol.removesuffix(" lr=search"),
        "lr_search": [0.001, 0.003] if searched else [],
        **{name: facts[name] for name in ("method", "student", "epochs")},
        "images": f"{facts['ipc']} of {facts['syn_dir']}",
        "test_images": facts["dataset"],
        "teachers": [facts["teacher"]],
        "weights": None,
        "precision": "fp32",
    }
    content = {**facts, "settings": {**said, **settings}, "arguments": arguments, "seeds": students}
    path = run / "results" / f"{name or method + protocol}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_rows(run, *rows):
    """A results.csv; each row is a dictionary of what is not the default."""
    usual = dict(
        zip(COLUMNS.split(","), "data,delt,10,conv3,conv3,delt,0,50.0,51.0,90.0,3,2.5,syn,aaaaaaaaaaaa".split(","))
    )
    run.mkdir(parents=True, exist_ok=True)
    lines = [",".join(str(value) for value in {**usual, **row}.values()) for row in rows]
    (run / "results.csv").write_text("\n".join([COLUMNS, *lines, ""]))


def write_manifest(folder, **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(content))


def write_run(run, large=False):
    """A run with a set that was recovered in two rounds of 10 iterations from `init`, random images, and results.

    Two classes of 12 images of 32 pixels; `large`: the random ones have 300.
    """
    names = [f"{label}/{position:03d}_x.png" for label in ("ant", "moth") for position in range(12)]
    for folder in ("syn", "random", "init"):
        for number, name in enumerate(names):
            noise(run / folder / name, number, 300 if large and folder == "random" else 32)
    write_manifest(run / "init", settings={"criterion": "medium", "ipc": 12}, seconds=30, finished=True)
    write_manifest(
        run / "syn",
        settings={"iterations": 20, "round_iterations": 10, "init": "images"},
        arguments={"init_dir": str(run / "init")},
        units=1,
        seconds=60,
        images={name: {"round": int(name.split("/")[1][:3]) // 6, "sha256": DIGEST} for name in names},
        finished=True,
    )
    write_result(run, "delt", "delt", ((0, 43.5), (1, 46.5)), syn_dir=str(run / "syn"))
    write_result(run, "random", "delt", ((0, 9.75),), syn_dir=str(run / "random"))
    write_result(run, "delt", "hard", ((0, 31.0),), syn_dir=str(run / "syn"))
    rows = [(method, label) for method in ("delt", "random") for label in ("ant", "moth")]
    folders = {"delt": run / "syn", "random": run / "random"}
    lines = [f"{method},{label},12,0.{40 + 7 * k},conv3,{folders[method]}" for k, (method, label) in enumerate(rows)]
    (run / "diversity.csv").write_text("\n".join(["method,class,images,similarity,extractor,syn_dir", *lines, ""]))
