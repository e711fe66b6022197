"""What the server measures once on clean images: γ, how hard the images are, how embarrassed each class is."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import normalise
from edge_sel.pack.manifest import Calibration
from edge_sel.sel.embarrassment import class_embarrassment, cross_entropy
from edge_sel.sel.guilt import calibrate_gamma

MAX_IMAGES = 5000
GAMMA_BATCH = 64


def calibrate(
    model: nn.Module,
    images: ImageSet,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    gamma_percentile: float,
    rng: np.random.Generator,
) -> Calibration:
    """Measure the calibration block of a manifest on at most ``MAX_IMAGES`` images.

    γ is the percentile of |gradient| over every parameter for one batch in evaluation mode (SEL benchmark README:
    p40; SEL v3: p20).
    """
    order = rng.permutation(len(images))[:MAX_IMAGES]
    labels = images.labels[order]
    logits = np.concatenate(
        [
            _logits(model, normalise(images.read(chunk), mean, std))
            for chunk in np.array_split(order, -(-len(order) // 256))
        ]
    )
    losses = cross_entropy(logits, labels)
    embarrassment = class_embarrassment(logits, labels, len(images.classes))
    return Calibration(
        gamma=float(_gamma(model, images, order[:GAMMA_BATCH], mean, std, gamma_percentile)),
        gamma_percentile=gamma_percentile,
        difficulty=tuple(float(q) for q in np.quantile(losses, np.linspace(0, 1, 11))),
        embarrassment=tuple(None if np.isnan(e) else float(e) for e in embarrassment),
        accuracy=float((logits.argmax(1) == labels).mean()),
        images=len(order),
    )


@torch.inference_mode()
def _logits(model: nn.Module, x: np.ndarray) -> np.ndarray:
    result: np.ndarray = model.eval()(torch.from_numpy(x)).numpy()
    return result


def _gamma(
    model: nn.Module,
    images: ImageSet,
    indices: np.ndarray,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    p: float,
) -> float:
    x = torch.from_numpy(normalise(images.read(indices), mean, std))
    loss = F.cross_entropy(model.eval()(x), torch.from_numpy(images.labels[indices]))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return float(calibrate_gamma([g.numpy() for g in gradients], p))
