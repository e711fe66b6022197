"""One rung of a session: the SEL epochs of one plan.

Every decision is a function of ``Progress`` and of random numbers derived from (seed, rung, epoch, step), so a run
continued from a checkpoint is the run that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.edge.features.cache import Features, open_features
from edge_sel.edge.progress import Progress, Tally
from edge_sel.edge.train.channels import choose_channels
from edge_sel.edge.train.context import RungContext
from edge_sel.edge.train.learning_rate import learning_rate
from edge_sel.edge.train.rungs import Rung
from edge_sel.edge.train.work import STATISTICS_IMAGES, features_asked, rung_work_left, work_done
from edge_sel.engines.base import Batch, Hyper, Trainer
from edge_sel.sel import hardness
from edge_sel.sel.curriculum import STAGES, Stage, scale_epochs, stage_passed, stage_pool
from edge_sel.sel.embarrassment import add_batch, entropy, init_sums, means
from edge_sel.sel.guilt import decayed_gamma
from edge_sel.sel.schedule import annealed

MEMORY_GAMMA = 0.9
"""Weight of a new loss in the hardness memory: on a device each image is seen a few times only."""

FLUSH_MIN = 8
"""Smallest batch that ends a rung: below this, batch statistics and gradients are mostly noise."""


class RungRunner:
    """Runs ``rung`` from wherever ``progress`` stands in it."""

    def __init__(self, context: RungContext, rung: Rung, progress: Progress) -> None:
        self.c = context
        self.rung = rung
        self.p = progress
        self.info = context.pack.plan(rung.plan)
        with context.phase("load"):
            self.features: Features = open_features(
                context.engine, context.pack, rung.plan, context.images, progress, context.settings,
                folder=context.folder, phase=context.phase, expected=self._features_asked(), emit=context.emit,
                cpu_time=context.cpu_time,
            )  # fmt: skip
            self.trainer: Trainer = context.engine.trainer(context.pack, rung.plan, progress.weights)
        if progress.trainer:
            self.trainer.load_state(progress.trainer)
        self.stages = scale_epochs(STAGES, rung.epochs)
        self._scored = 0

    def run(self) -> None:
        """Finish the rung; afterwards ``progress.weights`` holds its result."""
        try:
            self._run()
        except BaseException:
            self.features.close(keep=True)
            raise
        self.features.close(keep=False)
        self.p.weights = self.weights()
        self.p.trainer = {}
        self.p.rung += 1
        self.p.epoch = self.p.stage = self.p.stage_epoch = self.p.cursor = self.p.step = 0
        self.p.queue, self.p.queue_weights = self.p.queue[:0], self.p.queue_weights[:0]
        self.p.pool_loss, self.p.featured, self.p.precision = self.p.pool_loss[:0], self.p.featured[:0], ""

    def _run(self) -> None:
        if not self.info.trainable:
            if not self.p.epoch:
                self._reestimate_statistics()
        else:
            if self.c.settings.curriculum != "off" and not len(self.p.pool_loss):
                self._score_all()
            while self.p.epoch < self.rung.epochs:
                self._epoch()

    def weights(self) -> Arrays:
        """Every weight of the model, as of now."""
        return {**self.p.weights, **self.trainer.weights()}

    def _features_asked(self) -> float:
        rate = 1.0 if self.c.gate.open else self.c.gate.rate
        scores = self.c.settings.curriculum != "off"
        return features_asked(self.c.pack, self.rung, len(self.c.images), rate, scores=scores)

    def work_left(self) -> float:
        """FLOPs to the end of the rung, as far as can be foreseen."""
        rate = 1.0 if self.c.gate.open else self.c.gate.rate
        scores = self.info.trainable and self.c.settings.curriculum != "off" and not len(self.p.pool_loss)
        to_score = len(self.c.images) - self._scored if scores else 0
        kept = self.features.kept
        return rung_work_left(self.c.pack, self.rung, self.p, len(self.c.images), rate, to_score, kept)

    # One epoch

    def _epoch(self) -> None:
        stage = self.stages[self.p.stage]
        order, u = self._order(stage)
        if self.info.channels and self.p.cursor == 0:
            self._choose_channels(order)
        size = self.c.settings.batch_size
        while self.p.cursor < len(order):
            chunk = slice(self.p.cursor, self.p.cursor + size)
            self._gate(order[chunk], u[chunk])
            self.p.cursor = min(self.p.cursor + size, len(order))
            if len(self.p.queue) >= size:
                self._train(size, self.p.cursor / len(order))
            self.c.at_boundary(self)
        if self.p.epoch + 1 == self.rung.epochs and len(self.p.queue) >= min(FLUSH_MIN, len(order)):
            self._train(len(self.p.queue), 1.0)
        self._finish_epoch(stage)

    def _order(self, stage: Stage) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's candidates in random order, and a uniform number for each."""
        if self.c.settings.curriculum == "off":
            pool = np.arange(len(self.c.images))
        else:
            if self.c.settings.curriculum == "cumulative":
                stage = stage._replace(start=0.0)
            pool = stage_pool(self.p.pool_loss, self.c.images.labels, stage)
        rng = self._rng(0)
        return rng.permutation(pool), rng.random(len(pool))

    def _gate(self, candidates: np.ndarray, u: np.ndarray) -> None:
        p = self.p
        mask, weights, p.gate, p.ages = self.c.gate.choose(p.gate, p.ages, p.memory, p.entropy, candidates, u)
        p.queue = np.concatenate([p.queue, candidates[mask]])
        p.queue_weights = np.concatenate([p.queue_weights, weights[mask]])
        p.tally.candidates += len(candidates)
        p.tally.passed += int(mask.sum())

    def _train(self, size: int, through: float) -> None:
        indices, self.p.queue = self.p.queue[:size], self.p.queue[size:]
        weights, self.p.queue_weights = self.p.queue_weights[:size], self.p.queue_weights[size:]
        batch = self._batch(indices, augment=True)._replace(weights=weights)
        with self.c.phase("train"):
            result = self.trainer.step(batch, self._hyper(through))
        self.p.step += 1
        self._remember(indices, result.losses, result.logits)
        tally = self.p.tally
        tally.trained += len(indices)
        tally.steps += 1
        tally.correct += int((result.logits.argmax(1) == batch.labels).sum())
        tally.loss_sum += float(result.losses.sum(dtype=np.float64))
        tally.last_loss = float(result.losses.mean(dtype=np.float64))
        tally.kept += result.kept
        tally.computed += result.computed
        self.p.sums = add_batch(self.p.sums, result.logits, batch.labels)

    def _hyper(self, through: float) -> Hyper:
        """SEL's loss-driven rate, annealed over the rung; γ decays with the curriculum stage."""
        settings, calibration = self.c.settings, self.c.pack.manifest.calibration
        loss = self.p.tally.last_loss if np.isfinite(self.p.tally.last_loss) else 1.0
        rate = learning_rate(self.c.pack.manifest.optimizer, self.rung.plan, settings.learning_rate, loss)
        position = int(1000 * (self.p.epoch + through) / self.rung.epochs)
        gamma = calibration.gamma if settings.gamma is None else settings.gamma
        return Hyper(
            learning_rate=annealed(rate, min(position, 999), 1000, warmup_steps=50),
            gamma=float(decayed_gamma(gamma, self.p.stage, len(self.stages))) if gamma > 0 else -1.0,
            momentum=0.9,
        )

    def _finish_epoch(self, stage: Stage) -> None:
        tally = self.p.tally
        self.p.class_e = means(self.p.sums, previous=self.p.class_e)
        accuracy = tally.correct / tally.trained if tally.trained else float("nan")
        figures = {
            "plan": self.rung.plan,
            "stage": self.p.stage + 1,
            "stage_name": stage.name,
            "train_acc": accuracy,
            "train_loss": tally.loss_sum / tally.trained if tally.trained else float("nan"),
            **work_done(self.c.pack, self.info, self.p),
        }
        self.p.epoch += 1
        self.p.stage_epoch += 1
        if self.p.stage_epoch >= stage.epochs and stage_passed(accuracy, stage) and self.p.stage + 1 < len(self.stages):
            self.p.stage, self.p.stage_epoch = self.p.stage + 1, 0
        self._close_epoch(figures)

    def _close_epoch(self, figures: Mapping[str, Any]) -> None:
        self.p.cursor = 0
        self.p.tally = Tally(last_loss=self.p.tally.last_loss)
        self.p.sums = init_sums(len(self.p.class_e))
        self.c.end_epoch(self, figures)
        self.c.at_boundary(self)

    # Before the first epoch

    def _score_all(self) -> None:
        """One forward pass over every image: orders the curriculum and fills the hardness memory.

        ``Progress`` changes at the end only: whoever stops on the way begins the pass anew.
        """
        found = []
        for indices in np.split(np.arange(n := len(self.c.images)), range(size := self.c.settings.batch_size, n, size)):
            batch = self._batch(indices, augment=False)
            with self.c.phase("score"):
                found.append((indices, self.trainer.score(batch.images, batch.labels)))
            self._scored += len(indices)
            if self._scored < n:
                self.c.at_boundary(self)
        for indices, scores in found:
            self._remember(indices, scores.losses, scores.logits)
        self.p.pool_loss = np.concatenate([scores.losses for _, scores in found])
        self.p.tally.forwards += len(self.p.pool_loss)
        self.p.tally.last_loss = float(self.p.pool_loss.mean(dtype=np.float64))

    def _reestimate_statistics(self) -> None:
        """Batch normalisation's running statistics from the device's own images: a cumulative mean over one pass."""
        order = self._rng(0).permutation(len(self.c.images))[:STATISTICS_IMAGES]
        size = min(max(self.c.settings.batch_size, 32), len(order))
        batches = len(order) // size
        while self.p.step < batches:
            indices = order[self.p.step * size : (self.p.step + 1) * size]
            self.p.step += 1
            batch = self._batch(indices, augment=False)
            with self.c.phase("train"):
                result = self.trainer.step(batch, Hyper(0.0, bn_momentum=1 / self.p.step))
            self._remember(indices, result.losses, result.logits)
            self.p.tally.candidates += len(indices)
            self.p.tally.passed += len(indices)
            self.p.tally.trained += len(indices)
            self.p.tally.correct += int((result.logits.argmax(1) == batch.labels).sum())
            self.p.tally.loss_sum += float(result.losses.sum(dtype=np.float64))
            self.c.at_boundary(self)
        tally, self.p.epoch = self.p.tally, 1
        tally.last_loss = tally.loss_sum / tally.trained
        self._close_epoch(
            {
                "plan": self.rung.plan,
                "stage": 0,
                "stage_name": "statistics",
                "train_acc": tally.correct / tally.trained,
                "train_loss": tally.loss_sum / tally.trained,
                **work_done(self.c.pack, self.info, self.p),
            }
        )

    # Small parts

    def _batch(self, indices: np.ndarray, *, augment: bool) -> Batch:
        mirrored = None
        if augment and self.c.pack.manifest.model.flip:
            mirrored = self._rng(1 + self.p.step).random(len(indices)) < 0.5
        fed = self.features.get(indices, mirrored)
        return Batch(fed, self.c.images.labels[indices], np.ones(len(indices), np.float32))

    def _remember(self, indices: np.ndarray, losses: np.ndarray, logits: np.ndarray) -> None:
        correct = logits.argmax(1) == self.c.images.labels[indices]
        # On a first visit nothing is known that could be mixed with.
        gamma = np.where(self.p.memory.seen[indices] == 0, 1.0, MEMORY_GAMMA).astype(np.float32)
        self.p.memory = hardness.update(self.p.memory, indices, losses, correct, gamma=gamma)
        self.p.entropy[indices] = entropy(logits)

    def _choose_channels(self, order: np.ndarray) -> None:
        batches = [self._batch(c, augment=False) for c in np.array_split(order[: 2 * self.c.settings.batch_size], 2)]
        weights = self.weights()
        probe = self.c.pack.plan(self.info.base)
        with self.c.phase("train"):
            self.trainer.set_channels(choose_channels(self.c.engine, self.c.pack, self.info, probe, weights, batches))
        self.p.tally.probe_flops += sum(len(batch.labels) for batch in batches) * probe.flops_train

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.c.settings.seed, self.p.rung, self.p.epoch, stream])
