"""The published loops, written plainly: what the speed of this project is measured against.

fp32, eager, NCHW; a hook on each BatchNorm that computes mean and variance in separate passes; torchvision transforms
built anew at each step; images decoded again in each epoch by DataLoader workers; the teacher's fp32 labels of each
batch; the extra student forward that published code spends on training accuracy. Nothing here is to be made faster.

`python -m benchmarks.plain INIT_DIR TEACHER.pth SYN_DIR` runs the recovery alone and writes an ImageFolder.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from utils import cli
from utils.data.geometry import Geometry, GeometryFlags
from utils.nets.teacher import load_teacher
from utils.run.cpus import available_cpus

WORKERS = min(4, available_cpus())


class StatisticsHook:
    """How far the input of a BatchNorm is from its running statistics, after each forward pass."""

    def __init__(self, norm: nn.BatchNorm2d):
        norm.register_forward_hook(self)

    def __call__(self, norm: nn.BatchNorm2d, inputs: tuple, output: torch.Tensor) -> None:
        channels = inputs[0].shape[1]
        mean = inputs[0].mean([0, 2, 3])
        var = inputs[0].permute(1, 0, 2, 3).contiguous().reshape(channels, -1).var(1, unbiased=False)
        self.distance = torch.norm(norm.running_var - var, 2) + torch.norm(norm.running_mean - mean, 2)


class PlainRecovery:
    """EarlyLate on one batch: images (N, 3, S, S), labels (N,), and the iteration at which each image joins."""

    lr, r_bn, first_bn, min_crop = 0.25, 0.01, 10.0, 0.08

    def __init__(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        starts: list[int],
        normalisation: tuple[tuple, tuple],
        iterations: int = 4000,
    ):
        self.model = model.eval().requires_grad_(False).to(images.device)
        self.hooks = [StatisticsHook(module) for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        self.starts = sorted(set(starts))
        members = [[i for i, start in enumerate(starts) if start == group] for group in self.starts]
        self.order = torch.tensor([i for group in members for i in group]).argsort()
        self.groups = [images[group].clone().requires_grad_() for group in members]
        self.labels = [labels[group] for group in members]
        self.optimizers = [torch.optim.Adam([group], lr=self.lr, betas=(0.5, 0.9), eps=1e-8) for group in self.groups]
        (self.mean, self.std), self.size = normalisation, images.shape[-1]
        self.iterations, self.iteration = iterations, 0

    def step(self) -> float:
        share = 0.5 * (1 + math.cos(math.pi * self.iteration / self.iterations))
        active = sum(start <= self.iteration for start in self.starts)
        augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(self.size, scale=(self.min_crop + (1 - self.min_crop) * share, 1.0)),
                transforms.RandomHorizontalFlip(),
            ]
        )
        outputs = self.model(augment(torch.cat(self.groups[:active])))
        loss = nn.functional.cross_entropy(outputs, torch.cat(self.labels[:active]))
        weights = [self.first_bn] + [1.0] * (len(self.hooks) - 1)
        loss = loss + self.r_bn * sum(weight * hook.distance for weight, hook in zip(weights, self.hooks))
        for optimizer in self.optimizers[:active]:
            optimizer.param_groups[0]["lr"] = self.lr * share
            optimizer.zero_grad()
        loss.backward()
        for optimizer, group in zip(self.optimizers[:active], self.groups):
            optimizer.step()
            for channel, (mean, std) in enumerate(zip(self.mean, self.std)):
                group.data[:, channel] = torch.clamp(group.data[:, channel], -mean / std, (1 - mean) / std)
        self.iteration += 1
        return loss.item()

    def images(self) -> torch.Tensor:
        return torch.cat([group.detach() for group in self.groups])[self.order]


def recover(args: argparse.Namespace) -> None:
    """The selection in `init_dir`, class after class in batches of whole classes, to PNGs in `syn_dir`."""
    torch.manual_seed(args.seed)
    init_dir, iterations, round_iterations = args.init_dir, args.iterations, args.round_iterations
    folder = datasets.ImageFolder(init_dir)
    teacher = load_teacher(args.arch, args.teacher_path, GeometryFlags(input_size=folder[0][0].width))
    mean, std = teacher.geometry.mean, teacher.geometry.std
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    ipc = len(folder) // len(folder.classes)
    size, rest = divmod(ipc, iterations // round_iterations)
    round_of = [
        i // (size + 1) if i < rest * (size + 1) else rest + (i - rest * (size + 1)) // size for i in range(ipc)
    ]
    step = args.batch_size // ipc * ipc
    for first in range(0, len(folder), step):
        indices = range(first, min(first + step, len(folder)))
        images = torch.stack([prepare(folder[i][0]) for i in indices]).to(args.device)
        labels = torch.tensor([folder[i][1] for i in indices], device=args.device)
        starts = [round_of[i % ipc] * round_iterations for i in indices]
        loop = PlainRecovery(teacher.network, images, labels, starts, (mean, std), iterations)
        for _ in range(iterations):
            loop.step()
        for image, i in zip(loop.images().cpu(), indices):
            for channel in range(3):
                image[channel] = image[channel] * std[channel] + mean[channel]
            path = Path(args.syn_dir) / Path(folder.imgs[i][0]).relative_to(init_dir).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()).save(path)


class PlainStudent:
    """The training of a student under the teacher's soft labels, and its evaluation."""

    lr, temperature = 0.001, 20.0

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        folders: tuple[str, str],
        geometry: Geometry,
        batch_size: int,
        device: str,
    ):
        """`folders`: of the student's images, and of the test images."""
        (syn_dir, val_dir), size = folders, geometry.input_size
        self.student, self.teacher = student.to(device), teacher.eval().to(device)
        self.device = device
        finish = [transforms.ToTensor(), transforms.Normalize(geometry.mean, geometry.std)]
        augment = transforms.Compose(
            [
                rand_augment_transform("rand-m6-n2-mstd1.0", {"translate_const": int(size * 0.45)}),
                transforms.RandomResizedCrop(size, scale=(0.25, 1.0)),
                transforms.RandomHorizontalFlip(),
                *finish,
            ]
        )
        geometry = transforms.Compose([transforms.Resize(size // 7 * 8), transforms.CenterCrop(size), *finish])
        self.batches = DataLoader(datasets.ImageFolder(syn_dir, augment), batch_size, shuffle=True, num_workers=WORKERS)
        self.test = DataLoader(datasets.ImageFolder(val_dir, geometry), batch_size, num_workers=WORKERS)
        self.optimizer = torch.optim.AdamW(student.parameters(), self.lr, betas=(0.9, 0.999), weight_decay=0.01)

    def epoch(self) -> None:
        self.student.train()
        hits = 0
        for images, labels in self.batches:
            images, labels = images.to(self.device), labels.to(self.device)
            with torch.no_grad():
                mixed = cutmix(images)
                target = torch.softmax(self.teacher(mixed) / self.temperature, 1)
            predicted = self.student(images)  # for the training accuracy alone
            hits += (predicted.argmax(1) == labels).sum().item()
            output = torch.log_softmax(self.student(mixed) / self.temperature, 1)
            loss = nn.functional.kl_div(output, target, reduction="batchmean")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> float:
        self.student.eval()
        hits = sum(
            (self.student(images.to(self.device)).argmax(1).cpu() == labels).sum().item()
            for images, labels in self.test
        )
        return 100 * hits / len(self.test.dataset)


def cutmix(images: torch.Tensor) -> torch.Tensor:
    """Each image with a rectangle of another; the share of its area from Beta(1, 1)."""
    size, keep = images.shape[-1], torch.rand(()).item()
    side = int(size * math.sqrt(1 - keep))
    row, column = torch.randint(size, (2,)).tolist()
    top, left = max(row - side // 2, 0), max(column - side // 2, 0)
    bottom, right = min(row + side // 2, size), min(column + side // 2, size)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[torch.randperm(len(images)), :, top:bottom, left:right]
    return mixed


class PlainTeacher:
    """The training of a teacher on an ImageFolder of small images."""

    def __init__(self, model: nn.Module, train_dir: str, geometry: Geometry, batch_size: int, device: str):
        self.model, self.device = model.to(device), device
        size, mean, std = geometry.input_size, geometry.mean, geometry.std
        augment = transforms.Compose(
            [
                transforms.RandomCrop(size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )
        self.batches = DataLoader(
            datasets.ImageFolder(train_dir, augment), batch_size, shuffle=True, num_workers=WORKERS
        )
        self.optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def epoch(self) -> None:
        self.model.train()
        for images, labels in self.batches:
            images, labels = images.to(self.device), labels.to(self.device)
            output = self.model(images)
            loss = nn.functional.cross_entropy(output, labels)
            self.hits = (output.argmax(1) == labels).sum().item()  # shown at each step by published code
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


@torch.no_grad()
def plain_scores(model: nn.Module, train_dir: str, geometry: Geometry, batch_size: int, device: str) -> list[float]:
    """softmax(model(image))[class] of each image in the test geometry."""
    model, size = model.eval().to(device), geometry.input_size
    finish = [transforms.ToTensor(), transforms.Normalize(geometry.mean, geometry.std)]
    prepare = transforms.Compose([transforms.Resize(size // 7 * 8), transforms.CenterCrop(size), *finish])
    scores = []
    for images, labels in DataLoader(datasets.ImageFolder(train_dir, prepare), batch_size, num_workers=WORKERS):
        found = torch.softmax(model(images.to(device)), 1)
        scores += found[torch.arange(len(labels)), labels].tolist()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain", description=recover.__doc__)
    parser.add_argument("init_dir")
    parser.add_argument("teacher_path")
    parser.add_argument("syn_dir")
    parser.add_argument("--arch", help="where the checkpoint does not say it")
    parser.add_argument("--iterations", type=cli.positive, default=1000)
    parser.add_argument("--round-iterations", type=cli.non_negative, default=125)
    parser.add_argument("--batch-size", type=cli.positive, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    recover(parser.parse_args())


if __name__ == "__main__":
    main()
