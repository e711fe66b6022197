"""One stage of a session: training by one plan, as a generator of events. Its kinds have files of their own.

Every decision is a function of the stage's state and of random numbers derived from (seed, stage, epoch, step), so a
run continued from a checkpoint is the run that was never interrupted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.edge.features.cache import FeatureCache, open_features
from edge_sel.edge.features.precision import FrozenBackbone, Precision, choose_precision
from edge_sel.edge.memory import BatchLimit
from edge_sel.edge.open import RunInputs, SplitImages
from edge_sel.edge.progress import EpochTotals, StageState, TrainingMemory
from edge_sel.edge.train.gate import Gate
from edge_sel.edge.train.schedule import PlannedStage
from edge_sel.edge.train.work import STATISTICS_IMAGES, features_asked, stage_work_left, work_done
from edge_sel.engines.base import Batch, Hyper, StepResult, Trainer
from edge_sel.pack.reader import Pack
from edge_sel.sel.embarrassment import init_sums


@dataclass(frozen=True)
class StageInputs:
    """What every stage of a session works with.

    Attributes:
        given: to the run.
        split: the images to train on, and which of them the model in service has learnt.
        gate: picks those that are worth a gradient.
        batch_limit: of the run; lowered where memory is short.
        outlive: whether features should outlive this process, which is likely to be killed.
    """

    given: RunInputs
    split: SplitImages
    gate: Gate
    batch_limit: BatchLimit
    outlive: bool = False


class PrecisionChosen(NamedTuple):
    """The frozen backbone's precision was tried; ``figures`` of the event ``backbone_precision``."""

    figures: dict[str, Any]


class FittedSamples(NamedTuple):
    """What a head in closed form was fitted to, where the body and its statistics are the pack's."""

    features: np.ndarray
    """float16 [n, F]."""
    labels: np.ndarray
    """int64 [n]."""


class StepDone(NamedTuple):
    """A boundary at which the state can be saved: after a step, or after images that were only looked at."""


class EpochDone(NamedTuple):
    """An epoch is over, which is a boundary too; ``figures`` are those of training."""

    figures: dict[str, Any]


StageEvent = PrecisionChosen | StepDone | EpochDone


class TrainingStage(ABC):
    """Runs one planned stage from wherever ``state`` stands in it.

    Use it as a context manager: inside, ``events`` trains as far as it is iterated. At the end features are forgotten,
    unless the stage was left before its end: then a file of them stays for the process that resumes the run.

    Args:
        inputs: what every stage works with.
        number: of the stage, from 0; seeds its chance.
        weights: every weight of the model as the stage begins.
        state: of this stage; written to.
        memory: what training remembers from stage to stage; written to.
    """

    fitted: FittedSamples | None = None

    def __init__(
        self, inputs: StageInputs, number: int, weights: Arrays, state: StageState, memory: TrainingMemory
    ) -> None:
        given = inputs.given
        self.inputs, self.state, self.memory, self.limit = inputs, state, memory, inputs.batch_limit
        self.pack, self.engine, self.settings, self.phase = (
            given.pack,
            given.engine,
            given.settings,
            given.recorder.phase,
        )
        self.images = inputs.split.training
        self._number, self._start = number, weights
        self._plan = self.pack.plan(state.plan)
        self._finished = False
        with self.phase("load"):
            self._precision, self._features = self._open_features(state.plan)
            try:
                self._prepare()
            except BaseException:
                self._features.close(keep=True)
                raise

    def __enter__(self) -> TrainingStage:
        return self

    def __exit__(self, *_: object) -> None:
        self._features.close(keep=not self._finished)

    def events(self) -> Iterator[StageEvent]:
        """Train to the end of the stage, one boundary after the other."""
        if self._precision.event:
            yield PrecisionChosen(self._precision.event)
        yield from self._train_through()
        self._finished = True

    @abstractmethod
    def _train_through(self) -> Iterator[StageEvent]:
        """From where ``state`` stands to the end."""

    def _prepare(self) -> None:
        """Open what trains, and bring it to where ``state`` stands."""
        state = self.state
        self._trainer = self.engine.trainer(self.pack, state.plan, self._start)
        if state.trainer:
            self._trainer.load_state(state.trainer)

    def weights(self) -> Arrays:
        """Every weight of the model, as of now."""
        return {**self._start, **self._trainer.weights()}

    def snapshot(self) -> None:
        """Bring ``state`` up to now, for a checkpoint."""
        self.state.trainer = self._trainer.state()
        self.state.featured = self._features.featured

    def work_left(self) -> float:
        """FLOPs to the end of the stage, as far as can be foreseen."""
        return stage_work_left(
            self.pack, self.state, len(self.images), self._planned_rate, self._to_score(), self._features.kept
        )

    @property
    def _planned_rate(self) -> float:
        """Share of the images of an epoch that will be trained on."""
        return self.inputs.gate.planned_rate

    def _to_score(self) -> int:
        """Images that still get a forward pass before the first epoch."""
        return 0

    def _open_features(self, plan: str) -> tuple[Precision, FeatureCache]:
        """What a plan is fed, by the weights that the stage begins with, and how that is computed."""
        inputs, backbone = self.inputs, FrozenBackbone(self.engine, self.pack, plan, self._start, self.images)
        precision = self._choose_precision(backbone)
        features = open_features(
            backbone, precision.name, self.phase, featured=self.state.featured, settings=self.settings,
            folder=inputs.given.out, outlive=inputs.outlive, shared=inputs.given.shared,
        )  # fmt: skip
        return precision, features

    def _choose_precision(self, backbone: FrozenBackbone) -> Precision:
        """The frozen backbone's: that of the checkpoint, or a choice that is then the state's."""
        state, settings = self.state, self.settings
        if state.precision:
            return Precision(state.precision)
        planned, scores = PlannedStage(backbone.plan, state.epochs), settings.curriculum != "off"
        expected = features_asked(self.pack, planned, len(self.images), self._planned_rate, scores=scores)
        cpu_time = self.inputs.given.host.cpu_time
        chosen = choose_precision(backbone, settings.backbone_precision, expected, cpu_time, self.phase)
        state.precision = chosen.name
        state.totals.backbone_images += chosen.computed
        return chosen

    # For the kinds of stage

    @property
    def seen(self) -> tuple[int, int]:
        """Images that the pass under way has seen, of so many."""
        return self.state.cursor, len(self.images)

    def trusted(self, indices: np.ndarray) -> np.ndarray:
        """Of these images those that may be trained on: all, unless labels in doubt are to be left out."""
        if not self.settings.drop_suspicious:
            return indices
        trusted: np.ndarray = indices[self.memory.looks_like[indices] < 0]
        return trusted

    def _boundary_in_pass(self, counted: int) -> Iterator[StageEvent]:
        """A boundary inside a pass over all images that begins anew where the run is resumed there.

        What the pass has computed counts at its end, so that a resumed run does not count it twice; but features that
        are kept are not computed twice either. ``counted``: images through the backbone before the pass.
        """
        totals, now = self.state.totals, self.state.totals.backbone_images
        totals.backbone_images = now if len(self._features.kept) else counted
        yield StepDone()
        totals.backbone_images = now

    def _end_epoch(self, curriculum_stage: int, name: str) -> EpochDone:
        state, totals = self.state, self.state.totals
        figures: dict[str, Any] = {
            "plan": state.plan,
            "stage": curriculum_stage,
            "stage_name": name,
            "train_acc": totals.accuracy,
            "train_loss": totals.mean_loss,
            **work_done(self.pack, self._plan, totals, self._start, whole=self._features.takes_images),
        }
        state.epoch += 1
        state.cursor = 0
        state.totals, state.sums = EpochTotals(), init_sums(len(self.memory.class_e))
        return EpochDone(figures)

    def _batch(self, indices: np.ndarray, *, augment: bool) -> Batch:
        mirrored = None
        if augment and self.pack.manifest.model.flip:
            mirrored = self._rng(1 + self.state.step).random(len(indices)) < 0.5
        before = self._features.computed
        fed = self._features.get(indices, mirrored)
        self.state.totals.backbone_images += self._features.computed - before
        return Batch(fed, self.images.labels[indices], np.ones(len(indices), np.float32))

    def _as_they_are(self, indices: np.ndarray) -> Batch:
        return self._batch(indices, augment=False)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, self._number, self.state.epoch, stream])


# --- Statistics


BATCH, FEW, LARGE = 16, 4, 128
"""Images in a batch, and where they have more than ``LARGE`` pixels aside: with 32 the accuracy was the same within 0.1
points, for twice the memory; the smallest map of a large image has pixels enough."""


class StatisticsStage(TrainingStage):
    """One pass over some of the device's images; the statistics become the cumulative mean over its batches."""

    @property
    def seen(self) -> tuple[int, int]:
        """Images that the pass under way has seen, of so many."""
        chosen = min(len(self.images), STATISTICS_IMAGES)
        size = max(1, min(statistics_batch(self.pack), chosen))
        whole = chosen // size * size
        return min(self.state.step * size, whole), whole

    def _train_through(self) -> Iterator[StageEvent]:
        state, memory = self.state, self.memory
        if state.epoch:
            return
        images = statistics_batches(self.images.labels, self._rng(0), statistics_batch(self.pack))
        for indices in images[state.step :]:
            with self.phase("train"):
                for part, result in estimate(self._trainer, self.limit, indices, state.step, self._as_they_are):
                    labels = self.images.labels[part]
                    memory.remember(part, result.losses, result.logits, labels)
                    state.totals.candidates += len(part)
                    state.totals.passed += len(part)
                    state.totals.add(result, labels)
            state.step += 1
            yield StepDone()
        memory.last_loss = state.totals.mean_loss
        yield self._end_epoch(0, self._plan.kind.trained_by)


def statistics_batch(pack: Pack) -> int:
    """Images in a batch that statistics are estimated from."""
    return FEW if max(pack.manifest.model.image_size) > LARGE else BATCH


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
