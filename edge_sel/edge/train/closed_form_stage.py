"""The stage that fits the head in closed form: one pass for the features, then no epoch of steps.

``ridge`` takes the network's statistics as they are. ``closed_form`` tries on some of the images whether batch
normalisation's statistics from the device's own images make features of which the head learns more; where they do,
there is a second pass with these.

Where the pack has no sums of the server's features, or these are no longer the features, half of the pack's anchors,
images of the server, are learnt from beside the device's own: else what the head knew of the server would be lost.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.evidence import ENOUGH
from edge_sel.edge.features.cache import FeatureCache
from edge_sel.edge.features.precision import FrozenBackbone, Precision
from edge_sel.edge.progress import changed_in, original_weights
from edge_sel.edge.train.stage import (
    EpochDone,
    FittedSamples,
    StageEvent,
    StepDone,
    TrainingStage,
    estimate,
    statistics_batch,
    statistics_batches,
)
from edge_sel.edge.train.work import probed_images, stage_work_left
from edge_sel.engines.base import Batch, StepResult, Trainer
from edge_sel.pack.plan_kinds import BN, RIDGE
from edge_sel.pack.sums import ServerSums
from edge_sel.sel.calibration import find_label_errors, surest_label_errors
from edge_sel.sel.embarrassment import cross_entropy
from edge_sel.sel.ridge import HeadFit, fit_head

CHOICE = 1
"""Stream of random numbers: which predictions are kept as evidence."""
SURELY = 1.0
"""Standard errors by which new statistics must be better where all images have been looked at by the old ones."""
FEW = 16
"""Images of which a standard error says little: of half as many, three times as much is asked for."""
FEWEST = 4
"""Images of the server's classes that such a comparison takes."""
OLD, NEW = "old", "new"
"""Statistics: those that the model came with, or of the device's own images."""
MOST_FITTED_BYTES = 1 << 27
"""Of features that are kept for whoever asks for their sums."""
TRIED_PRIOR = 1.0
"""Weight of what the server knew, in that comparison."""


class ClosedFormStage(TrainingStage):
    """Features of every image, then the head that does best on images that it was fitted without; see ``sel.ridge``.

    All images count, whatever the gate: there is no gradient that a gate could save. Whoever is stopped in a pass for
    features begins it anew, but for those that were kept.
    """

    _in_trial = False

    def _open_features(self, plan: str) -> tuple[Precision, FeatureCache]:
        """By the statistics that the run has decided for, if all of their images have been seen."""
        state, images = self.state, self.images
        self._batches = statistics_batches(images.labels, self._rng(0), statistics_batch(self.pack))
        self._tried = self._batches[: max(1, probed_images(len(images)) // len(self._batches[0]))]
        self._begun = self._start
        if not state.epoch and state.statistics == NEW and state.step == len(self._batches):
            if not state.cursor:  # what was computed so far was by the old ones
                state.featured = state.featured[:0]
            self._start = {**self._start, **{name: state.trainer[name] for name in self._plan.buffers}}
        return super()._open_features(RIDGE)

    def _prepare(self) -> None:
        """Bring what is under way to where ``state`` stands."""
        state = self.state
        self._head: Arrays = {name: state.trainer[name] for name in self._plan.trainable if state.epoch}
        self._estimator: Trainer | None = None
        if state.epoch:
            self._start = {**self._start, **{n: v for n, v in state.trainer.items() if n in self._plan.buffers}}

    def weights(self) -> Arrays:
        """Every weight of the model: the old ones until the head is fitted."""
        if not self._head:
            return dict(self._begun)
        return {**self._start, **self._head}

    def snapshot(self) -> None:
        """Bring ``state`` up to now, for a checkpoint."""
        state = self.state
        state.featured = self._features.featured
        if self._head:
            state.trainer = {**{name: self._start[name] for name in self._plan.buffers}, **self._head}
        elif self._estimator is not None and state.step:
            state.trainer = self._estimator.state()
        elif self._start is not self._begun:
            state.trainer = {name: self._start[name] for name in self._plan.buffers}

    @property
    def _planned_rate(self) -> float:
        return 1.0

    def work_left(self) -> float:
        """FLOPs to the end of the stage; new statistics are foreseen only from when they are chosen."""
        state = self.state
        if state.epoch or state.statistics != NEW or self._start is not self._begun:
            return super().work_left()
        images = sum(len(batch) for batch in self._batches[state.step :])
        none_kept = np.zeros_like(self._features.kept)
        features = stage_work_left(self.pack, state, len(self.images), self._planned_rate, 0, none_kept)
        return images * self.pack.plan(BN).flops_train + features

    @property
    def seen(self) -> tuple[int, int]:
        """Images that the pass under way has seen, of so many."""
        whole = self._batches if self.state.statistics == NEW else self._tried
        if self._in_trial:
            return self.state.step * len(whole[0]), len(whole) * len(whole[0])
        return super().seen

    def _train_through(self) -> Iterator[StageEvent]:
        state = self.state
        if state.epoch:
            return
        if self._plan.buffers and state.statistics != OLD and self._start is self._begun:
            if not state.statistics:
                yield from self._try_statistics()
            if state.statistics == NEW:
                yield from self._estimate(self._batches)
                self._take_statistics()
        self._fit((yield from self._features_of(np.arange(len(self.images)))))
        done = self._end_epoch(0, self._plan.kind.trained_by)
        yield EpochDone({**done.figures, **self._figures})

    def _features_of(self, images: np.ndarray) -> Generator[StageEvent, None, np.ndarray]:
        """Returns float16 [n, F]."""
        state, size = self.state, self.settings.batch_size
        state.cursor, counted, rows = 0, state.totals.backbone_images, []
        for indices in np.split(images, range(size, len(images), size)):
            rows.append(self._as_they_are(indices).images.astype(np.float16))  # as they were rounded
            state.cursor += len(indices)
            if state.cursor < len(images):
                yield from self._boundary_in_pass(counted)
        return np.concatenate(rows)

    def _left_out_rows(self) -> np.ndarray:
        """Images whose predictions, when left out, are kept as evidence."""
        chosen: np.ndarray = self._rng(CHOICE).permutation(len(self.images))[:ENOUGH]
        return chosen

    # The statistics

    def _try_statistics(self) -> Iterator[StageEvent]:
        """Decide whose are taken, by a part of the images; and keep what the old model says of the fair_images."""
        state, head = self.state, self.pack.linear_head
        tried, fair_images = np.sort(np.concatenate(self._tried)), self._left_out_rows()
        first = np.union1d(tried, fair_images)
        counted = state.totals.backbone_images
        rows = yield from self._features_of(first)
        if state.step:  # resumed while statistics were estimated: that pass was counted before
            state.totals.backbone_images = counted
        yield from self._estimate(self._tried)
        state.left_out_begun = _logits(rows[np.searchsorted(first, fair_images)], *head.joined(self._start))
        surely = SURELY * (1 + FEW / len(tried)) if len(first) == len(self.images) else 0.0
        better = self._new_are_better(tried, rows[np.searchsorted(first, tried)], surely)
        state.statistics = NEW if better else OLD
        state.cursor = 0

    def _estimate(self, batches: list[np.ndarray]) -> Iterator[StageEvent]:
        """Go on to the end of these; a run that is resumed goes on where it was."""
        state = self.state
        if self._estimator is None:  # not before: beside the backbone it would take memory
            self._estimator = self.engine.trainer(self.pack, BN, self._start)
            if state.trainer:
                self._estimator.load_state(state.trainer)
        estimator = self._estimator
        flops = self.pack.plan(BN).flops_train
        backbone = FrozenBackbone(self.engine, self.pack, BN, self._start, self.images)
        images = FeatureCache(backbone, "", self.phase)

        def batch_of(part: np.ndarray) -> Batch:
            return Batch(images.get(part), self.images.labels[part], np.ones(len(part), np.float32))

        self._in_trial = True
        for indices in batches[state.step :]:
            with self.phase("train"):
                for part, _ in estimate(estimator, self.limit, indices, state.step, batch_of):
                    state.totals.probe_flops += len(part) * flops
            state.step += 1
            yield StepDone()
        self._in_trial = False

    def _new_are_better(self, tried: np.ndarray, rows: np.ndarray, surely: float) -> bool:
        """Whether features by new statistics tell the server's classes better, by so many standard errors."""
        assert self._estimator is not None
        statistics = self._estimator.weights()
        self.state.trainer, self._estimator = self._estimator.state(), None  # it makes room for the backbone
        labels, again = self.images.labels[tried], self._features_with(statistics, tried)
        with self.phase("fit"):
            fits = [self._fit_to(features, labels, (TRIED_PRIOR,)) for features in (rows, again)]
        before, after = (cross_entropy(fit.left_out.astype(np.float32), labels).astype(np.float64) for fit in fits)
        gain = (before - after)[labels < len(self.pack.manifest.model.classes)]
        if len(gain) < FEWEST:  # new classes alone are told from the server's by whatever changes, statistics too
            return False
        return bool(gain.mean() > surely * gain.std() / len(gain) ** 0.5)

    def _take_statistics(self) -> None:
        """From here on features are those by the new ones."""
        assert self._estimator is not None
        self._start = {**self._start, **self._estimator.weights()}
        self._estimator = None
        self._features.close(keep=False)
        self.state.featured = self.state.featured[:0]
        self._precision, self._features = super()._open_features(RIDGE)

    def _features_with(self, statistics: Arrays, rows: np.ndarray, images: ImageSet | None = None) -> np.ndarray:
        """float16 [n, F] of some images, by default of the device's."""
        weights = {**self._start, **statistics}
        backbone = FrozenBackbone(self.engine, self.pack, RIDGE, weights, images or self.images)
        features = FeatureCache(backbone, self._precision.name, self.phase, shared=self.inputs.given.shared)
        found = features.get(rows).astype(np.float16)
        self.state.totals.backbone_images += features.computed
        features.close(keep=False)
        return found

    # The head

    @cached_property
    def _sums(self) -> ServerSums | None:
        """Those of the pack, if the body is the pack's: of another one's features they would say nothing."""
        pack = self.pack
        statistics = pack.plan(BN).buffers if BN in pack.plan_names else ()
        if pack.sums is None or changed_in(self._begun, pack) - {*statistics}:
            return None
        return pack.sums.with_classes(len(self.memory.class_e))

    def _fit_to(
        self, features: np.ndarray, labels: np.ndarray, priors: Sequence[float] = (), said: np.ndarray | None = None
    ) -> HeadFit:
        pack, sums = self.pack, self._sums
        groups = pack.manifest.model.feature_groups(features.shape[1])
        return fit_head(
            features.astype(np.float32), labels, len(self.memory.class_e), old=pack.linear_head.joined(self._start),
            groups=groups, shallow=groups[0], standard=sums and sums.standard, prior=sums and sums.prior,
            examples=sums.examples if sums and len(sums.examples.labels) else None, priors=priors, old_said=said,
            addend=self._addend(),
        )  # fmt: skip

    def _rehearsal(self) -> tuple[np.ndarray, np.ndarray]:
        """Features float16 [M, F] and labels of the server's images that are learnt from too."""
        pack, (head, _) = self.pack, self.pack.linear_head.joined(self._start)
        anchors = pack.anchors if changed_in(self._start, pack) or pack.sums is None else None
        if anchors is None or not len(rows := anchors.rehearsed()):
            return np.zeros((0, head.shape[1]), np.float16), np.zeros(0, np.int64)
        return self._features_with({}, rows, anchors.images), anchors.images.labels[rows]

    def _addend(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The head whose logits may be part of the new one's, None for the old head.

        What the head in service has learnt of images that are all here, the new head learns itself: beside it, that
        one would count them twice. What it has not from the device is the exported head.
        """
        pack, served = self.pack, self.inputs.split.served
        if pack.exported is None or served is None or not served.whole or changed_in(self._start, pack.exported):
            return None
        return pack.linear_head.joined(original_weights(pack.exported, len(self.memory.class_e)))

    def _said(self, used: np.ndarray, more: int) -> np.ndarray | None:
        """What the head in service says of these images without having learnt them, NaN where that is as it is.

        Then NaN for so many ``more``. None where another stage has changed the head.
        """
        pack, served = self.pack, self.inputs.split.served
        if served is None:
            return None
        old = original_weights(pack, len(self.memory.class_e))
        if not all(np.array_equal(self._start[name], old[name]) for name in pack.manifest.model.head):
            return None
        return np.pad(served.left_out[used], ((0, more), (0, 0)), constant_values=np.nan)

    def _fit_with(self, features: np.ndarray, used: np.ndarray, rehearsal: tuple[np.ndarray, np.ndarray]) -> HeadFit:
        """To the device's images and the server's; what is left out are the device's."""
        labels = self.images.labels[used]
        said = self._said(used, len(rehearsal[1]))
        both = np.concatenate([features[used], rehearsal[0]]), np.concatenate([labels, rehearsal[1]])
        fit = self._fit_to(*both, said=said)
        return fit._replace(left_out=fit.left_out[: len(labels)])

    def _fit(self, features: np.ndarray) -> None:
        head, state, totals = self.pack.linear_head, self.state, self.state.totals
        labels = self.images.labels
        used, rehearsal = np.arange(len(labels)), self._rehearsal()
        self._figures: dict[str, Any] = {"statistics": OLD if self._start is self._begun else NEW}
        with self.phase("fit"):
            fit = self._fit_with(features, used, rehearsal)
            doubts = find_label_errors(fit.left_out, labels)
            self._figures["doubted"] = float((doubts >= 0).mean())
            if not self.settings.drop_suspicious:  # who asks for it has reason to doubt the labels
                doubts = surest_label_errors(fit.left_out, labels)
            self.memory.looks_like = doubts
            good = self.trusted(used)
            if len(good) < len(used) and len(np.unique(labels[good])) > 1:
                used, labels = good, labels[good]
                fit = self._fit_with(features, good, rehearsal)
        found = {"prior": fit.prior, "ridge": fit.ridge, "old": fit.kept, "features": fit.features}
        self._figures |= {"head": found, "rehearsed": len(rehearsal[1])}
        self._head = head.parted(fit.weight, fit.bias, self._start)
        if features.nbytes <= MOST_FITTED_BYTES and not changed_in(self._start, self.pack):
            self.fitted = FittedSamples(features[used], labels)
        size = sum(value.size for value in self._head.values())
        # Of every image under the head that was fitted without it: what a head has seen tells nothing.
        logits = fit.left_out.astype(np.float32)
        if len(used) == len(features):  # else they were chosen for what this very head makes of them
            state.left_out_of = self._left_out_rows()
            state.left_out = logits[state.left_out_of]
            if self._start is self._begun:
                state.left_out_begun = _logits(features[state.left_out_of], *head.joined(self._start))
        losses = cross_entropy(logits, labels)
        self.memory.remember(used, losses, logits, labels)
        totals.add(StepResult(losses, logits, size if fit.changed else 0, size), labels)
        totals.candidates, totals.passed = len(features), len(used)
        totals.steps = 1
        self.memory.last_loss = float(losses.mean())


def _logits(features: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """float32[N, C]."""
    made: np.ndarray = features.astype(np.float32) @ weight.T + bias
    return made
