"""The hottest thing the operating system tells of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

COLDEST_C = -40.0
HOTTEST_C = 150.0


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
