"""What a system trains with, and how that is scaled down where there is no GPU or no data set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from edge_sel.config.schema import nearest
from edge_sel.errors import UsageError

Schedule = Literal["constant", "sel", "cosine", "cycles", "triangle"]
FirstWeights = Literal["auto", "imagenet", "random"]


@dataclass(frozen=True)
class Optimizer:
    """The optimizer and how its rate goes over the run; see ``optim`` for the formulas."""

    kind: Literal["adam", "sgd"] = "adam"
    rate: float = 1e-3
    schedule: Schedule = "constant"
    momentum: float = 0.9
    weight_decay: float = 0.0
    bias_factor: float = 1.0
    """Of the rate of batch norm's biases."""
    lookahead: bool = False


@dataclass(frozen=True)
class Augmentation:
    """Mirroring and shifting, on the device."""

    flip: Literal["none", "random", "alternate"] = "random"
    """``alternate``: a random half in the first epoch, then the other half and so on, so that two epochs show both."""
    shift: int = 4
    """Pixels each way."""
    border: Literal["zero", "reflect"] = "zero"


@dataclass(frozen=True)
class Setup:
    """What a system trains with. ``epochs`` counts all of them, warmup and pretraining included."""

    model: str
    epochs: int
    batch_size: int = 64
    optimizer: Optimizer = Optimizer()
    augmentation: Augmentation = Augmentation()
    label_smoothing: float = 0.0
    drop_last: bool = False
    mirror_test: bool = False
    """Evaluate each image and its mirror image, and add the logits."""
    image_size: int = 32
    imagenet: bool = False
    """Whether the source begins with ImageNet weights."""


@dataclass(frozen=True)
class Scale:
    """How much of a system is run."""

    name: str
    epoch_share: float = 1.0
    least_epochs: int = 1
    batch_limit: int | None = None
    train_per_class: int | None = None
    test_per_class: int | None = None
    small_models: bool = False
    data: str = "cifar10"

    @property
    def label(self) -> str:
        """What stands beside every figure of this scale."""
        return "" if self.name == "full" else f"scale {self.name}: NOT comparable with the published figures"


SCALES = {
    scale.name: scale
    for scale in (
        Scale("smoke", 0.07, 2, 32, 40, 20, True, "digits"),
        Scale("small", 0.4, 2, 32, 400, 200, True),
        Scale("full"),
    )
}

_SMALL_PIXELS = 32
_SMALL_MODELS = {"simple-cnn": "simple-cnn", "fast-net": "fast-net-small"}


def find_scale(name: str) -> Scale:
    """The scale of that name; UsageError names the nearest one."""
    if name not in SCALES:
        raise UsageError(f"no scale {name!r}: did you mean {nearest(name, SCALES)}?")
    return SCALES[name]


def scaled(setup: Setup, scale: Scale) -> Setup:
    """The setup at this scale: fewer epochs, a small model, batches that leave enough steps in an epoch."""
    if scale.name == "full":
        return setup
    model = _SMALL_MODELS.get(setup.model, "resnet-c-small") if scale.small_models else setup.model
    batch_size = min(setup.batch_size, scale.batch_limit or setup.batch_size)
    optimizer = setup.optimizer
    if optimizer.kind == "sgd":  # the usual rule; Adam's step does not depend on the batch in that way
        optimizer = replace(optimizer, rate=optimizer.rate * batch_size / setup.batch_size)
    epochs = max(scale.least_epochs, math.ceil(setup.epochs * scale.epoch_share - 1e-9))
    setup = replace(setup, model=model, epochs=epochs, batch_size=batch_size, optimizer=optimizer, imagenet=False)
    return resized(setup, _SMALL_PIXELS)


def resized(setup: Setup, pixels: int) -> Setup:
    """The setup for images of another size: they are shifted in proportion."""
    shift = round(setup.augmentation.shift * pixels / setup.image_size)
    return replace(setup, image_size=pixels, augmentation=replace(setup.augmentation, shift=shift))
