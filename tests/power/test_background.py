"""The real thread, the real clock and this machine's processor."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from power_fakes import Clock, FakeMeter, by_hand

from edge_sel.config.profiles import Profile
from edge_sel.power import EnergyRecorder, Reading, hottest_c
from edge_sel.power import sampler as sampler_module
from edge_sel.power.psutil_model import PsutilModel
from edge_sel.power.recorder import clock_through_sleep
from edge_sel.power.temperature import Thermometer

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
        recorder.lap(window)
        assert not recorder.works
        monkeypatch.setattr(sampler_module, "HANG_S", 10.0)
        began = time.perf_counter()
        with recorder.phase("train"):
            recorder.refresh()
        figure = recorder.end_window(window)
        assert time.perf_counter() - began < 5.0, "once is enough to wait for it"
    assert figure.source == "unavailable"
    assert figure.why == "it does not answer any more"
    assert sum(part.seconds for part in figure.phases.values()) == pytest.approx(figure.seconds)
    assert {part.total_j for part in figure.phases.values()} == {None}
    assert meter.closed == 0, "it is not closed under the thread that is inside it"
    assert len(events) == 1
    release.set()


def test_an_answer_after_the_meter_was_given_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "HANG_S", 0.05)
    release, hanging = threading.Event(), threading.Event()

    class Late(FakeMeter):
        def read(self, now_s: float) -> Reading:
            if threading.current_thread().name == "energy":
                hanging.set()
                release.wait(10.0)
            return super().read(now_s)

    with EnergyRecorder(Late(Clock()), period_s=0.005) as recorder:
        window = recorder.start_window()
        assert hanging.wait(5.0)
        recorder.refresh()
        release.set()
        while recorder._sampler._lock.locked():
            time.sleep(0.001)
        figure = recorder.end_window(window)
    assert (figure.samples, figure.partial_j, figure.source) == (0, None, "unavailable")


def test_the_thread_does_not_keep_the_process_alive() -> None:
    code = (
        "from edge_sel.power import EnergyRecorder, find_meter\n"
        "from edge_sel.config.profiles import Profile\n"
        "meter, _ = find_meter(Profile('p', 1.0, 2.0), 'psutil')\n"
        "EnergyRecorder(meter, period_s=0.01).__enter__().start_window()\n"
        "raise SystemExit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=20, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")


def test_without_threads_the_edges_are_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    clock = Clock()
    with EnergyRecorder(FakeMeter(clock, 10.0), clock, temperature=lambda: 50.0) as recorder:
        window = recorder.start_window()
        clock.sleep(0.5)
        assert recorder.max_temperature_c() == 50.0
        assert recorder.end_window(window).total_j == pytest.approx(5.0)


STOPPED = """
import json, sys, time
from edge_sel.power import EnergyRecorder, Reading
from edge_sel.power.psutil_model import PsutilModel
from edge_sel.config.profiles import Profile

class Sampled:
    name, source, min_window_s = "sampled", "measured", 0.1
    def read(self, now_s): return Reading(now_s, None, 10.0)
    def close(self): pass

profile = Profile("p", idle_w=3.0, max_w=14.0)
counter = EnergyRecorder(PsutilModel(3.0, 14.0), profile=profile, temperature=lambda: None)
power = EnergyRecorder(Sampled(), temperature=lambda: None)
with counter, power:
    windows = counter.start_window(), power.start_window()
    with counter.phase("train"), power.phase("train"):
        print("now", flush=True)
        sys.stdin.readline()
        time.sleep(0.3)
    figures = counter.end_window(windows[0]), power.end_window(windows[1])
print(json.dumps([figure.to_json() for figure in figures]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no job control here")
def test_a_stopped_process() -> None:
    """The device went on drawing power: a counter knows how much, samples do not; this process's net is small."""
    child = subprocess.Popen([sys.executable, "-c", STOPPED], stdin=-1, stdout=-1, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "now\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        child.send_signal(signal.SIGCONT)
        counted, sampled = json.loads(child.communicate("\n", timeout=60)[0])
    for figure in (counted, sampled):
        assert figure["seconds"] > 2.0
        assert 1.4 < figure["gap_s"] < figure["seconds"]
        assert sum(part["seconds"] for part in figure["phases"].values()) == pytest.approx(figure["seconds"])
        assert figure["phases"]["train"]["seconds"] > 2.0
    assert counted["total_j"] > 3.0 * 2.0
    assert counted["net_j"] < 5.5 * 0.5
    assert sampled["total_j"] == pytest.approx(10.0 * (sampled["seconds"] - sampled["gap_s"]))
    assert sampled["uncertainty_j"] > 10.0 * 1.4


def test_the_clock_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 7, raising=False)
    monkeypatch.setattr(time, "clock_gettime", lambda which: {7: 1234.5}[which], raising=False)
    assert clock_through_sleep() == 1234.5
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    assert clock_through_sleep() == pytest.approx(time.monotonic(), abs=1.0)


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


def test_why_the_meter_s_device_was_slowed_down_is_kept_per_window() -> None:
    clock, told = Clock(), iter([["power cap"], ["heat", "power cap"], RuntimeError, []])

    class Throttled(FakeMeter):
        def throttle_reasons(self) -> list[str]:
            reasons = next(told)
            if isinstance(reasons, list):
                return reasons
            raise reasons

    recorder = by_hand(Throttled(clock), clock)
    window = recorder.start_window()
    recorder.sample_once()
    recorder.sample_once()
    recorder.sample_once()  # a driver that fails: the run goes on
    figure = recorder.lap(window)
    assert figure.throttled == ("power cap", "heat")
    assert json.loads(json.dumps(figure.to_json()))["throttled"] == ["power cap", "heat"]
    recorder.sample_once()
    assert recorder.end_window(window).throttled == ()


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


def test_the_first_temperature_is_waited_for() -> None:
    def slow() -> float:
        time.sleep(0.2)
        return 50.0

    with EnergyRecorder(None, temperature=slow) as recorder:
        assert recorder.max_temperature_c() == 50.0


def test_a_thermometer_that_hangs_holds_up_neither_samples_nor_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sel.power.recorder.HANG_S", 0.05)
    monkeypatch.setattr("edge_sel.power.temperature.PERIOD_S", 0.5)
    release = threading.Event()
    meter = FakeMeter(Clock())
    with EnergyRecorder(meter, period_s=0.005, temperature=lambda: release.wait(10.0) and None) as recorder:
        assert recorder.max_temperature_c() is None
        reads = meter.reads
        for _ in range(1000):
            if meter.reads > reads + 3:
                break
            time.sleep(0.005)
        assert meter.reads > reads + 3
        began = time.perf_counter()
        assert recorder.max_temperature_c() is None
        assert time.perf_counter() - began < 0.4, "only the first time is waited"
    assert meter.closed == 0, "the thread may be inside the meter's own thermometer"
    release.set()
