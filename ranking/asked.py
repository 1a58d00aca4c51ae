"""What ranking asks a teacher, and what names the question and the choice by its answers."""

from __future__ import annotations

from dataclasses import dataclass

from ranking import record
from ranking.crops import Offered, offered
from ranking.flags import BATCH_SIZE, Job
from utils.data.class_folders import folder_for
from utils.data.image_folder import ImageFolder
from utils.nets.teacher import Teacher
from utils.run.device import Runtime
from utils.run.files import digest


@dataclass(frozen=True)
class Asked:
    """What a teacher is asked: of which images, and all that decides its answers to the last bit."""

    runtime: Runtime
    teacher: Teacher
    folder: ImageFolder  # the train folder in the teacher's label order
    images: Offered  # those that are offered, or crops of them
    batch_size: int
    settings: dict  # as a ranking file records them

    @classmethod
    def of(cls, job: Job) -> Asked:
        runtime = job.machine.runtime()
        [teacher] = job.teacher.load(job.geometry, job.train_dir, "--train-dir")
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
