"""A ranking file that is there: whether it serves, and its scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ranking import record, score
from ranking.flags import Job
from utils.cli import spelled
from utils.data.class_folders import folder_for
from utils.data.datasets import known
from utils.data.geometry import GeometryFlags
from utils.data.image_folder import ImageFolder
from utils.data.manifest import seconds
from utils.nets import judge, models
from utils.nets.teacher import Teacher
from utils.run.errors import UserError
from utils.run.files import differences, sha256

ROLE = "--train-dir"
DRAWN = ("candidates", "seed", "crops", "tiles")  # of crops: scores of whole images have none of them


@dataclass(frozen=True)
class RankingFile:
    """The command line's --ranking-file, and what it says of images and teacher."""

    job: Job

    @property
    def path(self) -> str | None:
        """None: no scores are read."""
        return self.job.ranking_file

    @property
    def has_teacher(self) -> bool:
        dataset = known(self.job.geometry.dataset)
        pretrained = self.job.teacher.teacher_arch and dataset and dataset.pretrained
        return bool(self.job.teacher.teacher_path or pretrained)

    def require_no_teachers_flags(self) -> None:
        """Raises UserError where a flag describes a teacher, and there is none that would be looked at."""
        for arch in self.job.teacher.teacher_arch or ():
            models.require_known(arch)
        if self.has_teacher:
            return
        flags = {"teacher_arch": self.job.teacher.teacher_arch, "classes": self.job.teacher.classes}
        flags |= {name: getattr(self.job.geometry, name) for name in ("mean", "std", "stem")}
        if given := [spelled(name) for name, value in flags.items() if value is not None]:
            source = f"the scores are those of {self.path}" if self.path else "nothing is scored"
            raise UserError(f"{given[0]} describes a teacher, and {source}: leave it out, or give --teacher-path")

    def is_others(self) -> bool:
        """Whether its scores are another teacher's, or other images', and are to be replaced.

        A file without a record is never replaced. Raises UserError where they are, without --overwrite and a teacher.
        """
        about = record.read(self.path)
        if about is None:
            return False
        scored = {"arch": about.get("arch"), **about["settings"]}  # only some teachers' settings have it
        differing = differences(scored, {**scored, **self._current(scored)})
        if differing and not (self.job.overwrite and self.has_teacher):
            anew = "--overwrite" if self.has_teacher else "--overwrite and --teacher-path"
            raise UserError(
                f"--ranking-file {self.path}: its scores are others ({differing}); give what they were made with, "
                f"another --ranking-file, or {anew} to score anew (without {record.path_of(self.path)} they are "
                "taken as they are)"
            )
        return bool(differing)

    def _current(self, scored: dict[str, Any]) -> dict[str, Any]:
        """What would score what now, as far as it takes to tell a difference from what was `scored`."""
        drawn = {**dict.fromkeys(DRAWN), **self.job.drawn}
        if not self.has_teacher:
            if (size := self.job.geometry.input_size) and not self.job.patches.makes_images:
                drawn["input_size"] = size
            owner = str(record.path_of(self.path))
            return drawn | record.images_of(ImageFolder(self.job.train_dir, ROLE, scored.get("classes"), owner))
        given = self.job.geometry
        for path in self.job.teacher.teacher_path or ():
            if Path(path).is_file():  # else loading says what is wrong
                if (found := sha256(path)) != scored.get("teacher"):
                    return {**drawn, "teacher": found}
                # The same file: the images need not be decoded to know their size, as their bytes are compared.
                given = replace(given, input_size=given.input_size or scored.get("input_size"))
        teacher = self._load(given)
        return drawn | record.settings_of(teacher, folder_for(teacher.geometry, self.job.train_dir, ROLE))

    def table(self, folder: ImageFolder) -> pd.DataFrame:
        """Its scores of the images in `folder`; its `attrs` have what is known of `seconds` and `input_size`.

        Nobody vouches for a file without a record: one line says so, and where a teacher is given that does not say
        the order of its classes, this is judged. Raises UserError where it cannot be the folders'.
        """
        table = score.read(self.path, folder, of_crops="crops" in self.job.drawn)
        source = f"ranking: {len(table):,} scores from {self.path}"
        if about := record.read(self.path):
            table.attrs |= {"seconds": seconds(about), "input_size": record.input_size(about)}
            print(source + self._other_precision(about.get("precision")))
            return table
        changed = record.path_of(self.path).exists()
        print(
            f"{source}: {'they have changed' if changed else 'nothing says what made them'}, and are taken as they are"
        )
        self._say_chance(table, len(folder.classes))
        if self.has_teacher and (teacher := self._load(self.job.geometry)).order is not None:
            own = folder_for(teacher.geometry, self.job.train_dir, ROLE)
            judge.by_sample("ranking", teacher, own, self.job.machine.runtime(), self.job.machine.workers)
        return table

    def _other_precision(self, scored: Any) -> str:
        asked = self.job.machine.precision
        if scored is None or asked in ("auto", scored):
            return ""
        return f", made in {scored}; for {asked} give another --ranking-file"

    def _say_chance(self, table: pd.DataFrame, classes: int) -> None:
        mean, chance = table["score"].mean(), 1 / classes
        if table["score"].between(0, 1).all() and mean < chance + min(chance, 0.1) / 2:
            print(
                f"ranking: the mean score is {mean:.3f}, near chance ({chance:.3f}) or below: a teacher whose labels "
                "have another order gives such scores"
            )

    def _load(self, given: GeometryFlags) -> Teacher:
        [teacher] = self.job.teacher.load(given, self.job.train_dir, ROLE)
        return teacher
