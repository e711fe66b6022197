"""The limits of a run. At a step boundary each one says whether the run goes on, pauses or stops, and how to save.

A limit first raises the *pressure* on the sample gate, which lowers its target rate. Then it asks for rests between
steps or for a pause. Last it stops the run. No limit reads a clock or a sensor: all it knows is in ``Readings``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from edge_sel.config.settings import Resolved
from edge_sel.errors import SetupError, UsageError
from edge_sel.power.battery import Supply
from edge_sel.power.recorder import EnergyRecorder
from edge_sel.units import format_duration, format_energy, format_power, parse_hours


class Readings(NamedTuple):
    """What the governor knows at a step boundary; None is unknown."""

    now_s: float
    spent_j: float | None = None
    """Gross joules of the run so far, its earlier parts included."""
    temp_c: float | None = None
    battery: float | None = None
    """How full, 0 to 1."""
    on_mains: bool | None = None
    minute: int = 0
    """Of the local day."""


class Forecast(NamedTuple):
    """What the next step and the end of the run are expected to take; ``None`` joules are unknown."""

    step_s: float
    step_j: float | None
    closing_s: float
    closing_j: float | None
    ahead_s: float
    """For the work that is still planned, at the gate's own rate."""
    ahead_j: float | None


class Decision(NamedTuple):
    """What one limit asks for."""

    action: Literal["go", "pause", "stop"] = "go"
    why: str = ""
    pressure: float = 0.0
    duty: float = 1.0
    """Share of the time that may be worked; the rest is slept after each step."""


GO = Decision()


class Limit(ABC):
    """One limit; ``stopped`` is the reason of a run that it stops."""

    name = ""
    stopped = ""
    rests = False
    """Whether it also holds while the run is being ended: heat and power do, for what was begun must be ended."""

    @abstractmethod
    def check(self, readings: Readings, forecast: Forecast, *, paused: bool, ending: bool) -> Decision:
        """What to do now; ``paused``: no step was taken since the last check; ``ending``: what runs will be ended."""


# --- The limits


HYSTERESIS_C = 3.0
PRESSURE_BAND_C = 8.0
"""How far below the ceiling the gate begins to save."""
SENSOR_LAG_S = 1.0
"""Temperatures are read once a second, so that they may be this old."""
BLIND_S = 30.0
"""A sensor silent for longer than this is lost."""
LONGEST_PAUSE_S = 1800.0
"""A device that does not cool down, or is not plugged in, for so long is left alone."""
BURST_S = 10.0
"""How many seconds' worth of the power cap may be drawn in advance."""
LEAST_DUTY = 0.05


@dataclass
class EnergyBudget(Limit):
    """Joules of the whole run; keeps back what evaluation and checkpoint will take."""

    budget_j: float
    name = "energy budget"
    stopped = "budget"

    def check(self, readings: Readings, forecast: Forecast, *, paused: bool, ending: bool) -> Decision:
        """Stop while there is enough left to end in order; before that, spread what is left over the work ahead."""
        if readings.spent_j is None:
            return Decision("stop", "the meter no longer tells what is spent")
        closing_j = forecast.closing_j or 0.0
        left_j = self.budget_j - readings.spent_j - closing_j
        if left_j <= (forecast.step_j or 0.0):
            return Decision(
                "stop",
                f"{format_energy(readings.spent_j)} of {format_energy(self.budget_j)} spent, "
                f"{format_energy(closing_j)} kept for the end",
            )
        return _spread(left_j, forecast.ahead_j, format_energy)


@dataclass
class Deadline(Limit):
    """A moment by which everything must be written."""

    end_s: float
    name = "deadline"
    stopped = "deadline"

    def check(self, readings: Readings, forecast: Forecast, *, paused: bool, ending: bool) -> Decision:
        """As for energy, with seconds."""
        left_s = self.end_s - readings.now_s - forecast.closing_s
        if left_s <= forecast.step_s:
            why = f"{format_duration(max(0.0, self.end_s - readings.now_s))} left"
            return Decision("stop", f"{why}, the end takes {format_duration(forecast.closing_s)}")
        return _spread(left_s, forecast.ahead_s, format_duration)


class Ceiling(Limit):
    """A temperature: save, then slow down, then pause until it is cooler.

    The margin below the ceiling is what the sensor was seen to rise in the time that a step and its own lag take.
    After a pause the run goes on at half the duty, which then grows by a tenth for every second spent well below.

    Args:
        max_c: the ceiling.
        strict: whether the run may not go on without a sensor.

    """

    name = "temperature"
    stopped = "temperature"
    rests = True

    def __init__(self, max_c: float, *, strict: bool = True) -> None:
        self.max_c, self.strict = max_c, strict
        self._rise_c_per_s = 1.0
        self._duty = 1.0
        self._hot_since_s: float | None = None
        self._last: tuple[float, float] | None = None
        self._seen_s: float | None = None

    def check(self, readings: Readings, forecast: Forecast, *, paused: bool, ending: bool) -> Decision:
        """Pause when the next step could cross the ceiling; stop when pausing does not help."""
        now_s, temp_c = readings.now_s, readings.temp_c
        if temp_c is None:
            self._seen_s = now_s if self._seen_s is None else self._seen_s
            blind_s = now_s - self._seen_s
            if self._hot_since_s is not None and blind_s <= BLIND_S:
                return Decision("pause", "it was hot when the sensor last answered", 1.0, self._duty)
            if self.strict and blind_s > BLIND_S:
                return Decision("stop", f"no sensor has answered for {format_duration(blind_s)}")
            self._hot_since_s = None
            return Decision(duty=self._duty)
        self._seen_s = now_s
        self._learn(now_s, temp_c, working=not paused)
        margin_c = min(self._rise_c_per_s * (forecast.step_s + SENSOR_LAG_S), self.max_c / 2)
        text = f"{temp_c:.1f} °C of {self.max_c:.0f} °C"
        cool_c = self.max_c - margin_c - (0.0 if ending else HYSTERESIS_C)
        if temp_c >= self.max_c - margin_c or (self._hot_since_s is not None and temp_c > cool_c):
            if self._hot_since_s is None:
                self._hot_since_s, self._duty = now_s, max(LEAST_DUTY, self._duty / 2)
            if now_s - self._hot_since_s > LONGEST_PAUSE_S:
                return Decision("stop", f"{text} after {format_duration(LONGEST_PAUSE_S)} of pause")
            return Decision("pause", text, 1.0, self._duty)
        self._hot_since_s = None
        pressure = (temp_c - (self.max_c - margin_c - PRESSURE_BAND_C)) / PRESSURE_BAND_C
        return Decision("go", text, min(max(pressure, 0.0), 1.0), self._duty)

    def _learn(self, now_s: float, temp_c: float, *, working: bool) -> None:
        if self._last is None or now_s - self._last[0] > 10 * SENSOR_LAG_S:
            self._last = (now_s, temp_c)
        seconds = now_s - self._last[0]
        if seconds < SENSOR_LAG_S:
            return
        rise = (temp_c - self._last[1]) / seconds
        self._rise_c_per_s = max(rise, 0.1, self._rise_c_per_s * 0.98**seconds)
        if working and self._hot_since_s is None and temp_c < self.max_c - PRESSURE_BAND_C / 2:
            self._duty = min(1.0, self._duty * 1.1**seconds)
        self._last = (now_s, temp_c)


@dataclass
class BatteryFloor(Limit):
    """A charge below which the battery is not drained; on mains it does not matter."""

    floor: float
    name = "battery floor"
    stopped = "battery"

    def check(self, readings: Readings, forecast: Forecast, *, paused: bool, ending: bool) -> Decision:
        """Save over the last ten points above the floor."""
        if readings.on_mains:
            return GO
        if readings.battery is None:
            return Decision("stop", "the battery no longer tells its charge")
        text = f"{readings.battery:.0%}, the floor is {self.floor:.0%}"
        if readings.battery <= self.floor:
            return Decision("stop", text)
        return Decision("go", text, max(0.0, 1 - (readings.battery - self.floor) / 0.1))


class MainsOnly(Limit):
    """Work on mains power only; wait for it for a while."""

    name = "on AC only"
    stopped = "battery"

    def __init__(self) -> None:
        self._since_s: float | None = None

    def check(self, readings: Readings, forecast: Forecast, *, paused: bool, ending: bool) -> Decision:
        """An unknown supply counts as mains: desktops and boards tell none."""
        if readings.on_mains is not False:
            self._since_s = None
            return GO
        self._since_s = readings.now_s if self._since_s is None else self._since_s
        if readings.now_s - self._since_s > LONGEST_PAUSE_S:
            return Decision("stop", f"on battery for {format_duration(LONGEST_PAUSE_S)}")
        return Decision("pause", "the device runs on its battery")


@dataclass
class QuietHours(Limit):
    """A part of the day, in minutes since midnight, in which nothing is computed; it may span midnight."""

    begin: int
    end: int
    name = "quiet hours"
    stopped = "deadline"

    def check(self, readings: Readings, forecast: Forecast, *, paused: bool, ending: bool) -> Decision:
        """Pause until the end of the quiet hours."""
        inside = (readings.minute - self.begin) % 1440 < (self.end - self.begin) % 1440
        return Decision("pause", f"until {self.end // 60:02}:{self.end % 60:02}") if inside else GO


class PowerCap(Limit):
    """Average watts, as a leaky bucket: what exceeds the cap must be rested off before more than a burst gathers."""

    name = "power cap"
    stopped = "power"
    rests = True

    def __init__(self, cap_w: float) -> None:
        self.cap_w = cap_w
        self._over_j = 0.0
        self._last: tuple[float, float] | None = None
        self._full_since_s: float | None = None

    def check(self, readings: Readings, forecast: Forecast, *, paused: bool, ending: bool) -> Decision:
        """Pause while the bucket is full, until it is half empty; what must be ended does not wait for that."""
        if readings.spent_j is None:
            return Decision("stop", "the meter no longer tells the power")
        if self._last is not None:
            then_s, then_j = self._last
            self._over_j = max(0.0, self._over_j + readings.spent_j - then_j - self.cap_w * (readings.now_s - then_s))
        self._last = (readings.now_s, readings.spent_j)
        full_j = self.cap_w * BURST_S
        level = self._over_j / full_j
        text = f"{format_energy(self._over_j)} above an average of {format_power(self.cap_w)}"
        if level >= 1 or (self._full_since_s is not None and level > 0.5 and not ending):
            self._full_since_s = readings.now_s if self._full_since_s is None else self._full_since_s
            if readings.now_s - self._full_since_s > LONGEST_PAUSE_S:
                return Decision("stop", "the device draws more than the cap while it does nothing")
            return Decision("pause", text, 1.0)
        self._full_since_s = None
        return Decision("go", text, min(1.0, max(0.0, 2 * level)))


def _spread(left: float, ahead: float | None, shown: Callable[[float], str]) -> Decision:
    """Pressure that makes what is left last for the work ahead."""
    if ahead is None or ahead <= left:
        return GO
    return Decision("go", f"{shown(left)} left for work of {shown(ahead)}", 1 - left / ahead)


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


def _asked(resolved: Resolved, key: str) -> bool:
    """Whether the user asked for it, rather than the device's profile."""
    return not resolved.origins[key].startswith("profile:")
