"""What one epoch was like: summed up on the device, looked at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_sel.reference.policy import Pool
from edge_sel.sel import embarrassment
from edge_sel.sel.nominal_flops import nominal_flops


@dataclass(frozen=True)
class EpochResult:
    """One epoch of training, without its energy."""

    stage: int
    phase: str
    train_acc: float
    train_loss: float
    sparsity: float
    visited: int
    """Images that went forward in training."""
    active: int
    """Those of them whose loss counted."""
    nominal_flops: int
    executed_flops: int
    """Of training and of the passes that selected the images; evaluation is not in it."""
    class_embarrassment: tuple[float, ...]
    """NaN for a class that was not visited."""


@dataclass(frozen=True)
class Accuracies:
    """On the test images; per class only the first 100 count, as in the sources."""

    full: float
    first_100: float
    per_class: tuple[float, ...]

    @classmethod
    def of(cls, correct: torch.Tensor, labels: torch.Tensor, classes: int) -> Accuracies:
        """From ``correct`` bool[N] and ``labels`` int64[N] of the test images; looks at the device."""
        right = correct.double()
        members = labels[:, None] == torch.arange(classes, device=labels.device)
        first = (members & (members.cumsum(0) <= 100)).double()
        counts = first.sum(0)
        per_class = (first * right[:, None]).sum(0) / counts
        overall = (first * right[:, None]).sum() / counts.sum()
        return cls(float(right.mean()), float(overall), tuple(per_class.tolist()))


class EpochSums:
    """What an epoch adds up, on the device."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.visited = self.steps = 0
        self.loss, self.correct, self.active, self.sparsity = torch.zeros(4, dtype=torch.float64, device=device)
        self.embarrassment = embarrassment.init_sums(classes, torch, device=device)

    def add(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        losses: torch.Tensor,
        correct: torch.Tensor,
        weights: torch.Tensor | None,
        sparsity: torch.Tensor | None,
    ) -> None:
        """One batch."""
        self.visited += len(labels)
        self.steps += 1
        self.loss += losses.sum()
        self.correct += correct.sum()
        self.active += len(labels) if weights is None else (weights > 0).sum()
        if sparsity is not None:
            self.sparsity += sparsity
        self.embarrassment = embarrassment.add_batch(self.embarrassment, logits, labels)

    def result(self, pool: Pool, parameters: int, executed_flops: int) -> EpochResult:
        """The one look at the device."""
        visited, steps = max(1, self.visited), max(1, self.steps)
        loss, correct, active, sparsity = torch.stack((self.loss, self.correct, self.active, self.sparsity)).tolist()
        share = min(1.0, max(0.0, sparsity / steps))
        return EpochResult(
            stage=pool.stage,
            phase=pool.name,
            train_acc=correct / visited,
            train_loss=loss / visited,
            sparsity=share,
            visited=self.visited,
            active=round(active),
            nominal_flops=nominal_flops(parameters, round(active), share) if pool.counted else 0,
            executed_flops=executed_flops,
            class_embarrassment=tuple(embarrassment.means(self.embarrassment).tolist()),
        )
