"""Lottery Ticket: train, keep the largest weights, rewind them to where they began, train again without the others."""

from __future__ import annotations

import torch

from edge_sel.reference.policy import Policy, Pool, RunView

SPARSITY = 0.8


class Lottery(Policy):
    """A third of the epochs to find the ticket, the others to train it.

    The published sparsity (0.80000003579751) is exactly 8 939 170 of 11 173 962 parameters: all of them compete in one
    ranking, biases and batch norm included. The published FLOPs leave out the first 15 epochs, and so does the nominal
    column here; the executed column does not.

    Source: SEL benchmark README; hist_lottery.csv; Frankle & Carbin 2019.
    """

    def __init__(self, epochs: int, sparsity: float = SPARSITY) -> None:
        super().__init__()
        self.search_epochs, self.sparsity = max(1, epochs // 3), sparsity

    def planned_samples(self, images: int, epochs: int) -> int | None:
        """Those of the second training."""
        return images * (epochs - self.search_epochs)

    def planned_sparsity(self) -> float | None:
        """As told."""
        return self.sparsity

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """Note the beginning; prune and rewind when the search is over."""
        if epoch == 1:
            self.memory |= {f"start.{name}": value for name, value in run.model_state().items()}
        if epoch == self.search_epochs + 1:
            self._prune(run)
        searching = epoch <= self.search_epochs
        return Pool(run.everything(), name="search" if searching else "ticket", counted=not searching)

    def _prune(self, run: RunView) -> None:
        keep = prune_mask(run.magnitudes(), self.sparsity)
        start = {name.partition(".")[2]: self.memory.pop(name) for name in list(self.memory)}
        run.rewind(start, keep)
        self.memory["keep"] = keep

    def mask(self, gradient: torch.Tensor) -> torch.Tensor | None:
        """A pruned weight gets no gradient; it began at zero, so Adam leaves it there."""
        if "keep" not in self.memory:
            return None
        gradient.mul_(self.memory["keep"])
        return torch.full((), self.sparsity, device=gradient.device)


def prune_mask(magnitude: torch.Tensor, sparsity: float) -> torch.Tensor:
    """bool[P]: all but the ``round(sparsity P)`` smallest; of equals the lower index goes first."""
    pruned = magnitude.argsort(stable=True)[: round(sparsity * len(magnitude))]
    keep = torch.ones(len(magnitude), dtype=torch.bool, device=magnitude.device)
    keep[pruned] = False
    return keep
