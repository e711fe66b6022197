"""What a meter is. One that cannot read says so, why, and how to fix it; it never turns into a constant or a zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from edge_sel.config.profiles import Profile
from edge_sel.errors import SetupError

EnergySource = Literal["measured", "modelled", "unavailable"]
Subject = Literal["device", "processor", "gpu"]
"""What draws the joules that a meter tells of."""
NO_METER = "no meter works here"
MODELLED = "use --meter psutil for a modelled figure"
"""What helps where nothing can be measured."""


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

    It may also have ``temperature_c() -> float | None``, the temperature of what it measures, and
    ``throttle_reasons() -> list[str]``, why that is slowed down at this moment.
    """

    name: str
    min_window_s: float
    """The shortest window worth a figure; the meter's own refresh makes up at most a tenth of it."""

    @property
    def source(self) -> EnergySource:
        """Whether it measures or models."""

    def read(self, now_s: float) -> Reading:
        """The reading to be dated ``now_s``; MeterError if there is none."""

    def close(self) -> None:
        """Give back what the meter holds; once is enough."""


class MeterKind(Protocol):
    """A class of meters: what is known of them before one is opened."""

    name: str
    of: Subject
    source: EnergySource

    def open(self, profile: Profile) -> Meter:
        """The meter of this device; MeterError with a fix where there is none."""


@dataclass(frozen=True)
class Probe:
    """What became of trying one meter."""

    name: str
    usable: bool
    why: str
    fix: str | None = None
    power_w: float | None = None


def read_checked(meter: Meter, now_s: float) -> Reading:
    """The meter's reading; MeterError if it says nothing, or what no device can draw."""
    reading = meter.read(now_s)
    values = [value for value in reading[1:] if value is not None]
    if (reading.energy_j is None and reading.power_w is None) or not all(map(math.isfinite, values)):
        raise MeterError(f"{meter.name} gave no usable value")
    if min(values) < 0:
        raise MeterError(f"{meter.name} gave a negative value")
    return reading
