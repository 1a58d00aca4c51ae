"""python -m validate: how well do students do that were trained on these images alone?"""

from __future__ import annotations

from utils.data.class_folders import folder_for
from utils.data.datasets import first_known
from utils.data.loader import EvalBatches
from utils.data.manifest import Manifest
from utils.run import distributed, entry
from utils.run.device import Runtime
from utils.run.errors import UserError
from utils.run.memory import explain_out_of_memory
from utils.run.outputs import check_output
from validate.augment import Augmentation
from validate.flags import Job, parse
from validate.labels import StoredLabels, require_alike
from validate.measure import measure, measure_searched
from validate.sets import geometry_without_teacher, require_same_size, set_of
from validate.targets import Teachers, image_weights
from validate.trial import Experiment, Trial, claimed_run, fitted, protocol_of


def main() -> None:
    job = parse()
    runtime = job.machine.runtime()
    with distributed.process_group(runtime.device, job.training.wait):
        validate(job, runtime)


def validate(job: Job, runtime: Runtime) -> None:
    """Measure each student on each set under each protocol; all ranks together."""
    load_labels, workers = job.labels.load_labels, job.machine.workers
    stored = {seed: StoredLabels.of_all_ranks(load_labels, seed) for seed in job.seeds} if load_labels else {}
    require_alike(list(stored.values()))
    teachers = teachers_of(job, runtime, stored)
    geometry = teachers.geometry
    dataset = dataset_of(job, teachers)
    job = job.of_images(dataset, geometry.input_size)
    require_one_process(job)
    test_folder = folder_for(geometry, job.val_dir, "--val-dir")
    sets = [set_of(path, test_folder, job.classes_by) for path in job.sets]
    check_output(job.output_dir / "results.csv")
    if job.labels.save_labels:
        check_output(job.labels.save_labels)
    if job.ipc:
        sets = [folder.first(job.ipc, "leave out --ipc to take all that are there") for folder in sets]
    require_same_size(sets)
    sets[0].require_several()  # and so the others
    test = EvalBatches(test_folder, geometry.input_size, workers=workers)
    experiment = Experiment(job, runtime, teachers, stored, test, dataset)
    archs = job.student_arch or teachers.archs[:1]
    for arch in archs:
        experiment.student(arch)  # for its errors, before any student is trained
    for settings in job.protocols.values():
        Augmentation(protocol_of(experiment, settings, archs[0], sets[0]), geometry)  # for its errors, too
        if settings["image_weights"] == "on":
            for folder in sets:
                image_weights(folder)
    for folder in [*sets, test_folder]:
        folder.load(workers)

    for title, settings in job.protocols.items():
        for folder, method in zip(sets, job.sets.values()):
            for arch in archs:
                protocol = protocol_of(experiment, settings, arch, folder)
                trial = fitted(experiment, Trial(title, protocol, arch, method, folder))
                with explain_out_of_memory(trial.protocol.batch_size, 2):
                    if trial.protocol.lr_search:
                        measure_searched(experiment, trial)
                    else:
                        with claimed_run(experiment, trial) as run:
                            measure(experiment, run, trial)


def require_one_process(job: Job) -> None:
    """Raises UserError where several processes would divide the batches whose statistics the labels depend on."""
    for title, settings in job.protocols.items():
        by_batch = settings["labels"] == "soft" and settings["teacher_statistics"] == "batch"
        if by_batch and distributed.get_world_size() > 1:
            raise UserError(
                f"--protocol {title}: its labels depend on the images of a batch, which several processes "
                "would divide; give it one process, and other seeds another one"
            )


def teachers_of(job: Job, runtime: Runtime, stored: dict[int, StoredLabels]) -> Teachers:
    """Who labels: the teachers, those of the stored labels, or nobody for hard labels without a checkpoint."""
    if stored:
        for labels in stored.values():
            labels.check_flags(job.geometry)
        return next(iter(stored.values())).teachers
    workers = job.machine.workers
    if job.teacher.teacher_path or job.has_soft_labels:
        first = next(iter(job.sets))
        return Teachers.of(job.teacher.load(job.geometry, first, "--syn-dir", tuple(job.sets)), runtime)
    return Teachers(geometry_without_teacher(job.sets, job.val_dir, job.geometry, job.classes_by, workers))


def dataset_of(job: Job, teachers: Teachers) -> str | None:
    """The known data set that the flag names, or the teachers, or the manifest of a set: one for all sets."""
    return first_known(job.geometry.dataset, teachers.dataset, *(Manifest.of(path).dataset for path in job.sets))


if __name__ == "__main__":
    entry.run(main)
