"""What a step, a unit of work and a second of rest have taken of late, in seconds and joules."""

from __future__ import annotations

from edge_sel.edge.governor.decision import Forecast, Readings
from edge_sel.edge.governor.limits import LEAST_DUTY

REST_MEMORY_S = 120.0
"""Half-life of what is known about rests."""
FORGET = 0.98
"""How much of what was known about the work stays after a step."""


class Pace:
    """Seconds and joules per step, per unit of work and per second of rest, of late."""

    def __init__(self) -> None:
        self.last_s = self.step_s = 0.0
        self.step_j: float | None = None
        self._work = self._seconds = self._joules = 0.0
        self._worked_s = self._rested_s = self._rested_j = 0.0

    def learn(self, before: Readings, after: Readings, work: float, pressure: float) -> None:
        """One step more. Under pressure fewer images pass the gate, so the same work would have taken more."""
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
        """A while of nothing, which costs joules too."""
        seconds, joules = _between(before, after)
        self._forget(seconds)
        self._rested_s += seconds
        self._rested_j += joules or 0.0

    def forecast(self, work_left: float, closing_s: float, closing_j: float) -> Forecast:
        """What is to be expected; the end will need as much rest between its parts as the steps did of late."""
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
