"""Which stages a session goes through: those that the user named, or whatever pays.

``--plan auto`` goes on while embarrassment falls per joule, and may decide not to train:

1. ``bn``: batch normalisation's statistics from the device's own images, no backward pass. What that does to the
   validation set tells what has changed: if it helps, the pictures have; if it does not, their classes have.
2. Stop when the validation set embarrasses the model no more, or hardly more, than the server's own images did.
3. ``head`` on cached features, the cheapest plan with a backward pass, where the classes have changed: the device has
   some of its own, or new statistics did no good, or there are none.
4. ``full``, which gained as much per joule as any other plan wherever the pictures had changed (docs/field.md), for
   as many epochs as there is embarrassment left. Once more while the validation loss falls fast enough.

Each decision is a pure function of the history, so that a resumed run decides as the uninterrupted one did. Joules are
told but do not decide: they are not the same on every run. Epochs of one plan cost the same, so a gain per epoch is a
gain per joule.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from edge_sel.errors import UsageError
from edge_sel.pack.manifest import PlanInfo
from edge_sel.pack.reader import Pack

BODY = ("full", "last2", "last", "affine", "first")
"""What to train where the pictures have changed: the first of these that the pack has."""


def body_of(plans: Collection[str]) -> str | None:
    """What to train where the pictures have changed; None if the pack has nothing for it."""
    return next((name for name in BODY if name in plans), None)


class PlannedStage(NamedTuple):
    """One plan and how many epochs it may take."""

    plan: str
    epochs: int


class Ladder(Protocol):
    """Decides what to do next from what has happened; must be a pure function of the history."""

    def decide(self, history: Sequence[Mapping[str, Any]], stages_done: int) -> tuple[PlannedStage | None, str]:
        """The next stage after ``stages_done`` finished ones, None when nothing more pays; and why."""

    def planned(self, stages_done: int) -> Sequence[PlannedStage]:
        """What is expected to follow the stage that comes after ``stages_done`` finished ones; for forecasts."""


class FixedLadder:
    """The stages that the user named, one after the other."""

    def __init__(self, stages: Sequence[PlannedStage]) -> None:
        self.stages = tuple(stages)

    def decide(self, history: Sequence[Mapping[str, Any]], stages_done: int) -> tuple[PlannedStage | None, str]:
        """The next named stage."""
        return (self.stages[stages_done], "as told") if stages_done < len(self.stages) else (None, "no more plans")

    def planned(self, stages_done: int) -> Sequence[PlannedStage]:
        """The stages named after that one."""
        return self.stages[stages_done + 1 :]


def fixed_ladder(pack: Pack, plans: str, epochs: int) -> FixedLadder:
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
    return FixedLadder([PlannedStage(name, epochs if pack.plan(name).stepped else 1) for name in names])


@dataclass(frozen=True)
class LadderConfig:
    """How far ``AutoLadder`` goes.

    Attributes:
        head_epochs: of the plan ``head``.
        unknown_epochs: of the body, where the server's embarrassment is not known.
        e_per_epoch: nats of embarrassment beyond the server's that are worth one epoch; less than half of that is
            worth nothing.
        most_epochs: of one stage of the body.
        most_body_stages: how often the body may be trained.
        leave_below: nats of the validation loss per epoch: a stage of the body that gained less was the last.
    """

    head_epochs: int = 3
    unknown_epochs: int = 2
    e_per_epoch: float = 0.2
    most_epochs: int = 6
    most_body_stages: int = 2
    leave_below: float = 0.1


def auto_ladder(pack: Pack, classes: int, config: LadderConfig | None = None) -> AutoLadder:
    """The ladder for a pack on a device that knows so many classes."""
    known = [e for e in pack.manifest.calibration.embarrassment if e is not None]
    clean_e = sum(known) / len(known) if known else None
    new_classes = classes > len(pack.manifest.model.classes)
    return AutoLadder(pack.manifest.plans, clean_e, new_classes=new_classes, config=config)


class AutoLadder:
    """Decides stage by stage.

    Args:
        plans: those of the pack.
        clean_e: embarrassment of the pack's model on the server's images, nats; None if that is not known.
        new_classes: the device has classes that the pack lacks.
        config: how far it goes.
    """

    def __init__(
        self,
        plans: Mapping[str, PlanInfo],
        clean_e: float | None,
        *,
        new_classes: bool,
        config: LadderConfig | None = None,
    ) -> None:
        self._plans = plans
        self._config = config or LadderConfig()
        self._clean_e = clean_e
        self._new_classes = new_classes
        self._body = body_of(plans)

    def planned(self, stages_done: int) -> Sequence[PlannedStage]:
        """Nothing is certain beyond the current stage."""
        return ()

    def decide(self, history: Sequence[Mapping[str, Any]], stages_done: int) -> tuple[PlannedStage | None, str]:
        """The next stage, and why."""
        if not history:
            if "bn" in self._plans and self._plans["bn"].buffers:
                return PlannedStage("bn", 1), "statistics first: no backward pass"
            if "head" in self._plans:
                return PlannedStage("head", self._config.head_epochs), "the model has no statistics to re-estimate"
            return self._train_body(None)
        stage = [entry for entry in history if entry["rung"] == history[-1]["rung"]]
        plan, start, end = stage[-1]["plan"], stage[0]["best_loss"], stage[-1]["guard_loss"]
        helped = end is not None and (start is None or end < start)
        now_e = stage[-1]["guard_e"] if helped else stage[0]["best_e"]
        if now_e is not None and self._clean_e is not None and now_e <= self._clean_e:
            return None, f"embarrassed by {now_e:.3f} nats, on the server's images by {self._clean_e:.3f}"
        if plan == "bn":
            return self._after_statistics(now_e, helped=helped)
        if plan == "head":
            return self._train_body(now_e)
        return self._after_body(history, stage, now_e)

    def _after_statistics(self, now_e: float | None, *, helped: bool) -> tuple[PlannedStage | None, str]:
        if "head" in self._plans and (self._new_classes or not helped):
            why = "the device has classes of its own" if self._new_classes else "new statistics did no good"
            return PlannedStage("head", self._config.head_epochs), why
        return self._train_body(now_e)

    def _train_body(self, now_e: float | None) -> tuple[PlannedStage | None, str]:
        """As many epochs as embarrassment is left."""
        if self._body is None:
            return None, "the pack has no further plan"
        if now_e is None or self._clean_e is None:
            return PlannedStage(self._body, self._config.unknown_epochs), "how much embarrassment is left is not known"
        told = f"embarrassed by {now_e - self._clean_e:.3f} nats more than on the server"
        epochs = round((now_e - self._clean_e) / self._config.e_per_epoch)
        if epochs and self._new_classes:
            epochs += 1  # the mean over classes hides how little is known of the new ones
        return (PlannedStage(self._body, min(epochs, self._config.most_epochs)) if epochs else None), told

    def _after_body(
        self, history: Sequence[Mapping[str, Any]], stage: Sequence[Mapping[str, Any]], now_e: float | None
    ) -> tuple[PlannedStage | None, str]:
        start, end = stage[0]["best_loss"], stage[-1]["guard_loss"]
        if start is None or end is None:
            return None, f"{self._body} diverged"
        gain = (start - end) / len(stage)
        told = f"the validation loss {'fell' if gain > 0 else 'rose'} by {abs(gain):.3f} nats per epoch"
        joules = [entry["energy_j"] for entry in stage]
        if gain > 0 and None not in joules and sum(joules) > 0:
            told += f", {(start - end) / sum(joules):.2g} per joule"
        stages = len({entry["rung"] for entry in history if entry["plan"] == self._body})
        if gain < self._config.leave_below:
            return None, told
        if stages >= self._config.most_body_stages:
            return None, f"{told}, but {stages} times is enough"
        further, left = self._train_body(now_e)
        return further, told if further else f"{told}; {left}"
