"""What a system may decide: which images an epoch visits, how much each counts, which gradients survive.

``Policy`` itself decides nothing: it is plain training. Each class in ``policies`` and
``curricula`` overrides what it does differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch

from edge_sel.reference.systems import Schedule


class Pool(NamedTuple):
    """What one epoch visits, and how its rate goes."""

    index: torch.Tensor
    """int64[M] on the device, in any order, all different."""
    weights: torch.Tensor | None = None
    """float[N] for all images of the set, or None: all alike."""
    stage: int = 0
    name: str = "train"
    counted: bool = True
    """Whether the sources' formula counts this epoch."""
    schedule: Schedule | None = None
    """Of the learning rate in this epoch; None keeps the setup's."""


class DeviceBatch(NamedTuple):
    """One batch on the device: index int64[B] into the set, x float[B, 3, H, W], y int64[B]."""

    index: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor


class RunView(Protocol):
    """All that a policy may ask of the run it decides for; tensors are on the device."""

    @property
    def device(self) -> torch.device:
        """Where the images and the model are."""

    @property
    def classes(self) -> int:
        """How many."""

    @property
    def labels(self) -> torch.Tensor:
        """int64[N] of all training images."""

    def everything(self) -> torch.Tensor:
        """The index of every training image, int64[N]."""

    def sample(self, count: int) -> torch.Tensor:
        """The index of this many training images, drawn without replacement, int64[count]."""

    def uniform(self, count: int) -> torch.Tensor:
        """Draws between 0 and 1, float32[count]."""

    def score(self) -> torch.Tensor:
        """The loss of every training image as the model is now, float32[N]; counted as work."""

    def batch_losses(self, batch: DeviceBatch) -> torch.Tensor:
        """The losses of a batch in training mode, without gradients, float32[B]; counted as work."""

    def calibrate(self, images: int) -> torch.Tensor:
        """The gradient float32[P] of one batch of this many images, until the next step; counted as work."""

    def model_state(self) -> dict[str, torch.Tensor]:
        """A copy of all weights and buffers of the model, by name."""

    def magnitudes(self) -> torch.Tensor:
        """The absolute value of every trainable weight, float32[P], laid out as the gradient is."""

    def rewind(self, state: Mapping[str, torch.Tensor], keep: torch.Tensor) -> None:
        """Set the model to ``state``, its weights outside ``keep`` bool[P] to zero, and begin a new optimizer."""


class Policy:
    """Plain training on everything.

    ``memory`` is all that a policy remembers from epoch to epoch: tensors by name, stored in every checkpoint. What is
    true of an epoch must follow from ``memory`` and the epoch's number, so that a resumed run goes on as it would have.
    """

    def __init__(self) -> None:
        self.memory: dict[str, torch.Tensor] = {}

    def epochs(self, planned: int) -> int:
        """How many epochs the run has, as far as is known now."""
        return planned

    def subset_size(self, images: int, epoch: int) -> int | None:
        """Images of an epoch that count in the sources' formula; None if that depends on the run."""
        return images

    def planned_samples(self, images: int, epochs: int) -> int | None:
        """The sum over the epochs."""
        sizes = [self.subset_size(images, epoch) for epoch in range(1, epochs + 1)]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def planned_sparsity(self) -> float | None:
        """The share of the parameters that the formula leaves out; None if that depends on the run."""
        return 0.0

    def batch_sizes(self, full: int) -> set[int]:
        """The sizes of batch that a step is compiled for; a last, smaller batch runs uncompiled."""
        return {full}

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """What the epoch (from 1) visits; the place for passes over the data and for changes to the model."""
        return Pool(run.everything())

    def narrow(self, run: RunView, batch: DeviceBatch) -> DeviceBatch:
        """The part of a batch that is trained on; of fixed size, or the device would have to be asked."""
        return batch

    def weigh(self, run: RunView, batch: DeviceBatch, losses: torch.Tensor) -> torch.Tensor | None:
        """Weights float[B] of the losses float[B], or None: all alike.

        The arguments are of all processes together, but for ``batch.x``: that is of this one.
        """
        return None

    def mask(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """Change the gradient float32[P] in place; the share that was zeroed, as a 0-d tensor, or None."""
        return None

    def observe(self, batch: DeviceBatch, losses: torch.Tensor, correct: torch.Tensor) -> None:
        """What the batch was like: float[B] in nats and bool[B], of all processes together."""

    def end_epoch(self, train_accuracy: float) -> None:
        """After the epoch's last step."""
