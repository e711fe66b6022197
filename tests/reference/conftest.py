"""Three colours to tell apart, a model that learns them in seconds, and trainers made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edge_sel.data.dataset import ImageSet
from edge_sel.reference.data import Sets
from edge_sel.reference.images import make_images
from edge_sel.reference.policy import Policy
from edge_sel.reference.systems import Augmentation, Optimizer, Setup, find_scale
from edge_sel.reference.trainer import SystemTrainer

CPU = torch.device("cpu")
SETUP = Setup(
    "tiny", 4, batch_size=8, optimizer=Optimizer(rate=3e-3), augmentation=Augmentation(shift=1), image_size=16
)


def colours(count: int = 60, seed: int = 0) -> ImageSet:
    """Noisy red, green and blue squares of 16 x 16 pixels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = rng.integers(40, 140, (count, 16, 16, 3))
    pixels[np.arange(count), :, :, labels] += 40
    return ImageSet.from_arrays(pixels.astype(np.uint8), labels, ("red", "green", "blue"))


SMALL_BATCHES = replace(find_scale("smoke"), batch_limit=16)
COLOUR_SETS = Sets(colours(40), colours(30, seed=1), "colours")


def tiny_net(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, classes),
    )  # fmt: skip


@pytest.fixture(scope="session")
def sets(one_thread):
    return make_images(colours(), colours(30, seed=1), CPU)


@pytest.fixture
def make_trainer(sets):
    def make(policy: Policy | None = None, setup: Setup = SETUP, seed: int = 0, **options) -> SystemTrainer:
        return SystemTrainer(tiny_net(), setup, policy or Policy(), *sets, seed=seed, **options)

    return make
