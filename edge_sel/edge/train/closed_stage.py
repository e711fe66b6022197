"""The stage of all that needs no gradient: new statistics, then the head in closed form, judged as one."""

from __future__ import annotations

from collections.abc import Iterator

from edge_sel.arrays import Arrays
from edge_sel.edge.features.cache import FeatureCache
from edge_sel.edge.features.precision import Precision
from edge_sel.edge.train.ridge_stage import RidgeStage
from edge_sel.edge.train.stage import PrecisionChosen, StageEvent, StepDone
from edge_sel.edge.train.statistics_stage import estimate, seen_by_statistics, statistics_batches

STATISTICS = "bn"
"""The plan that estimates them."""


class ClosedStage(RidgeStage):
    """What ``bn`` and ``ridge`` do one after the other, for one look at the validation set less."""

    _statistics: Arrays

    def _open_features(self, plan: str) -> tuple[Precision, FeatureCache]:
        """Before the statistics are known, images; then the features by them."""
        inputs, state = self.inputs, self.state
        self._batches = statistics_batches(inputs.images.labels, self._rng(0))
        self._statistics = {}
        if state.step < len(self._batches):
            return super()._open_features(STATISTICS)
        self._take({name: state.trainer[name] for name in self._plan.buffers})
        return super()._open_features(plan)

    def _prepare(self) -> None:
        """Bring what is under way to where ``state`` stands."""
        inputs, state = self.inputs, self.state
        self._head = {} if not self._statistics else {n: state.trainer[n] for n in self._plan.trainable if state.epoch}
        if self._statistics:
            return
        self._trainer = inputs.engine.trainer(inputs.pack, STATISTICS, self._start)
        if state.trainer:
            self._trainer.load_state(state.trainer)

    def _take(self, statistics: Arrays) -> None:
        """From here on the stage's weights have these."""
        self._statistics = statistics
        self._start = {**self._start, **statistics}

    def weights(self) -> Arrays:
        """Every weight of the model, as of now."""
        return super().weights() if self._statistics else {**self._start, **self._trainer.weights()}

    @property
    def seen(self) -> tuple[int, int]:
        """Images that the pass under way has seen, of so many: first that of the statistics."""
        return super().seen if self._statistics else seen_by_statistics(self.inputs.images.labels, self.state.step)

    def snapshot(self) -> None:
        """Bring ``state`` up to now, for a checkpoint."""
        if not self._statistics:
            self.state.trainer = self._trainer.state()
            return
        self.state.trainer, self.state.featured = {**self._statistics, **self._head}, self._features.featured

    def _train_through(self) -> Iterator[StageEvent]:
        if not self._statistics:
            yield from self._estimate()
            self._take(self._trainer.weights())
            del self._trainer  # its session is no longer needed
            with self.inputs.phase("load"):
                self._precision, self._features = super()._open_features(self.state.plan)
            if self._precision.event:
                yield PrecisionChosen(self._precision.event)
        yield from super()._train_through()

    def _estimate(self) -> Iterator[StageEvent]:
        inputs, state = self.inputs, self.state
        flops = inputs.pack.plan(STATISTICS).flops_train
        for indices in self._batches[state.step :]:
            with inputs.phase("train"):
                for part, _ in estimate(self._trainer, inputs.batch_limit, indices, state.step, self._as_they_are):
                    state.totals.probe_flops += len(part) * flops
            state.step += 1
            if state.step < len(self._batches):
                yield StepDone()
