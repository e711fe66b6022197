"""The real thread, the real clock and this machine's processor."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from power_fakes import Clock, FakeMeter, by_hand

from edge_sel.power import EnergyRecorder, Reading, hottest_c
from edge_sel.power import sampler as sampler_module
from edge_sel.power.psutil_model import PsutilModel
from edge_sel.profiles import Profile

PROFILE = Profile("p", idle_w=3.0, max_w=14.0)


def test_half_a_second_of_work_on_this_machine() -> None:
    meter = PsutilModel(PROFILE.idle_w, PROFILE.max_w)
    with EnergyRecorder(meter, period_s=0.02, profile=PROFILE) as recorder:
        began = time.perf_counter()
        window = recorder.start_window("work")
        while time.perf_counter() - began < 0.5:
            sum(range(1000))
        figure = recorder.end_window(window)
        cost = recorder.cost()
    assert figure.source == "modelled"
    assert figure.net_j is not None
    assert figure.total_j is not None
    assert 0 < figure.net_j < figure.total_j < PROFILE.max_w * figure.seconds * 1.05
    assert figure.seconds == pytest.approx(0.5, abs=0.2)
    assert figure.samples >= 3
    assert 0 < cost.cpu_s < 0.05 * figure.seconds
    assert cost.energy_j is not None
    assert cost.to_json()["source"] == "modelled"


def test_starting_takes_no_time() -> None:
    took = []
    for _ in range(5):
        recorder = EnergyRecorder(PsutilModel(3.0, 14.0), profile=PROFILE)
        began = time.perf_counter()
        with recorder:
            took.append(time.perf_counter() - began)
    assert min(took) < 0.005


def test_the_thread_ends_with_the_recorder() -> None:
    with EnergyRecorder(None):
        assert any(thread.name == "energy" for thread in threading.enumerate())
    assert not any(thread.name == "energy" for thread in threading.enumerate())


def test_the_thread_survives_a_meter_that_fails() -> None:
    class Failing(FakeMeter):
        def read(self, now_s: float) -> Reading:
            if self.reads >= 2:
                raise RuntimeError("driver")
            return super().read(now_s)

    events: list[dict[str, object]] = []
    meter = Failing(Clock())
    with EnergyRecorder(meter, period_s=0.005, on_event=events.append) as recorder:
        window = recorder.start_window()
        for _ in range(400):
            if events:
                break
            time.sleep(0.005)
        figure = recorder.end_window(window)
    assert figure.source == "unavailable"
    assert [event["why"] for event in events] == ["RuntimeError: driver"]


def test_a_meter_that_hangs_does_not_hang_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "HANG_S", 0.05)
    monkeypatch.setattr("edge_sel.power.recorder.HANG_S", 0.05)
    release, hanging = threading.Event(), threading.Event()

    class Hanging(FakeMeter):
        def read(self, now_s: float) -> Reading:
            if threading.current_thread().name == "energy":
                hanging.set()
                release.wait(10.0)
            return super().read(now_s)

    meter = Hanging(Clock())
    events: list[dict[str, object]] = []
    with EnergyRecorder(meter, period_s=0.005, on_event=events.append) as recorder:
        window = recorder.start_window()
        assert hanging.wait(5.0)
        figure = recorder.end_window(window)
    assert figure.source == "unavailable"
    assert figure.why == "it does not answer any more"
    assert meter.closed == 0, "it is not closed under the thread that is inside it"
    assert len(events) == 1
    release.set()


def test_the_thread_does_not_keep_the_process_alive() -> None:
    code = (
        "from edge_sel.power import EnergyRecorder, find_meter\n"
        "from edge_sel.profiles import Profile\n"
        "meter, _ = find_meter(Profile('p', 1.0, 2.0), 'psutil')\n"
        "EnergyRecorder(meter, period_s=0.01).__enter__().start_window()\n"
        "raise SystemExit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=20, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")


# Temperature


def sensors(**found: list[tuple[str, float | None]]) -> dict[str, list[SimpleNamespace]]:
    return {chip: [SimpleNamespace(label=label, current=c) for label, c in all_] for chip, all_ in found.items()}


def test_the_hottest_sensor_that_can_be() -> None:
    told = sensors(coretemp=[("Core 0", 55.0), ("Core 1", 61.5)], cv=[("", -256.0)], bad=[("", 200.0), ("", None)])
    assert hottest_c(lambda: told) == 61.5
    assert hottest_c(lambda: sensors(thermal=[("PMIC-Die", 100.0), ("CPU-therm", 44.0)])) == 44.0


@pytest.mark.parametrize("edge", [-40.0, 150.0, float("nan")])
def test_what_no_device_can_have_is_none(edge: float) -> None:
    assert hottest_c(lambda: sensors(chip=[("", edge)])) is None


def test_no_sensors_is_none() -> None:
    def missing() -> dict[str, list[SimpleNamespace]]:
        raise FileNotFoundError("hwmon2 is gone")

    assert hottest_c(dict) is None
    assert hottest_c(missing) is None
    found = hottest_c()
    assert found is None or -40 < found < 150


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
    recorder = EnergyRecorder(None, clock, temperature=lambda: 50.0)
    recorder._feel()
    clock.sleep(5.0)
    assert recorder.max_temperature_c() == 50.0
    clock.sleep(6.0)
    assert recorder.max_temperature_c() is None
