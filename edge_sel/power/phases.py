"""Joules per phase of a run, such as ``train`` and ``evaluate``, which alternate faster than a meter is read.

Between two readings the meter went on by E joules. Of the time between them a phase had the share ``w``, and of the
processor time that this process took meanwhile, on all its threads, the share ``c``. Then

    idle    = min(E, idle watts * seconds awake)        all of E where the idle watts are not known
    phase   = idle * w + (E - idle) * c                 w in place of c where no processor time passed

Of a meter that itself tells this process's joules (``net_j``) those go by ``c``. All shares of one interval are 1
together, so the joules of the phases are those of the window; the edges of a window are readings too. That
processor time stands for energy is a model, however well E was measured: see ``PhaseFigure.uncertainty_j``.
Time in no phase is the phase ``other``.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import NamedTuple

OTHER = "other"


class PhaseTally(NamedTuple):
    """Sums of one phase since the recorder began."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    energy_j: float = 0.0
    own_j: float = 0.0  # where the meter itself knows this process's joules
    covered_s: float = 0.0  # time the energy belongs to
    idle_s: float = 0.0  # time for which idle power may be taken off
    shared_j: float = 0.0  # what a model gave to it and may be the other phases'

    def plus(self, other: PhaseTally) -> PhaseTally:
        """Both together."""
        return PhaseTally._make(map(operator.add, self, other))

    def since(self, start: PhaseTally) -> PhaseTally:
        """What was added after ``start``."""
        return PhaseTally._make(map(operator.sub, self, start))


Phases = Mapping[str, PhaseTally]
NOTHING = PhaseTally()
NONE: Phases = MappingProxyType({})


@dataclass(frozen=True)
class PhaseFigure:
    """One phase's part of a window. None is never to be read as 0."""

    total_j: float | None
    """Gross. Over the phases this adds up to the window's."""
    net_j: float | None
    """Less the idle power over the phase's own time, at least 0; what the meter tells where it knows better."""
    seconds: float
    """Wall time. Over the phases this adds up to the window's."""
    cpu_s: float
    """Processor time of this process, all its threads."""
    uncertainty_j: float | None
    """The meter's relative error, its delay at the edges, the phase's share of the window's gaps and swings, and the
    error of a model on what was shared out: of a phase's joules, at most as much as the others had of the interval's
    time or processor time, whichever is more."""


class PhaseClock:
    """Which phase the run is in, and the seconds of each. One thread switches, another one may cut.

    Its lock is held for microseconds, never while a meter is read.

    Args:
        clock: seconds.
        cpu_time: processor seconds of this process.

    """

    def __init__(self, clock: Callable[[], float], cpu_time: Callable[[], float]) -> None:
        self._clock, self._cpu_time = clock, cpu_time
        self._lock = threading.Lock()
        self._name = OTHER
        self._parts: dict[str, tuple[float, float]] = {}
        self._times: dict[str, PhaseTally] = {}
        self._mark_s, self._mark_cpu_s = clock(), cpu_time()

    def switch(self, name: str) -> str:
        """Be in this phase from now on; the one before."""
        with self._lock:
            self._book()
            before, self._name = self._name, name
        return before

    def cut(self) -> tuple[float, Phases, Phases]:
        """The time now, the phases' times since the beginning, and those since the last cut."""
        with self._lock:
            now_s = self._book()
            parts = {name: PhaseTally(*part) for name, part in self._parts.items()}
            self._parts = {}
            self._times = add(self._times, parts)
            return now_s, self._times, parts

    def _book(self) -> float:
        now_s, cpu_s = self._clock(), self._cpu_time()
        seconds, spent_s = self._parts.get(self._name, (0.0, 0.0))
        self._parts[self._name] = (seconds + now_s - self._mark_s, spent_s + cpu_s - self._mark_cpu_s)
        self._mark_s, self._mark_cpu_s = now_s, cpu_s
        return now_s


class Phase:
    """The time inside a ``with`` block. The phase around it goes on afterwards."""

    __slots__ = ("_before", "_clock", "_name")

    def __init__(self, clock: PhaseClock, name: str) -> None:
        self._clock, self._name = clock, name
        self._before = OTHER

    def __enter__(self) -> None:
        self._before = self._clock.switch(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clock.switch(self._before)


def share_out(
    parts: Phases, energy_j: float, own_j: float, covered_s: float, idle_s: float, idle_w: float | None
) -> Phases:
    """The joules and seconds of one interval, by the formula above, on the phases whose times are ``parts``."""
    wall = _shares([part.seconds for part in parts.values()]) or [1 / len(parts)] * len(parts)
    cpu = _shares([part.cpu_s for part in parts.values()]) or wall
    steady_j = energy_j if idle_w is None else min(energy_j, idle_w * idle_s)
    moving_j = energy_j - steady_j
    modelled_j = energy_j if idle_w is None else moving_j
    return {
        name: PhaseTally(
            energy_j=steady_j * w + moving_j * c,
            own_j=own_j * c,
            covered_s=covered_s * w,
            idle_s=idle_s * w,
            shared_j=modelled_j * min(w if idle_w is None else c, max(1 - w, 1 - c)),
        )
        for name, w, c in zip(parts, wall, cpu, strict=True)
    }


def add(sums: Phases, more: Phases) -> dict[str, PhaseTally]:
    """The sums of both, by phase."""
    return {**sums, **{name: sums.get(name, NOTHING).plus(tally) for name, tally in more.items()}}


def between(start: Phases, end: Phases) -> dict[str, PhaseTally]:
    """What each phase had from the one moment to the other, of those that had anything."""
    spent = {name: tally.since(start.get(name, NOTHING)) for name, tally in end.items()}
    return {name: tally for name, tally in spent.items() if tally.seconds > 0 or tally.cpu_s > 0 or tally.energy_j > 0}


def _shares(amounts: list[float]) -> list[float] | None:
    whole = sum(amounts)
    return [amount / whole for amount in amounts] if whole > 0 else None
