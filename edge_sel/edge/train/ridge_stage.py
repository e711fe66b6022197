"""The stage that fits the head in closed form: one pass for the features, then no epoch of steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.edge.evidence import ENOUGH
from edge_sel.edge.train.stage import EpochDone, StageEvent, TrainingStage
from edge_sel.engines.base import StepResult
from edge_sel.sel.embarrassment import cross_entropy
from edge_sel.sel.label_errors import find_label_errors, surest_label_errors
from edge_sel.sel.ridge import fit_head

CHOICE = 1
"""Stream of random numbers: which predictions are kept as evidence."""


class RidgeStage(TrainingStage):
    """Features of every image, then ridge regression of what the head gets wrong; see ``sel.ridge``.

    All images count, whatever the gate: there is no gradient that a gate could save.
    """

    def _prepare(self) -> None:
        self._head: Arrays = dict(self.state.trainer)

    def weights(self) -> Arrays:
        """Every weight of the model: the old ones until the head is fitted."""
        return {**self._start, **self._head}

    def snapshot(self) -> None:
        """Bring ``state`` up to now, for a checkpoint."""
        self.state.trainer, self.state.featured = dict(self._head), self._features.featured

    @property
    def _planned_rate(self) -> float:
        return 1.0

    def _train_through(self) -> Iterator[StageEvent]:
        if not self.state.epoch:
            yield from self._fit_to_all()
            done = self._end_epoch(0, "closed form")
            yield EpochDone({**done.figures, "doubted": self._doubted})

    def _fit_to_all(self) -> Iterator[StageEvent]:
        """Features of all images, then the head; whoever stops on the way begins anew."""
        state, count, size = self.state, len(self.inputs.images), self.inputs.settings.batch_size
        state.cursor, counted, rows = 0, state.totals.prefixed, []
        for indices in np.split(np.arange(count), range(size, count, size)):
            rows.append(self._as_they_are(indices).images.astype(np.float16))  # as they were rounded
            state.cursor += len(indices)
            if state.cursor < count:
                yield from self._boundary_in_pass(counted)
        self._fit(np.concatenate(rows))

    def _fit(self, features: np.ndarray) -> None:
        head = self.inputs.pack.linear_head
        weight, bias = head.joined(self._start)
        labels, totals, state = self.inputs.images.labels, self.state.totals, self.state
        used = np.arange(len(labels))
        with self.inputs.phase("fit"):
            fit = fit_head(features, labels, weight, bias)
            doubts = find_label_errors(fit.left_out, labels)
            self._doubted = float((doubts >= 0).mean())
            if not self.inputs.settings.drop_suspicious:  # who asks for it has reason to doubt the labels
                doubts = surest_label_errors(fit.left_out, labels)
            self.memory.looks_like = doubts
            good = self.trusted(used)
            if len(good) < len(used) and len(np.unique(labels[good])) > 1:
                used, labels = good, labels[good]
                fit = fit_head(features[good], labels, weight, bias)
        self._head = head.parted(fit.weight, fit.bias, self._start)
        changed = fit.weight.size + fit.bias.size if fit.step or fit.scale != 1.0 else 0
        # Of every image under the head that was fitted without it: what a head has seen tells nothing.
        logits = fit.left_out.astype(np.float32)
        if len(used) == len(features):  # else they were chosen for what this very head makes of them
            state.left_out_of = self._rng(CHOICE).permutation(len(used))[:ENOUGH]
            state.left_out = logits[state.left_out_of]
        losses = cross_entropy(logits, labels)
        self.memory.remember(used, losses, logits, labels)
        totals.add(StepResult(losses, logits, changed, fit.weight.size + fit.bias.size), labels)
        totals.candidates, totals.passed = len(features), len(used)
        totals.steps = 1
        self.memory.last_loss = fit.loss
