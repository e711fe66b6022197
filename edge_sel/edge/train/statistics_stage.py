"""The stage of a plan that only re-estimates batch normalisation's running statistics: no backward pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge_sel.edge.train.stage import StageEvent, StepDone, TrainingStage
from edge_sel.edge.train.work import STATISTICS_IMAGES
from edge_sel.engines.base import Batch, Hyper, StepResult, Trainer

BATCH = 16
"""Images in a batch: statistics of 32 gave the same accuracy within 0.1 points, and take twice the memory."""


class StatisticsStage(TrainingStage):
    """One pass over some of the device's images; the statistics become the cumulative mean over its batches."""

    def _train_through(self) -> Iterator[StageEvent]:
        state, memory, inputs = self.state, self.memory, self.inputs
        if state.epoch:
            return
        images = statistics_batches(inputs.images.labels, self._rng(0))
        for indices in images[state.step :]:
            state.step += 1
            batch = self._batch(indices, augment=False)
            with inputs.phase("train"):
                result = estimate(self._trainer, batch, state.step)
            memory.remember(indices, result.losses, result.logits, batch.labels)
            state.totals.candidates += len(indices)
            state.totals.passed += len(indices)
            state.totals.add(result, batch.labels)
            yield StepDone()
        memory.last_loss = state.totals.mean_loss
        yield self._end_epoch(0, "statistics")


def estimate(trainer: Trainer, batch: Batch, number: int) -> StepResult:
    """The statistics become the mean of ``number`` batches, of which this is the last."""
    return trainer.step(batch, Hyper(0.0, bn_momentum=1 / number))


def statistics_batches(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Which images the statistics are estimated from: of each class as many, as far as there are, in random order.

    The server's statistics are those of classes in the server's shares; that a device sees some classes more often
    than others is no reason to normalise differently. A last partial batch is left out.
    """
    order = rng.permutation(len(labels))
    turn = np.empty(len(labels), np.int64)  # 0 for the first image of each class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    chosen = rng.permutation(order[np.argsort(turn[order], kind="stable")][:STATISTICS_IMAGES])
    size = min(BATCH, len(chosen))
    return [chosen[start : start + size] for start in range(0, len(chosen) - size + 1, size)]
