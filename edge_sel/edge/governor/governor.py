"""The governor: asks every limit at every step boundary, waits or stops as they say, and tells each decision.

It learns what a step, the rest of the run and its end take from the meter and the clock that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from edge_sel.edge.governor.decision import Decision, Limit, Readings
from edge_sel.edge.governor.pace import Pace

POLL_S = 1.0
"""Longest sleep before sensors and signals are looked at again."""
PRESSURE_STEP = 0.1
LONGEST_REST_S = 30.0


class Governor:
    """Holds a run to its limits.

    Args:
        limits: what to obey, the first of equal decisions wins.
        read: reads clock, meter and sensors.
        sleep: seconds.
        emit: is given the name of an event and its details.
        interrupted: whether somebody wants the run to end; a pause ends then.
        idle: entered while nothing is computed, so that those joules can be told apart.

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
        """What evaluation, checkpoint and writing the model will take, and of a resumed run what a step took."""
        self._closing_s, self._closing_j = forecast.get("closing_s") or 0.0, forecast.get("closing_j") or 0.0
        self._pace.step_s, self._pace.step_j = forecast.get("step_s") or 0.0, forecast.get("step_j")

    def expected(self) -> dict[str, float | None]:
        """For ``expect``, of the run that goes on from a checkpoint."""
        return {
            "closing_s": self._closing_s,
            "closing_j": self._closing_j,
            "step_s": self._pace.step_s,
            "step_j": self._pace.step_j,
        }

    def skip(self) -> None:
        """What happened since the last boundary was no step: it is not counted as one."""
        self._before = None

    def at_boundary(self, work_left: float | None) -> str | None:
        """Wait as long as the limits ask for; the reason if they want the run to stop.

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

    def breathe(self) -> None:
        """Between the parts of what has been begun and must be ended: wait if it is too hot, but stop nothing."""
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
        """The limit that wants to stop or pause; else None, with pressure and duty brought up to date."""
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
        """Sleep until no limit wants a pause, one wants to stop, or somebody interrupts."""
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
        """Sleep after a step, without becoming deaf."""
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
        """In steps, so that every change is a decision worth telling; hysteresis keeps it from flickering."""
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
