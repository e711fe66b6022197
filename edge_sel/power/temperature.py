"""Temperatures: the thermal zones of the kernel, psutil's sensors, and a thermometer that asks them in turn.

A zone is ``class/thermal/thermal_zone*/{type,temp}``, thousandths of a degree Celsius. That of a part that is switched
off may answer with an error, with -256 degrees, or not at all: on Jetson boards the read can hang (node_exporter#3071).
So files of sysfs are read in threads that nobody waits for longer than a fraction of a second.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from edge_sel.sysfs import in_order, read_sysfs, sysfs_root, whole_number

PERIOD_S = 1.0
STALE_S = 10.0
TIMEOUT_S = 0.2
STRIKES = 3
"""A read that was too slow this often in a row is never tried again; nor is one while it still hangs."""

COLDEST_C = -40.0
HOTTEST_C = 150.0
"""Beyond these a sensor is broken."""

_NOT_THE_CHIP = {"pmic-die": "always reports 100 °C", "thermal-fan-est": "a sum of others, for the fan"}


class Zone(NamedTuple):
    """A thermal zone by its type, such as ``cpu-thermal``."""

    name: str
    temp_c: float


class ZoneReader:
    """Reads the zones again and again, without those that hang.

    Args:
        sysfs: where sysfs is mounted; ``/sys``.
        timeout_s: how long one ``read`` waits at most, whatever the number of zones that hang.

    """

    def __init__(self, sysfs: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._folders = in_order((sysfs / "class" / "thermal").glob("thermal_zone*"))
        self._names: dict[Path, str] = {}
        self._patience = Patience(timeout_s)
        self.skipped: list[tuple[str, str]] = []
        """Of the latest ``read``: the zones that do not count for the hottest, and why."""

    def read(self) -> list[Zone]:
        """The zones that have a temperature now, in the kernel's order."""
        readings, failed = self._patience.run({folder.name: self._reader(folder) for folder in self._folders})
        zones: list[Zone] = []
        self.skipped = []
        for folder in self._folders:
            name, temp_c = self._names.get(folder, folder.name), readings.get(folder.name)
            why = failed.get(folder.name)
            if temp_c is not None:
                if COLDEST_C < temp_c < HOTTEST_C:
                    zones.append(Zone(name, temp_c))
                    why = _NOT_THE_CHIP.get(name.lower())
                else:
                    why = f"reports {temp_c:g} °C"
            if why is not None:
                self.skipped.append((name, why))
        return zones

    def hottest_c(self) -> float | None:
        """Degrees Celsius of the hottest zone now, the power chip and the fan's estimate aside; None without one."""
        return max((zone.temp_c for zone in self.read() if zone.name.lower() not in _NOT_THE_CHIP), default=None)

    def _reader(self, folder: Path) -> Callable[[], float]:
        def read() -> float:
            if folder not in self._names:  # which never changes
                self._names[folder] = read_sysfs(folder / "type") or folder.name
            return whole_number(read_sysfs(folder / "temp")) / 1000

        return read


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


def find_thermometer() -> Callable[[], float | None]:
    """The hottest of the kernel's thermal zones and of psutil's sensors."""
    zones = ZoneReader(sysfs_root())
    return lambda: hotter(zones.hottest_c(), hottest_c())


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


class Patience:
    """Runs jobs of which any may hang, again and again, and waits no longer than the timeout for all of them.

    They share one thread. If one hangs, those behind it get a thread each, and from then on it is left out.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._slow: dict[str, _Helper] = {}
        self._strikes: dict[str, int] = {}

    def run(self, jobs: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
        """What the jobs gave, and why the others gave nothing."""
        results: dict[str, Any] = {}
        failed = {name: why for name in jobs if (why := self._too_slow(name))}
        waiting = {name: job for name, job in jobs.items() if name not in failed}
        deadline_s = time.monotonic() + self._timeout_s
        helpers = [_Helper(waiting)]
        if not helpers[0].done.wait(self._timeout_s / 2):
            helpers[0].alone = True
            behind = [name for name in waiting if name not in helpers[0].seen]
            helpers += [_Helper({name: waiting[name]}) for name in behind]
        for helper in helpers:
            helper.done.wait(max(0.0, deadline_s - time.monotonic()))
            results |= helper.results.copy()
            failed |= helper.failed.copy()
        for name in waiting:
            if name in results or name in failed:
                self._strikes.pop(name, None)
                continue
            failed[name] = "its reading hangs"
            self._slow[name] = next(helper for helper in reversed(helpers) if name in helper.jobs)
            self._strikes[name] = self._strikes.get(name, 0) + 1
        return results, failed

    def _too_slow(self, name: str) -> str | None:
        if name in self._slow and self._slow[name].is_alive():
            return "its reading hangs"
        return "too slow" if self._strikes.get(name, 0) >= STRIKES else None


class _Helper(threading.Thread):
    """Does jobs in turn; from the moment it is left alone, only the one it is in."""

    def __init__(self, jobs: Mapping[str, Callable[[], Any]]) -> None:
        super().__init__(daemon=True)
        self.jobs = jobs
        self.seen: set[str] = set()
        self.results: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.alone = False
        self.done = threading.Event()
        try:
            if jobs:
                self.start()
            else:
                self.done.set()
        except RuntimeError as error:  # no more threads can be had
            self.failed = dict.fromkeys(jobs, f"cannot be read: {error}")
            self.done.set()

    def run(self) -> None:
        for name, job in self.jobs.items():
            if self.alone:
                break
            self.seen.add(name)
            self.name = name
            try:
                self.results[name] = job()
            except ValueError as error:
                self.failed[name] = str(error)
            except OSError as error:  # switched off, or gone
                self.failed[name] = f"cannot be read: {error.strerror or error}"
            except Exception as error:  # a thread that nobody waits for has nowhere to raise
                self.failed[name] = f"cannot be read: {error}"
        self.done.set()
