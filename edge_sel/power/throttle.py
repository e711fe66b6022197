"""Whether the device is slowed down, and why: by heat, a weak power supply or too much current. From sysfs only.

x86, ``devices/system/cpu/cpu*/thermal_throttle/{core,package}_throttle_count``: how often heat slowed the core or its
package, since boot, as each processor counted it (the siblings of one core count the same event). Here they are
summed; a processor that is switched off counts nothing.

Raspberry Pi, ``devices/platform/soc/soc:firmware/get_throttled``: a number in base 16 without 0x. Bits 0 to 3 are
now, bits 16 to 19 since boot, or since something cleared them. On some kernels it is always 0
(raspberrypi/linux#2367), and newer ones have only the hwmon device ``rpi_volt``, whose ``in0_lcrit_alarm`` is 1 after
under-voltage within the last seconds.

    0, 16   under-voltage: the supply fell below about 4.65 V
    1, 17   the processor's frequency is capped
    2, 18   throttled
    3, 19   the soft temperature limit is active

Jetson, ``class/hwmon/hwmon*/oc*_event_cnt`` (on Orin and Thor the device ``soctherm-oc-event``): events since boot of
the alarms that cut the clocks, by number. On Orin 1 is under-voltage, 2 the average and 3 the instantaneous current;
on Xavier 2 is under-voltage, and 1 and 3 are currents.

Anywhere, ``class/thermal/cooling_device*/{type,cur_state,max_state}``: how far the kernel limits a part to cool it.
Looked at are those that take speed away from processors (``Processor``, ``cpufreq-*``, ``thermal-cpufreq-*``,
``idle-*``, ``thermal-idle-*``, ``intel_powerclamp``) and GPUs (``devfreq-*``), and the alerts of Jetson boards
(``*-throttle-alert``). Not fans, and not ``TCC Offset``, which is a setting. A state of -1 is that of a clamp that
is off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from edge_sel.power.temperature import TIMEOUT_S, Patience
from edge_sel.sysfs import in_order, read_sysfs, whole_number

_COOLED = re.compile(r"Processor|(thermal-)?(cpufreq|devfreq|idle)-.*|intel_powerclamp|.*-throttle-alert")
_PI_BITS = ("under-voltage", "processor frequency capped", "throttled", "soft temperature limit")
_SINCE_BOOT = 16


class Throttle(NamedTuple):
    """One way in which a part of the device can be slowed down."""

    part: str
    """``processor cores``, ``processor packages``, ``Raspberry Pi``, ``Jetson``, or the type of a cooling device."""
    reason: str
    now: bool | None
    """Whether it is slowed down at this moment; None if only events are counted."""
    count: int | None  # type: ignore[assignment]  # hides a method of tuples
    """Events since boot, to be compared with another reading; None if they are not counted. 1 on a Raspberry Pi is
    any number."""


class ThrottleReader:
    """Every way that can be read, again and again; what is absent, forbidden or hangs is left out.

    Args:
        sysfs: where sysfs is mounted; ``/sys``.
        timeout_s: how long one ``read`` waits at most.

    """

    def __init__(self, sysfs: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._jobs = _jobs(sysfs)
        self._patience = Patience(timeout_s)

    def read(self) -> list[Throttle]:
        """The state now and the counts so far, in a fixed order; equal parts with equal reasons are one."""
        readings, _ = self._patience.run(self._jobs)
        merged: dict[tuple[str, str], Throttle] = {}
        for found in (throttle for name in self._jobs for throttle in readings.get(name, ())):
            known = merged.setdefault(found[:2], found)
            if known is not found:
                states = [now for now in (known.now, found.now) if now is not None]
                now = any(states) if states else None
                merged[found[:2]] = found._replace(now=now, count=_sum([known.count, found.count]))
        return list(merged.values())


def new_throttling(before: Iterable[Throttle], after: Iterable[Throttle]) -> list[str]:
    """What happened between two readings, a line each; counts that went back began anew.

    >>> before, after = [Throttle("Jetson", "alarm 1", None, 3)], [Throttle("Jetson", "alarm 1", None, 5)]
    >>> new_throttling(before, after)
    ['Jetson: alarm 1, 2 times']
    """
    old, new = ({throttle[:2]: throttle for throttle in reading} for reading in (before, after))
    lines = []
    for part, reason in {**old, **new}:
        nothing = Throttle(part, reason, None, None)
        then, now = (reading.get((part, reason), nothing) for reading in (old, new))
        parts = []
        if then.count is not None and now.count is not None:
            times = now.count - (then.count if now.count >= then.count else 0)
            parts += ["at least once" if times == 1 else f"{times} times"] if times else []
        parts += ["at the beginning"] if then.now else []
        parts += ["at the end"] if now.now else []
        if parts:
            lines.append(f"{part}: {reason}, {' and '.join(parts)}")
    return lines


def _jobs(sysfs: Path) -> dict[str, Callable[[], list[Throttle]]]:
    jobs: dict[str, Callable[[], list[Throttle]]] = {}
    processors = in_order((sysfs / "devices/system/cpu").glob("cpu[0-9]*"))
    for part in ("core", "package"):
        files = [folder / "thermal_throttle" / f"{part}_throttle_count" for folder in processors]
        jobs[part] = partial(_heat, f"processor {part}s", files)
    jobs["pi"] = partial(_pi, sysfs / "devices/platform/soc/soc:firmware/get_throttled")
    for folder in in_order((sysfs / "class/hwmon").glob("hwmon*")):
        jobs[folder.name] = partial(_hwmon, folder)
    for folder in in_order((sysfs / "class/thermal").glob("cooling_device*")):
        jobs[folder.name] = partial(_cooling, folder)
    return jobs


def _heat(part: str, files: Sequence[Path]) -> list[Throttle]:
    count = _sum([_number(file) for file in files])
    return [] if count is None else [Throttle(part, "slowed by heat", None, count)]


def _pi(file: Path) -> list[Throttle]:
    bits = _number(file, 16)
    if bits is None:
        return []
    return [
        Throttle("Raspberry Pi", reason, bool(bits >> bit & 1), bits >> bit + _SINCE_BOOT & 1)
        for bit, reason in enumerate(_PI_BITS)
    ]


def _hwmon(folder: Path) -> list[Throttle]:
    alarm = _number(folder / "in0_lcrit_alarm")
    if alarm is not None and read_sysfs(folder / "name") == "rpi_volt":
        return [Throttle("Raspberry Pi", _PI_BITS[0], alarm > 0, None)]
    events = [(file.name.partition("_")[0][2:], _number(file)) for file in in_order(folder.glob("oc*_event_cnt"))]
    return [
        Throttle("Jetson", f"over-current or under-voltage alarm {number}", None, count)
        for number, count in events
        if count is not None
    ]


def _cooling(folder: Path) -> list[Throttle]:
    kind = read_sysfs(folder / "type")
    if not _COOLED.fullmatch(kind) or _number(folder / "max_state") == 0:
        return []
    return [Throttle(kind, "limited by the kernel's cooling", whole_number(read_sysfs(folder / "cur_state")) > 0, None)]


def _number(file: Path, base: int = 10) -> int | None:
    """A number that is not negative, if there is one."""
    try:
        number = whole_number(read_sysfs(file), base)
    except (OSError, ValueError):
        return None
    return number if number >= 0 else None


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
