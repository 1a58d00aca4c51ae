"""What a conv3 checkpoint says of images, computed in the plainest way, to compare the stages with."""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from conftest import INPUT, MEAN, PIXELS, STD


def logits(path, files, mean=MEAN, std=STD, whole=False):
    """What the conv3 in checkpoint `path` says of each image file: of its centre, or of the whole of a small one."""
    batch = []
    for file in files:
        image = Image.open(file).convert("RGB")
        if min(image.size) != PIXELS and not whole:
            image = image.resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)
        left, top = (image.width - INPUT) // 2, (image.height - INPUT) // 2
        batch.append(np.asarray(image.crop((left, top, left + INPUT, top + INPUT))) / 255)
    return logits_of(path, torch.tensor((np.stack(batch) - mean) / std, dtype=torch.float32).permute(0, 3, 1, 2))


def logits_of(path, x):
    """What it says of normalised images (N, 3, INPUT, INPUT)."""
    return features_and_logits(path, x)[1]


def features_and_logits(path, x):
    """What its last layer sees of them, and says."""
    weights = {name: tensor.to(x.dtype) for name, tensor in torch.load(path, weights_only=True)["model"].items()}
    for d in range(3):
        x = F.conv2d(x, weights[f"layers.conv.{d}.weight"], weights[f"layers.conv.{d}.bias"], padding=1)
        norm = [weights[f"layers.norm.{d}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = F.avg_pool2d(F.relu(F.batch_norm(x, *norm)), 2)
    return x.flatten(1), F.linear(x.flatten(1), weights["classifier.weight"], weights["classifier.bias"])
