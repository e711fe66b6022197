"""The stage of a plan that trains: SEL epochs of gated images from easy to hard, with guilty channels and gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.config.settings import Settings
from edge_sel.edge.memory import FLOOR
from edge_sel.edge.train.stage import StageEvent, StepDone, TrainingStage
from edge_sel.engines.base import Batch, Engine, Hyper, Scores
from edge_sel.pack.manifest import PlanInfo
from edge_sel.pack.plan_kinds import split_plan_name
from edge_sel.pack.reader import Pack
from edge_sel.sel.curriculum import STAGES, Stage, annealed, scale_epochs, sel_learning_rate, stage_passed, stage_pool
from edge_sel.sel.embarrassment import add_batch, means
from edge_sel.sel.guilt import decayed_gamma, guilty_channels, head_guilt, rows_of_heads

# --- Step size: chosen on validation images of field shifts (low light, fog, blur with noise; head: label shift and a
# new class)


BASE_RATES = {
    "adam": {"full": 1e-4, "last": 1.5e-4, "last2": 1.5e-4, "first": 4e-4, "affine": 8e-4, "head": 4e-4},
    "sgd": {"full": 2.4e-3, "last": 2.4e-3, "last2": 2.4e-3, "first": 6e-4, "affine": 1.2e-2, "head": 4e-2},
}
MAX_SEL_LOSS = 1.0
"""Losses above this no longer raise the learning rate: SEL's factor is unbounded, a fine-tune is not robust to it."""


def learning_rate(optimizer: str, plan: str, given: float | None, loss: float) -> float:
    """SEL's rate for a plan (``last-c25`` as ``last``) at this mean loss in nats; ``given`` overrules the table."""
    base = BASE_RATES[optimizer][split_plan_name(plan)[0]] if given is None else given
    return float(sel_learning_rate(base, min(loss, MAX_SEL_LOSS)))


def step_hyper(
    pack: Pack,
    plan: PlanInfo,
    settings: Settings,
    *,
    loss: float,
    share: float,
    thousandth: int,
    curriculum_stage: int,
    curriculum_stages: int,
) -> Hyper:
    """SEL's loss-driven rate, annealed over the training stage; γ decays with the stage of the curriculum.

    Args:
        pack: says the optimizer and the calibrated γ.
        plan: that is trained.
        settings: may overrule both rate and γ; γ = 0 updates every weight.
        loss: of the latest batch, nats; NaN before the first.
        share: of the batch size of the settings that fits into memory. The rate is proportional to it (Goyal et al.,
            2017): as many images then move the weights as far.
        thousandth: of the training stage, 0 to 1000.
        curriculum_stage: from 0.
        curriculum_stages: how many there are.
    """
    loss = loss if math.isfinite(loss) else 1.0
    rate = learning_rate(pack.manifest.optimizer, plan.name, settings.learning_rate, loss)
    gamma = pack.manifest.calibration.gamma if settings.gamma is None else settings.gamma
    return Hyper(
        learning_rate=annealed(share * rate, min(thousandth, 999), 1000, warmup_steps=50),
        gamma=float(decayed_gamma(gamma, curriculum_stage, curriculum_stages)) if gamma > 0 else -1.0,
        momentum=0.9,
    )


# --- Channels


class ChosenChannels(NamedTuple):
    """The channels that an epoch trains, and the gradient norms that they were chosen by.

    Attributes:
        rows: weight → int64 [k], ascending, for a trainer's ``set_channels``.
        guilt: weight → float [O] or [H], the gradient norm of each output channel, or of each attention head.
    """

    rows: Arrays
    guilt: Arrays


def choose_channels(
    engine: Engine,
    pack: Pack,
    plan: PlanInfo,
    probe: PlanInfo,
    weights: Mapping[str, np.ndarray],
    batches: Sequence[Batch],
) -> ChosenChannels:
    """Choose the output channels, or attention heads, that a plan with a budget trains.

    A plan with a budget computes no gradients of the other channels. So the same plan without a budget, the probe,
    computes the gradients of a few batches. Of every weight with a budget, the k channels with the largest gradient
    norm are chosen. Of attention, the heads with the largest norm are chosen.

    A stage chooses at the start of every epoch. Measured on CIFAR-10 in low light (``last-c25``, batch 32), as a share
    of the gradient norm that the best choice holds: a new choice 89 %, a choice that is 8 steps old 79 to 84 %, one
    that is an epoch of 31 steps old 77 %, an older one 73 to 80 %, a random one 68 %. A choice in every epoch costs two
    steps of the whole plan. A choice every 8 steps would take a quarter more joules for 4 % more of the norm.

    Args:
        engine: executes the probe.
        pack: holds both plans.
        plan: the plan with a budget, such as ``last-c25``.
        probe: the same plan without a budget, ``last``.
        weights: all current weights.
        batches: images to probe with; no weight is updated.
    """
    trainer = engine.trainer(pack, probe.name, weights)
    totals = {name: np.zeros(len(weights[name])) for name in plan.channels}
    for batch in batches:
        norms = trainer.guilt(batch)
        for name in totals:
            totals[name] += norms[name]
    guilt = {n: head_guilt(total, plan.heads[n]) if n in plan.heads else total for n, total in totals.items()}
    return ChosenChannels({name: chosen_rows(plan, name, guilt[name], len(weights[name])) for name in guilt}, guilt)


def chosen_rows(plan: PlanInfo, name: str, guilt: np.ndarray, rows: int) -> np.ndarray:
    """int64 [k]: the rows of the channels, or heads, with the largest norms in ``guilt``."""
    heads = plan.heads.get(name)
    chosen: np.ndarray = guilty_channels(guilt, plan.channels[name] * (heads or rows) // rows)
    if heads is not None:
        chosen = rows_of_heads(chosen, heads, rows)
    return chosen


def guilt_record(plan: PlanInfo, guilt: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The choice of channels in the record of an epoch: how many were chosen, and their share of the gradient norm.

    For attention the record also has the norm of every head.

    Args:
        plan: the plan with a budget.
        guilt: of a ``ChosenChannels``.
        weights: of the model.
    """
    record: dict[str, Any] = {}
    for name, norms in guilt.items():
        heads, rows = plan.heads.get(name), len(weights[name])
        chosen = guilty_channels(norms, plan.channels[name] * (heads or rows) // rows)
        held = float(np.linalg.norm(norms[chosen]) / max(float(np.linalg.norm(norms)), 1e-30))
        record[name] = {"of": len(norms), "chosen": len(chosen), "share_of_norm": held}
        if heads is not None:
            record[name] |= {"heads": [float(norm) for norm in norms], "chosen_heads": chosen.tolist()}
    return record


# --- The stage


STEP_BYTES = 400 << 20
"""What a training step may keep of its images, beside weights and the program, where no statistics need more images."""


def batch_size(plan: PlanInfo, asked: int) -> int:
    """``asked`` images, or fewer where these would take too much memory, but no fewer than any batch has.

    A multiple of the fewest then: steps of other sizes miss the faster layout of maps.
    """
    if plan.bn_mode == "batch" or not plan.step_bytes:
        return asked
    return min(asked, max(1, STEP_BYTES // plan.step_bytes // FLOOR) * FLOOR)


class SelStage(TrainingStage):
    """As many epochs as were planned; the curriculum, if any, moves through its windows meanwhile."""

    _scored = 0

    def _train_through(self) -> Iterator[StageEvent]:
        if self._scores_first:
            yield from self._score_all()
        self._windows = scale_epochs(STAGES, self.state.epochs)
        while self.state.epoch < self.state.epochs:
            yield from self._epoch()

    @property
    def _scores_first(self) -> bool:
        return self.settings.curriculum != "off" and not len(self.state.pool_loss)

    def _to_score(self) -> int:
        return len(self.images) - self._scored if self._scores_first else 0

    def _score_all(self) -> Iterator[StageEvent]:
        """One forward pass over every image: orders the curriculum and fills the hardness memory.

        The state changes at the end only: whoever stops on the way begins the pass anew.
        """
        images, limit = len(self.images), self.limit
        found: list[tuple[np.ndarray, Scores]] = []
        counted, self._scored = self.state.totals.backbone_images, 0
        while self._scored < images:
            indices = np.arange(self._scored, min(self._scored + self._size, images))
            try:
                found.append((indices, self._score(indices)))
                self._scored += len(indices)
            except MemoryError:  # anew, as whoever is resumed would
                limit.halve(self._size, "scoring")
                found, self._scored = [], 0
            if self._scored < images:
                yield from self._boundary_in_pass(counted)
        for indices, scores in found:
            self.memory.remember(indices, scores.losses, scores.logits, self.images.labels[indices])
        self.state.pool_loss = np.concatenate([scores.losses for _, scores in found])
        self.state.totals.scored += images
        self.memory.last_loss = float(self.state.pool_loss.mean(dtype=np.float64))

    def _score(self, indices: np.ndarray) -> Scores:
        batch = self._as_they_are(indices)
        with self.phase("score"):
            return self._trainer.score(batch.images, batch.labels)

    def _epoch(self) -> Iterator[StageEvent]:
        state, size = self.state, self.settings.batch_size
        window = self._windows[state.curriculum_stage]
        order, u = self._order(window)
        if self._plan.channels and state.cursor == 0:
            self._choose_channels(order)
        while state.cursor < len(order) or self._due(len(order)):
            if not self._due(len(order)):
                chunk = slice(state.cursor, state.cursor + size)
                self._gate(order[chunk], u[chunk])
                state.cursor = min(state.cursor + size, len(order))
            if due := self._due(len(order)):
                self._try_to_train(due, state.cursor / len(order) if len(order) else 1.0)
            yield StepDone()
        self.memory.class_e = means(state.sums, previous=self.memory.class_e)
        window_number = state.curriculum_stage
        state.curriculum_epoch += 1
        passed = state.curriculum_epoch >= window.epochs and stage_passed(state.totals.accuracy, window)
        if passed and window_number + 1 < len(self._windows):
            state.curriculum_stage, state.curriculum_epoch = window_number + 1, 0
        done = self._end_epoch(window_number + 1, window.name)
        if state.guilt:
            done.figures["guilty"] = guilt_record(self._plan, state.guilt, self._start)
        yield done

    def _order(self, window: Stage) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's candidates in random order, and a uniform number for each."""
        kind = self.settings.curriculum
        if kind == "off":
            pool = np.arange(len(self.images))
        else:
            if kind == "cumulative":
                window = window._replace(start=0.0)
            pool = stage_pool(self.state.pool_loss, self.images.labels, window)
        rng, pool = self._rng(0), self.trusted(pool)
        return rng.permutation(pool), rng.random(len(pool))

    def _gate(self, candidates: np.ndarray, u: np.ndarray) -> None:
        """Put those that pass into the queue."""
        state, memory = self.state, self.memory
        choice = self.inputs.gate.choose(memory.gate, memory.ages, memory.hardness, memory.entropy, candidates, u)
        memory.gate, memory.ages = choice.state, choice.ages
        state.queue = np.concatenate([state.queue, candidates[choice.mask]])
        state.queue_weights = np.concatenate([state.queue_weights, choice.weights[choice.mask]])
        state.totals.candidates += len(candidates)
        state.totals.passed += int(choice.mask.sum())

    def _due(self, candidates: int) -> int:
        """Images of the next step; 0 if more have to pass the gate first. The last batch of a stage may be smaller."""
        state, waiting = self.state, len(self.state.queue)
        if waiting >= self._size:
            return self._size
        last = state.epoch + 1 == state.epochs and state.cursor >= candidates
        return waiting if last and waiting >= min(FLOOR, candidates) else 0

    @property
    def _size(self) -> int:
        """Images of a full batch."""
        return self.limit.of(batch_size(self._plan, self.settings.batch_size))

    def _try_to_train(self, size: int, through: float) -> None:
        """One update, or a lower batch limit where memory is short: then nothing else has changed."""
        try:
            self._train(size, through)
        except MemoryError:
            self.limit.halve(size, "a training step")

    def _train(self, size: int, through: float) -> None:
        """One update with the first ``size`` images of the queue; ``through``: share of the epoch that is over."""
        state, memory, totals = self.state, self.memory, self.state.totals
        indices = state.queue[:size]
        batch = self._batch(indices, augment=True)._replace(weights=state.queue_weights[:size])
        hyper = step_hyper(
            self.pack, self._plan, self.settings, loss=memory.last_loss,
            share=self._size / self.settings.batch_size,
            thousandth=int(1000 * (state.epoch + through) / state.epochs),
            curriculum_stage=state.curriculum_stage, curriculum_stages=len(self._windows),
        )  # fmt: skip
        with self.phase("train"):
            result = self._trainer.step(batch, hyper)
        state.queue, state.queue_weights = state.queue[size:], state.queue_weights[size:]
        state.step += 1
        memory.remember(indices, result.losses, result.logits, batch.labels)
        memory.last_loss = float(result.losses.mean(dtype=np.float64))
        totals.add(result, batch.labels)
        totals.steps += 1
        state.sums = add_batch(state.sums, result.logits, batch.labels)

    def _choose_channels(self, order: np.ndarray) -> None:
        some = order[: 2 * self.settings.batch_size]
        probe = self.pack.plan(self._plan.base)

        def choose(size: int) -> ChosenChannels:
            parts = np.array_split(some, max(2, -(-len(some) // size)))
            batches = [self._as_they_are(part) for part in parts]
            with self.phase("train"):
                return choose_channels(self.engine, self.pack, self._plan, probe, self.weights(), batches)

        chosen = self.limit.whole(self.settings.batch_size, choose, "a probe for guilty channels")
        self._trainer.set_channels(chosen.rows)
        self.state.guilt = chosen.guilt
        self.state.totals.probe_flops += len(some) * probe.flops_train
