"""The real thread, the real clock and this machine's processor."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from power_fakes import Clock, FakeMeter

from edge_sel.config.profiles import Profile
from edge_sel.power.meter import Reading
from edge_sel.power.psutil_model import PsutilModel
from edge_sel.power.recorder import EnergyRecorder, clock_through_sleep

PROFILE = Profile("p", idle_w=3.0, max_w=14.0)


def test_work_on_this_machine_has_plausible_modelled_joules() -> None:
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


def test_a_recorder_starts_within_five_milliseconds() -> None:
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


def test_a_meter_that_hangs_does_not_hang_the_run() -> None:
    release, hanging = threading.Event(), threading.Event()

    class Hanging(FakeMeter):
        def read(self, now_s: float) -> Reading:
            if threading.current_thread().name == "energy":
                hanging.set()
                release.wait(10.0)
            return super().read(now_s)

    meter = Hanging(Clock())
    events: list[dict[str, object]] = []
    with EnergyRecorder(meter, period_s=0.005, on_event=events.append, hang_s=0.3) as recorder:
        began = time.perf_counter()
        window = recorder.start_window()
        assert hanging.wait(5.0)
        recorder.lap(window)
        assert 0.3 <= time.perf_counter() - began < 1.5
        assert not recorder.works
        began = time.perf_counter()
        with recorder.phase("train"):
            recorder.refresh()
        figure = recorder.end_window(window)
        assert time.perf_counter() - began < 0.3, "once is enough to wait for it"
    assert figure.source == "unavailable"
    assert figure.why == "it does not answer any more"
    assert sum(part.seconds for part in figure.phases.values()) == pytest.approx(figure.seconds)
    assert {part.total_j for part in figure.phases.values()} == {None}
    assert meter.closed == 0, "it is not closed under the thread that is inside it"
    assert len(events) == 1
    release.set()


def test_an_answer_after_the_meter_was_given_up_does_not_count() -> None:
    release, hanging = threading.Event(), threading.Event()

    class Late(FakeMeter):
        def read(self, now_s: float) -> Reading:
            if threading.current_thread().name == "energy":
                hanging.set()
                release.wait(10.0)
            return super().read(now_s)

    with EnergyRecorder(Late(Clock()), period_s=0.005, hang_s=0.05) as recorder:
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
        "from edge_sel.power.find import find_meter\n"
        "from edge_sel.power.recorder import EnergyRecorder\n"
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
from edge_sel.power.meter import Reading
from edge_sel.power.recorder import EnergyRecorder
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
        time.sleep(0.1)
    figures = counter.end_window(windows[0]), power.end_window(windows[1])
print(json.dumps([figure.to_json() for figure in figures]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no job control here")
def test_of_a_stopped_process_a_counter_knows_the_joules_and_samples_do_not() -> None:
    """The device went on drawing power: a counter knows how much, samples do not; this process's net is small."""
    child = subprocess.Popen([sys.executable, "-c", STOPPED], stdin=-1, stdout=-1, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "now\n"
        time.sleep(0.1)
        child.send_signal(signal.SIGSTOP)
        time.sleep(1.2)
        child.send_signal(signal.SIGCONT)
        counted, sampled = json.loads(child.communicate("\n", timeout=60)[0])
    for figure in (counted, sampled):
        assert figure["seconds"] > 1.4
        assert 1.1 < figure["gap_s"] < figure["seconds"]
        assert sum(part["seconds"] for part in figure["phases"].values()) == pytest.approx(figure["seconds"])
        assert figure["phases"]["train"]["seconds"] > 1.4
    assert counted["total_j"] > 3.0 * 1.4
    assert counted["net_j"] < 5.5 * 0.5
    assert sampled["total_j"] == pytest.approx(10.0 * (sampled["seconds"] - sampled["gap_s"]))
    assert sampled["uncertainty_j"] > 10.0 * 1.1


def test_the_first_temperature_is_waited_for() -> None:
    def slow() -> float:
        time.sleep(0.2)
        return 50.0

    with EnergyRecorder(None, temperature=slow) as recorder:
        assert recorder.max_temperature_c() == 50.0


def test_a_thermometer_that_hangs_holds_up_neither_samples_nor_the_run() -> None:
    release = threading.Event()
    meter = FakeMeter(Clock())
    hangs = {"temperature": lambda: release.wait(10.0) and None, "temperature_period_s": 0.5, "hang_s": 0.05}
    with EnergyRecorder(meter, period_s=0.005, **hangs) as recorder:
        began = time.perf_counter()
        assert recorder.max_temperature_c() is None
        assert time.perf_counter() - began < 0.9
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


def test_the_clock_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 7, raising=False)
    monkeypatch.setattr(time, "clock_gettime", lambda which: {7: 1234.5}[which], raising=False)
    assert clock_through_sleep() == 1234.5
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    assert clock_through_sleep() == pytest.approx(time.monotonic(), abs=1.0)
