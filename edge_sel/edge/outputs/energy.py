"""Joules of the run and of the current epoch, over every part of a run that was stopped and resumed."""

from __future__ import annotations

from edge_sel.edge.progress import Progress, Spent
from edge_sel.power.figure import EnergyFigure
from edge_sel.power.recorder import EnergyRecorder


class Ledger:
    """Two windows of the recorder on top of what earlier parts of the run have spent."""

    def __init__(self, recorder: EnergyRecorder, progress: Progress) -> None:
        self._recorder = recorder
        self._run = recorder.start_window("run")
        self._epoch = recorder.start_window("epoch")
        self._earlier_run, self._earlier_epoch = progress.run_spent, progress.epoch_spent

    def spent_j(self) -> float | None:
        """Gross joules of the run up to this moment, over all parts; None if they are not known."""
        self._recorder.refresh()
        return self._earlier_run.plus(self._recorder.peek(self._run)).total_j

    def note(self, progress: Progress) -> None:
        """Bring the joules in ``progress`` up to now, for a checkpoint."""
        progress.run_spent = self._earlier_run.plus(self._recorder.peek(self._run))
        progress.epoch_spent = self._earlier_epoch.plus(self._recorder.peek(self._epoch))

    def end_epoch(self) -> tuple[Spent, EnergyFigure]:
        """The epoch's joules over all parts, and its latest part's figure; the next epoch begins."""
        figure = self._recorder.lap(self._epoch, "epoch")
        spent = self._earlier_epoch.plus(figure)
        self._earlier_epoch = Spent()
        return spent, figure

    def end_run(self, progress: Progress) -> EnergyFigure:
        """Close the run; its joules over all parts are in ``progress.run_spent``."""
        figure = self._recorder.end_window(self._run)
        progress.run_spent = self._earlier_run.plus(figure)
        return figure
