"""Throttling from trees like those of real devices, and from trees that are broken in every way."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from power_fakes import SOON_S, hanging, put

from edge_sel.power.throttle import Throttle, ThrottleReader, new_throttling

PI = "devices/platform/soc/soc:firmware/get_throttled"
COOLING = "limited by the kernel's cooling"


def cpu(sysfs: Path, number: int, core: object, package: object) -> None:
    folder = f"devices/system/cpu/cpu{number}/thermal_throttle"
    put(sysfs, **{f"{folder}/core_throttle_count": core, f"{folder}/package_throttle_count": package})


def cooling(sysfs: Path, number: int, kind: str, state: object, most: object = 10) -> None:
    folder = f"class/thermal/cooling_device{number}"
    put(sysfs, **{f"{folder}/type": kind, f"{folder}/cur_state": state, f"{folder}/max_state": most})


def read(sysfs: Path) -> list[Throttle]:
    return ThrottleReader(sysfs, timeout_s=SOON_S).read()


# Devices


def test_a_laptop_tells_its_counts_and_cooling_without_fans(tmp_path: Path) -> None:
    for number in range(12):
        cpu(tmp_path, number, number, 100)
    put(tmp_path, **{"devices/system/cpu/cpufreq/boost": 1, "devices/system/cpu/cpuidle/x": 1})
    for number, state in enumerate([0, 0, 3, 0]):
        cooling(tmp_path, number, "Processor", state)
    cooling(tmp_path, 4, "intel_powerclamp", -1, 100)
    cooling(tmp_path, 5, "TCC Offset", 3, 63)
    cooling(tmp_path, 6, "Fan", 1)
    cooling(tmp_path, 7, "Processor Fan", 1)
    assert read(tmp_path) == [
        Throttle("processor cores", "slowed by heat", None, 66),
        Throttle("processor packages", "slowed by heat", None, 1200),
        Throttle("Processor", COOLING, True, None),
        Throttle("intel_powerclamp", COOLING, False, None),
    ]


@pytest.mark.parametrize(
    ("bits", "now", "ever"),
    [
        ("0", [False] * 4, [0] * 4),
        ("50005", [True, False, True, False], [1, 0, 1, 0]),
        ("0x80008", [False, False, False, True], [0, 0, 0, 1]),
        ("e0000", [False] * 4, [0, 1, 1, 1]),
        ("20002", [False, True, False, False], [0, 1, 0, 0]),
    ],
)
def test_a_raspberry_pi_tells_four_bits_now_and_ever(
    bits: str, now: list[bool], ever: list[int], tmp_path: Path
) -> None:
    put(tmp_path, **{PI: bits})
    reasons = ["under-voltage", "processor frequency capped", "throttled", "soft temperature limit"]
    assert read(tmp_path) == [Throttle("Raspberry Pi", *one) for one in zip(reasons, now, ever, strict=True)]


@pytest.mark.parametrize(("alarm", "bits", "now", "count"), [(1, 0, True, 0), (0, 50005, True, 1), (0, 0, False, 0)])
def test_of_a_pi_with_both_alarms_either_counts(alarm: int, bits: int, now: bool, count: int, tmp_path: Path) -> None:
    """On some kernels ``get_throttled`` is always 0."""
    put(tmp_path, **{PI: bits, "class/hwmon/hwmon1/name": "rpi_volt", "class/hwmon/hwmon1/in0_lcrit_alarm": alarm})
    assert read(tmp_path)[0] == Throttle("Raspberry Pi", "under-voltage", now, count)
    assert len(read(tmp_path)) == 4


def test_a_pi_with_a_mainline_kernel_tells_its_voltage(tmp_path: Path) -> None:
    put(tmp_path, **{"class/hwmon/hwmon0/name": "cpu_thermal", "class/hwmon/hwmon0/temp1_input": 48312})
    put(tmp_path, **{"class/hwmon/hwmon1/name": "rpi_volt", "class/hwmon/hwmon1/in0_lcrit_alarm": 1})
    assert read(tmp_path) == [Throttle("Raspberry Pi", "under-voltage", True, None)]


def test_the_voltage_alarm_of_another_chip_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, **{"class/hwmon/hwmon2/name": "other", "class/hwmon/hwmon2/in0_lcrit_alarm": 1})
    assert read(tmp_path) == []


def test_equal_alarms_of_two_devices_are_one(tmp_path: Path) -> None:
    put(tmp_path, **{"class/hwmon/hwmon1/oc1_event_cnt": 2, "class/hwmon/hwmon2/oc1_event_cnt": 3})
    assert read(tmp_path) == [Throttle("Jetson", "over-current or under-voltage alarm 1", None, 5)]


def test_an_orin_tells_its_alarms_and_cooling(tmp_path: Path) -> None:
    for number, count in enumerate([0, 15, 37], start=1):
        folder = "class/hwmon/hwmon3"
        put(tmp_path, **{f"{folder}/oc{number}_event_cnt": count, f"{folder}/oc{number}_throt_en": 1})
    put(tmp_path, **{"class/hwmon/hwmon3/name": "soctherm_oc"})
    for number, (kind, state) in enumerate(
        {"cpufreq-cpu0": 0, "cpufreq-cpu4": 2, "devfreq-17000000.gpu": 0, "pwm-fan": 3}.items()
    ):
        cooling(tmp_path, number, kind, state)
    cooling(tmp_path, 12, "cpu-throttle-alert", 1, 1)
    cooling(tmp_path, 13, "hot-surface-alert", 1, 1)
    alarm = "over-current or under-voltage alarm"
    assert read(tmp_path) == [
        Throttle("Jetson", f"{alarm} 1", None, 0),
        Throttle("Jetson", f"{alarm} 2", None, 15),
        Throttle("Jetson", f"{alarm} 3", None, 37),
        Throttle("cpufreq-cpu0", COOLING, False, None),
        Throttle("cpufreq-cpu4", COOLING, True, None),
        Throttle("devfreq-17000000.gpu", COOLING, False, None),
        Throttle("cpu-throttle-alert", COOLING, True, None),
    ]


@pytest.mark.parametrize("kind", ["thermal-cpufreq-0", "thermal-devfreq-0", "thermal-idle-3", "idle-cpu0"])
def test_cooling_has_other_names_too(kind: str, tmp_path: Path) -> None:
    cooling(tmp_path, 0, kind, 1)
    assert read(tmp_path) == [Throttle(kind, COOLING, True, None)]


# Faults


def test_a_machine_without_such_files_tells_nothing(tmp_path: Path) -> None:
    assert ThrottleReader(tmp_path / "missing").read() == []
    put(tmp_path, **{"devices/system/cpu/cpu0/online": 1})
    assert read(tmp_path) == []


@pytest.mark.parametrize("text", ["", "garbage", "-3", "0x", "1.5", "\x00", "9 9"])
def test_what_is_no_count_is_not_nought(text: str, tmp_path: Path) -> None:
    cpu(tmp_path, 0, text, text)
    put(tmp_path, **{PI: text, "class/hwmon/hwmon0/oc1_event_cnt": text})
    put(tmp_path, **{"class/hwmon/hwmon1/name": "rpi_volt", "class/hwmon/hwmon1/in0_lcrit_alarm": text})
    assert read(tmp_path) == []
    cpu(tmp_path, 1, 7, text)
    put(tmp_path, **{"class/hwmon/hwmon0/oc2_event_cnt": 2})
    assert [throttle.count for throttle in read(tmp_path)] == [7, 2]


@pytest.mark.parametrize("text", ["", "garbage", "1.5"])
def test_what_is_no_state_is_left_out(text: str, tmp_path: Path) -> None:
    cooling(tmp_path, 0, "Processor", text)
    assert read(tmp_path) == []
    cooling(tmp_path, 1, "Processor", 0)
    assert read(tmp_path) == [Throttle("Processor", COOLING, False, None)]


def test_a_cooler_that_can_do_nothing_is_left_out(tmp_path: Path) -> None:
    cooling(tmp_path, 0, "Processor", 1, 0)
    cooling(tmp_path, 1, "cpufreq-cpu0", 1, "unreadable")
    put(tmp_path, **{"class/thermal/cooling_device2/cur_state": 1})
    assert read(tmp_path) == [Throttle("cpufreq-cpu0", COOLING, True, None)]


def test_files_that_may_not_be_read_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu(tmp_path, 0, 1, 1)
    put(tmp_path, **{PI: 50005, "class/hwmon/hwmon0/oc1_event_cnt": 2})
    cooling(tmp_path, 0, "Processor", 1)
    really = os.open

    def refuse(path: Path, flags: int) -> int:
        if Path(path).name != "oc1_event_cnt":
            raise PermissionError(13, "Permission denied")
        return really(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    assert [throttle.part for throttle in read(tmp_path)] == ["Jetson"]


def test_a_file_that_hangs_takes_only_its_own_part_along(tmp_path: Path) -> None:
    cpu(tmp_path, 0, 1, 1)
    cooling(tmp_path, 0, "Processor", 1)
    put(tmp_path, **{"class/hwmon/hwmon0/oc1_event_cnt": 2})
    reader = ThrottleReader(tmp_path, timeout_s=0.5)
    with hanging(tmp_path / "class/hwmon/hwmon0/oc1_event_cnt"):
        assert [throttle.part for throttle in reader.read()] == ["processor cores", "processor packages", "Processor"]
        began_s = time.monotonic()
        assert len(reader.read()) == 3
        assert time.monotonic() - began_s < 0.45


# Two readings


def happened(before: tuple[bool | None, int | None], after: tuple[bool | None, int | None]) -> list[str]:
    return new_throttling([Throttle("part", "why", *before)], [Throttle("part", "why", *after)])


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((None, 3), (None, 3), None),
        ((None, 3), (None, 4), "at least once"),
        ((None, 3), (None, 15), "12 times"),
        ((None, 3), (None, 0), None),
        ((None, 30), (None, 2), "2 times"),  # the count began anew
        ((False, 0), (True, 1), "at least once and at the end"),
        ((True, 1), (False, 1), "at the beginning"),
        ((True, 1), (True, 1), "at the beginning and at the end"),
        ((False, None), (False, None), None),
        ((None, None), (None, 9), None),
        ((None, 9), (None, None), None),
    ],
)
def test_what_happened_between(
    before: tuple[bool | None, int | None], after: tuple[bool | None, int | None], expected: str | None
) -> None:
    assert happened(before, after) == ([] if expected is None else [f"part: why, {expected}"])


def test_of_what_only_one_reading_has_the_state_counts() -> None:
    """A count that was not read before may be old; a state that is now is now."""
    found = [Throttle("a", "why", True, 5), Throttle("b", "why", False, 5)]
    assert new_throttling([], found) == ["a: why, at the end"]
    assert new_throttling(found, []) == ["a: why, at the beginning"]
    assert new_throttling([], []) == []


def test_throttling_during_a_run_is_told_by_part(tmp_path: Path) -> None:
    cpu(tmp_path, 0, 5, 100)
    cpu(tmp_path, 1, 5, 100)
    cooling(tmp_path, 0, "Processor", 0)
    reader = ThrottleReader(tmp_path, timeout_s=SOON_S)
    before = reader.read()
    cpu(tmp_path, 0, 8, 103)
    cooling(tmp_path, 0, "Processor", 3)
    assert new_throttling(before, reader.read()) == [
        "processor cores: slowed by heat, 3 times",
        "processor packages: slowed by heat, 3 times",
        f"Processor: {COOLING}, at the end",
    ]
