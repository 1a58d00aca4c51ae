"""Whether a teacher's classes have the order in which they are taken, by what it says of some of their images."""

from __future__ import annotations

import copy

from utils.data.image_folder import ImageFolder
from utils.data.images import resize_for_test
from utils.data.loader import EvalBatches, Resize
from utils.nets import class_order
from utils.nets.class_order import Answers
from utils.nets.frozen import frozen
from utils.nets.teacher import Teacher
from utils.run.device import Runtime


def by_sample(
    stage: str,
    teacher: Teacher,
    folder: ImageFolder,
    runtime: Runtime,
    workers: int | None,
    resize: Resize = resize_for_test,
) -> None:
    """Judge the order of the classes of a teacher that does not say it itself, by some images of each in `folder`.

    Its network is left as it is. Raises UserError where the order cannot be its own.
    """
    if teacher.order is None:
        return
    images = EvalBatches(class_order.sample(folder), teacher.geometry.input_size, workers=workers, resize=resize)
    network = frozen(copy.deepcopy(teacher.network), runtime, teacher)
    answers = Answers.to(images, network, teacher.geometry, runtime)
    class_order.check(answers, folder.classes, f"{stage}: {teacher.arch}", teacher.order)
