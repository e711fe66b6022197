"""The stage of a plan that only re-estimates batch normalisation's running statistics: no backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from edge_sel.edge.batch_limit import BatchLimit
from edge_sel.edge.train.stage import StageEvent, StepDone, TrainingStage
from edge_sel.edge.train.work import STATISTICS_IMAGES
from edge_sel.engines.base import Batch, Hyper, StepResult, Trainer
from edge_sel.pack.reader import Pack

BATCH, FEW, LARGE = 16, 4, 128
"""Images in a batch, and where they have more than ``LARGE`` pixels aside: with 32 the accuracy was the same within 0.1
points, for twice the memory; the smallest map of a large image has pixels enough."""


class StatisticsStage(TrainingStage):
    """One pass over some of the device's images; the statistics become the cumulative mean over its batches."""

    @property
    def seen(self) -> tuple[int, int]:
        """Images that the pass under way has seen, of so many."""
        return seen_by_statistics(self.inputs.images.labels, self.state.step, statistics_batch(self.inputs.pack))

    def _train_through(self) -> Iterator[StageEvent]:
        state, memory, inputs = self.state, self.memory, self.inputs
        if state.epoch:
            return
        images = statistics_batches(inputs.images.labels, self._rng(0), statistics_batch(inputs.pack))
        for indices in images[state.step :]:
            with inputs.phase("train"):
                for part, result in estimate(self._trainer, inputs.batch_limit, indices, state.step, self._as_they_are):
                    labels = inputs.images.labels[part]
                    memory.remember(part, result.losses, result.logits, labels)
                    state.totals.candidates += len(part)
                    state.totals.passed += len(part)
                    state.totals.add(result, labels)
            state.step += 1
            yield StepDone()
        memory.last_loss = state.totals.mean_loss
        yield self._end_epoch(0, "statistics")


def statistics_batch(pack: Pack) -> int:
    """Images in a batch that statistics are estimated from."""
    return FEW if max(pack.manifest.model.image_size) > LARGE else BATCH


def seen_by_statistics(labels: np.ndarray, steps: int, batch: int = BATCH) -> tuple[int, int]:
    """After so many batches: images, of so many."""
    chosen = min(len(labels), STATISTICS_IMAGES)
    size = max(1, min(batch, chosen))
    whole = chosen // size * size
    return min(steps * size, whole), whole


def estimate(
    trainer: Trainer, limit: BatchLimit, rows: np.ndarray, before: int, batch_of: Callable[[np.ndarray], Batch]
) -> Iterator[tuple[np.ndarray, StepResult]]:
    """The statistics become the mean over ``before`` batches as large as this one, and this one.

    Args:
        trainer: of the plan that estimates them.
        limit: the batch is taken in parts where memory is short, each by its share of the images.
        rows: of the batch [n].
        before: how many batches.
        batch_of: reads those rows.

    Yields:
        The parts of the batch with their results.

    Raises:
        SetupError: not even a small part fits into memory.
    """
    seen = before * len(rows)

    def step(part: np.ndarray) -> StepResult:
        return trainer.step(batch_of(part), Hyper(0.0, bn_momentum=len(part) / (seen + len(part))))

    for part, result in limit.parts(rows, step, "statistics"):
        seen += len(part)
        yield part, result


def statistics_batches(labels: np.ndarray, rng: np.random.Generator, batch: int = BATCH) -> list[np.ndarray]:
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
    size = min(batch, len(chosen))
    return [chosen[start : start + size] for start in range(0, len(chosen) - size + 1, size)]
