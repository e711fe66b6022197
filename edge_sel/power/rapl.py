"""Intel and AMD processors through RAPL: the energy counters of the packages and their memory.

``class/powercap/intel-rapl:N`` is a package and ``intel-rapl:N:M`` a part of it; on AMD the tree has the same
names. Counted are the packages and their ``dram``, which lies outside the package. ``core`` and ``uncore`` lie
inside it; ``psys``, which holds the packages, is wired to something else on every board; ``intel-rapl-mmio``
tells the packages a second time. The rest of the board (disks, fans, a GPU on a card) is not seen.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edge_sel.config.profiles import Profile
from edge_sel.power.access import MOUNT, RAPL_FIX
from edge_sel.power.meter import MODELLED, EnergySource, MeterError, Reading, Subject
from edge_sel.sysfs import in_order, read_sysfs, sysfs_root

MOST_W = 2000.0
"""No zone draws more: a counter that fell, and would need more than this to have wrapped, began anew."""

_ALLOW = f"{RAPL_FIX} (on the host, if in a container)"
_MASKED = f"in a container, start it with {MOUNT}; else {MODELLED}"


@dataclass
class _Zone:
    folder: Path
    label: str
    range_uj: int
    """Where the counter wraps; 0 if the kernel does not tell."""
    last_uj: int
    total_uj: int = 0

    def count(self, seconds: float) -> None:
        """Add what the counter went on by; it is read more than once in each round (minutes to hours)."""
        now_uj = _number(self.folder / "energy_uj")
        step_uj = now_uj - self.last_uj
        if step_uj < 0:
            step_uj += self.range_uj
            if step_uj < 0 or now_uj > self.range_uj or step_uj / 1e6 > MOST_W * max(1.0, seconds):
                raise MeterError(
                    f"the RAPL counter of {self.label} went back from {self.last_uj} to {now_uj} uJ, which is no "
                    f"wrap at {self.range_uj or 'an unknown range'}",
                    "start the run again: counters begin anew after sleep and driver reloads",
                )
        self.last_uj, self.total_uj = now_uj, self.total_uj + step_uj


class RaplMeter:
    """A counter of the joules of all packages and their memory, since the meter was made.

    The kernel lets only root read it (CVE-2020-8694: the counters betray what other programs compute).

    Args:
        sysfs: where sysfs is, usually ``/sys``.
        clock: seconds while the machine is awake; a counter that sleep set to nought must not pass for a wrap.

    """

    name = "rapl"
    of: ClassVar[Subject] = "processor"
    source: ClassVar[EnergySource] = "measured"
    min_window_s = 0.05  # the counters are refreshed about every millisecond

    def __init__(self, sysfs: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._zones = _find_zones(sysfs / "class" / "powercap")
        self._clock, self._last_s = clock, clock()

    @classmethod
    def open(cls, profile: Profile) -> RaplMeter:
        """From this machine's sysfs."""
        return cls(sysfs_root())

    def read(self, now_s: float) -> Reading:
        """Joules since the meter was made."""
        if not self._zones:
            raise MeterError("the RAPL meter is closed")
        clock_s = self._clock()
        for zone in self._zones:
            zone.count(clock_s - self._last_s)
        self._last_s = clock_s
        return Reading(now_s, sum(zone.total_uj for zone in self._zones) / 1e6, None)

    def close(self) -> None:
        """Reading is over; nothing else is held."""
        self._zones = []


def _find_zones(tree: Path) -> list[_Zone]:
    try:
        every = in_order(tree.iterdir())
    except PermissionError as error:
        raise MeterError(f"no permission to look into {tree}", _ALLOW) from error
    except OSError:
        every = []
    packages = [entry for entry in every if re.fullmatch(r"intel-rapl:\d+", entry.name)]
    if not packages:
        raise MeterError(
            f"RAPL is absent: there is no intel-rapl:0 in {tree}, usual in virtual machines",
            f"on a PC's own Linux, modprobe intel_rapl_msr; else {MODELLED}",
        )
    if not any(package.exists() for package in packages):
        raise MeterError(f"RAPL is hidden: {packages[0]} leads nowhere, usual in containers", _MASKED)
    zones = []
    for package in packages:
        label = _text(package / "name")
        if not label.startswith("package"):
            continue
        zones.append(_open_zone(package, label))
        for part in (entry for entry in every if re.fullmatch(package.name + r":\d+", entry.name)):
            if _text(part / "name") == "dram":
                zones.append(_open_zone(part, f"{label}/dram"))
    if not zones:
        raise MeterError(f"RAPL lists no processor package in {tree}", MODELLED)
    return zones


def _open_zone(folder: Path, label: str) -> _Zone:
    try:
        range_uj = _number(folder / "max_energy_range_uj")
    except MeterError:  # it matters only once the counter wraps
        range_uj = 0
    return _Zone(folder, label, range_uj, _number(folder / "energy_uj"))


def _number(path: Path) -> int:
    text = _text(path)
    if not text.isdecimal():
        raise MeterError(f"{path} holds {text[:40]!r}, not microjoules", MODELLED)
    return int(text)


def _text(path: Path) -> str:
    try:
        return read_sysfs(path)
    except PermissionError as error:
        raise MeterError(f"no permission to read {path}", _ALLOW) from error
    except FileNotFoundError as error:
        raise MeterError(f"{path} is missing", _MASKED) from error
    except OSError as error:
        raise MeterError(f"{path} cannot be read: {error.strerror or error}", MODELLED) from error
