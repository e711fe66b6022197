"""What every selection must beat, and the sources lack: chance at the same rate, and methods that hold."""

from __future__ import annotations

import torch

from edge_sel.reference.policy import DeviceBatch, Policy, Pool, RunView
from edge_sel.sel.hardness import weighted_sample
from edge_sel.sel.selection import prune_easy, relative_importance


class RandomRate(Policy):
    """A fresh random part of the images each epoch; the others cost nothing at all."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def planned_samples(self, images: int, epochs: int) -> int | None:
        """The same part of every epoch."""
        return max(1, round(self.rate * images)) * epochs

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """The part."""
        return Pool(run.sample(max(1, round(self.rate * len(run.labels)))), name="random")


class InfoBatch(Policy):
    """Each epoch leaves out a random half of the images below the mean loss, and counts the other half double.

    Without scoring passes: losses are those of the last visit. The last eighth of the epochs visits everything.

    Source: InfoBatch (Qin et al. 2024), r = 0.5, delta = 0.875.
    """

    def __init__(self, epochs: int, *, ratio: float = 0.5, until: float = 0.875) -> None:
        super().__init__()
        self.ratio, self.last_pruned = ratio, int(until * epochs)

    def planned_samples(self, images: int, epochs: int) -> int | None:
        """Not known: it depends on the losses."""
        return None

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """What is left, with its weights."""
        if epoch == 1:
            self.memory["losses"] = torch.ones(len(run.labels), device=run.device)
        if epoch == 1 or epoch > self.last_pruned:
            return Pool(run.everything(), name="all")
        u = run.uniform(len(run.labels))
        keep, weights = prune_easy(self.memory["losses"], u, self.ratio)
        return Pool(run.everything()[keep], weights, stage=1, name="pruned")

    def observe(self, batch: DeviceBatch, losses: torch.Tensor, correct: torch.Tensor) -> None:
        """The losses for the next epoch."""
        self.memory["losses"][batch.index] = losses.to(self.memory["losses"].dtype)


class SelectiveBackprop(Policy):
    """A forward pass on the whole batch, then training on half of it, drawn by the rank of the loss.

    As in Composer: from half of the run to nine tenths, every second batch as a whole. The half is drawn without
    replacement, with probabilities ``rank ^ (1 / keep - 1)``; its size is fixed.

    Source: Jiang et al. 2019; Composer's selective backpropagation.
    """

    def __init__(self, epochs: int, *, keep: float = 0.5, start: float = 0.5, end: float = 0.9) -> None:
        super().__init__()
        self.keep, self.first, self.last = keep, int(start * epochs) + 1, int(end * epochs)
        self._selecting, self._batches = False, 0

    def planned_samples(self, images: int, epochs: int) -> int | None:
        """Not known: it depends on the batches."""
        return None

    def batch_sizes(self, full: int) -> set[int]:
        """The whole and the half."""
        return {full, self._part(full)}

    def _part(self, images: int) -> int:
        return max(2, round(self.keep * images))

    def start_epoch(self, run: RunView, epoch: int) -> Pool:
        """Everything."""
        self._selecting, self._batches = self.first <= epoch <= max(self.first, self.last), 0
        return Pool(run.everything(), stage=int(self._selecting), name="selective" if self._selecting else "all")

    def narrow(self, run: RunView, batch: DeviceBatch) -> DeviceBatch:
        """The drawn half."""
        self._batches += 1
        if not self._selecting or self._batches % 2 == 0:
            return batch
        losses = run.batch_losses(batch)
        u = run.uniform(len(losses))
        chosen = weighted_sample(relative_importance(losses, self.keep), self._part(len(losses)), u)
        return DeviceBatch(*(part[chosen] for part in batch))
