"""The thermal zones of the kernel: ``class/thermal/thermal_zone*/{type,temp}``, thousandths of a degree Celsius.

A zone of a part that is switched off may answer with an error, with -256 degrees, or not at all: on Jetson boards
the read can hang (node_exporter#3071). So each zone is read in a thread of its own that nobody waits for longer
than a fraction of a second.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

from edge_sel.power.temperature import COLDEST_C, HOTTEST_C

TIMEOUT_S = 0.2
STRIKES = 3
"""A zone that was too slow this often in a row is never asked again; nor is one while it still hangs."""

_NOT_THE_CHIP = {"pmic-die": "always tells 100 °C", "thermal-fan-est": "a sum of others, for the fan"}


class Zone(NamedTuple):
    """A thermal zone by its type, such as ``cpu-thermal``."""

    name: str
    temp_c: float


def read_sysfs(path: Path) -> str:
    """What a file of sysfs says, stripped; OSError if it cannot tell.

    Not ``read_text``: where the driver answers "try again" (EAGAIN) that fails with a TypeError.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        return os.read(descriptor, 4096).decode("utf-8", "replace").strip("\0 \t\r\n")
    finally:
        os.close(descriptor)


def read_zones(sysfs: Path, *, timeout_s: float = TIMEOUT_S) -> list[Zone]:
    """Every zone that can be read, once; to read again and again keep a ``ZoneReader``."""
    return ZoneReader(sysfs, timeout_s=timeout_s).read()


class ZoneReader:
    """Reads the zones again and again, without those that hang.

    Args:
        sysfs: where sysfs is mounted; ``/sys``.
        timeout_s: how long one ``read`` waits at most, whatever the number of zones that hang.

    """

    def __init__(self, sysfs: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        found = (sysfs / "class" / "thermal").glob("thermal_zone*")
        self._folders = sorted(found, key=lambda folder: (len(folder.name), folder.name))
        self._slow: dict[Path, _Worker] = {}
        self._strikes: dict[Path, int] = {}
        self.skipped: list[tuple[str, str]] = []
        """Of the latest ``read``: the zones that do not count for the hottest, and why; those that hung before lead."""

    def read(self) -> list[Zone]:
        """The zones that have a temperature now, in the kernel's order."""
        zones: list[Zone] = []
        skipped: list[tuple[str, str]] = []
        workers: list[tuple[Path, _Worker]] = []
        for folder in self._folders:
            slow = self._slow.get(folder)
            if slow is not None and (slow.is_alive() or self._strikes.get(folder, 0) >= STRIKES):
                skipped.append((slow.name, "its reading hangs" if slow.is_alive() else "too slow"))
            else:
                workers.append((folder, _Worker(folder)))
                workers[-1][1].begin()
        deadline_s = time.monotonic() + self._timeout_s
        for folder, worker in workers:
            if worker.done.wait(max(0.0, deadline_s - time.monotonic())):
                self._strikes.pop(folder, None)
                why = worker.why or _NOT_THE_CHIP.get(worker.name.lower())
                if worker.temp_c is not None:
                    zones.append(Zone(worker.name, worker.temp_c))
            else:
                why = "its reading hangs"
                self._slow[folder] = worker
                self._strikes[folder] = self._strikes.get(folder, 0) + 1
            if why is not None:
                skipped.append((worker.name, why))
        self.skipped = skipped
        return zones

    def hottest_c(self) -> float | None:
        """Degrees Celsius of the hottest zone now, the power chip and the fan's estimate aside; None without one."""
        return max((zone.temp_c for zone in self.read() if zone.name.lower() not in _NOT_THE_CHIP), default=None)


class _Worker(threading.Thread):
    """Reads one zone once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(name=folder.name, daemon=True)
        self.folder = folder
        self.temp_c: float | None = None
        self.why: str | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self.name = read_sysfs(self.folder / "type") or self.folder.name
            text = read_sysfs(self.folder / "temp")
            temp_c = int(text) / 1000
            if COLDEST_C < temp_c < HOTTEST_C:
                self.temp_c = temp_c
            else:
                self.why = f"tells {temp_c:g} °C"
        except ValueError:
            self.why = f"tells {text[:20]!r}"
        except OSError as error:  # switched off, or gone
            self.why = f"cannot be read: {error.strerror or error}"
        except Exception as error:  # a thread that nobody waits for has nowhere to raise
            self.why = f"cannot be read: {error}"
        self.done.set()

    def begin(self) -> None:
        """Start; without a thread there is an answer too."""
        try:
            self.start()
        except RuntimeError as error:  # no more threads can be had
            self.why = f"cannot be read: {error}"
            self.done.set()
