"""What a meter is, and how the first one that really works is found.

A meter that cannot read says so, why, and how to mend it; it never turns into a constant or a zero. Finding
one looks at values, not at whether a library can be started: on a Jetson NVML starts, and knows no power.
"""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

from edge_sel.errors import SetupError, UsageError
from edge_sel.settings import Profile

Source = Literal["measured", "modelled", "unavailable"]
PROBE_STEP_S = 0.02
PROBE_STEPS = 50
_MODEL = "use --meter psutil for a modelled figure"


class MeterError(SetupError):
    """A meter cannot be read: the reason, and what to do about it."""

    def __init__(self, reason: str, fix: str | None = None) -> None:
        super().__init__(reason, fix=fix)
        self.reason = reason


class Reading(NamedTuple):
    """One look at a meter: joules since some fixed moment, or watts now."""

    time_s: float
    energy_j: float | None
    power_w: float | None
    net_j: float | None = None
    """A counter like ``energy_j``, of a meter that itself tells what this process used."""


class Meter(Protocol):
    """Something that knows the energy or the power of this device, or models it.

    It may also have ``temperature_c() -> float | None``, the temperature of what it measures.
    """

    name: str
    source: Source
    min_window_s: float
    """The shortest window worth a figure; the meter's own refresh makes up at most a tenth of it."""

    def read(self, now_s: float) -> Reading:
        """The reading to be dated ``now_s``; MeterError if there is none."""

    def close(self) -> None:
        """Give back what the meter holds; once is enough."""


@dataclass(frozen=True)
class Probe:
    """What became of trying one meter."""

    name: str
    usable: bool
    why: str
    fix: str | None = None
    power_w: float | None = None


Opener = Callable[[Profile], Meter]


def _open_nvml(profile: Profile) -> Meter:
    from edge_sel.power.nvml import NvmlMeter

    return NvmlMeter()


def _open_psutil(profile: Profile) -> Meter:
    from edge_sel.power.psutil_model import PsutilModel

    return PsutilModel(profile.idle_w, profile.max_w)


OPENERS: Mapping[str, Opener] = {"nvml": _open_nvml, "psutil": _open_psutil}


def find_meter(
    profile: Profile,
    wanted: str = "auto",
    *,
    openers: Mapping[str, Opener] = OPENERS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Meter | None, list[Probe]]:
    """The first meter of the profile that works, or the wanted one, and what became of each that was tried.

    A meter asked for by name is not replaced by another one. The caller closes the meter, or hands it to an
    ``EnergyRecorder``.
    """
    if wanted != "auto" and wanted not in openers:
        near = difflib.get_close_matches(wanted, ["auto", *openers], n=1, cutoff=0.0)[0]
        raise UsageError(f"no meter is called {wanted!r}: did you mean {near}?")
    found: Meter | None = None
    probes = []
    for name in profile.meters if wanted == "auto" else (wanted,):
        meter, probe = _try(name, partial(openers[name], profile), clock, sleep)
        probes.append(probe)
        if found is None:
            found = meter
        elif meter is not None:
            meter.close()
    return found, probes


def read_checked(meter: Meter, now_s: float) -> Reading:
    """The meter's reading; MeterError if it says nothing, or what no device can draw."""
    reading = meter.read(now_s)
    told = [value for value in reading[1:] if value is not None]
    if (reading.energy_j is None and reading.power_w is None) or not all(map(math.isfinite, told)):
        raise MeterError(f"{meter.name} gave no usable value")
    if min(told) < 0:
        raise MeterError(f"{meter.name} gave a negative value")
    return reading


def _try(
    name: str, opener: Callable[[], Meter], clock: Callable[[], float], sleep: Callable[[float], None]
) -> tuple[Meter | None, Probe]:
    meter = None
    try:
        meter = opener()
        power_w, why = _observe(meter, clock, sleep)
        return meter, Probe(name, True, why, None, power_w)
    except MeterError as error:
        probe = Probe(name, False, error.reason, error.fix)
    except Exception as error:  # whatever a driver throws, the other meters still get their turn
        probe = Probe(name, False, f"{type(error).__name__}: {error}")
    if meter is not None:
        with suppress(Exception):
            meter.close()
    return None, probe


def _observe(meter: Meter, clock: Callable[[], float], sleep: Callable[[float], None]) -> tuple[float, str]:
    """Watts, and how they are known. A measured counter must move; it is timed from one move to the next."""
    measured = meter.source == "measured"
    reading = read_checked(meter, clock())
    moves = [reading]
    for _ in range(PROBE_STEPS):
        sleep(PROBE_STEP_S)
        reading = read_checked(meter, clock())
        if reading.energy_j != moves[-1].energy_j:
            moves.append(reading)
        if reading.energy_j is None or len(moves) == 3:
            break
    if reading.energy_j is None:
        if measured and not reading.power_w:
            raise MeterError("it reports 0 W", _MODEL)
        return reading.power_w or 0.0, "measured, by sampled power" if measured else "modelled power"
    if measured and len(moves) < 2:
        raise MeterError(f"its energy counter stood still for {PROBE_STEPS * PROBE_STEP_S:g} s", _MODEL)
    before, after = (*moves, reading)[:2] if len(moves) < 3 else moves[1:]
    seconds, joules = after.time_s - before.time_s, (after.energy_j or 0.0) - (before.energy_j or 0.0)
    how = "measured, by an energy counter" if measured else "modelled from processor time and the profile"
    return joules / seconds if seconds > 0 else 0.0, how
