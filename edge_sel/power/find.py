"""Find the first meter that really works: by its values, not by whether a library can be started.

On a Jetson, for one, NVML starts and knows no power.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from edge_sel.config.profiles import Profile
from edge_sel.config.schema import nearest
from edge_sel.errors import UsageError
from edge_sel.power.battery import BatteryMeter
from edge_sel.power.jetson import JetsonMeter
from edge_sel.power.meter import MODELLED, NO_METER, Meter, MeterError, MeterKind, Probe, read_checked
from edge_sel.power.nvml import NvmlMeter
from edge_sel.power.psutil_model import PsutilModel
from edge_sel.power.rapl import RaplMeter

PROBE_STEP_S = 0.02
PROBE_STEPS = 50


METER_KINDS: dict[str, MeterKind] = {
    "jetson": JetsonMeter,
    "rapl": RaplMeter,
    "nvml": NvmlMeter,
    "battery": BatteryMeter,
    "psutil": PsutilModel,
}
"""Name -> the class."""


def find_meter(
    profile: Profile,
    wanted: str = "auto",
    *,
    on_processor: bool = False,
    kinds: Mapping[str, MeterKind] = METER_KINDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Meter | None, list[Probe]]:
    """The first meter of the profile that works, or the wanted one, and what became of each that was tried.

    A meter asked for by name is not replaced by another one. Of work on the processor a graphics card's watts say
    nothing: they would be idle ones, or somebody else's. The caller closes the meter, or hands it to an
    ``EnergyRecorder``.

    Args:
        profile: of this device.
        wanted: a name of ``kinds``, or ``auto``.
        on_processor: whether what will be measured runs on the processor: then ``auto`` takes no meter of GPUs.
        kinds: the meters that there are.
        clock: seconds.
        sleep: waits while a meter is watched.

    Raises:
        UsageError: no meter is called that.

    """
    if wanted != "auto" and wanted not in kinds:
        raise UsageError(f"no meter is called {wanted!r}: did you mean {nearest(wanted, ['auto', *kinds])}?")
    names = [wanted]
    if wanted == "auto":
        names = [name for name in profile.meters if not (on_processor and kinds[name].of == "gpu")]
    found: Meter | None = None
    probes = []
    for name in names:
        meter, probe = _try(name, kinds[name], profile, clock, sleep)
        probes.append(probe)
        if found is None:
            found = meter
        elif meter is not None:
            meter.close()
    return found, probes


def why_none(probes: Iterable[Probe]) -> str:
    """What is wrong with each meter that does not work, and how to fix it."""
    unusable = [probe for probe in probes if not probe.usable]
    reasons = [f"{probe.name}: {probe.why}" + (f"; {probe.fix}" if probe.fix else "") for probe in unusable]
    return ", ".join(reasons) or NO_METER


def _try(
    name: str, kind: MeterKind, profile: Profile, clock: Callable[[], float], sleep: Callable[[float], None]
) -> tuple[Meter | None, Probe]:
    meter = None
    try:
        meter = kind.open(profile)
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
            raise MeterError("it reports 0 W", MODELLED)
        return reading.power_w or 0.0, "measured, by sampled power" if measured else "modelled power"
    if measured and len(moves) < 2:
        raise MeterError(f"its energy counter stood still for {PROBE_STEPS * PROBE_STEP_S:g} s", MODELLED)
    before, after = (*moves, reading)[:2] if len(moves) < 3 else moves[1:]
    seconds, joules = after.time_s - before.time_s, (after.energy_j or 0.0) - (before.energy_j or 0.0)
    how = "measured, by an energy counter" if measured else "modelled from processor time and the profile"
    return joules / seconds if seconds > 0 else 0.0, how
