"""The battery: its watts only while it alone feeds the device, whatever the sign; else a reason and a fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_fakes import Clock, by_hand, kind, put, refused

from edge_sel import sysfs
from edge_sel.config.profiles import Profile
from edge_sel.power import battery
from edge_sel.power.battery import BatteryMeter
from edge_sel.power.find import find_meter
from edge_sel.power.meter import MeterError


def supply(root: Path, name: str = "BAT0", **given: object) -> Path:
    """One power supply: a laptop's discharging battery unless told otherwise; None leaves a file out."""
    return put(root / "class" / "power_supply" / name, **{"type": "Battery", "status": "Discharging", **given})


def charger(root: Path, name: str = "AC", **given: object) -> Path:
    return supply(root, name, **{"type": "Mains", "status": None, "online": 0, **given})


def watts(root: Path) -> float | None:
    return BatteryMeter(root).read(0.0).power_w


def test_power_now_is_preferred(tmp_path: Path) -> None:
    supply(tmp_path, power_now=8_250_000, current_now=1, voltage_now=1)
    meter = BatteryMeter(tmp_path)
    assert meter.read(3.0) == (3.0, None, 8.25, None)
    assert (meter.name, meter.source) == ("battery", "measured")


@pytest.mark.parametrize("sign", [1, -1])
def test_without_it_current_times_voltage(tmp_path: Path, sign: int) -> None:
    supply(tmp_path, current_now=sign * 700_000, voltage_now=12_000_000)
    assert watts(tmp_path) == pytest.approx(8.4)


def test_the_sign_of_power_now_tells_nothing(tmp_path: Path) -> None:
    supply(tmp_path, power_now=-8_000_000)
    assert watts(tmp_path) == 8.0


@pytest.mark.parametrize("has", [{}, {"current_now": 5}, {"voltage_now": 5}])
def test_neither_is_an_error(tmp_path: Path, has: dict[str, int]) -> None:
    supply(tmp_path, **has)
    assert "neither power_now nor" in refused(lambda: watts(tmp_path)).reason


def test_batteries_add_up_and_those_at_rest_give_nothing(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", power_now=5_000_000)
    second = supply(tmp_path, "BAT1", current_now=-250_000, voltage_now=8_000_000)
    assert watts(tmp_path) == 7.0
    for rest in ("Not charging", "Full", "Unknown"):
        put(second, status=rest, current_now=0)
        assert watts(tmp_path) == 5.0


def test_the_batteries_of_a_mouse_and_an_empty_bay_are_not_ours(tmp_path: Path) -> None:
    supply(tmp_path, "hidpp_battery_0", scope="Device", power_now=1_000_000, capacity=3)
    supply(tmp_path, "BAT1", present=0)
    supply(tmp_path, "ups", type="UPS", power_now=9_000_000)
    assert "no battery" in refused(lambda: BatteryMeter(tmp_path)).reason
    supply(tmp_path, "BAT0", scope="System", present=1, power_now=6_000_000, capacity=50)
    charger(tmp_path, "wand", type="USB", scope="Device", online=1)
    assert watts(tmp_path) == 6.0
    assert BatteryMeter(tmp_path).level() == 0.5


def test_no_tree_is_no_battery(tmp_path: Path) -> None:
    assert "no battery" in refused(lambda: BatteryMeter(tmp_path)).reason


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown", "", "discharging?"])
def test_on_a_charger_its_power_is_not_the_devices(tmp_path: Path, status: str) -> None:
    supply(tmp_path, status=status, power_now=8_000_000)
    error = refused(lambda: watts(tmp_path))
    assert "not the device's" in error.reason
    assert error.fix == "unplug, or use another meter"


def test_one_charging_battery_spoils_the_other(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", power_now=5_000_000)
    supply(tmp_path, "BAT1", status="Charging", power_now=5_000_000)
    assert "BAT1 is charging" in refused(lambda: watts(tmp_path)).reason


@pytest.mark.parametrize("kind", ["Mains", "USB", "USB_PD", "Wireless"])
@pytest.mark.parametrize("online", [1, 2])
def test_a_battery_that_discharges_beside_a_charger_is_not_the_whole(tmp_path: Path, kind: str, online: int) -> None:
    supply(tmp_path, power_now=5_000_000)
    plug = charger(tmp_path, type=kind, online=online)
    assert "charger AC is plugged in" in refused(lambda: watts(tmp_path)).reason
    put(plug, online=0)
    assert watts(tmp_path) == 5.0


def test_plugging_in_is_an_error_and_unplugging_mends_it(tmp_path: Path) -> None:
    battery = supply(tmp_path, power_now=5_000_000)
    meter = BatteryMeter(tmp_path)
    for _ in range(2):
        assert meter.read(1.0).power_w == 5.0
        put(battery, status="Charging")
        assert "BAT0 is charging" in refused(lambda: meter.read(2.0)).reason
        put(battery, status="Discharging")


def test_plugging_in_during_a_run_loses_the_meter_with_the_reason(tmp_path: Path) -> None:
    battery, clock, events = supply(tmp_path, power_now=5_000_000), Clock(), list[dict[str, Any]]()
    with by_hand(BatteryMeter(tmp_path), clock, on_event=events.append) as recorder:
        window = recorder.start_window()
        clock.sleep(1.0)
        put(battery, status="Charging")
    figure = recorder.end_window(window)
    assert (figure.source, figure.total_j) == ("unavailable", None)
    assert "is charging" in str(figure.why)
    assert [event["fix"] for event in events if event["event"] == "meter_lost"] == ["unplug, or use another meter"]


def test_a_battery_that_is_taken_out_is_an_error(tmp_path: Path) -> None:
    battery = supply(tmp_path, power_now=5_000_000)
    meter = BatteryMeter(tmp_path)
    put(battery, status=None, type=None, power_now=None)
    battery.rmdir()
    assert "may be gone" in refused(lambda: meter.read(1.0)).reason
    assert meter.level() is None


def test_nothing_while_discharging_is_a_stuck_sensor(tmp_path: Path) -> None:
    battery = supply(tmp_path, power_now=0, current_now=500_000, voltage_now=8_000_000)
    assert "stuck" in refused(lambda: watts(tmp_path)).reason
    put(battery, power_now=None, current_now=0)
    assert "stuck" in refused(lambda: watts(tmp_path)).reason


@pytest.mark.parametrize("power_uw", [12, 999, 1_000_000_001, -(2**63), 2**64])
def test_what_no_battery_gives_is_an_error(tmp_path: Path, power_uw: int) -> None:
    supply(tmp_path, power_now=power_uw)
    assert "impossible" in refused(lambda: watts(tmp_path)).reason


@pytest.mark.parametrize("text", ["", "garbage", "-", "--5", "1.5", "nan", "1e6", "\xb2"])
def test_garbage_is_never_a_number(tmp_path: Path, text: str) -> None:
    battery = supply(tmp_path, power_now=text, current_now=500_000, voltage_now=8_000_000)
    assert "not a number" in refused(lambda: watts(tmp_path)).reason
    put(battery, power_now=None, voltage_now=text)
    assert "not a number" in refused(lambda: watts(tmp_path)).reason
    put(battery, energy_now=text, energy_full=10)
    assert BatteryMeter(tmp_path).level() is None


def fail(monkeypatch: pytest.MonkeyPatch, name: str, error: OSError) -> None:
    genuine = sysfs.read_sysfs

    def read(path: Path) -> str:
        if path.name == name:
            raise error
        return genuine(path)

    monkeypatch.setattr(battery, "read_sysfs", read)


def test_no_permission_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    battery = supply(tmp_path, power_now=5_000_000, current_now=500_000, voltage_now=8_000_000)
    (battery / "power_now").chmod(0)
    fail(monkeypatch, "power_now", PermissionError(13, "denied"))
    error = refused(lambda: watts(tmp_path))
    assert "no permission" in error.reason
    assert "chmod a+r" in str(error.fix)


def test_a_file_for_what_the_driver_cannot_tell_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supply(tmp_path, power_now=5_000_000, current_now=500_000, voltage_now=8_000_000)
    fail(monkeypatch, "power_now", OSError(61, "No data available"))
    assert watts(tmp_path) == 4.0


def test_the_level_is_told_even_on_a_charger(tmp_path: Path) -> None:
    first = supply(tmp_path, "BAT0", status="Full", energy_now=30, energy_full=40, capacity=1)
    meter = BatteryMeter(tmp_path)
    assert meter.level() == 0.75
    put(first, energy_now=44)
    assert meter.level() == 1.0
    put(first, energy_now=None, charge_now=10, charge_full=40)
    assert meter.level() == 0.25
    put(first, charge_full=0)
    assert meter.level() == 0.01
    put(first, capacity=None)
    assert meter.level() is None
    put(first, capacity=80)
    supply(tmp_path, "BAT1", energy_now=10, energy_full=10, capacity=100)
    assert BatteryMeter(tmp_path).level() == pytest.approx(0.9)
    put(first, energy_now=0, energy_full=30)
    assert BatteryMeter(tmp_path).level() == 0.25


def test_a_closed_meter_gives_nothing(tmp_path: Path) -> None:
    supply(tmp_path, power_now=5_000_000, capacity=50)
    meter = BatteryMeter(tmp_path)
    meter.close()
    meter.close()
    assert meter.level() is None
    with pytest.raises(MeterError, match="closed"):
        meter.read(1.0)


def test_it_is_found_like_any_meter(tmp_path: Path) -> None:
    battery, clock = supply(tmp_path, power_now=5_000_000), Clock()
    kinds = {"battery": kind(lambda profile: BatteryMeter(tmp_path))}
    meter, probes = find_meter(Profile("p", 1.0, 2.0), "battery", kinds=kinds, clock=clock, sleep=clock.sleep)
    assert meter is not None
    assert probes[0].power_w == 5.0
    put(battery, status="Charging")
    meter, probes = find_meter(Profile("p", 1.0, 2.0), "battery", kinds=kinds, clock=clock, sleep=clock.sleep)
    assert (meter, probes[0].usable, probes[0].fix) == (None, False, "unplug, or use another meter")


@given(st.lists(st.integers(1_000, 10**9), min_size=1, max_size=4), st.sampled_from([1, -1]))
def test_any_powers_sum(tmp_path_factory: pytest.TempPathFactory, powers_uw: list[int], sign: int) -> None:
    root = tmp_path_factory.mktemp("sys")
    for place, power_uw in enumerate(powers_uw):
        supply(root, f"BAT{place}", power_now=sign * power_uw)
    assert watts(root) == pytest.approx(sum(powers_uw) / 1e6, rel=1e-12)
