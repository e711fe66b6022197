"""What kinds of update plans there are, and what each means. Other modules ask this table; they compare no names."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

TrainedBy = Literal["statistics", "closed form", "steps"]
STATISTICS: TrainedBy = "statistics"
"""A pass that re-estimates batch normalisation's running statistics."""
CLOSED_FORM: TrainedBy = "closed form"
"""A pass for the features of every image, to which the head is fitted."""
STEPS: TrainedBy = "steps"
"""Epochs of gradient steps."""

BN = "bn"
HEAD = "head"
RIDGE = "ridge"
"""The plan that fits the head in closed form. It needs no graph, so no pack lists it; ``Pack.plan`` makes it."""
CLOSED = "closed_form"
"""The plan of all that needs no gradient: ``bn``, then ``ridge``, judged as one. ``Pack.plan`` makes it too."""


class PlanKind(NamedTuple):
    """What there is to know of a plan without its graphs."""

    trained_by: TrainedBy
    gains: Literal["head", "body"] | None
    """Rows of the table of gains that count for it; None for what comes first, of which no gain is asked."""
    statistics: bool
    """Whether it may change batch normalisation's statistics without a step."""
    words: str
    """What it trains, for people."""

    @property
    def stepped(self) -> bool:
        """Whether it is trained in steps."""
        return self.trained_by == STEPS

    @property
    def needs_features(self) -> bool:
        """Whether the engine must give features of the frozen backbone."""
        return self.trained_by == CLOSED_FORM


PLAN_KINDS = {
    BN: PlanKind(STATISTICS, None, True, "batch statistics"),
    RIDGE: PlanKind(CLOSED_FORM, "head", False, "a head in closed form"),
    CLOSED: PlanKind(CLOSED_FORM, None, True, "a head in closed form"),
    HEAD: PlanKind(STEPS, "head", False, "the head"),
}
BODY = PlanKind(STEPS, "body", False, "the head and layers before it")
"""Of every other plan."""
CLOSED_FORM_PLANS = tuple(name for name, kind in PLAN_KINDS.items() if kind.needs_features)


def plan_kind(name: str) -> PlanKind:
    """The kind of a plan, with or without a budget."""
    return PLAN_KINDS.get(split_plan_name(name)[0], BODY)


def split_plan_name(name: str) -> tuple[str, float | None]:
    """A plan's base and its budget: ``last-c25`` and ``last-h25`` are ``last`` at 0.25, ``last`` itself has none."""
    match = re.fullmatch(r"(.*)-[ch](\d\d?)", name, re.DOTALL)
    return (match[1], int(match[2]) / 100) if match else (name, None)


def limits_heads(name: str) -> bool:
    """Whether a plan's budget is of attention heads, as in ``last-h25``, and not of output channels."""
    return re.fullmatch(r".*-h\d\d?", name, re.DOTALL) is not None
