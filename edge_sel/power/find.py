"""Find the first meter that really works: by its values, not by whether a library can be started.

On a Jetson, for one, NVML starts and knows no power.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from edge_sel.config.profiles import Profile
from edge_sel.errors import UsageError
from edge_sel.power.battery import BatteryMeter
from edge_sel.power.jetson import JetsonMeter
from edge_sel.power.meter import NO_METER, Meter, MeterError, Probe, read_checked
from edge_sel.power.nvml import NvmlMeter
from edge_sel.power.psutil_model import PsutilModel
from edge_sel.power.rapl import RaplMeter
from edge_sel.power.temperature import hottest_c
from edge_sel.power.zones import ZoneReader

PROBE_STEP_S = 0.02
PROBE_STEPS = 50
_MODEL = "use --meter psutil for a modelled figure"

Opener = Callable[[Profile], Meter]


def sysfs_root(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Path:
    """Where sysfs is: ``/sys``, or ``EDGE_SEL_SYSFS_ROOT`` in tests and containers; ``root`` stands in for ``/``."""
    return Path(environ.get("EDGE_SEL_SYSFS_ROOT") or root / "sys")


def find_thermometer() -> Callable[[], float | None]:
    """The hottest of the kernel's thermal zones, of psutil's sensors where there are none."""
    zones = ZoneReader(sysfs_root())
    return lambda: max((c for c in (zones.hottest_c(), hottest_c()) if c is not None), default=None)


def board_model(sysfs: Path, root: Path = Path("/")) -> str | None:
    """What the device tree calls this board; containers may hide one of the two places where it is."""
    for folder in (sysfs / "firmware/devicetree/base", root / "proc/device-tree"):
        with suppress(OSError):
            return (folder / "model").read_text(encoding="utf-8", errors="replace").strip("\0\n")
    return None


OPENERS: Mapping[str, Opener] = {
    "jetson": lambda profile: JetsonMeter(sysfs_root(), model=board_model(sysfs_root())),
    "rapl": lambda profile: RaplMeter(sysfs_root()),
    "nvml": lambda profile: NvmlMeter(),
    "battery": lambda profile: BatteryMeter(sysfs_root()),
    "psutil": lambda profile: PsutilModel(profile.idle_w, profile.max_w),
}


def find_meter(
    profile: Profile,
    wanted: str = "auto",
    *,
    skip: Collection[str] = (),
    openers: Mapping[str, Opener] = OPENERS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Meter | None, list[Probe]]:
    """The first meter of the profile that works, or the wanted one, and what became of each that was tried.

    A meter asked for by name is not replaced by another one; ``skip`` names those that do not see what will run, such
    as ``nvml`` for work on the processor. The caller closes the meter, or hands it to an ``EnergyRecorder``.
    """
    if wanted != "auto" and wanted not in openers:
        near = difflib.get_close_matches(wanted, ["auto", *openers], n=1, cutoff=0.0)[0]
        raise UsageError(f"no meter is called {wanted!r}: did you mean {near}?")
    found: Meter | None = None
    probes = []
    for name in [m for m in profile.meters if m not in skip] if wanted == "auto" else [wanted]:
        meter, probe = _try(name, partial(openers[name], profile), clock, sleep)
        probes.append(probe)
        if found is None:
            found = meter
        elif meter is not None:
            meter.close()
    return found, probes


def why_none(probes: Iterable[Probe]) -> str:
    """What is wrong with each meter that does not work, and how to fix it."""
    unusable = [probe for probe in probes if not probe.usable]
    told = [f"{probe.name}: {probe.why}" + (f"; {probe.fix}" if probe.fix else "") for probe in unusable]
    return ", ".join(told) or NO_METER


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
