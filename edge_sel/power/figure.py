"""Running sums over a meter's readings, for the whole and for each phase of a run, and the figure that a window gives.

Memory does not grow with time: the sums only go up, and a window is the difference of two of them.

Phases, such as ``train`` and ``evaluate``, alternate faster than a meter is read. Between two readings the meter went
on by E joules. Of the time between them a phase had the share ``w``, and of the processor time that this process took
meanwhile, on all its threads, the share ``c``. Then

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from edge_sel.power.meter import EnergySource, Meter, Reading
from edge_sel.units import format_duration

RELATIVE_ERROR = {"measured": 0.05, "modelled": 0.4, "unavailable": 1.0}
"""Of a total: NVIDIA states 5 % for its boards; models have been found 40 % off (arXiv 2509.22092)."""

OTHER = "other"


class Tally(NamedTuple):
    """Sums since the recorder began, of the whole or of one phase."""

    seconds: float = 0.0  # of a phase only, as is what a phase's processor time says
    cpu_s: float = 0.0
    energy_j: float = 0.0
    own_j: float = 0.0  # where the meter itself knows this process's joules
    covered_s: float = 0.0  # time the energy belongs to
    idle_s: float = 0.0  # time for which idle power may be taken off
    shared_j: float = 0.0  # what a model gave to a phase and may be the other phases'
    gap_s: float = 0.0  # time without samples
    swing_j: float = 0.0  # how far the trapezoids may be off
    samples: int = 0

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        return Tally._make(map(operator.add, self, other))

    def since(self, start: Tally) -> Tally:
        """What was added after ``start``."""
        return Tally._make(map(operator.sub, self, start))

    @property
    def mean_power_w(self) -> float | None:
        """Watts over the time covered."""
        return self.energy_j / self.covered_s if self.covered_s > 0 else None


def one_step(before: Reading, after: Reading, gap_limit_s: float, idle_w: float | None) -> Tally:
    """What a reading adds to the sums. A counter spans a gap; sampled power does not."""
    seconds = max(0.0, after.time_s - before.time_s)
    gap = seconds > gap_limit_s
    unknown = Tally(gap_s=seconds, samples=1)
    if before.energy_j is not None and after.energy_j is not None:
        joules = after.energy_j - before.energy_j
        if joules < 0:  # the counter began anew: what was drawn meanwhile is not known
            return unknown
        own_j = max(0.0, (after.net_j or 0.0) - (before.net_j or 0.0))
        idle_s = min(seconds, joules / idle_w) if gap and idle_w else seconds  # it may have been asleep
        known = Tally(energy_j=joules, own_j=own_j, covered_s=seconds, idle_s=idle_s, samples=1)
        return known._replace(gap_s=seconds if gap else 0.0)
    if before.power_w is None or after.power_w is None or gap:
        return unknown
    joules = (before.power_w + after.power_w) / 2 * seconds
    swing_j = abs(after.power_w - before.power_w) / 2 * seconds
    return Tally(energy_j=joules, covered_s=seconds, idle_s=seconds, swing_j=swing_j, samples=1)


Phases = Mapping[str, Tally]
NOTHING = Tally()
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
        self._times: dict[str, Tally] = {}
        self._mark_s, self._mark_cpu_s = clock(), cpu_time()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time inside the block. The phase around it goes on afterwards."""
        before = self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def cut(self) -> tuple[float, Phases, Phases]:
        """The time now, the phases' times since the beginning, and those since the last cut."""
        with self._lock:
            now_s = self._book()
            parts = {name: Tally(*part) for name, part in self._parts.items()}
            self._parts = {}
            self._times = add_phases(self._times, parts)
            return now_s, self._times, parts

    def _switch(self, name: str) -> str:
        """Be in this phase from now on; the one before."""
        with self._lock:
            self._book()
            before, self._name = self._name, name
        return before

    def _book(self) -> float:
        now_s, cpu_s = self._clock(), self._cpu_time()
        seconds, spent_s = self._parts.get(self._name, (0.0, 0.0))
        self._parts[self._name] = (seconds + now_s - self._mark_s, spent_s + cpu_s - self._mark_cpu_s)
        self._mark_s, self._mark_cpu_s = now_s, cpu_s
        return now_s


def share_out(parts: Phases, step: Tally, idle_w: float | None) -> Phases:
    """What one interval added to the sums, by the formula above, on the phases whose times are ``parts``."""
    wall = _shares([part.seconds for part in parts.values()]) or [1 / len(parts)] * len(parts)
    cpu = _shares([part.cpu_s for part in parts.values()]) or wall
    steady_j = step.energy_j if idle_w is None else min(step.energy_j, idle_w * step.idle_s)
    moving_j = step.energy_j - steady_j
    modelled_j = step.energy_j if idle_w is None else moving_j
    return {
        name: Tally(
            energy_j=steady_j * w + moving_j * c,
            own_j=step.own_j * c,
            covered_s=step.covered_s * w,
            idle_s=step.idle_s * w,
            shared_j=modelled_j * min(w if idle_w is None else c, max(1 - w, 1 - c)),
        )
        for name, w, c in zip(parts, wall, cpu, strict=True)
    }


def add_phases(sums: Phases, more: Phases) -> dict[str, Tally]:
    """The sums of both, by phase."""
    return {**sums, **{name: sums.get(name, NOTHING).plus(tally) for name, tally in more.items()}}


def between(start: Phases, end: Phases) -> dict[str, Tally]:
    """What each phase had from the one moment to the other, of those that had anything."""
    spent = {name: tally.since(start.get(name, NOTHING)) for name, tally in end.items()}
    return {name: tally for name, tally in spent.items() if tally.seconds > 0 or tally.cpu_s > 0 or tally.energy_j > 0}


def _shares(amounts: list[float]) -> list[float] | None:
    whole = sum(amounts)
    return [amount / whole for amount in amounts] if whole > 0 else None


class Moment(NamedTuple):
    """All sums as they were at one time. What lies between two moments is a window."""

    time_s: float
    tally: Tally = Tally()
    times: Phases = NONE
    joules: Phases = NONE
    reading: Reading | None = None

    def phases_since(self, start: Moment) -> Phases:
        """Time and joules of each phase that had any."""
        return between(add_phases(start.times, start.joules), add_phases(self.times, self.joules))


@dataclass(eq=False)
class Window:
    """An open stretch of the run, to be handed back to the recorder."""

    label: str
    start: Moment
    temp_c: float | None
    throttled: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class EnergyFigure:
    """The energy of one window, and where it is from. None is never to be read as 0."""

    total_j: float | None
    """Gross."""
    net_j: float | None
    """Less what the idle device would have drawn; None if that is not known."""
    source: EnergySource
    meter: str | None
    mean_power_w: float | None
    seconds: float
    samples: int
    gap_s: float
    uncertainty_j: float | None
    temp_c: float | None
    """The highest in the window."""
    throttled: tuple[str, ...] = ()
    """Why what the meter measures was slowed down, as it told once a second."""
    label: str = ""
    method: str | None = None
    """``counter`` or ``power``: how the meter was read."""
    idle_w: float | None = None
    partial_j: float | None = None
    """What was counted before the meter was lost: less than the whole."""
    why: str | None = None
    """Why the source is ``unavailable``."""
    phases: Mapping[str, PhaseFigure] = field(default_factory=dict, hash=False)
    """The window's parts by ``EnergyRecorder.phase``; ``other`` is the time in none."""

    def to_json(self) -> dict[str, Any]:
        """All of it, for ``--json``."""
        return asdict(self)


@dataclass(frozen=True)
class RecorderCost:
    """What recording itself took; its joules are modelled from the profile.

    The short-lived thread that reads the kernel's thermal zones once a second is not in it.
    """

    cpu_s: float
    energy_j: float | None
    source: EnergySource

    def to_json(self) -> dict[str, Any]:
        """All of it, for ``--json``."""
        return asdict(self)


def make_figure(
    window: Window, moment: Moment, meter: Meter | None, idle_w: float | None, lost: str | None
) -> EnergyFigure:
    """The figure of a window that ends at a moment.

    Args:
        window: with the moment at which it began.
        moment: the sums then.
        meter: what was read; None if there is none.
        idle_w: watts of the idle device; None if not known.
        lost: why the meter tells nothing any more, or why there is none.

    """
    spent, seconds = moment.tally.since(window.start.tally), max(0.0, moment.time_s - window.start.time_s)
    run_power_w, last = moment.tally.mean_power_w or 0.0, moment.reading
    why = lost if meter is None or lost is not None else _why_unavailable(spent, seconds, meter, run_power_w)
    source = "unavailable" if meter is None or why is not None else meter.source
    known = source != "unavailable"
    min_window_s = 0.0 if meter is None else meter.min_window_s
    power_w = max(spent.mean_power_w or 0.0, run_power_w)
    edges_j = power_w * min_window_s * (0.1 if seconds >= min_window_s else 1.0)
    inside_j = spent.swing_j + power_w * max(0.0, seconds - spent.covered_s)

    def net_j(part: Tally) -> float | None:
        if last is not None and last.net_j is not None:
            return part.own_j
        return None if idle_w is None else max(0.0, part.energy_j - idle_w * part.idle_s)

    def phase(part: Tally) -> PhaseFigure:
        if not known or part.covered_s <= 0 < part.seconds:  # all of it lay in gaps, and nothing is known of them
            return PhaseFigure(None, None, part.seconds, part.cpu_s, None)
        doubt_j = edges_j + inside_j * (part.seconds / seconds if seconds > 0 else 1.0)
        model_j = RELATIVE_ERROR["modelled"] * part.shared_j
        uncertainty_j = RELATIVE_ERROR[source] * part.energy_j + model_j + doubt_j
        return PhaseFigure(part.energy_j, net_j(part), part.seconds, part.cpu_s, uncertainty_j)

    return EnergyFigure(
        total_j=spent.energy_j if known else None,
        net_j=net_j(spent) if known else None,
        source=source,
        meter=None if meter is None else meter.name,
        mean_power_w=spent.mean_power_w if known else None,
        seconds=seconds,
        samples=spent.samples,
        gap_s=spent.gap_s,
        uncertainty_j=RELATIVE_ERROR[source] * spent.energy_j + edges_j + inside_j if known else None,
        temp_c=window.temp_c,
        throttled=tuple(window.throttled),
        label=window.label,
        method=None if last is None else "power" if last.energy_j is None else "counter",
        idle_w=idle_w,
        partial_j=spent.energy_j if spent.energy_j > 0 and not known else None,
        why=why,
        phases={name: phase(part) for name, part in moment.phases_since(window.start).items()},
    )


def _why_unavailable(spent: Tally, seconds: float, meter: Meter, run_power_w: float) -> str | None:
    if spent.covered_s <= 0 < seconds:
        return "no two samples were close enough together"
    never_moved = spent.energy_j <= 0 < seconds and meter.source == "measured"
    if never_moved and (seconds >= meter.min_window_s or run_power_w <= 0):
        return f"{meter.name} showed no energy at all for {format_duration(seconds)}"
    return None
