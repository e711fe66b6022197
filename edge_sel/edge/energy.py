"""What a run has spent in joules and seconds, over all its processes, and the journal in which it is written down.

A checkpoint holds what was spent until it was written. What a process spends after its last checkpoint is only in the
journal. If the process is killed, this work is lost, and the next process counts its joules as lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_sel.errors import SetupError
from edge_sel.power.figure import EnergyFigure, Window
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.runs.journal import Journal


@dataclass(frozen=True)
class Spent:
    """Joules so far, over all resumed parts of the run; ``source`` is that of the weakest part."""

    total_j: float | None = 0.0
    net_j: float | None = 0.0
    seconds: float = 0.0
    source: str | None = None
    uncertainty_j: float | None = 0.0
    phases: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """``total_j``, ``net_j`` and ``seconds`` of each phase; ``backbone`` is that of the frozen backbone."""

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

    def to_json(self) -> dict[str, Any]:
        """For ``run.json``; ``lost_j`` of it, in ``lost_s``, went into work that was cut off."""
        lost = self.phases.get(LOST, {"total_j": 0.0, "seconds": 0.0})
        return {
            "total_j": self.total_j,
            "net_j": self.net_j,
            "lost_j": lost["total_j"],
            "lost_s": lost["seconds"],
            "source": self.source,
            "uncertainty_j": self.uncertainty_j,
            "phases": self.phases,
        }

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


def beyond(line: Mapping[str, Any], booked: Spent) -> Spent:
    """What a run has spent, as its journal tells, beyond what is booked; nothing if it tells of nothing more.

    Raises:
        KeyError, TypeError: the journal is another version's.
    """
    seconds = float(line["seconds"]) - booked.seconds
    if seconds <= 0:
        return Spent()
    return Spent(
        total_j=_less(line["total_j"], booked.total_j),
        net_j=_less(line["net_j"], booked.net_j),
        seconds=seconds,
        source=line["source"],
        uncertainty_j=_less(line["uncertainty_j"], booked.uncertainty_j),
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


# --- The journal


SHARE = 0.02
"""A kill may hide so much of the time that the process had run."""
SHORTEST_S, LONGEST_S = 0.1, 5.0
"""Between two lines."""
EARLY_S = 0.01
SYNC_SHARE, SYNC_SHORTEST_S, SYNC_LONGEST_S = 0.25, 2.0, 30.0
"""The same of a power cut, which takes what is not on the disk yet."""
SOONEST_S = 1.0
"""Between two checkpoints of a run that is cut again and again."""


class Bookkeeper:
    """The journal of one process of a run; its methods may be called by any thread.

    Args:
        path: of the journal; None for none, and no checkpoints.
        clock: seconds.
        every_s: between two checkpoints.
        cuts: how many processes of this run in a row were killed, or lost power, just before this one.

    """

    def __init__(self, path: Path | None, clock: Callable[[], float], *, every_s: float, cuts: int = 0) -> None:
        self.cuts = cuts
        self.failed: str | None = None
        """Why there is no journal any more."""
        self.runs = False
        self.log: Callable[[Spent], None] = lambda spent: None
        """Told with every line what the run has spent, once it runs."""
        self._path, self._clock, self._every_s = path, clock, every_s
        self._spent: Callable[[], Spent | None] = lambda: None
        self._forecast: Callable[[], Mapping[str, float | None]] = dict
        self._journal: Journal | None = None
        self._lock = threading.Lock()
        self._began_s = self._line_s = self._synced_s = self._saved_s = clock()
        self._saved = False

    # The journal

    def begin(
        self,
        spent: Callable[[], Spent | None],
        forecast: Callable[[], Mapping[str, float | None]] = dict,
        *,
        runs: bool = True,
    ) -> None:
        """Open the journal, and book from now on what ``spent`` says: of the whole run; None for nothing to say yet.

        ``forecast``: of the governor, for the process that goes on. ``runs``: before that it may still be refused.
        """
        with self._lock:
            self._spent, self._forecast, self.runs = spent, forecast, runs
            if self._journal is None and self._path is not None:
                try:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    self._journal = Journal(self._path)
                except OSError as error:
                    self.failed = error.strerror or str(error)
            self._write("open", self._clock(), sync=True)

    def tick(self) -> float:
        """Write a line if one is due; seconds until the next one is."""
        now_s = self._clock()
        elapsed_s = now_s - self._began_s
        period_s = min(max(SHORTEST_S, SHARE * elapsed_s), LONGEST_S)
        if now_s - self._line_s < period_s - EARLY_S:
            return self._line_s + period_s - now_s
        wait_s = min(max(SYNC_SHORTEST_S, SYNC_SHARE * elapsed_s), SYNC_LONGEST_S)
        if self._lock.acquire(blocking=False):  # another thread is writing one
            try:
                self._write("run", now_s, sync=now_s - self._synced_s >= wait_s)
            finally:
                self._lock.release()
        return period_s

    def end(self, emit: Callable[..., None]) -> None:
        """This process is done, and nothing of its work is lost: what its last checkpoint lacks is what that took."""
        with self._lock:
            self._write("end", self._clock(), sync=True)
            self._journal = None
        if self.failed:
            emit("journal_stopped", why=self.failed)

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Inside, a thread calls ``tick`` all the time."""
        stop = threading.Event()

        def work() -> None:
            with suppress(Exception):  # at the very end of the interpreter anything may be gone
                while not stop.wait(self.tick()):
                    pass

        thread = threading.Thread(target=work, name="journal", daemon=True)
        with suppress(RuntimeError):  # no more threads can be had: lines are written at boundaries
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if thread.is_alive():
                thread.join(timeout=2.0)

    def withdraw(self) -> None:
        """Take back what was written: the run was refused after all."""
        with self._lock, suppress(OSError):
            journal, self._journal = self._journal, None  # the thread that ticks may still run
            if journal is not None:
                journal.withdraw()

    # Checkpoints

    def checkpoint_due(self) -> bool:
        """Whether it is time for one: after cuts sooner, at once after the first step, and then ever more seldom."""
        if self._path is None:
            return False
        if self.cuts and not self._saved:
            return True
        now_s = self._clock()
        wait_s = self._every_s
        if self.cuts:
            sooner_s = max(self._every_s / 2**self.cuts, SOONEST_S, (now_s - self._began_s) / 2)
            wait_s = min(wait_s, sooner_s)
        return now_s - self._saved_s >= wait_s

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved, self._saved_s = True, self._clock()
        with self._lock:
            self._write("checkpoint", self._saved_s, sync=False)

    def _write(self, at: str, now_s: float, *, sync: bool) -> None:
        if self._journal is None or (spent := self._spent()) is None:
            return
        entry: dict[str, Any] = {"at": at, "cuts": self.cuts, "up_s": now_s - self._began_s, **spent.totals()}
        entry["forecast"] = dict(self._forecast())
        try:
            self._journal.append(entry, sync=sync)
        except (OSError, SetupError) as error:
            self._journal, self.failed = None, getattr(error, "strerror", None) or str(error)
        if self.runs:
            self.log(spent)
        self._line_s = now_s
        if sync:
            self._synced_s = now_s
