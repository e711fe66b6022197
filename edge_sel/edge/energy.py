"""Joules of the run and of the current epoch, over every part of a run that was stopped and resumed."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_sel.power.figure import EnergyFigure
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
        order = (None, "measured", "modelled", "unavailable")
        phases = dict(self.phases)
        for name, part in figure.phases.items():
            before = phases.get(name, {"total_j": 0.0, "net_j": 0.0, "seconds": 0.0})
            more = {"total_j": part.total_j, "net_j": part.net_j, "seconds": part.seconds}
            phases[name] = {key: _sum(before[key], more[key]) for key in more}
        return Spent(
            total_j=_sum(self.total_j, figure.total_j),
            net_j=_sum(self.net_j, figure.net_j),
            seconds=self.seconds + figure.seconds,
            source=max(self.source, figure.source, key=order.index),
            uncertainty_j=_sum(self.uncertainty_j, figure.uncertainty_j),
            phases=phases,
        )


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

    def so_far(self) -> tuple[Spent, Spent]:
        """Of the run and of the epoch, up to now."""
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
