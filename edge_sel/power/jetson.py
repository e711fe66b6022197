"""NVIDIA Jetson boards, through the power monitors (INA3221, INA238) that the kernel shows in sysfs.

    JetPack 4     bus/i2c/drivers/ina3221x/*/iio:device*/{rail_name_N, in_powerN_input mW}, or
                  {in_voltageN_input mV, in_currentN_input mA}
    JetPack 5, 6  bus/i2c/drivers/ina3221/*/hwmon/hwmon*/{inN_label, inN_input mV, currN_input mA}
    Thor          class/hwmon/hwmon*/{name "ina238", power1_input µW}

One rail is often a part of another, so rails are never just added up: the figure is the module's total rail, or the
sum that NVIDIA documents for the board. On most boards what the carrier board draws is not in it.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edge_sel.config.profiles import Profile
from edge_sel.power.meter import MODELLED, EnergySource, MeterError, Reading, Subject
from edge_sel.sysfs import board_model, read_sysfs, sysfs_root, sysfs_text

TOTALS = (
    ("POM_5V_IN",),  # Nano
    ("VDD_IN",),  # Xavier NX, Orin NX, Orin Nano, TX2
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"),  # AGX Orin, on two chips
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier, on two chips
)
"""What makes up the module's power, by the rails that are there; the first that is complete counts."""

THOR_RAIL = "VDD_CPU_SOC_MSS"
INA238_RAIL = "VIN"

OFFSET_MA = 100.0
"""An idle rail may seem to give back this much: the INA3221's offset of 80 µV is 80 mA on a shunt of 1 mΩ."""
OFFSET_MW = 500.0
"""The same at 5 V, where the driver tells power alone."""
MOST_W = 500.0
"""No rail of a Jetson draws more; a chip that fails tells 0x7fff or 0xffff."""

_NOT_CONNECTED = ("", "NC")
CHANNELS = ("1", "2", "3")  # an INA3221 has three; hwmon's in4 to in6 are shunt voltages and in7 is their sum


@dataclass(frozen=True)
class Rail:
    """One rail: a file with its power, or one with its voltage and one with its current."""

    name: str
    files: tuple[Path, ...]
    scale: float
    """Watts in one unit of the product of the files."""
    least: float = 0.0
    """How far below zero the last file may be and still mean zero."""

    def watts(self) -> float:
        """Its power now; MeterError that names it if it cannot be told."""
        product = 1
        for path in self.files:
            value = self._value(path)
            if value < (self.least if path is self.files[-1] else 0.0):
                raise MeterError(f"power rail {self.name} reports a negative value ({path.name}: {value})", MODELLED)
            product *= max(0, value)
        watts = product * self.scale
        if watts > MOST_W:
            raise MeterError(f"power rail {self.name} reports {watts:.0f} W, which no Jetson draws", MODELLED)
        return watts

    def _value(self, path: Path) -> int:
        try:
            text = read_sysfs(path)
        except OSError as error:
            why = f"power rail {self.name} cannot be read: {error.strerror or error} ({path})"
            if isinstance(error, PermissionError):
                raise MeterError(why, "allow reading it, or run as root") from error
            raise MeterError(why, f"see dmesg; {MODELLED}") from error
        try:
            return int(text)
        except ValueError:
            raise MeterError(f"power rail {self.name} reports {text[:20]!r} ({path})", MODELLED) from None


class JetsonMeter:
    """The power of the module (of the whole board on Thor), in watts.

    Args:
        sysfs: where sysfs is mounted; ``/sys``.
        model: what ``/proc/device-tree/model`` says, for messages; it decides nothing but whether a lone INA238
            is that of a Jetson.

    """

    name = "jetson"
    of: ClassVar[Subject] = "device"
    source: ClassVar[EnergySource] = "measured"

    def __init__(self, sysfs: Path, *, model: str | None = None) -> None:
        self.model = (model or "").strip("\0 \n")
        channels, boards = [*_iio_rails(sysfs), *_hwmon_rails(sysfs)], _ina238_rails(sysfs)
        self._every = channels + boards
        if not self._every:
            raise MeterError(
                f"there are no Jetson power rails under {sysfs}",
                f"in a container, mount the host's /sys; on another device, {MODELLED}",
            )
        self._used = self._total(channels, boards)
        self._refuse_swapped()
        self.rails: tuple[str, ...] = tuple(rail.name for rail in self._used)
        """The names of what makes up the figure."""
        self.min_window_s = max(1.0, 10 * _refresh_s(self._used))  # ten samples of the recorder, ten of the chip
        self.read(0.0)

    @classmethod
    def open(cls, profile: Profile) -> JetsonMeter:
        """From this machine's sysfs."""
        return cls(sysfs_root(), model=board_model(sysfs_root()))

    def read(self, now_s: float) -> Reading:
        """Watts now."""
        power_w = sum(rail.watts() for rail in self._used)
        if power_w <= 0:
            raise MeterError(f"the power rails report 0 W: {', '.join(self.rails)}", MODELLED)
        return Reading(now_s, None, power_w)

    def readings(self) -> list[tuple[str, float | None]]:
        """Every rail there is and its watts; None where it cannot be read. Some are parts of others: do not add."""
        found: list[tuple[str, float | None]] = []
        for rail in self._every:
            watts = None
            with suppress(MeterError):
                watts = rail.watts()
            found.append((rail.name, watts))
        return found

    def close(self) -> None:
        """Nothing is held."""

    def _refuse_swapped(self) -> None:
        """A part cannot draw more than the module: a kernel of JetPack 4 gives the Nano's rails each other's names."""
        if len(self._used) > 1:
            return
        total_w = self._used[0].watts()
        for name, watts in self.readings():
            if watts is not None and 0 < 1.2 * total_w < watts - OFFSET_MW / 1e3:
                text = f"{name} reports {watts:.1f} W and the whole, {self._used[0].name}, {total_w:.1f} W"
                raise MeterError(f"the names of two power rails seem to be swapped: {text}", MODELLED)

    def _total(self, channels: list[Rail], boards: list[Rail]) -> list[Rail]:
        times = Counter(rail.name for rail in channels)
        for names in TOTALS:
            if all(times[name] == 1 for name in names):
                return [rail for rail in channels if rail.name in names]
        thor = times[THOR_RAIL] or (not channels and "jetson" in self.model.lower())
        if thor and len(boards) == 1:
            return boards
        board = f"this board ({self.model})" if self.model else "this board"
        seen = ", ".join(sorted(rail.name for rail in self._every))
        raise MeterError(
            f"which power rails make up the total of {board} is not known; it has {seen}",
            f"see dmesg for an INA3221 that is missing; else report the rails and {MODELLED}",
        )


def _iio_rails(sysfs: Path) -> list[Rail]:
    rails = []
    for label in sorted(sysfs.glob("bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*")):
        folder, number, name = label.parent, label.name.removeprefix("rail_name_"), sysfs_text(label)
        if name.upper() in _NOT_CONNECTED:
            continue
        power = folder / f"in_power{number}_input"
        if power.exists():
            rails.append(Rail(name, (power,), 1e-3, -OFFSET_MW))
        else:
            pair = (folder / f"in_voltage{number}_input", folder / f"in_current{number}_input")
            rails.append(Rail(name, pair, 1e-6, -OFFSET_MA))
    return rails


def _hwmon_rails(sysfs: Path) -> list[Rail]:
    rails = []
    for folder in sorted(sysfs.glob("bus/i2c/drivers/ina3221/*/hwmon/hwmon*")):
        for number in CHANNELS:
            name = sysfs_text(folder / f"in{number}_label")
            if name.upper() not in _NOT_CONNECTED:
                pair = (folder / f"in{number}_input", folder / f"curr{number}_input")
                rails.append(Rail(name, pair, 1e-6, -OFFSET_MA))
    return rails


def _ina238_rails(sysfs: Path) -> list[Rail]:
    """By the chip's name, so that USB-C supplies (``ucsi_source_psy_*``), which tell what was agreed, are not in it."""
    folders = [f for f in sorted(sysfs.glob("class/hwmon/hwmon*")) if sysfs_text(f / "name") == "ina238"]
    return [Rail(INA238_RAIL, (power,), 1e-6) for f in folders for power in sorted(f.glob("power*_input"))]


def _refresh_s(rails: list[Rail]) -> float:
    """The longest time between two values of the chips, where they tell it in milliseconds."""
    intervals = [sysfs_text(rail.files[0].parent / "update_interval") for rail in rails]
    return max((int(text) / 1e3 for text in intervals if text.isdecimal()), default=0.0)
