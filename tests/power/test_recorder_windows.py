"""Windows nest, can be looked into, and outlive the recorder; memory does not grow."""

from __future__ import annotations

import json
import time

import pytest
from power_fakes import Clock, FakeMeter, by_hand

from edge_sel.power.figure import PhaseClock
from edge_sel.power.monitor import EnergyMonitor
from edge_sel.power.recorder import EnergyRecorder, Sampler, clock_through_sleep


def test_windows_nest() -> None:
    clock = Clock()
    recorder = by_hand(FakeMeter(clock, 10.0), clock)
    outer = recorder.start_window("outer")
    clock.sleep(1.0)
    inner = recorder.start_window("inner")
    clock.sleep(1.0)
    assert recorder.peek(inner).total_j == pytest.approx(0.0)
    assert recorder.end_window(inner).label == "inner"
    figure = recorder.end_window(outer)
    assert (figure.label, figure.total_j) == ("outer", pytest.approx(20.0))


def test_peeking_reads_nothing() -> None:
    clock = Clock()
    meter = FakeMeter(clock, 10.0)
    recorder = by_hand(meter, clock)
    window = recorder.start_window()
    clock.sleep(1.0)
    recorder.sample_once()
    reads = meter.reads
    clock.sleep(0.05)
    figure = recorder.peek(window)
    assert (figure.total_j, figure.seconds, meter.reads) == (pytest.approx(10.0), 1.0, reads)


def test_after_the_end_the_figures_stay() -> None:
    clock = Clock()
    meter = FakeMeter(clock, 10.0)
    with by_hand(meter, clock) as recorder:
        window = recorder.start_window()
        clock.sleep(1.0)
    clock.sleep(100.0)
    figure = recorder.end_window(window)
    assert (figure.total_j, figure.seconds, meter.closed) == (pytest.approx(10.0), 1.0, 1)


def test_memory_does_not_grow_with_samples_laps_and_phases() -> None:
    clock = Clock()
    recorder = by_hand(FakeMeter(clock), clock)
    window = recorder.start_window()

    def size() -> int:
        seen: set[int] = set()

        def count(thing: object) -> int:
            if id(thing) in seen or not isinstance(thing, (list, dict, tuple, EnergyRecorder, Sampler, PhaseClock)):
                return 0
            seen.add(id(thing))
            held = (
                thing
                if isinstance(thing, (list, tuple))
                else (thing if isinstance(thing, dict) else vars(thing)).values()
            )
            return len(held) + sum(map(count, held))

        return count(recorder)

    before = None
    for number in range(200):
        for name in ("train", "load"):
            with recorder.phase(name):
                clock.sleep(0.05)
        recorder.sample_once()
        recorder.lap(window)
        if number == 5:
            before = size()
    assert size() == before
    assert size() > 20


def test_why_the_meter_s_device_was_slowed_down_is_kept_per_window() -> None:
    clock, reasons_of = Clock(), iter([["power cap"], ["heat", "power cap"], RuntimeError, []])

    class Throttled(FakeMeter):
        def throttle_reasons(self) -> list[str]:
            reasons = next(reasons_of)
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


def test_a_meter_of_the_callers_own_is_monitored_and_closed() -> None:
    meter = FakeMeter(clock_through_sleep, 20.0)
    with EnergyMonitor(meter, profile="cloud-vm") as monitor:
        time.sleep(0.02)
    assert (monitor.figure.meter, monitor.figure.source, monitor.probes) == ("fake", "measured", ())
    assert monitor.total_j == pytest.approx(20.0 * monitor.figure.seconds)
    assert meter.closed == 1
