"""The hottest sensor, the meter's own beside the system's, and how old what it told may be."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
from power_fakes import Clock, FakeMeter, by_hand

from edge_sel.power.temperature import Thermometer, hottest_c


def sensors(**found: list[tuple[str, float | None]]) -> dict[str, list[SimpleNamespace]]:
    return {chip: [SimpleNamespace(label=label, current=c) for label, c in all_] for chip, all_ in found.items()}


def test_the_hottest_possible_sensor_counts() -> None:
    readings = sensors(coretemp=[("Core 0", 55.0), ("Core 1", 61.5)], cv=[("", -256.0)], bad=[("", 200.0), ("", None)])
    assert hottest_c(lambda: readings) == 61.5
    assert hottest_c(lambda: sensors(thermal=[("PMIC-Die", 100.0), ("CPU-therm", 44.0)])) == 44.0


@pytest.mark.parametrize("edge", [-40.0, 150.0, float("nan")])
def test_a_temperature_that_no_device_can_have_is_none(edge: float) -> None:
    assert hottest_c(lambda: sensors(chip=[("", edge)])) is None


def test_without_sensors_there_is_no_temperature() -> None:
    def missing() -> dict[str, list[SimpleNamespace]]:
        raise FileNotFoundError("hwmon2 is gone")

    assert hottest_c(dict) is None
    assert hottest_c(missing) is None


def test_the_sensors_of_this_machine_are_psutils(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors(chip=[("", 51.5)]), raising=False)
    assert hottest_c() == 51.5
    monkeypatch.delattr(psutil, "sensors_temperatures")
    assert hottest_c() is None


def test_temperature_is_read_once_a_second_and_the_highest_is_kept() -> None:
    clock = Clock()
    degrees = iter([50.0, 70.0, 60.0, 40.0])
    recorder = by_hand(FakeMeter(clock), clock, temperature=lambda: next(degrees))
    window = recorder.start_window()
    for _ in range(25):
        recorder.sample_once()
        clock.sleep(0.1)
    assert recorder.max_temperature_c() == 60.0
    assert recorder.lap(window).temp_c == 70.0
    assert recorder.end_window(window).temp_c == 60.0


def test_the_meter_s_own_temperature_counts_too() -> None:
    clock = Clock()
    meter = FakeMeter(clock)
    meter.temperature_c = lambda: 80.0  # type: ignore[attr-defined]
    recorder = by_hand(meter, clock, temperature=lambda: 50.0)
    assert recorder.max_temperature_c() == 80.0
    assert by_hand(None, clock, temperature=lambda: 1 / 0).max_temperature_c() is None


def test_an_old_temperature_is_not_passed_off_as_new() -> None:
    clock = Clock()
    thermometer = Thermometer([lambda: 50.0], clock)
    assert thermometer.latest_c() is None
    assert thermometer.ask() == 50.0
    clock.sleep(9.9)
    assert thermometer.latest_c() == 50.0
    clock.sleep(0.1)
    assert thermometer.latest_c() is None


def test_a_new_window_does_not_begin_with_an_old_temperature() -> None:
    clock = Clock()
    recorder = by_hand(FakeMeter(clock), clock, temperature=lambda: 50.0)
    recorder.sample_once()
    clock.sleep(20.0)
    window = recorder.start_window()
    assert recorder.lap(window).temp_c is None
    assert recorder.end_window(window).temp_c is None
