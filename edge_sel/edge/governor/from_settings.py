"""From settings to a governor: which limits a run has, whether they can be watched here, and what feeds them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from edge_sel.config.settings import Resolved
from edge_sel.edge.energy import EnergyLedger
from edge_sel.edge.governor.decision import Limit, Readings
from edge_sel.edge.governor.governor import Governor
from edge_sel.edge.governor.limits import (
    BatteryFloor,
    Ceiling,
    Deadline,
    EnergyBudget,
    MainsOnly,
    PowerCap,
    QuietHours,
)
from edge_sel.edge.host import Host
from edge_sel.errors import SetupError, UsageError
from edge_sel.power.battery import Supply
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.units import format_power, parse_hours

SUPPLY_PERIOD_S = 5.0


def limits_of(resolved: Resolved, now_s: float) -> list[Limit]:
    """The limits of a run that starts now, those that stop it first."""
    s = resolved.settings
    limits: list[Limit] = []
    if s.energy_budget_j is not None:
        limits.append(EnergyBudget(s.energy_budget_j))
    if s.deadline_s is not None:
        limits.append(Deadline(now_s + s.deadline_s))
    if s.battery_floor is not None:
        limits.append(BatteryFloor(s.battery_floor))
    if s.max_temp_c is not None:
        limits.append(Ceiling(s.max_temp_c, strict=_asked(resolved, "max_temp_c")))
    if s.power_cap_w is not None:
        limits.append(PowerCap(s.power_cap_w))
    if s.on_ac_only:
        limits.append(MainsOnly())
    if s.quiet_hours is not None:
        limits.append(QuietHours(*parse_hours(s.quiet_hours)))
    return limits


def require_sensors(resolved: Resolved, recorder: EnergyRecorder, supply: Supply) -> None:
    """A limit that was asked for, but cannot be watched here, is refused before anything starts.

    Raises:
        SetupError: the sensor is missing.
        UsageError: the power cap is below what the idle device draws.
    """
    s = resolved.settings
    for key, flag in (("energy_budget_j", "--energy-budget"), ("power_cap_w", "--power-cap")):
        if getattr(s, key) is not None and not recorder.works:
            raise SetupError(f"no meter works here, so {flag} cannot be obeyed", fix="see `edge-sel doctor`")
    if s.max_temp_c is not None and _asked(resolved, "max_temp_c") and recorder.max_temperature_c() is None:
        raise SetupError("no temperature can be read, so --max-temp cannot be obeyed", fix="see `edge-sel doctor`")
    if s.battery_floor is not None and supply.level is None:
        raise SetupError("there is no battery, so --battery-floor cannot be obeyed", fix="leave it out")
    if s.power_cap_w is not None and recorder.idle_w is not None and recorder.idle_w >= s.power_cap_w:
        idle = format_power(recorder.idle_w)
        raise UsageError(f"--power-cap is not above the {idle} that the idle device draws", fix="raise it")


def make_reader(
    clock: Callable[[], float],
    spent_j: Callable[[], float | None],
    temperature_c: Callable[[], float | None],
    supply: Callable[[], Supply],
    minute: Callable[[], int],
) -> Callable[[], Readings]:
    """All sensors in one look; the battery, which changes slowly, is asked every few seconds only."""
    known: list[tuple[float, Supply]] = []

    def read() -> Readings:
        now_s = clock()
        if not known or now_s - known[0][0] >= SUPPLY_PERIOD_S:
            known[:] = [(now_s, supply())]
        level, on_mains = known[0][1]
        return Readings(now_s, spent_j(), temperature_c(), level, on_mains, minute())

    return read


def make_governor(
    limits: Sequence[Limit], host: Host, ledger: EnergyLedger, recorder: EnergyRecorder, emit: Callable[..., None]
) -> Governor:
    """A governor that reads this device's sensors, sleeps on it and tells its decisions."""

    def wait(seconds: float) -> None:
        host.sleep(seconds)
        host.listener({"event": "waiting"})

    return Governor(
        limits,
        make_reader(host.clock, ledger.spent_j, recorder.max_temperature_c, host.supply, host.minute),
        sleep=wait,
        emit=emit,
        interrupted=lambda: host.should_stop() is not None,
        idle=partial(recorder.phase, "idle"),
    )


def local_minute() -> int:
    """Of the local day, for quiet hours."""
    now = time.localtime()
    return 60 * now.tm_hour + now.tm_min


def _asked(resolved: Resolved, key: str) -> bool:
    """Whether the user asked for it, rather than the device's profile."""
    return not resolved.origins[key].startswith("profile:")
