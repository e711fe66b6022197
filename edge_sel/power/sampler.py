"""Reads one meter into running sums. What goes wrong is kept and told once; it is never raised."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from edge_sel.power.figure import MeterFacts, Tally
from edge_sel.power.meter import Meter, MeterError, Reading, read_checked

HANG_S = 2.0


class Sampler:
    """The sums of a meter's readings, for any number of threads to bring up to date.

    Args:
        meter: what is read; None is a meter that was lost from the beginning.
        clock: seconds.
        gap_limit_s: samples further apart leave a gap.
        on_event: is given one dict when the meter is lost.

    """

    def __init__(
        self,
        meter: Meter | None,
        clock: Callable[[], float],
        gap_limit_s: float,
        on_event: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._meter, self._clock, self._gap_limit_s, self._on_event = meter, clock, gap_limit_s, on_event
        self._lock = threading.Lock()
        self._ended_s: float | None = None
        self.idle_w: float | None = None
        self.lost = "no meter works here" if meter is None else None
        self.last: Reading | None = None
        self.tally = Tally()

    def read(self) -> tuple[float, Tally]:
        """Take one sample, whatever comes of it; the time, and the sums at that time."""
        if self._ended_s is not None:
            return self._ended_s, self.tally
        if not self._lock.acquire(timeout=HANG_S):
            self._lose(MeterError("it does not answer any more"))
            return self._clock(), self.tally
        error: MeterError | None = None
        now_s = self._clock()
        try:
            if self.lost is None:
                self._sample(now_s)
        except MeterError as raised:
            error = raised
        except Exception as raised:  # a driver may throw anything, and the run must go on
            error = MeterError(f"{type(raised).__name__}: {raised}")
        finally:
            tally = self.tally
            self._lock.release()
        if error is not None:
            self._lose(error)
        return now_s, tally

    def close(self, *, hung: bool) -> None:
        """Take the last sample and close the meter, unless another thread hangs in it."""
        self._ended_s, _ = self.read()
        if self._meter is not None and not hung:
            with suppress(Exception):
                self._meter.close()

    def facts(self, tally: Tally) -> MeterFacts:
        """What a figure needs to know of the meter, after a run with these sums."""
        meter, last = self._meter, self.last
        return MeterFacts(
            name=None if meter is None else meter.name,
            source="unavailable" if meter is None else meter.source,
            min_window_s=0.0 if meter is None else meter.min_window_s,
            method=None if last is None else "power" if last.energy_j is None else "counter",
            own_net=last is not None and last.net_j is not None,
            idle_w=self.idle_w,
            run_power_w=tally.mean_power_w or 0.0,
            lost=self.lost,
        )

    def _sample(self, now_s: float) -> None:
        if self._meter is None:
            return
        reading = read_checked(self._meter, now_s)
        if self.lost is not None:  # it did answer, but only after it was given up
            return
        if self.last is not None:
            self.tally = self.tally.advance(self.last, reading, self._gap_limit_s, self.idle_w)
        self.last = reading

    def _lose(self, error: MeterError) -> None:
        if self.lost is not None or self._meter is None:
            return
        self.lost = error.reason
        event = {"event": "meter_lost", "meter": self._meter.name, "why": error.reason, "fix": error.fix}
        if self._on_event is not None:
            with suppress(Exception):
                self._on_event({**event, "time_s": self._clock()})
