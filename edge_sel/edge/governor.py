"""The governor holds a run to its limits. At every step boundary it asks each limit what to do.

The run goes on, waits or stops, and every such decision is an event. From its clock and its meter the governor learns
how many seconds and joules a step takes. By these it forecasts what the rest of the run and its end will take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from edge_sel.edge.energy import EnergyLedger
from edge_sel.edge.host import Host
from edge_sel.edge.limits import (
    LEAST_DUTY,
    Decision,
    Forecast,
    Limit,
    Readings,
)
from edge_sel.power.battery import Supply
from edge_sel.power.recorder import EnergyRecorder

REST_MEMORY_S = 120.0
"""Half-life of what is known about rests."""
FORGET = 0.98
"""How much of what was known about the work stays after a step."""


class Pace:
    """Recent seconds and joules of a step, of a unit of work and of a second of rest."""

    def __init__(self) -> None:
        self.last_s = self.step_s = 0.0
        self.step_j: float | None = None
        self._work = self._seconds = self._joules = 0.0
        self._worked_s = self._rested_s = self._rested_j = 0.0

    def learn(self, before: Readings, after: Readings, work: float, pressure: float) -> None:
        """Add a step. Under pressure fewer images pass the gate, so without it the same work would have taken more."""
        seconds, joules = _between(before, after)
        self._forget(seconds)
        self._worked_s += seconds
        self.last_s, self.step_s = seconds, max(seconds, 0.9 * self.step_s)
        if joules is not None:
            self.step_j = max(joules, 0.9 * (self.step_j or 0.0))
        if work < 0:  # a new plan
            return
        scale = 1 / max(0.1, 1 - pressure)
        self._work = FORGET * self._work + work
        self._seconds = FORGET * self._seconds + seconds * scale
        self._joules = FORGET * self._joules + (joules or 0.0) * scale

    def rest(self, before: Readings, after: Readings) -> None:
        """Add a rest, which takes joules too."""
        seconds, joules = _between(before, after)
        self._forget(seconds)
        self._rested_s += seconds
        self._rested_j += joules or 0.0

    def forecast(self, work_left: float, closing_s: float, closing_j: float) -> Forecast:
        """What the run will take; the end is expected to rest as much in proportion as recent steps did."""
        per = work_left / self._work if self._work > 0 else 0.0
        rest = min(self._rested_s / self._worked_s, 1 / LEAST_DUTY) if self._worked_s > 0 else 0.0
        rest_w = self._rested_j / self._rested_s if self._rested_s > 0 else 0.0
        return Forecast(
            step_s=self.step_s,
            step_j=self.step_j,
            closing_s=closing_s * (1 + rest),
            closing_j=closing_j + closing_s * rest * rest_w,
            ahead_s=per * self._seconds,
            ahead_j=per * self._joules if self.step_j is not None else None,
        )

    def _forget(self, seconds: float) -> None:
        kept = 0.5 ** (seconds / REST_MEMORY_S)
        self._worked_s, self._rested_s, self._rested_j = (
            kept * value for value in (self._worked_s, self._rested_s, self._rested_j)
        )


def _between(before: Readings, after: Readings) -> tuple[float, float | None]:
    known = before.spent_j is not None and after.spent_j is not None
    return after.now_s - before.now_s, (after.spent_j or 0.0) - (before.spent_j or 0.0) if known else None


POLL_S = 1.0
"""Longest sleep before sensors and signals are looked at again."""
PRESSURE_STEP = 0.1
LONGEST_REST_S = 30.0


class Governor:
    """Holds a run to its limits.

    Args:
        limits: to hold; of equal decisions that of the first limit counts.
        read: reads clock, meter and sensors.
        sleep: seconds.
        emit: is given the name of an event and its details.
        interrupted: whether the run was asked to stop, which ends a pause.
        idle: a context for pauses, so that their joules are counted apart.

    """

    def __init__(
        self,
        limits: Sequence[Limit],
        read: Callable[[], Readings],
        *,
        sleep: Callable[[float], None],
        emit: Callable[..., None] = lambda *_, **__: None,
        interrupted: Callable[[], bool] = lambda: False,
        idle: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._limits, self._read, self._sleep = tuple(limits), read, sleep
        self._emit, self._interrupted, self._idle = emit, interrupted, idle
        self.pressure = 0.0
        """0 to 1, for the gate."""
        self._duty = 1.0
        self._presses: Limit | None = None
        self._slows: Limit | None = None
        self._closing_s, self._closing_j = 0.0, 0.0
        self._before: Readings | None = None
        self._left: float | None = None
        self._pace = Pace()

    def expect(self, forecast: Mapping[str, float | None]) -> None:
        """Set what the end of the run will take (``closing``) and, for a resumed run, what a step took."""
        self._closing_s, self._closing_j = forecast.get("closing_s") or 0.0, forecast.get("closing_j") or 0.0
        self._pace.step_s, self._pace.step_j = forecast.get("step_s") or 0.0, forecast.get("step_j")

    def expected(self) -> dict[str, float | None]:
        """What a resumed run gives to ``expect``."""
        return {
            "closing_s": self._closing_s,
            "closing_j": self._closing_j,
            "step_s": self._pace.step_s,
            "step_j": self._pace.step_j,
        }

    def skip(self) -> None:
        """Do not count the time since the last boundary as a step: something else was done."""
        self._before = None

    def at_boundary(self, work_left: float | None) -> str | None:
        """Wait as long as the limits ask; returns the reason if one of them stops the run.

        Args:
            work_left: planned work in any unit, at the gate's own rate; None before there is a plan.

        """
        if not self._limits:
            return None
        readings = self._read()
        if self._before is not None and self._left is not None and work_left is not None:
            self._pace.learn(self._before, readings, self._left - work_left, self.pressure)
        self._left = work_left
        asked = self._ask(readings, paused=False)
        if asked is not None and asked[1].action == "pause":
            asked = self._pause(*asked)
            readings = self._read()
        elif asked is None and self._duty < 1:
            self._rest(min(self._pace.last_s * (1 / self._duty - 1), LONGEST_REST_S))
            readings = self._read()
        self._before = readings
        if asked is None:
            return None
        limit, decision = asked
        self._emit("governor", action="stop", limit=limit.name, why=decision.why, pressure=self.pressure)
        return limit.stopped

    def pause_if_due(self) -> None:
        """Wait if the device is too hot or draws too much, but stop nothing: for work that must be completed."""
        rests = tuple(limit for limit in self._limits if limit.rests)
        if not rests:
            return
        readings = self._read()
        asked = self._ask(readings, paused=False, limits=rests)
        if asked is not None and asked[1].action == "pause":
            self._pause(*asked, limits=rests)
        self._before = None

    def _ask(
        self, readings: Readings, *, paused: bool, limits: Sequence[Limit] | None = None
    ) -> tuple[Limit, Decision] | None:
        """The first limit that stops the run, or else pauses it; None if neither: pressure and duty are set then."""
        forecast = self._pace.forecast(self._left or 0.0, self._closing_s, self._closing_j)
        asked = self._limits if limits is None else limits
        decisions = [
            (limit, limit.check(readings, forecast, paused=paused, ending=limits is not None)) for limit in asked
        ]
        for action in ("stop", "pause"):
            for limit, decision in decisions:
                if decision.action == action:
                    return limit, decision
        if limits is None:
            self._set_pressure(*max(decisions, key=lambda pair: (pair[1].pressure, pair[0] is self._presses)))
        self._set_duty(*min(decisions, key=lambda pair: (pair[1].duty, pair[0] is not self._slows)))
        return None

    def _pause(
        self, limit: Limit, decision: Decision, limits: Sequence[Limit] | None = None
    ) -> tuple[Limit, Decision] | None:
        """Sleep until no limit asks for a pause, or one stops the run, or the run is interrupted."""
        self._emit("governor", action="pause", limit=limit.name, why=decision.why, pressure=self.pressure)
        began_s = self._read().now_s
        asked: tuple[Limit, Decision] | None = (limit, decision)
        with self._idle():
            while asked is not None and asked[1].action == "pause" and not self._interrupted():
                readings = self._sleep_through(POLL_S)
                asked = self._ask(readings, paused=True, limits=limits)
        if asked is None:
            waited_s = self._read().now_s - began_s
            self._emit("governor", action="resume", limit=limit.name, paused_s=waited_s, duty=self._duty)
        return None if asked is None or asked[1].action == "pause" else asked  # a pause that somebody has interrupted

    def _rest(self, seconds: float) -> None:
        """Sleep after a step, and look for an interruption every second."""
        with self._idle():
            while seconds > 0 and not self._interrupted():
                self._sleep_through(min(seconds, POLL_S))
                seconds -= POLL_S

    def _sleep_through(self, seconds: float) -> Readings:
        before = self._read()
        self._sleep(seconds)
        after = self._read()
        self._pace.rest(before, after)
        return after

    def _set_pressure(self, limit: Limit, decision: Decision) -> None:
        """Change the pressure in steps of ``PRESSURE_STEP``: small changes are ignored, others are told."""
        wanted = min(1.0, max(0.0, decision.pressure))
        if abs(wanted - self.pressure) < PRESSURE_STEP and not (wanted == 0.0 < self.pressure):
            return
        self.pressure, self._presses = round(round(wanted / PRESSURE_STEP) * PRESSURE_STEP, 3), limit
        self._emit("governor", action="pressure", limit=limit.name, why=decision.why, pressure=self.pressure)

    def _set_duty(self, limit: Limit, decision: Decision) -> None:
        if decision.duty < 1.0 <= self._duty or decision.duty >= 1.0 > self._duty:
            self._slows = limit
            self._emit("governor", action="duty", limit=limit.name, why=decision.why, duty=decision.duty)
        self._duty = decision.duty


# --- On a device


SUPPLY_PERIOD_S = 5.0


def make_reader(
    clock: Callable[[], float],
    spent_j: Callable[[], float | None],
    temperature_c: Callable[[], float | None],
    supply: Callable[[], Supply],
    minute: Callable[[], int],
) -> Callable[[], Readings]:
    """A function that reads all sensors; the battery is read every ``SUPPLY_PERIOD_S`` only, as it changes slowly."""
    known: list[tuple[float, Supply]] = []

    def read() -> Readings:
        now_s = clock()
        if not known or now_s - known[0][0] >= SUPPLY_PERIOD_S:
            known[:] = [(now_s, supply())]
        level, on_mains = known[0][1]
        return Readings(now_s, spent_j(), temperature_c(), level, on_mains, minute())

    return read


def make_governor(
    limits: Sequence[Limit], host: Host, ledger: EnergyLedger, recorder: EnergyRecorder, emit: Callable[..., None]
) -> Governor:
    """A governor that reads this device's sensors, sleeps on it and tells its decisions."""

    def wait(seconds: float) -> None:
        host.sleep(seconds)
        host.listener({"event": "waiting"})

    return Governor(
        limits,
        make_reader(host.clock, ledger.spent_j, recorder.max_temperature_c, host.supply, host.minute),
        sleep=wait,
        emit=emit,
        interrupted=lambda: host.should_stop() is not None,
        idle=partial(recorder.phase, "idle"),
    )
