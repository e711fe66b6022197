"""What a system may decide: which images an epoch visits, how much each counts, which gradients survive.

``Policy`` itself decides nothing: it is plain training. A recipe overrides what it does differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from edge_sel.reference.trainer import Trainer


class Pool(NamedTuple):
    """What one epoch visits."""

    index: torch.Tensor
    """int64[M] on the device, in any order, all different."""
    weights: torch.Tensor | None = None
    """float[N] for all images of the set, or None: all alike."""
    stage: int = 0
    name: str = "train"
    counted: bool = True
    """Whether the sources' formula counts this epoch."""


class Batch(NamedTuple):
    """One batch on the device: index int64[B] into the set, x float[B, 3, H, W], y int64[B]."""

    index: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor


class Policy:
    """Plain training on everything.

    ``memory`` is all that a recipe remembers from epoch to epoch: tensors by name, stored in every checkpoint. What is
    true of an epoch must follow from ``memory`` and the epoch's number, so that a resumed run goes on as it would have.
    """

    def __init__(self) -> None:
        self.memory: dict[str, torch.Tensor] = {}

    def epochs(self, planned: int) -> int:
        """How many epochs the run has, as far as is known now."""
        return planned

    def planned_samples(self, images: int, epochs: int) -> int | None:
        """Images that count in the sources' formula over the run; None if that depends on the run."""
        return images * epochs

    def planned_sparsity(self) -> float | None:
        """The share of the parameters that the formula leaves out; None if that depends on the run."""
        return 0.0

    def batch_sizes(self, full: int) -> set[int]:
        """The sizes of batch that a step is compiled for; a last, smaller batch runs uncompiled."""
        return {full}

    def start_epoch(self, run: Trainer, epoch: int) -> Pool:
        """What the epoch (from 1) visits; the place for passes over the data and for changes to the model."""
        return Pool(run.everything())

    def narrow(self, run: Trainer, batch: Batch) -> Batch:
        """The part of a batch that is trained on; of fixed size, or the device would have to be asked."""
        return batch

    def weigh(self, run: Trainer, batch: Batch, logits: torch.Tensor, losses: torch.Tensor) -> torch.Tensor | None:
        """Weights float[B] of the losses, or None: all alike. All arguments are of all processes together."""
        return None

    def mask(self, run: Trainer) -> torch.Tensor | None:
        """Change the gradients in ``run.gradient``; the share that was zeroed, as a 0-d tensor, or None."""
        return None

    def observe(self, run: Trainer, batch: Batch, losses: torch.Tensor, correct: torch.Tensor) -> None:
        """What the batch was like: float[B] in nats and bool[B], of all processes together."""

    def end_epoch(self, run: Trainer, train_accuracy: float) -> None:
        """After the epoch's last step."""
