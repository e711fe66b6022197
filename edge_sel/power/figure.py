"""Running sums over a meter's readings, and the figure a window of them gives.

Memory does not grow with time: the sums only go up, and a window is the difference of two of them.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from edge_sel.power.meter import Reading, Source
from edge_sel.power.phases import PhaseFigure, PhaseTally
from edge_sel.units import format_duration

RELATIVE_ERROR = {"measured": 0.05, "modelled": 0.4, "unavailable": 1.0}
"""Of a total: NVIDIA states 5 % for its boards; models have been found 40 % off (arXiv 2509.22092)."""


class Tally(NamedTuple):
    """Sums since the recorder began."""

    energy_j: float = 0.0
    net_j: float = 0.0  # where the meter itself knows it
    covered_s: float = 0.0  # time the energy belongs to
    idle_s: float = 0.0  # time for which idle power may be taken off
    gap_s: float = 0.0  # time without samples
    swing_j: float = 0.0  # how far the trapezoids may be off
    samples: int = 0

    def advance(self, before: Reading, after: Reading, gap_limit_s: float, idle_w: float | None) -> Tally:
        """The sums one reading later. A counter spans a gap; sampled power does not."""
        seconds = max(0.0, after.time_s - before.time_s)
        gap = seconds > gap_limit_s
        new = self._replace(samples=self.samples + 1, gap_s=self.gap_s + (seconds if gap else 0.0))
        if before.energy_j is not None and after.energy_j is not None:
            joules = after.energy_j - before.energy_j
            if joules < 0:  # the counter began anew: what was drawn meanwhile is not known
                return self._replace(samples=self.samples + 1, gap_s=self.gap_s + seconds)
            idle_s = min(seconds, joules / idle_w) if gap and idle_w else seconds  # it may have been asleep
            own_j = (after.net_j or 0.0) - (before.net_j or 0.0)
            return new._replace(
                energy_j=self.energy_j + joules,
                net_j=self.net_j + max(0.0, own_j),
                covered_s=self.covered_s + seconds,
                idle_s=self.idle_s + idle_s,
            )
        if before.power_w is None or after.power_w is None:
            return self._replace(samples=self.samples + 1, gap_s=self.gap_s + seconds)
        if gap:
            return new
        return new._replace(
            energy_j=self.energy_j + (before.power_w + after.power_w) / 2 * seconds,
            covered_s=self.covered_s + seconds,
            idle_s=self.idle_s + seconds,
            swing_j=self.swing_j + abs(after.power_w - before.power_w) / 2 * seconds,
        )

    def since(self, start: Tally) -> Tally:
        """What was added after ``start``."""
        return Tally._make(map(operator.sub, self, start))

    @property
    def mean_power_w(self) -> float | None:
        """Watts over the time covered."""
        return self.energy_j / self.covered_s if self.covered_s > 0 else None


@dataclass(frozen=True)
class EnergyFigure:
    """The energy of one window, and where it is from. None is never to be read as 0."""

    total_j: float | None
    """Gross."""
    net_j: float | None
    """Less what the idle device would have drawn; None if that is not known."""
    source: Source
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
    source: Source

    def to_json(self) -> dict[str, Any]:
        """All of it, for ``--json``."""
        return asdict(self)


class MeterFacts(NamedTuple):
    """What a figure needs to know of the meter and the run it belongs to."""

    name: str | None
    source: Source
    min_window_s: float
    method: str | None
    own_net: bool
    idle_w: float | None
    run_power_w: float
    lost: str | None


def make_figure(
    spent: Tally,
    seconds: float,
    meter: MeterFacts,
    *,
    temp_c: float | None,
    throttled: tuple[str, ...],
    label: str,
    phases: Mapping[str, PhaseTally],
) -> EnergyFigure:
    """The figure of a window in which this was spent."""
    why = _why_unavailable(spent, seconds, meter)
    figure = EnergyFigure(
        total_j=None,
        net_j=None,
        source="unavailable",
        meter=meter.name,
        mean_power_w=None,
        seconds=seconds,
        samples=spent.samples,
        gap_s=spent.gap_s,
        uncertainty_j=None,
        temp_c=temp_c,
        throttled=throttled,
        label=label,
        method=meter.method,
        idle_w=meter.idle_w,
        phases={name: PhaseFigure(None, None, part.seconds, part.cpu_s, None) for name, part in phases.items()},
    )
    if why is not None:
        return replace(figure, why=why, partial_j=spent.energy_j if spent.energy_j > 0 else None)
    power_w = max(spent.mean_power_w or 0.0, meter.run_power_w)
    edges_j = power_w * meter.min_window_s * (0.1 if seconds >= meter.min_window_s else 1.0)
    inside_j = spent.swing_j + power_w * max(0.0, seconds - spent.covered_s)
    return replace(
        figure,
        total_j=spent.energy_j,
        net_j=_net_j(spent.energy_j, spent.net_j, spent.idle_s, meter),
        source=meter.source,
        mean_power_w=spent.mean_power_w,
        uncertainty_j=RELATIVE_ERROR[meter.source] * spent.energy_j + edges_j + inside_j,
        phases={
            name: _phase_figure(part, meter, edges_j + inside_j * (part.seconds / seconds if seconds > 0 else 1.0))
            for name, part in phases.items()
        },
    )


def _why_unavailable(spent: Tally, seconds: float, meter: MeterFacts) -> str | None:
    if meter.lost is not None:
        return meter.lost
    if spent.covered_s <= 0 < seconds:
        return "no two samples were close enough together"
    never_moved = spent.energy_j <= 0 < seconds and meter.source == "measured"
    if never_moved and (seconds >= meter.min_window_s or meter.run_power_w <= 0):
        return f"{meter.name} showed no energy at all for {format_duration(seconds)}"
    return None


def _phase_figure(part: PhaseTally, meter: MeterFacts, doubt_j: float) -> PhaseFigure:
    if part.covered_s <= 0 < part.seconds:  # all of it lay in gaps, and nothing is known of them
        return PhaseFigure(None, None, part.seconds, part.cpu_s, None)
    return PhaseFigure(
        total_j=part.energy_j,
        net_j=_net_j(part.energy_j, part.own_j, part.idle_s, meter),
        seconds=part.seconds,
        cpu_s=part.cpu_s,
        uncertainty_j=RELATIVE_ERROR[meter.source] * part.energy_j
        + RELATIVE_ERROR["modelled"] * part.shared_j
        + doubt_j,
    )


def _net_j(energy_j: float, own_j: float, idle_s: float, meter: MeterFacts) -> float | None:
    if meter.own_net:
        return own_j
    return None if meter.idle_w is None else max(0.0, energy_j - meter.idle_w * idle_s)
