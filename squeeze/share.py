"""python -m squeeze.share: a teacher as a folder for the Hugging Face Hub.

In the folder are the checkpoint, byte for byte, because sets, labels and results name their teacher by its SHA-256;
the names of its classes in their order; and README.md, the card. `--teacher-path` takes the checkpoint from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import cli, hub
from utils.cli import TeacherFlags
from utils.data.geometry import GeometryFlags
from utils.nets import checkpoints
from utils.nets.teacher import Teacher
from utils.run import entry
from utils.run.files import digest
from utils.run.markdown import escaped, table

SOURCE = "the data that the teacher was trained on"
CLASSES = "classes.txt"


@dataclass(frozen=True)
class Job:
    """The command line."""

    output_dir: str
    licence: str
    name: str | None
    source: str | None  # the name of the data
    overwrite: bool
    teacher: TeacherFlags
    geometry: GeometryFlags

    @property
    def path(self) -> Path:
        return Path(self.teacher.teacher_path[0])


def parse() -> Job:
    parser = cli.Parser(
        "squeeze.share", "Make a folder that the Hugging Face Hub takes as it is: a teacher's checkpoint and its card."
    )
    hub.add_sharing(parser, SOURCE)
    cli.add_teacher(parser)
    cli.add_geometry(parser.add_argument_group("what a checkpoint of others does not say"))
    args = parser.parse_args()
    if not args.teacher_path:
        parser.error("--teacher-path is needed: the checkpoint to share")
    hub.require_licence(parser, args.licence, SOURCE)
    return cli.group(args, Job)


def main() -> None:
    job = parse()
    [teacher] = job.teacher.load(job.geometry, None, "")  # for its errors: others will load it so
    content = {name: value for name, value in checkpoints.read(job.path).items() if name != "model"}
    texts = {hub.CARD: card(job, teacher, content)}
    names = "".join(f"{name}\n" for name in teacher.geometry.classes or ())
    if names.splitlines() == list(teacher.geometry.classes or ["none"]):
        texts[CLASSES] = names
    settings = {"kind": "teacher", "teacher": teacher.sha256, "licence": job.licence}
    settings |= {name: digest(text) for name, text in texts.items()}
    contents = hub.Contents({job.path.name: job.path}, texts)
    written = hub.write(job.output_dir, settings, contents, job.overwrite, job.path)
    what = f"{teacher.arch}, SHA-256 {teacher.sha256[:16]}..."
    print(f"share: {what} in {job.output_dir}" if written else f"share: {job.output_dir} is complete")


def card(job: Job, teacher: Teacher, content: dict[str, Any]) -> str:
    """README.md; `content` is what the checkpoint says of itself."""
    source = hub.name_of_data(job.source, teacher.dataset)
    title = job.name or f"{teacher.arch}{f' for {source}' if source else ''}"
    sections = [
        f"# {escaped(title)}\n\nA network for image classification, trained as the teacher of data-set distillation: "
        "images are distilled by it, and it labels them.",
        _use(job),
        _facts(teacher, content, source),
        _recipe(content),
        _classes(teacher),
        hub.licence_section(job.licence, source, "this teacher"),
    ]
    return hub.card(_front(job, title, teacher, source), "\n\n".join(part.strip() for part in sections if part))


def _front(job: Job, title: str, teacher: Teacher, source: str | None) -> dict[str, Any]:
    facts = {
        **hub.licence_fields(job.licence),
        "pipeline_tag": "image-classification",
        "tags": ["dataset-distillation", "pytorch"],
    }
    if teacher.top1 is None:
        return facts
    dataset = source or "images of its own"
    return {
        **facts,
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": title,
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image Classification"},
                        "dataset": {"type": hub.identifier(dataset), "name": dataset},
                        "metrics": [{"type": "accuracy", "value": teacher.top1, "name": "top-1 in percent"}],
                    }
                ],
            }
        ],
    }


def _use(job: Job) -> str:
    """The flags are those that its own file leaves open."""
    given = {
        "--teacher-arch": job.teacher.teacher_arch,
        "--dataset": job.geometry.dataset and [job.geometry.dataset],
        "--input-size": job.geometry.input_size and [job.geometry.input_size],
        "--mean": job.geometry.mean,
        "--std": job.geometry.std,
        "--stem": job.geometry.stem and [job.geometry.stem],
        "--classes": job.teacher.classes and [f"FOLDER/{CLASSES}"],
    }
    flags = "".join(f" {flag} {' '.join(map(str, values))}" for flag, values in given.items() if values)
    return (
        "## Use\n\nFOLDER is where this folder is.\n\n```bash\npython -m ranking --train-dir REAL_IMAGES --output-dir "
        f"SELECTED --ranking-file RANKING.csv --teacher-path FOLDER/{job.path.name}{flags}\n```\n\nThe stages recover "
        "and validate of the same project take it in the same way. The file is read by "
        + ("safetensors." if job.path.suffix == ".safetensors" else "`torch.load(..., weights_only=True)`.")
    )


def _facts(teacher: Teacher, content: dict[str, Any], source: str | None) -> str:
    geometry = teacher.geometry
    facts = {
        "architecture": teacher.arch,
        "parameters": sum(tensor.numel() for tensor in teacher.network.parameters()),
        "stem": geometry.stem,
        "input size in pixels": geometry.input_size,
        "mean of pixels from 0 to 1": geometry.mean,
        "their standard deviation": geometry.std,
        "classes": geometry.num_classes,
        "data": source,
        "top-1 in percent": teacher.top1,
        "top-5 in percent": content.get("top5"),
        "epochs": content.get("epochs"),
        "seconds of training": content.get("seconds"),
        "SHA-256 of the file": teacher.sha256,
    }
    assumed = f"\n\nIts file does not say everything; assumed: {escaped('; '.join(teacher.assumed))}."
    return (
        f"## What it is\n\n{table(('fact', 'value'), hub.rows_of(facts))}\nAccuracies are on test images, as the file "
        f"says them.{assumed if teacher.assumed else ''}"
    )


def _recipe(content: dict[str, Any]) -> str:
    """What squeeze was told, and the versions that it ran with."""
    rows = hub.rows_of(hub.without_folders(content.get("settings")))
    rows += hub.rows_of(content.get("versions"), "version of ")
    said = "By `python -m squeeze`, which trains by SGD:\n\n" if "lr_schedule" in dict(rows) else ""
    return f"## Recipe\n\n{said}{table(('setting', 'value'), rows)}" if rows else ""


def _classes(teacher: Teacher) -> str:
    if not teacher.geometry.classes:
        return "## Classes\n\nIts file does not name them; they are taken in the sorted order of the class folders."
    names = ", ".join(f"{label} {escaped(name)}" for label, name in enumerate(teacher.geometry.classes))
    return f"## Classes\n\nIn the order of its outputs: {names}."


if __name__ == "__main__":
    entry.run(main)
