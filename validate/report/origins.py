"""Where results come from: what teachers' checkpoints and the manifests of sets say of themselves."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path, PurePosixPath
from typing import Any, Sequence

from utils.data.class_folders import in_any_order
from utils.data.gallery import ImageSet
from utils.data.image_folder import ImageFolder
from utils.data.manifest import Manifest, is_digest, part, seconds
from utils.nets import checkpoints, statistics
from utils.run.errors import UserError
from utils.run.files import read_json, sha256
from validate.report.collect import Measured, left_out, told_apart


def manifest_of(folder: Path) -> Manifest:
    """The manifest of a set; an empty one where there is none, and, as a line says, where it cannot be read."""
    with left_out(f"what {folder} says of itself"):
        return Manifest.of(folder)
    return Manifest()


def start_of(folder: Path) -> Path | None:
    """The folder of images that a recovered set started from, if it is there and holds them still.

    None for a start from noise, too. A line says where it holds other images.
    """
    found = manifest_of(folder)
    written = found.arguments.get("init_dir")
    if not starts_from_images(found) or not isinstance(written, str) or not written:
        return None
    # Beside the set if the whole run's folder was moved.
    there = [path for path in (Path(written), folder.parent / Path(written).name) if os.path.isdir(path)]
    with left_out(f"what {folder} started from"):
        if start := next((path for path in there if _is_start(path, found)), None):
            return start
        if there:
            raise UserError(f"{there[0]}: its images are not those that the manifest of the set has the digest of")
    return None


def starts_from_images(manifest: Manifest) -> bool:
    """Whether it is of a set that was recovered from images, whatever became of these."""
    init = manifest.settings.get("init")
    return init != "noise" and (is_digest(init) or bool(manifest.arguments.get("init_dir")))


def _is_start(path: Path, manifest: Manifest) -> bool:
    """Whether the images in `path`, so many of each class as were recovered, have the digest of the manifest.

    Where it has none, they count as such. Raises UserError where the folder is not whole.
    """
    init, ipc = manifest.settings.get("init"), manifest.settings.get("ipc")
    if not is_digest(init):
        return True
    known = Manifest.of(path).digests
    for images in in_any_order(path, "start", manifest.content.get("classes")):
        images = images.first(ipc) if type(ipc) is int and 0 < ipc <= images.fewest() else images
        if images.fingerprint(known) == init:
            return True
    return False


def updates(folder: Path) -> list[int] | None:
    """How many updates the image at each position of a recovered set had, by its manifest; None for other sets."""
    found = manifest_of(folder)
    settings, images = found.settings, found.images
    rounds: dict[PurePosixPath, list[int]] = {}
    try:
        iterations, round_iterations = _count(settings["iterations"]), _count(settings["round_iterations"])
        for path in sorted(images):
            rounds.setdefault(PurePosixPath(path).parent, []).append(_count(images[path]["round"]))
    except (KeyError, TypeError):
        return None
    # Positions have the same rounds in every class.
    found = [iterations - number * round_iterations for number in next(iter(rounds.values()), [])]
    return found if found and min(found) >= 0 else None


def image_sets(measured: Sequence[Measured]) -> list[ImageSet]:
    """The sets that are still on disk, each once; a recovered one stands after the images that it started from.

    Of both as many images of each class as were measured. What is not whole is left out, as a line says.
    """
    there = [one for one in measured if os.path.isdir(one.set_dir) and one.is_there]
    found = {(one.set_title, one.set_dir): one for one in there}
    titles = told_apart([(title, one.syn_dir) for (title, _), one in found.items()])
    sets = []
    for title, ((_, folder), one) in zip(titles, found.items()):
        ipc = one.arguments.get("ipc")
        if start := start_of(folder):
            recovered = manifest_of(folder).settings.get("ipc")
            sets += _images(f"{title}: start", start, ipc or recovered)
        sets += _images(title, folder, ipc, updates(folder))
    return sets


def _images(title: str, folder: Path, ipc: object, updates: list[int] | None = None) -> list[ImageSet]:
    with left_out(f"the images of {title}"):
        return [ImageSet.from_folder(title, first_images(folder, ipc), updates)]
    return []


def first_images(folder: Path, ipc: object) -> ImageFolder:
    """The first `ipc` images of each class, as --ipc takes them; all if it is no number.

    Raises UserError where they are not whole, or not as many.
    """
    images = ImageFolder(folder, "set")
    return images.first(ipc) if type(ipc) is int and ipc > 0 else images


def teacher_top1(entry: Measured) -> float | None:
    """The teacher's top-1 in percent, if it is one network, of the student's architecture, and says so.

    None for a network of an epoch before the last one: it does not tell what the whole data set gives.
    """
    teachers = _teachers(entry)
    if len(teachers) != 1 or entry.teacher != entry.student:
        return None
    epochs = part(teachers[0], "settings").get("epochs")
    return None if epochs is not None and epochs != teachers[0].get("epochs") else teachers[0].get("top1")


def making(folder: Path) -> dict[str, float]:
    """Stage -> seconds that it took to make a set, with what it starts from; of stages that say nothing, nothing.

    Statistics of several teachers are summed. What several sets share counts for each of them: alone it would take it.
    """
    found = {}
    for place in _ancestry(folder):
        manifest = manifest_of(place)
        records = [("recover" if manifest.is_recovered else "ranking", manifest.content)]
        if manifest.is_recovered:
            records += [("statistics", _beside(path)) for path in _statistics(manifest)]
        for stage, content in records:
            if "seconds" in content:
                found[stage] = found.get(stage, 0.0) + seconds(content)
    return found


def is_traced(folder: Path) -> bool:
    """Whether all is there that `making` asks: without a start its seconds are not those of the whole set."""
    return not starts_from_images(manifest_of(_ancestry(folder)[-1]))


def _ancestry(folder: Path | None) -> list[Path]:
    """A set, what it was recovered from, and so on, as far as these are there."""
    found: list[Path] = []
    while folder is not None and folder not in found:
        found.append(folder)
        folder = start_of(folder) if manifest_of(folder).is_recovered else None
    return found


def _statistics(manifest: Manifest) -> list[str]:
    """The files of statistics that a recovered set was made with."""
    given = manifest.arguments.get("statistics")
    return [path for path in given if isinstance(path, str)] if isinstance(given, list) else []


def _beside(path: str) -> dict[str, Any]:
    """What is said of a file of statistics in the one beside it; nothing where that is gone."""
    with contextlib.suppress(UserError):
        content = read_json(statistics.seconds_path(path))
        return content if isinstance(content, dict) else {}
    return {}


def stage_seconds(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Set and student -> stage -> seconds, where they are known; of validate one seed's.

    That is under the first protocol under which all sets of the group were measured, which stands behind the student;
    where there is none, nothing is said of validate.
    """
    shared = _shared_protocols(measured)
    found: dict[str, dict[str, float]] = {}
    firsts = {}
    for one in reversed(measured):
        if one.subject not in firsts or one.protocol == shared[one.group]:
            firsts[one.subject] = one
    subjects = list(dict.fromkeys(entry.subject for entry in measured))
    shown = [firsts[subject] for subject in subjects]
    titles = [one.title if shared[one.group] else f"{one.set_title}, {one.student}" for one in shown]
    words = [(title, one.dataset, one.teacher, *one.words) for title, one in zip(titles, shown)]
    for name, entry in zip(told_apart(words), shown):
        squeeze = sum(seconds(teacher) for teacher in _teachers(entry))
        made = making(entry.set_dir) if entry.is_there else {}
        stages = {"squeeze": squeeze, **made, "validate": entry.mean("seconds") if shared[entry.group] else 0.0}
        found[name] = {stage: value for stage, value in stages.items() if value}
    return found


def _shared_protocols(measured: Sequence[Measured]) -> dict[Any, str | None]:
    """Group -> the first protocol under which all of its sets were measured."""
    under: dict[Any, dict[str, dict[str, None]]] = {}  # group -> subject -> protocols
    for one in measured:
        under.setdefault(one.group, {}).setdefault(one.subject, {})[one.protocol] = None
    return {
        group: next((name for name in next(iter(sets.values())) if all(name in own for own in sets.values())), None)
        for group, sets in under.items()
    }


def _teachers(entry: Measured) -> list[dict[str, Any]]:
    """What the checkpoints of the teachers say, without the weights; nothing of those that are gone.

    Nor of those that are damaged, or others than those that labelled, as a line says.
    """
    given = entry.arguments.get("teacher_path") or []
    paths = [path for path in ([given] if isinstance(given, str) else given) if isinstance(path, str)]
    digests = entry.settings.get("teachers")
    labelled = tuple(map(str, digests)) if isinstance(digests, list) else ()
    return [_facts(path, labelled) for path in paths if os.path.isfile(path)]


@functools.cache
def _facts(path: str, labelled: tuple[str, ...]) -> dict[str, Any]:
    with left_out(f"what the teacher {path} says of itself"):
        if sha256(path) not in labelled:
            raise UserError("it is not the one of the results: it was changed since")
        return {name: value for name, value in checkpoints.read(path).items() if name != "model"}
    return {}


def _count(value: Any) -> int:
    """Raises TypeError for anything but a whole number of 0 or more that a run could have."""
    if type(value) is not int or not 0 <= value < 2**31:
        raise TypeError
    return value
