"""python -m ranking: score the real images or crops of them, select those that start the synthesis."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import nn

from ranking import crops, record, score, selection
from ranking.criteria import Candidates
from ranking.crops import BOX, Centred, Crops
from ranking.existing import Existing
from ranking.flags import BATCH_SIZE, Job, parse
from ranking.score import Scorer
from ranking.selection import Selection
from utils.data.class_folders import folder_for
from utils.data.image_folder import ImageFolder
from utils.data.images import resize_for_test
from utils.data.loader import EvalBatches, Resize
from utils.data.manifest import MANIFEST
from utils.data.tiles import Tile
from utils.nets import class_order
from utils.nets.class_order import Answers
from utils.nets.features import FeatureReader, extractor
from utils.nets.frozen import frozen
from utils.nets.teacher import Teacher
from utils.run import entry
from utils.run.device import Runtime
from utils.run.distributed import rank_from_environment
from utils.run.errors import UserError, listed
from utils.run.files import digest
from utils.run.memory import explain_out_of_memory
from utils.run.outputs import check_folder, check_output, locked
from utils.run.shared_work import SharedWork
from utils.run.stopwatch import Stopwatch

GO_ON = "--short-classes repeat or keep to go on with those that are there"


@dataclass(frozen=True)
class Asked:
    """What a teacher is asked: of which images, and all that decides its answers to the last bit."""

    runtime: Runtime
    teacher: Teacher
    folder: ImageFolder  # the train folder in the teacher's label order
    images: ImageFolder  # those that are offered, or crops of them
    batch_size: int
    settings: dict  # as a ranking file records them

    @classmethod
    def of(cls, job: Job) -> Asked:
        runtime = job.machine.runtime()
        [teacher] = job.teacher.load(job.geometry, job.train_dir, "--train-dir", job.machine.workers)
        folder = folder_for(teacher.geometry, job.train_dir, "--train-dir")
        batch_size = job.machine.batch_size_for(teacher, BATCH_SIZE, job.output, runtime)
        images = offered(job, folder, teacher.geometry.input_size)
        return cls(runtime, teacher, folder, images, batch_size, {**record.settings_of(teacher, folder), **job.drawn})

    @property
    def size(self) -> int:
        return self.teacher.geometry.input_size

    @property
    def identity(self) -> dict:
        return {**self.settings, "batch_size": self.batch_size, **self.runtime.identity}

    def request(self, job: Job) -> str:
        """Names a choice: by whose answers, and what is chosen."""
        return digest(
            {
                **self.identity,
                "criterion": job.criterion,
                "ipc": job.ipc,
                "short_classes": job.short_classes,
                "tiles": job.patches.tiles,
                **({"seed": job.seed} if job.chooses.draws else {}),
            }
        )


def main() -> None:
    clock = Stopwatch()
    job = parse()
    if job.chooses.needs == "nothing" or job.has_ranking:
        existing(job).require_no_teachers_flags()
    folder = ImageFolder(job.train_dir, "--train-dir")
    if job.output_dir:
        if job.short_classes == "error":
            require(job, folder)
        check_folder(job.output_dir, MANIFEST, job.train_dir)
    if job.ranking_file:
        check_output(job.ranking_file)
        record.read(job.ranking_file)  # for its errors: what is no record is not written over
    with contextlib.ExitStack() as locks:
        if job.output_dir:
            locks.enter_context(locked(job.output_dir))
        # Nobody but rank 0 uses a file that stays, and it looks at all images.
        looks = job.overwrite or not rank_from_environment()[0]
        replaces = looks and job.has_ranking and existing(job).is_others(job.overwrite)
        # A ranking file that serves is only read, perhaps by several at a time.
        if job.ranking_file and (replaces or not job.has_ranking):
            locks.enter_context(locked(job.ranking_file))
        if replaces:
            Path(job.ranking_file).unlink(missing_ok=True)
        select = by_features if job.chooses.by_features else by_scores
        if chosen := select(job, folder, clock):
            selection.write(job, folder, chosen, clock)
            remove_parts(job)


def require(job: Job, folder: ImageFolder) -> None:
    """Raises UserError where a class has too few images."""
    if not job.patches.makes_images:
        folder.require(job.ipc, f"give at most --ipc {folder.fewest()}, or {GO_ON}")
    elif (has := folder.fewest() * job.patches.per_image) < job.needed:
        name = folder.classes[min(range(len(folder.classes)), key=lambda label: len(folder.span(label)))]
        raise UserError(
            f"{folder.role} {folder.root}: class '{name}' has {folder.fewest()} images to choose {job.needed} tiles "
            f"from (--ipc {job.ipc}, --tiles {job.patches.tiles}); give at most --ipc {has // job.patches.in_output}, "
            f"more --crops, or {GO_ON}"
        )


def by_scores(job: Job, folder: ImageFolder, clock: Stopwatch) -> Selection | None:
    """The choice by scores, which a ranking file has, or the teacher gives.

    None where nothing is to be selected, other processes have not done their pieces yet, or one of them will select.
    """
    rank, _ = rank_from_environment()
    if rank and (job.chooses.needs == "nothing" or job.has_ranking):
        print("ranking: nothing to score; rank 0 makes the selection")
        return None
    size = request = None  # without scores
    if job.chooses.needs == "nothing":
        table = score.rows_of(offered(job, folder, 1))
    elif job.has_ranking:
        table = existing(job).table(folder)
        size = table.attrs.get("input_size")
    else:
        asked = Asked.of(job)
        size = asked.size
        if not job.ranking_file:  # which would have kept the scores
            request = asked.request(job)
            if (chosen := selection.existing(job, asked.images, request)) is not None:
                return Selection(chosen, 0.0, size, request)
        if (table := scores(job, asked, clock)) is None:
            return None
    if not job.output_dir:
        remove_parts(job)
        return None
    return Selection(chosen_from(job, folder, table), table.attrs.get("seconds", 0.0), size, request)


def chosen_from(job: Job, folder: ImageFolder, table: pd.DataFrame) -> dict[str, list[Tile]]:
    """What is chosen of each class from the rows of `table`. Raises UserError where a class has too few images."""
    if job.patches.candidates and not job.patches.crops:  # a ranking file has all images
        table = table[table["img_path"].isin(crops.candidates(folder, job.patches.candidates, job.seed).paths)]
    rows = {name: group for name, group in table.groupby("class")}
    counts = {name: len(rows.get(name, ())) for name in folder.classes}
    least = job.needed if job.short_classes == "error" else 1
    if few := [f"{name} ({n})" for name, n in counts.items() if n < least]:
        most = min(counts.values()) // job.patches.in_output
        advice = f"at most {most} can be selected" + (f", or give {GO_ON}" if min(counts.values()) else "")
        raise UserError(f"--ipc {job.ipc}: too few images in class {listed(few, 5)}; {advice}")
    chosen = {}
    for name in folder.classes:
        found = rows[name]
        if job.patches.crops and job.chooses.needs == "scores":
            found = crops.best(found, job.needed)
        boxes = [tuple(map(int, box)) for box in found[BOX].to_numpy()] if job.patches.crops else [None] * len(found)
        tiles = list(map(Tile, found["img_path"], boxes))
        images = Candidates(found["img_path"].tolist(), stream_of(job, name), found["score"].tolist())
        chosen[name] = choose(job, name, tiles, images)
    return chosen


def stream_of(job: Job, name: str) -> tuple | None:
    """Names the random stream of class `name`, for a criterion that draws."""
    return (job.seed, "random selection", name) if job.chooses.draws else None


def choose(job: Job, name: str, tiles: list[Tile], images: Candidates) -> list[Tile]:
    """The chosen ones of class `name`'s `tiles`, in order; of a class with too few as --short-classes says.

    Raises UserError where the criterion gives other than as many different ones as are asked for.
    """
    count = min(job.needed, len(tiles))
    given = list(map(int, job.chooses.choose(images, count)))
    valid = {index for index in given if 0 <= index < len(tiles)}
    if not len(given) == len(valid) == count:
        raise UserError(
            f"--criterion {job.criterion}: chose {len(given)} of class '{name}', {len(valid)} of them different ones "
            f"from 0 to {len(tiles) - 1}; its function has to give {count} different indices"
        )
    found = [tiles[index] for index in given]
    if job.short_classes == "repeat":
        found = [found[position % len(found)] for position in range(job.needed)]
    return found


def scores(job: Job, asked: Asked, clock: Stopwatch) -> pd.DataFrame | None:
    """The teacher's scores, also written to --ranking-file; None where other processes have not done their pieces yet.

    The scores' `attrs["seconds"]` say how long they took.
    """
    runtime, teacher, machine = asked.runtime, asked.teacher, job.machine
    check_images(asked.images, teacher, runtime, machine.workers)
    network, resize = shown(job, frozen(teacher.network, runtime, teacher), asked.size)
    scorer = Scorer(
        network, teacher.geometry, runtime, asked.batch_size, machine.workers, machine.finds_batch_size, clock, resize
    )
    with explain_out_of_memory(asked.batch_size):

        def of_whole_images(answers: Answers) -> None:
            if not job.patches.crops:
                judge(job, teacher, asked.folder, answers)

        if job.patches.crops:
            judge_by_sample(job, asked)
        table = scorer.score(asked.images, job.parts, asked.identity, lambda: job.has_ranking, of_whole_images)
    if table is None:
        print("ranking: this process has done its pieces; the scores follow when all are done")
    elif job.ranking_file:
        about = {"arch": teacher.arch, "train_dir": job.train_dir, "precision": runtime.precision}
        seconds = round(table.attrs["seconds"], 1)
        score.write(table, job.ranking_file, {"settings": asked.settings, **about, "seconds": seconds})
        print(f"ranking: mean score {table['score'].mean():.3f}; scores: {job.ranking_file}")
    return table


def offered(job: Job, folder: ImageFolder, size: int) -> ImageFolder:
    """What is chosen among, as the teacher of `size` pixels sees it: images of `folder`, or crops of them."""
    patches = job.patches
    if job.scores_all:
        return folder
    images = crops.candidates(folder, patches.candidates, job.seed)
    return Crops(images, patches.crops, max(size // patches.tiles, 1), job.seed) if patches.crops else images


def shown(job: Job, network: nn.Module, size: int) -> tuple[nn.Module, Resize]:
    """The network as it sees what is offered, and how that is resized for it."""
    return (Centred(network, size), crops.as_they_are) if job.patches.crops else (network, resize_for_test)


def judge(job: Job, teacher: Teacher, folder: ImageFolder, answers: Answers) -> None:
    """Raises UserError where what the teacher says of whole images shows that its classes have another order."""
    try:
        class_order.check(answers, folder.classes, f"ranking: {teacher.arch}", teacher.order)
    except UserError:
        remove_parts(job)  # of no use in another order
        raise


def judge_by_sample(job: Job, asked: Asked) -> None:
    """As `judge`, by some whole images, where the answers to all of them are not at hand; the network is frozen."""
    if asked.teacher.order is not None:
        batches = EvalBatches(class_order.sample(asked.folder), asked.size, asked.batch_size, job.machine.workers)
        answers = Answers.to(batches, asked.teacher.network, asked.teacher.geometry, asked.runtime)
        judge(job, asked.teacher, asked.folder, answers)


def by_features(job: Job, folder: ImageFolder, clock: Stopwatch) -> Selection | None:
    """The choice by the teacher's features, of all crops where there are crops.

    One class's features are held at a time. None where other processes have not done their classes yet.
    """
    asked = Asked.of(job)
    runtime, teacher, folder, images = asked.runtime, asked.teacher, asked.folder, asked.images
    request = asked.request(job)
    if (chosen := selection.existing(job, images, request)) is not None:
        return Selection(chosen, 0.0, asked.size, request)
    check_images(images, teacher, runtime, job.machine.workers)
    scored, num_classes = job.chooses.needs == "both", teacher.geometry.num_classes
    network, resize = shown(job, frozen(extractor(teacher.network, scored), runtime, teacher), asked.size)
    reader = FeatureReader(
        network,
        teacher.geometry,
        runtime,
        asked.batch_size,
        job.machine.workers,
        resize,
        may_split=job.machine.finds_batch_size,
    )

    finished = []  # gets the selection, if another process puts it together meanwhile

    def is_done(label: int) -> bool:
        if work.record(label) is None and not finished:
            finished.extend(filter(None, [selection.existing(job, images, request)]))
        return bool(finished) or work.record(label) is not None

    wanted = {"request": request}
    if scored:
        judge_by_sample(job, asked)
    with explain_out_of_memory(asked.batch_size), SharedWork(job.parts, wanted, len(folder.classes), is_done) as work:
        for label, features in reader.by_class(images, "features", work.take()):
            tiles = crops.tiles_of(images, label)
            scores = None
            if scored:
                features, logits = features.split([features.shape[1] - num_classes, num_classes], 1)
                scores = logits.softmax(1)[:, label].tolist()
            stream, own = stream_of(job, folder.classes[label]), [tile.path for tile in tiles]
            chosen = choose(job, folder.classes[label], tiles, Candidates(own, stream, scores, features))
            paths, boxes = [tile.path for tile in chosen], [tile.box for tile in chosen]
            work.save(label, {"chosen": paths, "boxes": boxes, "seconds": clock.lap()})
        found = work.records()
    if found is None:
        print("ranking: this process has done its classes; the selection follows when all are done")
        return None
    pairs = zip(folder.classes, found)
    chosen = {name: selection.tiles_from(entry["chosen"], entry.get("boxes")) for name, entry in pairs}
    return Selection(chosen, sum(entry.get("seconds", 0.0) for entry in found), asked.size, request)


def check_images(images: ImageFolder, teacher: Teacher, runtime: Runtime, workers: int | None) -> None:
    """Decode the images once, before the long work; of several processes each a part."""
    images.check(workers)
    what = "crops" if isinstance(images, Crops) else "images"
    print(f"ranking: {len(images):,} {what} by {teacher.arch} ({teacher.geometry.input_size} px), {runtime}")


def existing(job: Job) -> Existing:
    return Existing(
        job.ranking_file,
        job.train_dir,
        job.teacher,
        job.geometry,
        job.machine,
        job.drawn,
        job.patches.makes_images,
    )


def remove_parts(job: Job) -> None:
    """Remove what the work left beside its output, also where a process was killed after the output was complete."""
    SharedWork.discard(job.parts)
    if job.has_ranking:
        with contextlib.suppress(UserError), locked(job.ranking_file):  # a lock that a killed process left
            pass


if __name__ == "__main__":
    entry.run(main)
