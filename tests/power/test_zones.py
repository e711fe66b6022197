"""Thermal zones: those that hang, are switched off or lie, beside those that work."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from power_fakes import SOON_S, hanging, put, release

from edge_sel import sysfs
from edge_sel.power import temperature
from edge_sel.power.temperature import STRIKES, Patience, Zone, ZoneReader


def zone(sysfs: Path, number: int, name: str, temp: object) -> Path:
    return put(sysfs / f"class/thermal/thermal_zone{number}", type=name, temp=temp) / "temp"


def names(reader: ZoneReader) -> list[str]:
    return [zone.name for zone in reader.read()]


def test_every_zone_is_told_in_the_kernels_order(tmp_path: Path) -> None:
    for number, name in enumerate(["cpu-thermal", "gpu-thermal", "soc0-thermal", "soc1-thermal", "tj-thermal"]):
        zone(tmp_path, number, name, 45_000 + 1_500 * number)
    zone(tmp_path, 10, "soc2-thermal", 47_031)
    reader = ZoneReader(tmp_path, timeout_s=SOON_S)
    assert reader.read() == [
        Zone("cpu-thermal", 45.0),
        Zone("gpu-thermal", 46.5),
        Zone("soc0-thermal", 48.0),
        Zone("soc1-thermal", 49.5),
        Zone("tj-thermal", 51.0),
        Zone("soc2-thermal", 47.031),
    ]
    assert reader.hottest_c() == 51.0
    assert reader.skipped == []


def test_a_nano_has_zones_that_are_no_temperature_of_the_chip(tmp_path: Path) -> None:
    zones = {"AO-therm": 39_500, "CPU-therm": 31_000, "PMIC-Die": 100_000, "thermal-fan-est": 90_000}
    for number, (name, temp) in enumerate(zones.items()):
        zone(tmp_path, number, name, temp)
    reader = ZoneReader(tmp_path, timeout_s=SOON_S)
    assert reader.hottest_c() == 39.5
    assert [name for name, _ in reader.skipped] == ["PMIC-Die", "thermal-fan-est"]
    assert len(reader.read()) == 4


@pytest.mark.parametrize("temp", [-256_000, -40_000, 150_000, 2**31 - 1, "", "N/A", "45.5"])
def test_what_is_no_temperature_is_left_out(temp: object, tmp_path: Path) -> None:
    zone(tmp_path, 0, "cv0-thermal", temp)
    zone(tmp_path, 1, "cpu-thermal", 45_000)
    reader = ZoneReader(tmp_path, timeout_s=SOON_S)
    assert reader.read() == [Zone("cpu-thermal", 45.0)]
    ((name, why),) = reader.skipped
    assert name == "cv0-thermal"
    assert why.startswith("reports ")
    assert reader.hottest_c() == 45.0


@pytest.mark.parametrize("temp, expected", [(-39_999, -39.999), (149_999, 149.999), (0, 0.0)])
def test_temperatures_between_40_below_and_150_count(temp: int, expected: float, tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", temp)
    assert ZoneReader(tmp_path, timeout_s=SOON_S).read() == [Zone("cpu-thermal", expected)]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EIO, errno.ENODATA, errno.EACCES])
def test_a_zone_that_is_switched_off_is_skipped_until_it_is_back(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = zone(tmp_path, 0, "gpu-thermal", 1)
    zone(tmp_path, 1, "cpu-thermal", 45_000)
    really = temperature.read_sysfs

    def read(path: Path) -> str:
        if path == off:
            raise OSError(number, os.strerror(number))
        return really(path)

    monkeypatch.setattr(temperature, "read_sysfs", read)
    reader = ZoneReader(tmp_path, timeout_s=SOON_S)
    assert names(reader) == ["cpu-thermal"]
    assert reader.skipped == [("gpu-thermal", f"cannot be read: {os.strerror(number)}")]
    monkeypatch.undo()
    assert names(reader) == ["gpu-thermal", "cpu-thermal"]  # it is back


def test_a_driver_that_says_try_again_is_an_oserror(tmp_path: Path) -> None:
    """``Path.read_text`` gives a TypeError here."""
    pipe = tmp_path / "temp"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    nonblocking, really = os.O_NONBLOCK, os.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", lambda path, flags: really(path, flags | nonblocking))
        with pytest.raises(BlockingIOError):
            sysfs.read_sysfs(pipe)
    os.close(writer)


def test_a_zone_that_hangs_holds_nobody_up_and_is_not_asked_again(tmp_path: Path) -> None:
    zone(tmp_path, 0, "cpu-thermal", 45_000)
    temp = zone(tmp_path, 1, "cv0-thermal", 0)
    zone(tmp_path, 2, "gpu-thermal", 46_000)
    reader = ZoneReader(tmp_path, timeout_s=0.5)
    before = threading.active_count()
    with hanging(temp):
        for _ in range(5):
            assert names(reader) == ["cpu-thermal", "gpu-thermal"]
            assert reader.skipped == [("cv0-thermal", "its reading hangs")]
        assert threading.active_count() == before + 1
        began_s = time.monotonic()
        assert reader.hottest_c() == 46.0
        assert time.monotonic() - began_s < 0.45
    assert threading.active_count() == before


def test_many_that_hang_cost_one_timeout(tmp_path: Path) -> None:
    temps = [zone(tmp_path, number, f"cv{number}-thermal", 0) for number in range(4)]
    zone(tmp_path, 4, "cpu-thermal", 45_000)
    for temp in temps:
        temp.unlink()
        os.mkfifo(temp)
    reader = ZoneReader(tmp_path, timeout_s=0.5)
    began_s = time.monotonic()
    assert names(reader) == ["cpu-thermal"]
    assert time.monotonic() - began_s < 1.5
    assert [name for name, _ in reader.skipped] == [f"cv{n}-thermal" for n in range(4)]
    for number, temp in enumerate(temps):
        (thread,) = (thread for thread in threading.enumerate() if thread.name == f"thermal_zone{number}")
        release(temp, thread)


def test_a_zone_that_was_slow_gets_another_chance_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = zone(tmp_path, 0, "cv0-thermal", 44_000)
    really, gate = temperature.read_sysfs, threading.Event()

    def read(path: Path) -> str:
        if path == slow:
            gate.wait(SOON_S)
        return really(path)

    def strike() -> None:
        gate.clear()
        assert reader.read() == []
        (thread,) = (t for t in threading.enumerate() if t.name == "thermal_zone0")
        gate.set()
        thread.join(SOON_S)

    monkeypatch.setattr(temperature, "read_sysfs", read)
    reader = ZoneReader(tmp_path, timeout_s=0.25)
    for _ in range(STRIKES - 1):
        strike()
    assert reader.read() == [Zone("cv0-thermal", 44.0)]  # which clears its record
    for _ in range(STRIKES):
        strike()
    assert reader.read() == []
    assert reader.skipped == [("cv0-thermal", "too slow")]


def test_a_machine_without_zones_has_no_temperature(tmp_path: Path) -> None:
    reader = ZoneReader(tmp_path / "missing")
    assert reader.read() == []
    assert reader.hottest_c() is None


def test_a_zone_without_a_type_goes_by_its_folder(tmp_path: Path) -> None:
    temp = zone(tmp_path, 3, "", 45_000)
    assert ZoneReader(tmp_path, timeout_s=SOON_S).read() == [Zone("thermal_zone3", 45.0)]
    temp.unlink()
    reader = ZoneReader(tmp_path, timeout_s=SOON_S)
    assert reader.read() == []
    assert reader.skipped == [("thermal_zone3", "cannot be read: No such file or directory")]


def test_without_a_thread_there_is_no_temperature_but_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, 0, "cpu-thermal", 45_000)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    reader = ZoneReader(tmp_path)
    assert reader.hottest_c() is None
    assert reader.skipped == [("thermal_zone0", "cannot be read: can't start new thread")]


def test_zones_that_answer_share_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        zone(tmp_path, number, f"zone-{number}", 45_000)
    reader, really, started = ZoneReader(tmp_path, timeout_s=SOON_S), threading.Thread.start, []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), really(thread)))
    assert len(reader.read()) == 9
    assert len(started) == 1


def test_the_type_of_a_zone_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, 0, "cpu-thermal", 45_000)
    really, reads = temperature.read_sysfs, []
    monkeypatch.setattr(temperature, "read_sysfs", lambda path: (reads.append(path.name), really(path))[1])
    reader = ZoneReader(tmp_path, timeout_s=SOON_S)
    assert names(reader) == names(reader) == ["cpu-thermal"]
    assert reads == ["type", "temp", "temp"]


def test_jobs_behind_one_that_hangs_are_done_and_only_once() -> None:
    gate, done = threading.Event(), []
    jobs = {"first": lambda: done.append("first"), "stuck": lambda: gate.wait(SOON_S)}
    jobs |= {name: lambda name=name: done.append(name) for name in ("third", "fourth")}
    patience = Patience(0.5)
    try:
        result, failed = patience.run(jobs)
        assert (set(result), failed) == ({"first", "third", "fourth"}, {"stuck": "its reading hangs"})
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "stuck")
    finally:
        gate.set()
    thread.join(SOON_S)
    assert sorted(done) == ["first", "fourth", "third"]


def test_whatever_a_job_raises_is_told() -> None:
    _, failed = Patience(SOON_S).run({"a": lambda: 1 / 0, "b": lambda: int("x")})
    assert failed == {"a": "cannot be read: division by zero", "b": "invalid literal for int() with base 10: 'x'"}
