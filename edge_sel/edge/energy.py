"""Joules of the run and of the current epoch, over every part of a run that was stopped and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_sel.power.figure import EnergyFigure, Window
from edge_sel.power.recorder import EnergyRecorder


@dataclass(frozen=True)
class Spent:
    """Joules so far, over all resumed parts of the run; ``source`` is that of the weakest part."""

    total_j: float | None = 0.0
    net_j: float | None = 0.0
    seconds: float = 0.0
    source: str | None = None
    uncertainty_j: float | None = 0.0
    phases: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """``total_j``, ``net_j`` and ``seconds`` of each phase; ``prefix`` is that of the frozen backbone."""

    def plus(self, figure: EnergyFigure) -> Spent:
        """With another stretch added; unknown plus anything is unknown."""
        parts = {
            name: {"total_j": part.total_j, "net_j": part.net_j, "seconds": part.seconds}
            for name, part in figure.phases.items()
        }
        return self._plus(figure, parts)

    def plus_phase(self, name: str, more: Spent) -> Spent:
        """With what was spent otherwise added, all of it as one phase."""
        return self._plus(more, {name: {"total_j": more.total_j, "net_j": more.net_j, "seconds": more.seconds}})

    def totals(self) -> dict[str, Any]:
        """All but the phases, as JSON values."""
        return {name: getattr(self, name) for name in TOTALS}

    def _plus(self, more: EnergyFigure | Spent, parts: Mapping[str, Mapping[str, float | None]]) -> Spent:
        order = (None, "measured", "modelled", "unavailable")
        phases = dict(self.phases)
        for name, part in parts.items():
            before = phases.get(name, {"total_j": 0.0, "net_j": 0.0, "seconds": 0.0})
            phases[name] = {key: _sum(before[key], part[key]) for key in part}
        return Spent(
            total_j=_sum(self.total_j, more.total_j),
            net_j=_sum(self.net_j, more.net_j),
            seconds=self.seconds + more.seconds,
            source=max(self.source, more.source, key=order.index),
            uncertainty_j=_sum(self.uncertainty_j, more.uncertainty_j),
            phases=phases,
        )


LOST = "lost"
"""The phase of work that an interruption has undone, and of opening the run again."""
OPENING = "opening"
"""The phase before a run begins: images are decoded and compared, graphs are loaded."""
TOTALS = ("total_j", "net_j", "seconds", "source", "uncertainty_j")


def beyond(told: Mapping[str, Any], booked: Spent) -> Spent:
    """What a run has spent, as its journal tells, beyond what is booked; nothing if it tells of nothing more.

    Raises:
        KeyError, TypeError: the journal is another version's.
    """
    seconds = float(told["seconds"]) - booked.seconds
    if seconds <= 0:
        return Spent()
    return Spent(
        total_j=_less(told["total_j"], booked.total_j),
        net_j=_less(told["net_j"], booked.net_j),
        seconds=seconds,
        source=told["source"],
        uncertainty_j=_less(told["uncertainty_j"], booked.uncertainty_j),
    )


def opening_spent(recorder: EnergyRecorder, opening: Window) -> Spent:
    """What it took to open a run, up to now; too short a while to be measured counts as nothing."""
    figure = recorder.peek(opening)
    if figure.total_j is None and recorder.works:
        return Spent()
    return Spent().plus(figure)


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else max(0.0, a - b)


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


class EnergyLedger:
    """Two windows of the recorder on top of what earlier parts of the run have spent."""

    def __init__(self, recorder: EnergyRecorder, earlier_run: Spent, earlier_epoch: Spent) -> None:
        self._recorder = recorder
        self._run = recorder.start_window("run")
        self._epoch = recorder.start_window("epoch")
        self._earlier_run, self._earlier_epoch = earlier_run, earlier_epoch

    def spent_j(self) -> float | None:
        """Gross joules of the run up to this moment, over all parts; None if they are not known."""
        self._recorder.refresh()
        return self._earlier_run.plus(self._recorder.peek(self._run)).total_j

    def booked(self) -> Spent | None:
        """Of the run up to the latest sample; None while there are too few samples. Any thread may ask."""
        spent = self._earlier_run.plus(self._recorder.peek(self._run))
        return None if spent.total_j is None and self._recorder.works else spent

    def so_far(self) -> tuple[Spent, Spent]:
        """Of the run and of the epoch, up to now."""
        self._recorder.refresh()
        run, epoch = (self._recorder.peek(window) for window in (self._run, self._epoch))
        return self._earlier_run.plus(run), self._earlier_epoch.plus(epoch)

    def end_epoch(self) -> tuple[Spent, EnergyFigure]:
        """The epoch's joules over all parts, and its latest part's figure; the next epoch begins."""
        figure = self._recorder.lap(self._epoch, "epoch")
        spent = self._earlier_epoch.plus(figure)
        self._earlier_epoch = Spent()
        return spent, figure

    def end_run(self) -> tuple[Spent, EnergyFigure]:
        """Close the run: its joules over all parts, and its latest part's figure."""
        figure = self._recorder.end_window(self._run)
        return self._earlier_run.plus(figure), figure
