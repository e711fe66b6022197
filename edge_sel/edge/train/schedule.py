"""Which stages a session goes through. Here: those that the user named; ``auto_schedule.py`` has those that pay."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from edge_sel.errors import UsageError
from edge_sel.pack.reader import Pack

History = Sequence[Mapping[str, Any]]
"""An entry for every finished epoch, see ``outputs/logs.py``."""


class PlannedStage(NamedTuple):
    """One plan and how many epochs it may take."""

    plan: str
    epochs: int


class Outcome(NamedTuple):
    """What a stage is expected to give and to take."""

    gain: float
    """Accuracy on the validation set, as a share: 0.01 is one point."""
    energy_j: float | None
    """Gross; None where the joules of this run are not known."""


class NextStage(NamedTuple):
    """The next stage, None when nothing more pays; why; and what was expected of it, if that was asked."""

    stage: PlannedStage | None
    why: str
    expected: Outcome | None = None


class Schedule(Protocol):
    """Decides what to do next from what has happened; must be a pure function of the history."""

    def decide(self, history: History, stages_done: int) -> NextStage:
        """What to do after ``stages_done`` finished stages."""

    def planned(self, stages_done: int) -> Sequence[PlannedStage]:
        """What is expected to follow the stage that comes after ``stages_done`` finished ones; for forecasts."""


class FixedSchedule:
    """The stages that the user named, one after the other."""

    def __init__(self, stages: Sequence[PlannedStage]) -> None:
        self.stages = tuple(stages)

    def decide(self, history: History, stages_done: int) -> NextStage:
        """The next named stage."""
        if stages_done < len(self.stages):
            return NextStage(self.stages[stages_done], "as told")
        return NextStage(None, "no more plans")

    def planned(self, stages_done: int) -> Sequence[PlannedStage]:
        """The stages named after that one."""
        return self.stages[stages_done + 1 :]


def trainable_by(pack: Pack, engine: str) -> Pack:
    """The pack with the plans that the named engine can train.

    Raises:
        UsageError: the engine is ``ort-training`` and the pack has no artifacts for it.
    """
    manifest = pack.manifest
    if engine != "ort-training":
        return pack
    if manifest.ort_training is None:
        raise UsageError("the pack has no artifacts of onnxruntime-training", where=pack.path,
                         fix="export it with --with ort-training, or --engine ort")  # fmt: skip
    able = {n: p for n, p in manifest.plans.items() if not p.trainable or n in manifest.ort_training.parameters}
    return pack.with_manifest(replace(manifest, plans=able))


def fixed_schedule(pack: Pack, plans: str, epochs: int) -> FixedSchedule:
    """Parse ``bn,last``; statistics and a head in closed form need one pass, every other plan gets ``epochs``.

    Raises:
        UsageError: an empty list, or a plan that the pack does not have.
    """
    names = [name.strip() for name in plans.split(",") if name.strip()]
    if not names:
        raise UsageError("--plan names no plan", fix=f"one or more of {', '.join(pack.plan_names)}")
    for name in names:
        if pack.plan(name).channels:
            pack.plan(pack.plan(name).base)  # its gradients choose the channels
    return FixedSchedule([PlannedStage(name, epochs if pack.plan(name).kind.stepped else 1) for name in names])


def stages_of(history: History) -> list[list[Mapping[str, Any]]]:
    """The entries of each finished stage."""
    return [list(entries) for _, entries in itertools.groupby(history, key=lambda entry: entry["training_stage"])]


def was_kept(stage: History) -> bool:
    """Whether a finished stage made the model better: otherwise it was undone."""
    return bool(stage[-1]["kept"])


def outcome_of(stage: History) -> Outcome:
    """What a finished stage gave and took; one that was undone gave nothing."""
    gain = stage[-1]["validation_acc"] - stage[0]["best_acc"] if was_kept(stage) else 0.0
    joules = [entry["energy_j"] for entry in stage]
    return Outcome(gain, None if None in joules else sum(joules))


def loss_in(value: float | None) -> float:
    """A loss of the history, nats, where what was not finite is None."""
    return math.inf if value is None else value
