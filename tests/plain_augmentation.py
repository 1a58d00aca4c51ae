"""Augmentation of one image (3, S, S), pixel by pixel."""

import math

import torch


def sampled(image, y, x):
    """Bilinear, in pixels, zeros outside; image (3, S, S)."""
    size, found = image.shape[-1], torch.zeros(3, dtype=torch.float64)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < size and 0 <= column < size:
                found += image[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return found


def moved(image, source):
    """image (3, S, S), each of whose pixels (row, column) shows what `source(row, column)` names in pixels."""
    size, found = image.shape[-1], torch.zeros_like(image)
    for row in range(size):
        for column in range(size):
            found[:, row, column] = sampled(image, *source(row, column))
    return found


def by_hand(kind, image, draws):
    size, (a, b, c) = image.shape[-1], draws.tolist()
    middle = (size - 1) / 2
    if kind == "color":
        image = image + (a - 0.5)
        gray = (image[0] + image[1] + image[2]) / 3
        image = torch.stack([(channel - gray) * 2 * b + gray for channel in image])
        return (image - image.mean()) * (c + 0.5) + image.mean()
    if kind == "crop":
        room = int(size / 8 + 0.5)
        down, right = (math.floor(value * (2 * room + 1)) - room for value in (a, b))
        return moved(image, lambda row, column: (row + down, column + right))
    if kind == "cutout":
        side = int(size / 2 + 0.5)
        top, left = (math.floor(value * (size + 1 - side % 2)) - side // 2 for value in (a, b))
        found = image.clone()
        for row in range(size):
            for column in range(size):
                if top <= row < top + side and left <= column < left + side:
                    found[:, row, column] = 0
        return found
    if kind == "flip":
        return moved(image, lambda row, column: (row, size - 1 - column)) if a < 0.5 else image
    if kind == "scale":
        across, down = (value * (1.2 - 1 / 1.2) + 1 / 1.2 for value in (a, b))
        return moved(image, lambda row, column: (middle + (row - middle) * down, middle + (column - middle) * across))
    angle = (a - 0.5) * 30 / 180 * math.pi
    cos, sin = math.cos(angle), math.sin(angle)
    return moved(
        image,
        lambda row, column: (
            middle + (column - middle) * sin + (row - middle) * cos,
            middle + (column - middle) * cos - (row - middle) * sin,
        ),
    )
