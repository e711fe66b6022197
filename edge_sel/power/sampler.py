"""Reads one meter into running sums. What goes wrong is kept and told once; it is never raised."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from edge_sel.power.figure import MeterFacts, Tally
from edge_sel.power.meter import NO_METER, Meter, MeterError, Reading, read_checked
from edge_sel.power.phases import NONE, PhaseClock, Phases, add, between, share_out

HANG_S = 2.0
"""How long a reading may take before the meter is given up."""


class Moment(NamedTuple):
    """All sums as they were at one time. What lies between two moments is a window."""

    time_s: float
    tally: Tally = Tally()
    times: Phases = NONE
    joules: Phases = NONE
    reading: Reading | None = None

    def phases_since(self, start: Moment) -> Phases:
        """Time and joules of each phase that had any."""
        return between(add(start.times, start.joules), add(self.times, self.joules))


class Sampler:
    """The sums of a meter's readings, for any number of threads to bring up to date.

    Args:
        meter: what is read; None is a meter that was lost from the beginning.
        phases: tells the time, and how much of it each phase had.
        gap_limit_s: samples further apart leave a gap.
        on_event: is given one dict when the meter is lost.
        hang_s: how long a reading may take before the meter is given up.
        why_none: why there is no meter, if there is none.

    """

    def __init__(
        self,
        meter: Meter | None,
        phases: PhaseClock,
        gap_limit_s: float,
        on_event: Callable[[dict[str, Any]], None] | None,
        hang_s: float = HANG_S,
        why_none: str = NO_METER,
    ) -> None:
        self._meter, self._phases, self._gap_limit_s, self._on_event = meter, phases, gap_limit_s, on_event
        self._hang_s = hang_s
        self._lock, self._losing = threading.Lock(), threading.Lock()
        self._moment = Moment(0.0)
        self._ended: Moment | None = None
        self.idle_w: float | None = None
        self.lost = why_none if meter is None else None

    def read(self) -> Moment:
        """Take one sample, whatever comes of it."""
        if self._ended is not None:
            return self._ended
        if self.lost is not None:
            return self._unread()
        if not self._lock.acquire(timeout=self._hang_s):
            self._lose(MeterError("it does not answer any more"))
            return self._unread()
        try:
            return self._sample()
        except MeterError as error:
            self._lose(error)
        except Exception as error:  # a driver may throw anything, and the run must go on
            self._lose(MeterError(f"{type(error).__name__}: {error}"))
        finally:
            self._lock.release()
        return self._unread()

    def latest(self) -> Moment:
        """The moment of the latest sample; now, once there are no more."""
        return self._ended or (self._moment if self.lost is None else self._unread())

    def close(self, *, hung: bool) -> None:
        """Take the last sample and close the meter, unless another thread hangs in it."""
        self._ended = self.read()
        if self._meter is not None and not hung:
            with suppress(Exception):
                self._meter.close()

    def facts(self, moment: Moment) -> MeterFacts:
        """What a figure needs to know of the meter, after a run with these sums."""
        meter, last = self._meter, moment.reading
        return MeterFacts(
            name=None if meter is None else meter.name,
            source="unavailable" if meter is None else meter.source,
            min_window_s=0.0 if meter is None else meter.min_window_s,
            method=None if last is None else "power" if last.energy_j is None else "counter",
            own_net=last is not None and last.net_j is not None,
            idle_w=self.idle_w,
            run_power_w=moment.tally.mean_power_w or 0.0,
            lost=self.lost,
        )

    def _sample(self) -> Moment:
        """Read the meter. The phases are cut at the time the reading is dated, before the meter takes its time."""
        if self._meter is None or self.lost is not None:
            return self._unread()
        now_s, times, parts = self._phases.cut()
        return self._count(read_checked(self._meter, now_s), now_s, times, parts)

    def _count(self, reading: Reading, now_s: float, times: Phases, parts: Phases) -> Moment:
        moment, last = self._moment._replace(time_s=now_s, times=times), self._moment.reading
        if self.lost is not None:  # it did answer, but only after it was given up
            return moment
        if last is not None:
            tally = moment.tally.advance(last, reading, self._gap_limit_s, self.idle_w)
            step = tally.since(moment.tally)
            joules = share_out(parts, step.energy_j, step.net_j, step.covered_s, step.idle_s, self.idle_w)
            moment = moment._replace(tally=tally, joules=add(moment.joules, joules))
        self._moment = moment._replace(reading=reading)
        return self._moment

    def _unread(self) -> Moment:
        """Time goes on; joules do not."""
        now_s, times, _ = self._phases.cut()
        return self._moment._replace(time_s=now_s, times=times)

    def _lose(self, error: MeterError) -> None:
        with self._losing:
            if self.lost is not None or self._meter is None:
                return
            self.lost = error.reason
        event = {"event": "meter_lost", "meter": self._meter.name, "why": error.reason, "fix": error.fix}
        if self._on_event is not None:
            with suppress(Exception):
                self._on_event({**event, "time_s": self._phases.cut()[0]})
