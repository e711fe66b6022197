"""Which plans a session visits, in which order. A ladder that decides by itself implements the same protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from edge_sel.errors import UsageError
from edge_sel.pack.reader import Pack


class Rung(NamedTuple):
    """One plan and how many epochs it may take."""

    plan: str
    epochs: int


class Ladder(Protocol):
    """Decides what to do next from what has happened; must be a pure function of the history."""

    def decide(self, history: Sequence[Mapping[str, Any]], visited: int) -> tuple[Rung | None, str]:
        """The next rung after ``visited`` finished ones, None when nothing more pays; and why."""

    def planned(self, visited: int) -> Sequence[Rung]:
        """What is expected to follow the rung that comes after ``visited`` finished ones; for forecasts."""


class FixedLadder:
    """The rungs that the user named, one after the other."""

    def __init__(self, rungs: Sequence[Rung]) -> None:
        self.rungs = tuple(rungs)

    def decide(self, history: Sequence[Mapping[str, Any]], visited: int) -> tuple[Rung | None, str]:
        """The next named rung."""
        return (self.rungs[visited], "as told") if visited < len(self.rungs) else (None, "no more plans")

    def planned(self, visited: int) -> Sequence[Rung]:
        """The rungs named after that one."""
        return self.rungs[visited + 1 :]


def fixed_ladder(pack: Pack, plans: str, epochs: int) -> FixedLadder:
    """Parse ``bn,last``; batch statistics need one pass, every other plan gets ``epochs``.

    Raises:
        UsageError: an empty list, or a plan that the pack does not have.
    """
    names = [name.strip() for name in plans.split(",") if name.strip()]
    if not names:
        raise UsageError("--plan names no plan", fix=f"one or more of {', '.join(pack.manifest.plans)}")
    for name in names:
        pack.plan(pack.plan(name).base)  # its gradients choose the channels of a budget
    return FixedLadder([Rung(pack.plan(name).name, epochs if pack.plan(name).trainable else 1) for name in names])
