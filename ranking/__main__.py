"""python -m ranking: score the real images or crops of them, select those that start the synthesis."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pandas as pd
from torch import nn

from ranking import record, score, selection
from ranking.asked import Asked
from ranking.choice import choose, chosen_from, require_enough, stream_of
from ranking.criteria import Candidates
from ranking.crops import offered, shown
from ranking.flags import Job, parse
from ranking.ranking_file import RankingFile
from ranking.score import Scorer
from ranking.selection import Selection
from utils.data.image_folder import ImageFolder
from utils.data.loader import EvalBatches
from utils.data.manifest import MANIFEST
from utils.nets import class_order
from utils.nets.class_order import Answers
from utils.nets.features import FeatureReader, extractor
from utils.nets.frozen import frozen
from utils.nets.teacher import Teacher
from utils.run import entry
from utils.run.distributed import rank_from_environment
from utils.run.errors import UserError
from utils.run.memory import explain_out_of_memory
from utils.run.outputs import check_folder, check_output, locked
from utils.run.shared_work import SharedWork
from utils.run.stopwatch import Stopwatch


def main() -> None:
    clock = Stopwatch()
    job = parse()
    if job.chooses.needs == "nothing" or job.has_ranking:
        RankingFile(job).require_no_teachers_flags()
    folder = ImageFolder(job.train_dir, "--train-dir")
    if job.output_dir:
        if job.short_classes == "error":
            require_enough(job, folder)
        check_folder(job.output_dir, MANIFEST, job.train_dir)
    if job.ranking_file:
        check_output(job.ranking_file)
        record.read(job.ranking_file)  # for its errors: what is no record is not written over
    with contextlib.ExitStack() as locks:
        if job.output_dir:
            locks.enter_context(locked(job.output_dir))
        # Nobody but rank 0 uses a file that stays, and it looks at all images.
        looks = job.overwrite or not rank_from_environment()[0]
        replaces = looks and job.has_ranking and RankingFile(job).is_others()
        # A ranking file that serves is only read, perhaps by several at a time.
        if job.ranking_file and (replaces or not job.has_ranking):
            locks.enter_context(locked(job.ranking_file))
        if replaces:
            Path(job.ranking_file).unlink(missing_ok=True)
        select = by_features if job.chooses.by_features else by_scores
        if chosen := select(job, folder, clock):
            selection.write(job, folder, chosen, clock)
            remove_parts(job)


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
        table = RankingFile(job).table(folder)
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


def scores(job: Job, asked: Asked, clock: Stopwatch) -> pd.DataFrame | None:
    """The teacher's scores, also written to --ranking-file; None where other processes have not done their pieces yet.

    The scores' `attrs["seconds"]` say how long they took.
    """
    runtime, teacher, machine = asked.runtime, asked.teacher, job.machine
    check_images(job, asked)
    network = frozen(teacher.network, runtime, teacher)
    seen, resize = shown(job, network, asked.size)
    scorer = Scorer(
        seen, teacher.geometry, runtime, asked.batch_size, machine.workers, machine.finds_batch_size, clock, resize
    )
    with explain_out_of_memory(asked.batch_size):

        def of_whole_images(answers: Answers) -> None:
            if not job.patches.crops:
                judge(job, teacher, asked.folder, answers)

        if job.patches.crops:
            judge_by_sample(job, asked, network)
        table = scorer.score(asked.images, job.parts, asked.identity, lambda: job.has_ranking, of_whole_images)
    if table is None:
        print("ranking: this process has done its pieces; the scores follow when all are done")
    elif job.ranking_file:
        about = {"arch": teacher.arch, "train_dir": job.train_dir, "precision": runtime.precision}
        seconds = round(table.attrs["seconds"], 1)
        score.write(table, job.ranking_file, {"settings": asked.settings, **about, "seconds": seconds})
        print(f"ranking: mean score {table['score'].mean():.3f}; scores: {job.ranking_file}")
    return table


def judge(job: Job, teacher: Teacher, folder: ImageFolder, answers: Answers) -> None:
    """Raises UserError where what the teacher says of whole images shows that its classes have another order."""
    try:
        class_order.check(answers, folder.classes, f"ranking: {teacher.arch}", teacher.order)
    except UserError:
        remove_parts(job)  # of no use in another order
        raise


def judge_by_sample(job: Job, asked: Asked, network: nn.Module) -> None:
    """As `judge`, by what the teacher's `network`, frozen and on the device, says of some whole images.

    Where the answers to all of them are not at hand.
    """
    if asked.teacher.order is not None:
        batches = EvalBatches(class_order.sample(asked.folder), asked.size, asked.batch_size, job.machine.workers)
        answers = Answers.to(batches, network, asked.teacher.geometry, asked.runtime)
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
    check_images(job, asked)
    scored, num_classes = job.chooses.needs == "both", teacher.geometry.num_classes
    features_of = frozen(extractor(teacher.network, scored), runtime, teacher)
    seen, resize = shown(job, features_of, asked.size)
    reader = FeatureReader(
        seen,
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
        judge_by_sample(job, asked, features_of.network)
    with explain_out_of_memory(asked.batch_size), SharedWork(job.parts, wanted, len(folder.classes), is_done) as work:
        for label, features in reader.by_class(images, "features", work.take()):
            tiles = images.tiles(label)
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


def check_images(job: Job, asked: Asked) -> None:
    """Decode the images once, before the long work; of several processes each a part."""
    asked.images.check(job.machine.workers)
    what = "crops" if job.patches.crops else "images"
    print(f"ranking: {len(asked.images):,} {what} by {asked.teacher.arch} ({asked.size} px), {asked.runtime}")


def remove_parts(job: Job) -> None:
    """Remove what the work left beside its output, also where a process was killed after the output was complete."""
    SharedWork.discard(job.parts)
    if job.has_ranking:
        with contextlib.suppress(UserError), locked(job.ranking_file):  # a lock that a killed process left
            pass


if __name__ == "__main__":
    entry.run(main)
