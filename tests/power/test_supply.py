"""How the device is fed: charge and mains, from sysfs or else from psutil; what is not told is unknown."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from power_fakes import put

from edge_sel.power.battery import BatteryMeter, Supply, read_supply
from edge_sel.power.meter import MeterError
from edge_sel.sysfs import sysfs_root

NOTHING = Supply(None, None)


def battery(root: Path, status: str, name: str = "BAT0", **files: object) -> None:
    put(root / "class/power_supply" / name, type="Battery", status=status, **{"capacity": 40, **files})


def charger(root: Path, online: object, kind: str = "Mains", name: str = "AC") -> None:
    put(root / "class/power_supply" / name, type=kind, online=online)


@pytest.mark.parametrize(
    ("status", "online", "on_mains"),
    [
        ("Discharging", 0, False),
        ("Discharging", 1, True),  # a charger too weak, or one that was just plugged in
        ("Charging", 1, True),
        ("Charging", 0, True),
        ("Full", 1, True),
        ("Full", 0, False),
        ("Not charging", 1, True),
        ("Unknown", 0, False),
        ("Unknown", 2, True),
    ],
)
def test_a_charger_beside_a_battery_tells_whether_it_is_on_mains(
    tmp_path: Path, status: str, online: int, on_mains: bool
) -> None:
    battery(tmp_path, status)
    charger(tmp_path, online)
    assert read_supply(tmp_path) == (0.4, on_mains)


@pytest.mark.parametrize(
    ("status", "on_mains"), [("Discharging", False), ("Charging", True), ("Full", None), ("Unknown", None)]
)
def test_a_battery_alone_tells_by_its_status_whether_it_is_on_mains(
    tmp_path: Path, status: str, on_mains: bool | None
) -> None:
    """One that is full and tells of no charger may rest on either."""
    battery(tmp_path, status)
    assert read_supply(tmp_path) == (0.4, on_mains)


def test_any_of_several_chargers_is_enough(tmp_path: Path) -> None:
    battery(tmp_path, "Discharging", energy_now=10, energy_full=40)
    battery(tmp_path, "Full", "BAT1", energy_now=40, energy_full=40)
    charger(tmp_path, 0)
    charger(tmp_path, 0, "USB", "usb")
    assert read_supply(tmp_path) == (0.625, False)
    charger(tmp_path, 1, "USB", "usb")
    assert read_supply(tmp_path) == (0.625, True)


def test_plugging_in_is_seen(tmp_path: Path) -> None:
    battery(tmp_path, "Discharging")
    charger(tmp_path, 0)
    assert read_supply(tmp_path).on_mains is False
    charger(tmp_path, 1)
    battery(tmp_path, "Charging", capacity=41)
    assert read_supply(tmp_path) == (0.41, True)


@pytest.mark.parametrize("make", [lambda root: None, lambda root: charger(root, 1), lambda root: charger(root, 0)])
def test_without_a_battery_nothing_is_told(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does another machine's psutil answer for a tree that is not this machine's."""
    monkeypatch.setattr(psutil, "sensors_battery", lambda: psutil_reading(50, False), raising=False)
    make(tmp_path)
    assert read_supply(tmp_path) == NOTHING


def test_a_mouse_does_not_feed_the_device(tmp_path: Path) -> None:
    battery(tmp_path, "Discharging", "hidpp_battery_0", scope="Device")
    assert read_supply(tmp_path) == NOTHING


def test_what_is_garbage_is_unknown(tmp_path: Path) -> None:
    battery(tmp_path, "Discharging", capacity="much")
    assert read_supply(tmp_path) == (None, False)
    charger(tmp_path, "perhaps")
    assert read_supply(tmp_path) == NOTHING


def test_a_closed_meter_tells_nothing(tmp_path: Path) -> None:
    battery(tmp_path, "Charging")
    meter = BatteryMeter(tmp_path)
    assert meter.on_mains() is True
    meter.close()
    assert meter.on_mains() is None


def test_the_tree_of_sysfs_may_be_elsewhere(tmp_path: Path) -> None:
    battery(tmp_path, "Discharging")
    assert read_supply(sysfs_root({"EDGE_SEL_SYSFS_ROOT": str(tmp_path)})) == (0.4, False)
    assert sysfs_root({}) == Path("/sys")


# Where there is no sysfs


def psutil_reading(percent: float, plugged: bool | None) -> Any:
    return SimpleNamespace(percent=percent, power_plugged=plugged)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """macOS or Windows: sysfs tells of no battery, whatever this machine has."""

    def none(sysfs: Path) -> None:
        raise MeterError("there is no battery")

    monkeypatch.setattr("edge_sel.power.battery.BatteryMeter", none)
    return monkeypatch


@pytest.mark.parametrize(
    ("answer", "supply"),
    [
        (psutil_reading(80, True), (0.8, True)),
        (psutil_reading(35, False), (0.35, False)),
        (psutil_reading(35, None), (0.35, None)),
        (None, NOTHING),
    ],
)
def test_without_sysfs_psutil_is_asked(elsewhere: pytest.MonkeyPatch, answer: Any, supply: Supply) -> None:
    elsewhere.setattr(psutil, "sensors_battery", lambda: answer, raising=False)
    assert read_supply(Path("/sys")) == supply


def test_a_psutil_without_batteries_tells_nothing(elsewhere: pytest.MonkeyPatch) -> None:
    elsewhere.delattr(psutil, "sensors_battery", raising=False)
    assert read_supply(Path("/sys")) == NOTHING


def test_a_psutil_that_fails_tells_nothing(elsewhere: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no such sensor")

    elsewhere.setattr(psutil, "sensors_battery", fail, raising=False)
    assert read_supply(Path("/sys")) == NOTHING
