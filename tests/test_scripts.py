"""The scripts: data sets become ImageFolders, and variables become the stages' command lines."""
import gzip
import importlib.util
import io
import lzma
import os
import pickle
import re
import shutil
import subprocess
import tarfile
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
FASHION_GZ = Path("/usr/share/datasets/fashion-mnist")    # Debian's package dataset-fashion-mnist

spec = importlib.util.spec_from_file_location("prepare_data", SCRIPTS / "prepare_data.py")
prepare_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare_data)


# --- prepare_data -----------------------------------------------------------------------------------------------

def png(value=0, size=4):
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def put(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)


def image_folder(root, classes, test="val", per_class=2):
    for split in "train", test:
        for name in classes:
            for k in range(per_class):
                put(root / split / name / f"{k}.png")
    return root


def tar(folder, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def prepare(*arguments):
    return prepare_data.main([str(a) for a in arguments])


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def refused(capsys, output, *arguments):
    """Runs what has to be refused; gives the one line that says why."""
    assert prepare(*arguments, "--output", output) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and error.startswith("prepare_data: ")
    assert not (output / "train").exists() and not Path(f"{output}.partial").exists()
    return error


@pytest.fixture
def imagenet(tmp_path):
    wnids = (*prepare_data.IMAGENETTE, *prepare_data.IMAGENET100, "n99999999")
    return image_folder(tmp_path / "ImageNet", wnids, per_class=1)


def cifar_batch(path, **values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({k.encode(): v for k, v in values.items()}, protocol=2))


def cifar10(folder):
    """CIFAR-10's python version with 20 training and 10 test images; image k of a batch is all k, its red one all 7."""
    classes = [b"c%d" % k for k in range(10)]
    cifar_batch(folder / "batches.meta", label_names=classes)
    for name, labels in [*((f"data_batch_{b}", [2 * b - 2, 2 * b - 1, 9, 0]) for b in range(1, 6)),
                         ("test_batch", list(range(10)))]:
        data = np.repeat(np.arange(len(labels), dtype=np.uint8)[:, None], 3072, axis=1)
        data[:, :1024] = 7
        cifar_batch(folder / name, data=data, labels=labels)
    return folder


def test_tiny_imagenet_zip(tmp_path, capsys):
    wnids = [f"n{k:08d}" for k in range(200)]
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as archive:
        for k, wnid in enumerate(wnids):
            archive.writestr(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_0.JPEG", png())
            archive.writestr(f"tiny-imagenet-200/train/{wnid}/{wnid}_boxes.txt", "")
            archive.writestr(f"tiny-imagenet-200/val/images/val_{k}.JPEG", png(k))
        archive.writestr("tiny-imagenet-200/test/images/test_0.JPEG", png())
        archive.writestr("tiny-imagenet-200/val/val_annotations.txt",
                         "".join(f"val_{199 - k}.JPEG\t{w}\t0\t0\t1\t1\n" for k, w in enumerate(wnids)))
    out = tmp_path / "tiny"
    assert prepare("tinyimagenet", "--source", tmp_path / "tiny.zip", "--output", out) == 0
    assert tree(out) == sorted([f"train/{w}/{w}_0.JPEG" for w in wnids]
                               + [f"val/{w}/val_{199 - k}.JPEG" for k, w in enumerate(wnids)])
    assert "200 classes, 200 images" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["archive", "folder that holds the archive", "unpacked"])
def test_cifar_batches(tmp_path, given):
    batches = cifar10(tmp_path / "in" / "cifar-10-batches-py")
    if given == "unpacked":
        source = batches
    else:
        archive = tar(batches, tmp_path / "in" / "cifar-10-python.tar.gz")
        shutil.rmtree(batches)
        source = archive if given == "archive" else archive.parent
    out = tmp_path / "out"
    assert prepare("cifar10", "--source", source, "--output", out) == 0
    # Class 0 holds the first image of batch 1, then the fourth of each batch, in that order.
    images = [np.asarray(Image.open(p)) for p in sorted((out / "train" / "c0").iterdir())]
    assert [i[0, 0].tolist() for i in images] == [[7, 0, 0]] + [[7, 3, 3]] * 5
    assert images[0].shape == (32, 32, 3)
    assert tree(out / "val") == [f"c{k}/0000.png" for k in range(10)]
    assert np.asarray(Image.open(out / "val" / "c4" / "0000.png"))[5, 9].tolist() == [7, 4, 4]


def test_cifar_pickle_that_holds_code(tmp_path, capsys):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)
    source = cifar10(tmp_path / "cifar-10-batches-py")
    (source / "test_batch").write_bytes(pickle.dumps(Code(), protocol=2))
    assert "mkdir" in refused(capsys, tmp_path / "out", "cifar10", "--source", source)
    assert not (tmp_path / "ran").exists()


def test_image_folder_archive_with_test_split(tmp_path):
    archive = tar(image_folder(tmp_path / "cifar10", [f"c{k}" for k in range(10)], test="test"), tmp_path / "c.tar.gz")
    out = tmp_path / "out"
    assert prepare("cifar10", "--source", archive, "--output", out) == 0
    assert tree(out) == sorted(f"{s}/c{k}/{i}.png" for s in ("train", "val") for k in range(10) for i in range(2))
    assert not any(p.is_symlink() for p in out.rglob("*"))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("name, classes", [("imagenette", prepare_data.IMAGENETTE),
                                           ("imagenet100", prepare_data.IMAGENET100)])
def test_subset_of_imagenet_is_linked(tmp_path, imagenet, name, classes):
    out = tmp_path / "out"
    assert prepare(name, "--source", imagenet, "--output", out) == 0
    for split in "train", "val":
        assert sorted(d.name for d in (out / split).iterdir()) == sorted(classes)
        assert all(d.is_symlink() and (d / "0.png").is_file() for d in (out / split).iterdir())


def test_class_lists():
    assert len(set(prepare_data.IMAGENET100)) == 100 and list(prepare_data.IMAGENET100) == sorted(prepare_data.IMAGENET100)
    assert len(set(prepare_data.IMAGENETTE) | set(prepare_data.IMAGEWOOF)) == 20


def test_finished_output_is_left_alone(tmp_path, imagenet, capsys):
    out = tmp_path / "out"
    assert prepare("imagenette", "--source", imagenet, "--output", out) == 0
    before = tree(out)
    assert prepare("imagenette", "--source", tmp_path / "nothing", "--output", out) == 0
    assert "already" in capsys.readouterr().out and tree(out) == before
    assert prepare("imagewoof", "--output", image_folder(tmp_path / "two", ["a", "b"])) == 2
    assert "2 classes" in capsys.readouterr().err


def test_leftover_of_a_killed_run_is_no_output(tmp_path, imagenet):
    put(tmp_path / "out.partial" / "train" / "half" / "0.png")
    assert prepare("imagenette", "--source", imagenet, "--output", tmp_path / "out") == 0
    assert not (tmp_path / "out" / "train" / "half").exists() and not (tmp_path / "out.partial").exists()


def test_refusals(tmp_path, imagenet, capsys):
    out = tmp_path / "out"
    assert "no such file" in refused(capsys, out, "cifar10", "--source", tmp_path / "nothing")
    assert "c3" in refused(capsys, out, "cifar10", "--source", half_missing(tmp_path / "half"))
    assert "3 classes" in refused(capsys, out, "cifar10", "--source", image_folder(tmp_path / "three", "abc"))
    assert "n02086240" in refused(capsys, out, "imagewoof", "--source", wnid_missing(imagenet))
    put(tmp_path / "other" / "readme.txt", b"")
    assert "cifar-10-python.tar.gz" in refused(capsys, out, "cifar10", "--source", tmp_path / "other")
    put(tmp_path / "taken" / "mine.txt", b"")
    assert "mine" not in refused(capsys, tmp_path / "taken", "imagenette", "--source", imagenet)
    assert (tmp_path / "taken" / "mine.txt").exists()


def half_missing(root):
    image_folder(root, [f"c{k}" for k in range(10)])
    shutil.rmtree(root / "val" / "c3")
    return root


def wnid_missing(imagenet):
    """ImageNet with ImageWoof's classes except for two; one of them is in ImageNet-100 and so in the fixture."""
    for wnid in prepare_data.IMAGEWOOF[1:]:
        for split in "train", "val":
            put(imagenet / split / wnid / "0.png")
    for split in "train", "val":
        shutil.rmtree(imagenet / split / "n02086240")
    return imagenet


def test_flat_validation_images(tmp_path, imagenet, capsys):
    shutil.rmtree(imagenet / "val")
    put(imagenet / "val" / "ILSVRC2012_val_00000001.JPEG")
    for name in "imagenet1k", "imagenette":
        assert "valprep" in refused(capsys, tmp_path / "out", name, "--source", imagenet)


def test_damaged_archives(tmp_path, capsys):
    whole = tar(cifar10(tmp_path / "cifar-10-batches-py"), tmp_path / "whole.tar.gz").read_bytes()
    for name, data in [("cut.tar.gz", whole[:len(whole) // 2]), ("noise.tar.gz", b"noise" * 100), ("empty.zip", b"")]:
        put(tmp_path / name, data)
        error = refused(capsys, tmp_path / "out", "cifar10", "--source", tmp_path / name)
        assert name in error and "fetch it again" in error


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archive_that_leads_out_of_its_folder(tmp_path, capsys, kind):
    archive = tmp_path / f"evil.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("../../../escaped.txt", "x")
    else:
        with tarfile.open(archive, "w") as file:
            file.addfile(tarfile.TarInfo("../../../escaped.txt"))
    assert "unsafe" in refused(capsys, tmp_path / "a" / "b" / "out", "cifar10", "--source", archive)
    assert not list(tmp_path.rglob("escaped.txt"))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "imagenette"])
def test_no_network(tmp_path, capsys, monkeypatch, name):
    def down(*args, **kwargs):
        raise urllib.error.URLError("no network here")
    monkeypatch.setattr("urllib.request.urlopen", down)
    error = refused(capsys, tmp_path / "out", name)
    assert prepare_data.DATASETS[name].source in error and "https://" in error and "--source" in error


@pytest.mark.parametrize("name", ["tinyimagenet", "imagewoof", "imagenet100", "imagenet1k"])
def test_what_no_script_can_download(tmp_path, capsys, name):
    error = refused(capsys, tmp_path / "out", name)
    assert prepare_data.DATASETS[name].source in error and "--source" in error


def idx(array):
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes() + array.tobytes())


def test_fashion_mnist_idx_files(tmp_path):
    for prefix, count in ("train", 20), ("t10k", 10):
        images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 28, 28))
        put(tmp_path / "in" / f"{prefix}-images-idx3-ubyte.gz", idx(images))
        put(tmp_path / "in" / f"{prefix}-labels-idx1-ubyte.gz", idx((np.arange(count) % 10).astype(np.uint8)))
    out = tmp_path / "out"
    assert prepare("fashion_mnist", "--source", tmp_path / "in", "--output", out) == 0
    image = np.asarray(Image.open(out / "train" / "Ankle_boot" / "0001.png"))
    assert image.shape == (32, 32, 3) and image[2:30, 2:30].min() == image.max() == 19
    assert image.sum() == 19 * 28 * 28 * 3    # the frame is zero


def test_embedded_cut(tmp_path):
    path = SCRIPTS / "embedded" / prepare_data.CUT
    assert path.stat().st_size <= 6_000_000
    images = np.load(io.BytesIO(lzma.decompress(path.read_bytes())))
    out = tmp_path / "out"
    assert prepare("fashion_mnist_cut", "--output", out) == 0
    assert sorted(d.name for d in (out / "train").iterdir()) == sorted(prepare_data.FASHION)
    for split, count, first in ("train", 1000, 0), ("val", 200, 1000):
        for k, name in enumerate(prepare_data.FASHION):
            files = sorted((out / split / name).iterdir())
            assert [f.name for f in files] == [f"{i:04d}.png" for i in range(count)]
            for i in 0, count - 1:
                pixels = np.asarray(Image.open(files[i]))
                assert pixels.shape == (32, 32, 3)
                assert (pixels[2:30, 2:30] == images[k, first + i][..., None]).all()


@pytest.mark.skipif(not FASHION_GZ.is_dir(), reason="Fashion-MNIST's original files are not on this machine")
def test_embedded_cut_is_what_the_original_holds():
    images = np.load(io.BytesIO(lzma.decompress((SCRIPTS / "embedded" / prepare_data.CUT).read_bytes())))
    for prefix, part in ("train", images[:, :1000]), ("t10k", images[:, 1000:]):
        original = prepare_data.read_idx(FASHION_GZ, f"{prefix}-images-idx3-ubyte")
        labels = prepare_data.read_idx(FASHION_GZ, f"{prefix}-labels-idx1-ubyte")
        for k in range(10):
            assert (original[labels == k][:part.shape[1]] == part[k]).all()


# --- the bash scripts -------------------------------------------------------------------------------------------

NAMED = {"select_medium_tiny_rn18_ep50_ipc50", "resnet18_imagenet1k_synthesis", "resnet18_imagenet1k_validation"}
THIN = sorted(p.stem for p in SCRIPTS.glob("*_ipc*.sh")) + sorted(NAMED - {"select_medium_tiny_rn18_ep50_ipc50"})
RUNS = [name for name in THIN if name not in NAMED]


@pytest.fixture
def distill(tmp_path):
    """Runs a script with a Python that only notes its arguments; gives [(stage, {flag: value})] and the process."""
    record = tmp_path / "record"
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\nprintf "%s\\t" "$@" >> "$RECORD"; echo >> "$RECORD"\n'
                    'case "$*" in *"-m ${FAILING:-none}"*) exit 7;; esac\n')
    fake.chmod(0o755)
    for name in "train", "val":
        (tmp_path / name).mkdir()
    (tmp_path / "teacher.pth").touch()

    def run(name, cwd=ROOT, **variables):
        record.write_text("")
        environment = {"PATH": os.environ["PATH"], "PYTHON_BIN": str(fake), "RECORD": str(record), "NAME": "wrong",
                       "TRAIN_DIR": f"{tmp_path}/train", "VAL_DIR": f"{tmp_path}/val", "RUN_DIR": f"{tmp_path}/run"}
        environment.update({k: str(v) for k, v in variables.items()})
        process = subprocess.run(["bash", SCRIPTS / f"{name}.sh"], cwd=cwd, text=True, capture_output=True,
                                 env={k: v for k, v in environment.items() if v != "None"})
        return [parse(line) for line in record.read_text().splitlines()], process
    return run


def parse(line):
    words = line.split("\t")[:-1]
    stage = words[len(words) - words[::-1].index("-m")] if "-m" in words else words[0]
    flags, flag = {"before": words[:words.index(stage)]}, "after"
    for word in words[words.index(stage) + 1:]:
        if word.startswith("--"):
            flag = word[2:]
            flags[flag] = []
        else:
            flags.setdefault(flag, []).append(word)
    return stage, {k: " ".join(v) if k != "before" else v for k, v in flags.items()}


@pytest.mark.parametrize("path", sorted([*SCRIPTS.rglob("*.sh"), ROOT / ".ci" / "run"]), ids=lambda p: p.name)
def test_bash_syntax(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_every_promised_script_is_there():
    wanted = {f"{d}_resnet18_ipc{i}" for i in (1, 10, 50) for d in
              "cifar10 cifar100 tinyimagenet imagenette imagewoof imagenet100 imagenet1k".split()}
    assert set(THIN) == wanted | NAMED | {"cifar10_conv3_ipc10"}


@pytest.mark.parametrize("name", THIN)
def test_thin_scripts_only_set_variables(name):
    lines = [line for line in (SCRIPTS / f"{name}.sh").read_text().splitlines() if not line.startswith("#")]
    assert lines.pop() == 'source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"'
    known = (SCRIPTS / "distill.sh").read_text()
    for line in lines:
        variable = re.fullmatch(r"([A-Z_]+)=\$\{\1:?-[^{}]*\}", line)
        assert variable, line
        assert re.search(rf"^{variable[1]}=", known, re.M), f"distill.sh knows no {variable[1]}"


@pytest.mark.parametrize("name", RUNS)
def test_thin_scripts_run_what_their_names_say(distill, name):
    calls, process = distill(name)
    assert process.returncode == 0, process.stderr
    dataset, arch, ipc = name.split("_")
    stages = dict(reversed(calls))    # the first call of each
    assert list(dict(calls)) == ([] if dataset == "imagenet1k" else ["squeeze"]) + [
        "ranking", "recover", "validate", *(["validate.diversity"] if ipc != "ipc1" else []), "validate.report", "validate.summary"]
    for stage in "ranking", "recover", "validate":
        assert stages[stage]["dataset"] == dataset and stages[stage]["teacher-arch"] == arch
    assert stages["recover"]["ipc"] == stages["ranking"]["ipc"] == ipc.removeprefix("ipc")
    rounds = int(stages["recover"]["iterations"]) / int(stages["recover"]["round-iterations"])
    assert rounds == (1 if ipc == "ipc1" else 8)


def test_stage_command_lines(distill, tmp_path):
    """One script, in full: what each variable turns into, and that an empty one leaves the stage its default."""
    calls, process = distill("cifar10_resnet18_ipc10", cwd=tmp_path, IPC=3, ITR=80, ROUND_ITR=20, LR=0.5,
                             STUDENT="resnet18 conv3", PROTOCOL="delt hard", SQUEEZE_ARGS="--extra 1", SEED=4)
    assert process.returncode == 0, process.stderr
    run = tmp_path / "run"
    common = {"before": ["-m"], "dataset": "cifar10", "seed": "4", "device": "auto", "precision": "auto", "compile": "auto"}
    teacher = {"teacher-arch": "resnet18", "teacher-path": f"{run}/teacher.pth"}

    def ranking(criterion, folder):
        return "ranking", {**common, **teacher, "train-dir": f"{tmp_path}/train", "ranking-file": f"{run}/ranking.csv",
                           "criterion": criterion, "output-dir": f"{run}/{folder}", "ipc": "3"}

    assert calls == [
        ("squeeze", {**common, "train-dir": f"{tmp_path}/train", "val-dir": f"{tmp_path}/val", "arch": "resnet18",
                     "output": f"{run}/teacher.pth", "extra": "1"}),
        ranking("medium", "init"),
        ("recover", {**common, **teacher, "init-dir": f"{run}/init", "syn-dir": f"{run}/syn", "ipc": "3", "lr": "0.5",
                     "iterations": "80", "round-iterations": "20", "contact-sheet": f"{run}/contact_sheet.png"}),
        ranking("random", "random"),
        ("validate", {**common, **teacher, "syn-dir": f"{run}/syn {run}/random", "method": "delt random",
                      "val-dir": f"{tmp_path}/val", "student-arch": "resnet18 conv3", "protocol": "delt hard",
                      "output-dir": str(run), "seeds": "3"}),
        ("validate.diversity", {"before": ["-m"], "after": f"{run}/syn {run}/random", **teacher, "method": "delt random",
                                "dataset": "cifar10", "device": "auto", "output-dir": str(run)}),
        ("validate.report", {"before": ["-m"], "after": str(run)}),
        ("validate.summary", {"before": ["-m"], "after": str(run)}),
    ]


def test_every_setting_of_recover_arrives(distill):
    flags = dict(r_bn="R_BN", first_bn_multiplier="FIRST_BN_MULTIPLIER", jitter="JITTER", curriculum="CURRICULUM",
                 milestone="MILESTONE", min_crop="MIN_CROP", init="INIT", batch_by="BATCH_BY", image_format="IMAGE_FORMAT",
                 batch_size="RECOVER_BATCH")
    calls, _ = distill("distill", STAGES="squeeze recover", **{v: f"v{k}" for k, v in enumerate(flags.values())})
    recover = dict(calls)["recover"]
    assert [recover[flag.replace("_", "-")] for flag in flags] == [f"v{k}" for k in range(len(flags))]
    assert "dataset" not in recover


STAGES = {"squeeze", "ranking", "recover", "validate"}


def test_processes_of_one_machine_share_every_stage(distill):
    calls, _ = distill("distill", NPROC=2, MAX_RESTARTS=3)
    before = {stage: flags["before"] for stage, flags in calls}
    launch = ["-m", "utils.launch", "--nproc-per-node", "2", "--max-restarts", "3", "--standalone", "-m"]
    assert {stage for stage in before if before[stage] == launch} == STAGES
    assert before["validate.report"] == before["validate.summary"] == ["-m"]


def test_machines_meet_at_one_of_them_which_makes_the_page(distill):
    where = dict(NNODES="1:4", NPROC=8, MASTER_ADDR="node7", MASTER_PORT=1234)
    calls, _ = distill("distill", **where)
    recover = dict(calls)["recover"]["before"]
    for words in ["--nnodes", "1:4"], ["--rdzv-endpoint", "node7:1234"], ["--nproc-per-node", "8"], ["--rdzv-backend", "c10d"]:
        assert words == recover[recover.index(words[0]):][:2]
    assert "--standalone" not in recover and "validate.report" in dict(calls)
    others, _ = distill("distill", SLURM_NODEID=2, **where)
    assert {stage for stage, _ in others} == STAGES
    calls, refused = distill("distill", NNODES=2)
    assert refused.returncode == 2 and "MASTER_ADDR" in refused.stderr and not calls


@pytest.fixture
def slurm(tmp_path):
    """A cluster of stubs: runs a job's script as one of its nodes, and notes what it asks for."""
    commands, notes = tmp_path / "bin", tmp_path / "notes"
    commands.mkdir()
    for name, does in (("srun", 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"'),
                       ("scontrol", f'[ "$1" = show ] && printf "node7\\nnode8\\n"; echo "$@" >> {notes}')):
        (commands / name).write_text(f"#!/bin/sh\n{does}\n")
        (commands / name).chmod(0o755)
    script = tmp_path / "experiment.sh"
    script.write_text(f'env | grep -E "^(RANK|WORLD_SIZE|STAGES|NPROC|NNODES|MASTER_ADDR|MASTER_PORT)=" | sort > {tmp_path}/seen\n'
                      'exit "${CODE:-0}"\n')

    def run(job, **variables):
        notes.write_text("")
        done = subprocess.run(["bash", SCRIPTS / "slurm" / f"{job}.sh", script], text=True, capture_output=True, cwd=tmp_path,
                              env={"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "41",
                                   "SLURM_GPUS_ON_NODE": "4", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]", **variables})
        return done, dict(line.split("=") for line in (tmp_path / "seen").read_text().splitlines()), notes.read_text()
    return run


def test_slurm_jobs_tell_the_script_where_it_is(slurm):
    _, seen, _ = slurm("one_node")
    assert seen == {"NPROC": "4"}
    _, seen, _ = slurm("several_nodes")
    assert seen == {"NPROC": "4", "NNODES": "2", "MASTER_ADDR": "node7", "MASTER_PORT": "20041"}
    _, seen, _ = slurm("recover_array", SLURM_ARRAY_TASK_ID="5", SLURM_ARRAY_TASK_MAX="31", SLURM_ARRAY_JOB_ID="40")
    assert seen == {"NPROC": "1", "RANK": "5", "WORLD_SIZE": "32", "STAGES": "recover"}


def test_a_slurm_job_that_a_signal_ended_is_queued_again(slurm):
    done, _, asked = slurm("one_node", CODE="143")
    assert done.returncode == 143 and "requeue 41" in asked and "saved" in done.stdout
    _, _, asked = slurm("recover_array", CODE="143", SLURM_ARRAY_TASK_ID="5", SLURM_ARRAY_TASK_MAX="7", SLURM_ARRAY_JOB_ID="40")
    assert "requeue 40_5" in asked
    done, _, asked = slurm("one_node", CODE="2")
    assert done.returncode == 2 and "requeue" not in asked, "an error would come again"


def test_baselines(distill, tmp_path):
    run = tmp_path / "run"
    validate = dict(distill("cifar10_conv3_ipc10")[0])["validate"]
    assert validate["method"] == "delt random medium" and validate["syn-dir"] == f"{run}/syn {run}/random {run}/init"
    assert dict(distill("cifar10_conv3_ipc10", BASELINES="")[0])["validate"]["method"] == "delt"
    calls, _ = distill("cifar10_conv3_ipc10", BASELINES="herding k-center")
    assert [flags["criterion"] for stage, flags in calls if stage == "ranking"] == ["medium", "herding", "k-center"]
    assert dict(calls)["validate"]["syn-dir"] == f"{run}/syn {run}/herding {run}/k-center"


def test_a_given_teacher_is_not_trained(distill, tmp_path):
    calls, process = distill("cifar10_resnet18_ipc10", RANKER_PATH=tmp_path / "teacher.pth")
    assert "squeeze is skipped" in process.stdout and "squeeze" not in dict(calls)
    assert {f["teacher-path"] for _, f in calls if "teacher-arch" in f} == {f"{tmp_path}/teacher.pth"}
    calls, process = distill("imagenet1k_resnet18_ipc10")
    assert "squeeze is skipped" in process.stdout and not any("teacher-path" in f for _, f in calls)


def test_named_scripts_run_one_stage(distill, tmp_path):
    calls, _ = distill("select_medium_tiny_rn18_ep50_ipc50", RANKER_PATH=tmp_path / "teacher.pth",
                       OUTPUT_DIR="chosen", RANKING_FILE="scores.csv")
    assert [s for s, _ in calls] == ["ranking"]
    assert [calls[0][1][k] for k in ("output-dir", "ranking-file", "ipc", "criterion")] == ["chosen", "scores.csv", "50", "medium"]
    calls, _ = distill("resnet18_imagenet1k_synthesis", INIT_PATH="chosen", SYN_PATH="made", ITR=8, ROUND_ITR=1)
    assert [s for s, _ in calls] == ["recover"]
    assert [calls[0][1][k] for k in ("init-dir", "syn-dir", "ipc", "iterations", "round-iterations")] == [
        "chosen", "made", "50", "8", "1"]
    calls, _ = distill("resnet18_imagenet1k_validation", SYN_PATH="made", TRAIN_DIR=None)
    assert [s for s, _ in calls] == ["validate", "validate.diversity", "validate.report", "validate.summary"]
    assert calls[0][1]["syn-dir"] == calls[1][1]["after"] == "made"


def test_run_folder_is_named_for_the_script(distill):
    calls, _ = distill("cifar10_resnet18_ipc50", RUN_DIR=None)
    assert dict(calls)["recover"]["syn-dir"] == "runs/cifar10_resnet18_ipc50/syn"


def test_failing_stage_ends_the_script(distill):
    calls, process = distill("cifar10_resnet18_ipc10", FAILING="ranking")
    assert process.returncode == 7 and [s for s, _ in calls] == ["squeeze", "ranking"]


@pytest.mark.parametrize("name, variables, told", [
    ("distill", dict(TRAIN_DIR=None), "TRAIN_DIR is empty"),
    ("cifar10_resnet18_ipc10", dict(VAL_DIR="nowhere"), "prepare_data.sh cifar10"),
    ("distill", dict(STAGES="squeeze recovery"), "'recovery' is none of"),
    ("distill", dict(BASELINES="coreset"), "'coreset' is none of"),
    ("distill", dict(PROTOCOL="soft"), "'soft' is none of"),
    ("distill", dict(STAGES="recover"), "set RANKER_PATH"),
    ("distill", dict(RANKER_PATH="nowhere.pth"), "no file nowhere.pth"),
    ("distill", dict(PYTHON_BIN="false"), "setup.sh"),
    ("quickstart", dict(VAL_DIR=None), "VAL_DIR is not"),
    ("quickstart", dict(TRAIN_DIR=None), "TRAIN_DIR is not"),
])
def test_what_is_wrong_is_said_before_any_stage(distill, name, variables, told):
    calls, process = distill(name, **variables)
    assert process.returncode == 2 and not calls
    assert told in process.stderr and len(process.stderr.splitlines()) == 1


def test_quickstart(distill, tmp_path):
    calls, process = distill("quickstart", TRAIN_DIR=None, VAL_DIR=None, RUN_DIR=tmp_path)    # train/ and val/ are no data/
    assert calls[0][0] == "scripts/prepare_data.py" and process.returncode == 2
    (tmp_path / "data").mkdir()
    for name in "train", "val":
        (tmp_path / name).rename(tmp_path / "data" / name)
    calls, process = distill("quickstart", TRAIN_DIR=None, VAL_DIR=None, RUN_DIR=tmp_path)
    assert process.returncode == 0, process.stderr
    stages = dict(calls)
    assert stages["squeeze"]["train-dir"] == f"{tmp_path}/data/train" and stages["squeeze"]["arch"] == "conv3"
    assert (stages["validate"]["method"], stages["validate"]["protocol"]) == ("delt random", "delt hard")
    calls, process = distill("quickstart", TRAIN_DIR=tmp_path / "data" / "val", VAL_DIR=tmp_path / "data" / "val")
    assert process.returncode == 0 and calls[0][0] == "squeeze"
    assert dict(calls)["ranking"]["train-dir"] == f"{tmp_path}/data/val"


def test_setup(tmp_path):
    """The environment is made, found whole the second time, and repaired when an install was cut off."""
    (tmp_path / "scripts").mkdir()
    for name in "setup.sh", "common.sh":
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    (tmp_path / "requirements.txt").write_text("# nothing\n")

    def setup(*arguments, **variables):
        return subprocess.run(["bash", tmp_path / "scripts" / "setup.sh", *arguments], cwd="/", text=True,
                              capture_output=True, env={**os.environ, **variables})

    old = setup(PYTHON="false")
    assert old.returncode == 2 and "3.10" in old.stderr and len(old.stderr.splitlines()) == 1
    assert setup("requirements-typo.txt").returncode == 2
    first = setup()
    assert first.returncode == 0 and "making .venv" in first.stdout, first.stderr
    assert setup().stdout == ""

    (tmp_path / "requirements.txt").write_text("# still nothing\n")
    changed = setup()
    assert "installing" in changed.stdout and "making" not in changed.stdout

    [record] = tmp_path.glob(".venv/lib/python*/site-packages/pip-*.dist-info/RECORD")
    record.unlink()
    (tmp_path / ".venv" / ".installed-requirements.txt").unlink()
    repaired = setup()
    assert repaired.returncode == 0 and "making .venv" in repaired.stdout, repaired.stderr
    assert record.is_file()
