"""The live line of a run on a terminal: progress, time left, what the gate holds back, watts, degrees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edge_sel.units import format_duration, format_energy, format_power

PERIOD_S = 0.25
"""Between two updates: looking at the joules takes time too."""
SURE_S = 2.0
"""Before that the pace is not known well enough to tell the time left."""


class LiveLine:
    """Makes the line of ``step`` events.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._shown_s, self._plan = clock, float("-inf"), ""
        self._began: tuple[float, float] | None = None
        self._energy: tuple[float, float] | None = None

    def begin(self, plan: str) -> None:
        """A training stage begins."""
        self._plan, self._began = plan, None

    def line(self, step: Mapping[str, Any]) -> str | None:
        """What to show; None where the last line is too young."""
        now_s = self._clock()
        if self._began is not None and now_s - self._shown_s < PERIOD_S:
            return None
        left, self._shown_s = float(step["work_left"]()), now_s
        self._began = self._began or (now_s, left)
        epochs = f" of {step['epochs']}" if step["epochs"] > 1 else ""
        parts = [f"{self._plan}: epoch {min(step['plan_epoch'] + 1, step['epochs'])}{epochs}"]
        parts.append(f"{step['cursor']} of {step['images']} images seen")
        if step["candidates"]:
            parts.append(f"gate holds back {1 - step['passed'] / step['candidates']:.0%}")
        parts += self._watts(step, now_s)
        if (seconds := self._seconds_left(now_s, left)) is not None:
            parts.append(f"about {format_duration(seconds)} left in this stage")
        return ", ".join(parts)

    def _seconds_left(self, now_s: float, left: float) -> float | None:
        assert self._began is not None
        elapsed_s, done = now_s - self._began[0], self._began[1] - left
        return left * elapsed_s / done if elapsed_s >= SURE_S and done > 0 else None

    def _watts(self, step: Mapping[str, Any], now_s: float) -> list[str]:
        spent, degrees = step["spent"](), step["temp_c"]()
        told = []
        if spent is not None and spent.total_j is not None:
            if self._energy is not None and now_s > self._energy[0]:
                told.append(format_power(max(0.0, spent.total_j - self._energy[1]) / (now_s - self._energy[0])))
            if self._energy is None or now_s - self._energy[0] >= 1.0:
                self._energy = now_s, spent.total_j
            told.append(f"{format_energy(spent.total_j)} {spent.source} so far")
        return told if degrees is None else [*told, f"{degrees:.0f} °C"]
