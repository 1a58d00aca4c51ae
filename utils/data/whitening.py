"""ZCA-whitened images, as some projects keep their sets, and the pixels that they stand for."""

from __future__ import annotations

import numpy as np
import torch

from utils.data.image_folder import ImageFolder
from utils.data.images import resize_whole
from utils.data.loader import EvalBatches
from utils.run.errors import UserError
from utils.run.progress import progress

ZCA_EPS = 0.1  # of kornia's ZCAWhitening in MTT and DATM


def unwhitened(images: np.ndarray, folder: ImageFolder, eps: float) -> np.ndarray:
    """The pixels (N, H, W, 3), from 0 to 1 but for what was learnt, of whitened images (N, H, W, 3).

    Whitening is (x - m) U (S + eps)^(-1/2) U^T, where m is the mean of the training images in `folder`, flattened
    channel by channel, and U S U^T their covariance. Raises UserError for images that are not square.
    """
    height, width = images.shape[1:3]
    if height != width:
        raise UserError(f"--zca: images of {height} x {width} pixels; square ones are needed")
    mean, covariance = _moments(folder, height)
    values, vectors = torch.linalg.eigh(covariance)
    inverse = vectors * (values.clamp_min(0) + eps).sqrt() @ vectors.T
    flat = torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2).flatten(1)
    pixels = (flat @ inverse + mean).view(-1, 3, height, width)
    return pixels.permute(0, 2, 3, 1).numpy()


def _moments(folder: ImageFolder, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of the images from 0 to 1, D = 3 size^2, in float64."""
    total, squares = torch.zeros(3 * size**2, dtype=torch.float64), 0
    with progress(total=len(folder), desc="whitening", unit="img", leave=False) as bar:
        for batch, _ in EvalBatches(folder, size, 1024, resize=resize_whole):
            rows = batch.flatten(1).double() / 255
            total += rows.sum(0)
            squares = squares + rows.T @ rows
            bar.update(len(rows))
    count = len(folder)
    mean = total / count
    return mean, (squares - count * torch.outer(mean, mean)) / (count - 1)
