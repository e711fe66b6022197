"""The battery of a laptop or a board, while it alone feeds the device: the power of all that is plugged in, screen too.

``class/power_supply/*`` with the type ``Battery``. On a charger its power is not the device's, so reading is refused
then. Fuel gauges refresh every second or so, and are a few per cent off.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, NamedTuple

from edge_sel.config.profiles import Profile
from edge_sel.power.meter import MODELLED, EnergySource, MeterError, Reading, Subject
from edge_sel.sysfs import read_sysfs, sysfs_root

MOST_W = 1000.0
LEAST_W = 0.001
"""What a battery that feeds a device can give; beyond these the sensor is broken or tells another unit."""

_UNPLUG = "unplug, or use another meter"
_STUCK = f"try again in a minute, as some refresh late; if it stays, {MODELLED}"
_CHARGERS = ("Mains", "USB", "Wireless", "BrickID")


class BatteryMeter:
    """The watts that the batteries give, summed; those that rest beside one that discharges give none.

    Making it takes no more than a battery, so that ``level`` is there on a charger too; ``read`` does not work then.

    Args:
        sysfs: where sysfs is, usually ``/sys``.

    """

    name = "battery"
    of: ClassVar[Subject] = "device"
    source: ClassVar[EnergySource] = "measured"
    min_window_s = 10.0  # gauges are refreshed about every second

    def __init__(self, sysfs: Path) -> None:
        tree = sysfs / "class" / "power_supply"
        try:
            supplies = sorted(tree.iterdir())
        except PermissionError as error:
            raise MeterError(f"no permission to look into {tree}", f"allow reading it, or {MODELLED}") from error
        except OSError:
            supplies = []
        # A mouse's or a pen's battery feeds the mouse.
        ours = [(s, _text(s / "type") or "") for s in supplies if _text(s / "scope") != "Device"]
        self._batteries = [s for s, kind in ours if kind == "Battery" and _text(s / "present") != "0"]
        self._chargers = [s for s, kind in ours if kind.startswith(_CHARGERS)]
        if not self._batteries:
            raise MeterError(f"there is no battery in {tree}", MODELLED)

    @classmethod
    def open(cls, profile: Profile) -> BatteryMeter:
        """From this machine's sysfs."""
        return cls(sysfs_root())

    def read(self, now_s: float) -> Reading:
        """Watts drawn from the batteries now."""
        if not self._batteries:
            raise MeterError("the battery meter is closed")
        states = {battery: _text(battery / "status") for battery in self._batteries}
        for battery, state in states.items():
            if state is None:
                raise MeterError(f"battery {battery.name} reports no status; it may be gone", MODELLED)
            if state == "Charging":
                raise _not_the_systems(f"battery {battery.name} is charging")
        for charger in self._chargers:
            if _number(charger / "online"):
                raise _not_the_systems(f"the charger {charger.name} is plugged in")
        feeding = [battery for battery, state in states.items() if state == "Discharging"]
        if not feeding:
            text = ", ".join(f"{battery.name} is {state!r}" for battery, state in states.items())
            raise _not_the_systems(f"no battery discharges ({text})")
        return Reading(now_s, None, math.fsum(map(_power_w, feeding)))

    def level(self) -> float | None:
        """How full the batteries are together, 0 to 1; None if they do not tell."""
        try:
            for unit in ("energy", "charge"):
                pairs = [(_number(b / f"{unit}_now"), _number(b / f"{unit}_full")) for b in self._batteries]
                known = [(now, full) for now, full in pairs if now is not None and full is not None and full > 0]
                if known and len(known) == len(pairs):
                    return _share(sum(now for now, _ in known) / sum(full for _, full in known))
            percents = [_number(battery / "capacity") for battery in self._batteries]
        except MeterError:
            return None
        shares = [_share(percent / 100) for percent in percents if percent is not None]
        return math.fsum(shares) / len(shares) if shares and len(shares) == len(percents) else None

    def on_mains(self) -> bool | None:
        """Whether a charger feeds the device; None if nothing tells."""
        try:
            online = [_number(charger / "online") for charger in self._chargers]
            states = [_text(battery / "status") for battery in self._batteries]
        except MeterError:
            return None
        if any(online) or "Charging" in states:
            return True
        return False if "Discharging" in states or 0 in online else None

    def close(self) -> None:
        """Reading is over; nothing else is held."""
        self._batteries, self._chargers = [], []


class Supply(NamedTuple):
    """How the device is fed."""

    level: float | None
    """Charge of its batteries, 0 to 1; None without one."""
    on_mains: bool | None


def read_supply(sysfs: Path) -> Supply:
    """Charge and mains from sysfs, else from psutil (macOS, Windows); a device without a battery tells neither."""
    try:
        battery = BatteryMeter(sysfs)
        return Supply(battery.level(), battery.on_mains())
    except MeterError:
        pass
    try:
        import psutil

        reading = psutil.sensors_battery() if sysfs == Path("/sys") else None
    except Exception:  # psutil lacks it here
        reading = None
    return Supply(None, None) if reading is None else Supply(reading.percent / 100, reading.power_plugged)


def _not_the_systems(why: str) -> MeterError:
    return MeterError(f"{why}, so the battery's power is not the device's", _UNPLUG)


def _power_w(battery: Path) -> float:
    """Watts; the sign, which drivers set as they like, tells nothing that ``status`` does not."""
    power_uw = _number(battery / "power_now")
    if power_uw is not None:
        how, watts = f"power_now {power_uw} uW", abs(power_uw) / 1e6
    else:
        current_ua, voltage_uv = _number(battery / "current_now"), _number(battery / "voltage_now")
        if current_ua is None or voltage_uv is None:
            raise MeterError(
                f"battery {battery.name} reports neither power_now nor both of current_now and voltage_now", MODELLED
            )
        how, watts = f"current_now {current_ua} uA, voltage_now {voltage_uv} uV", abs(current_ua * voltage_uv) / 1e12
    if watts == 0:
        raise MeterError(f"battery {battery.name} discharges, but reports 0 W ({how}): its sensor is stuck", _STUCK)
    if not LEAST_W <= watts <= MOST_W:
        raise MeterError(f"battery {battery.name} reports {watts:g} W, which is impossible ({how})", _STUCK)
    return watts


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _number(path: Path) -> int | None:
    """The whole number in a file; None where there is no file, or the driver has no value."""
    text = _text(path)
    if text is None:
        return None
    if not text.removeprefix("-").isdecimal():
        raise MeterError(f"{path} holds {text[:40]!r}, not a number", MODELLED)
    return int(text)


def _text(path: Path) -> str | None:
    try:
        return read_sysfs(path)
    except PermissionError as error:
        raise MeterError(f"no permission to read {path}", f"run `sudo chmod a+r {path}`, or {MODELLED}") from error
    except OSError:  # absent; or ENODATA, ENODEV: drivers keep files for what they cannot tell
        return None
