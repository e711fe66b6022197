"""The stage of a plan that only re-estimates batch normalisation's running statistics: no backward pass."""

from __future__ import annotations

from collections.abc import Iterator

from edge_sel.edge.train.stage import StageEvent, StepDone, TrainingStage
from edge_sel.edge.train.work import STATISTICS_IMAGES
from edge_sel.engines.base import Hyper


class StatisticsStage(TrainingStage):
    """One pass over some of the device's images; the statistics become the cumulative mean over its batches."""

    def _train_through(self) -> Iterator[StageEvent]:
        state, totals = self.state, self.state.totals
        if state.epoch:
            return
        order = self._rng(0).permutation(len(self.inputs.images))[:STATISTICS_IMAGES]
        size = min(max(self.inputs.settings.batch_size, 32), len(order))
        while state.step < len(order) // size:
            indices = order[state.step * size : (state.step + 1) * size]
            state.step += 1
            batch = self._batch(indices, augment=False)
            with self.inputs.phase("train"):
                result = self._trainer.step(batch, Hyper(0.0, bn_momentum=1 / state.step))
            self.memory.remember(indices, result.losses, result.logits, batch.labels)
            totals.candidates += len(indices)
            totals.passed += len(indices)
            totals.add(result, batch.labels)
            yield StepDone()
        self.memory.last_loss = totals.mean_loss
        yield self._end_epoch(0, "statistics")
