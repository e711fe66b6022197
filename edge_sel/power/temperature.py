"""The hottest thing the operating system tells of."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from edge_sel.power.zones import COLDEST_C, HOTTEST_C

PERIOD_S = 1.0
STALE_S = 10.0


def hottest_c(sensors: Callable[[], dict[str, list[Any]]] | None = None) -> float | None:
    """Degrees Celsius of the hottest sensor; None where there is none (virtual machines, macOS, Windows).

    Values no device can have are those of broken sensors (-256 is a usual one) and are left out, as is the
    power chip of the Jetson Nano (``PMIC``), which always tells 100.
    """
    try:
        if sensors is None:
            import psutil

            sensors = psutil.sensors_temperatures
        every = [(f"{chip} {s.label}".lower(), s.current) for chip, found in sensors().items() for s in found]
    except Exception:  # psutil lacks it here, or a sensor vanished while it was read: then it is not known
        return None
    sane = [c for name, c in every if "pmic" not in name and c is not None and COLDEST_C < c < HOTTEST_C]
    return float(max(sane)) if sane else None


def hotter(*degrees: float | None) -> float | None:
    """The highest that is known."""
    return max((c for c in degrees if c is not None), default=None)


class Thermometer:
    """The hottest of several, asked at most once a period.

    Args:
        parts: each tells degrees Celsius, or None; one that raises tells nothing.
        clock: seconds.
        period_s: the least time between two questions, and how long the first answer is waited for.

    """

    def __init__(
        self, parts: Sequence[Callable[[], float | None]], clock: Callable[[], float], *, period_s: float = PERIOD_S
    ) -> None:
        self._parts, self._clock, self._period_s = parts, clock, period_s
        self._temp_c: float | None = None
        self._asked_s = -math.inf
        self._begun = threading.Event()

    def ask(self) -> float | None:
        """The temperature now, or of less than a period ago. This may hang where a sensor does."""
        now_s = self._clock()
        if now_s - self._asked_s >= self._period_s:
            found: list[float | None] = []
            for part in self._parts:
                with suppress(Exception):
                    found.append(part())
            self._temp_c, self._asked_s = hotter(*found), now_s
            self._begun.set()
        return self._temp_c

    def await_first(self) -> None:
        """Give another thread one period, once, to ask for the first time."""
        if not self._begun.wait(self._period_s):
            self._begun.set()

    def latest_c(self) -> float | None:
        """What was told last; None if there is no sensor, or it no longer answers."""
        return self._temp_c if self._clock() - self._asked_s < STALE_S else None
