"""Integration by a fake clock: windows add up, gaps are left out, and nothing unknown becomes 0."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_fakes import Clock, FakeMeter, by_hand

from edge_sel.power.meter import Reading

GAPS = st.lists(st.floats(0.001, 0.9), min_size=1, max_size=40)
POWERS = st.floats(0.1, 500)


@given(GAPS, st.lists(POWERS, min_size=1, max_size=40), st.sets(st.integers(0, 39)))
def test_consecutive_windows_of_a_counter_add_up(gaps: list[float], watts: list[float], marks: set[int]) -> None:
    clock = Clock()
    meter = FakeMeter(clock)
    recorder = by_hand(meter, clock)
    whole, part = recorder.start_window("whole"), recorder.start_window("part")
    parts, spent_j = [], 0.0
    for number, dt in enumerate(gaps):
        meter.power_w = watts[number % len(watts)]
        spent_j += meter.power_w * dt
        clock.sleep(dt)
        recorder.sample_once()
        if number in marks:
            parts.append(recorder.lap(part, f"part {number}"))
    parts.append(recorder.end_window(part))
    total = recorder.end_window(whole)
    assert total.total_j == pytest.approx(spent_j)
    assert sum(figure.total_j for figure in parts) == pytest.approx(total.total_j)
    assert sum(figure.seconds for figure in parts) == pytest.approx(total.seconds)
    assert total.samples >= len(gaps)


@given(GAPS, POWERS)
def test_constant_power_is_power_times_time(gaps: list[float], watts: float) -> None:
    clock = Clock()
    recorder = by_hand(FakeMeter(clock, watts, counter=False), clock)
    window = recorder.start_window()
    for dt in gaps:
        clock.sleep(dt)
        recorder.sample_once()
    figure = recorder.end_window(window)
    assert figure.total_j == pytest.approx(watts * sum(gaps))
    assert figure.mean_power_w == pytest.approx(watts)
    assert (figure.gap_s, figure.method) == (0.0, "power")


@given(GAPS, st.floats(0.1, 50), st.floats(0, 20))
def test_a_ramp_is_integrated_exactly_by_trapezoids(gaps: list[float], start_w: float, slope: float) -> None:
    clock = Clock(0.0)
    recorder = by_hand(FakeMeter(clock, lambda t: start_w + slope * t, counter=False), clock)
    window = recorder.start_window()
    for dt in gaps:
        clock.sleep(dt)
        recorder.sample_once()
    seconds = sum(gaps)
    figure = recorder.end_window(window)
    assert figure.total_j == pytest.approx(start_w * seconds + slope * seconds**2 / 2)


@given(st.lists(st.floats(0.001, 5), min_size=2, max_size=30), st.booleans())
def test_a_figure_is_power_times_time_or_none_where_samples_are_too_far_apart(gaps: list[float], counter: bool) -> None:
    """Of a device that draws power all the time no figure is ever 0 J, whatever the clock does."""
    clock = Clock()
    recorder = by_hand(FakeMeter(clock, 6.0, counter=counter), clock)
    for dt in gaps:
        window = recorder.start_window()
        clock.sleep(dt)
        figure = recorder.end_window(window)
        known = counter or figure.seconds <= 1.0
        assert figure.total_j == (pytest.approx(6.0 * figure.seconds) if known else None)
        assert (figure.total_j is None) == (figure.source == "unavailable") == (figure.why is not None)
        assert (figure.uncertainty_j is None) == (figure.total_j is None)


def test_a_gap_is_left_out_of_sampled_power_and_reported() -> None:
    clock = Clock()
    recorder = by_hand(FakeMeter(clock, 10.0, counter=False), clock)
    window = recorder.start_window()
    for dt in (0.1, 0.1, 3600.0, 0.1):  # the lid was closed for an hour
        clock.sleep(dt)
        recorder.sample_once()
    figure = recorder.end_window(window)
    assert figure.total_j == pytest.approx(3.0)
    assert figure.gap_s == pytest.approx(3600.0)
    assert figure.seconds == pytest.approx(3600.3)
    assert figure.mean_power_w == pytest.approx(10.0)
    assert figure.uncertainty_j is not None
    assert figure.uncertainty_j > 36000, "what the gap may have drawn is uncertain"


def test_a_window_that_is_all_gap_is_unavailable() -> None:
    clock = Clock()
    recorder = by_hand(FakeMeter(clock, 10.0, counter=False), clock)
    window = recorder.start_window()
    clock.sleep(30.0)
    figure = recorder.end_window(window)
    assert (figure.total_j, figure.source, figure.gap_s) == (None, "unavailable", 30.0)
    assert "close enough together" in str(figure.why)


@pytest.mark.parametrize(("period_s", "dt", "gap"), [(0.1, 0.99, False), (0.1, 1.01, True), (1.0, 4.9, False)])
def test_a_gap_is_five_periods_and_at_least_a_second(period_s: float, dt: float, gap: bool) -> None:
    clock = Clock()
    recorder = by_hand(FakeMeter(clock, 10.0, counter=False), clock, period_s=period_s)
    window = recorder.start_window()
    clock.sleep(dt)
    assert (recorder.end_window(window).gap_s > 0) == gap


def test_a_counter_spans_a_gap() -> None:
    clock = Clock()
    recorder = by_hand(FakeMeter(clock, 10.0), clock)
    window = recorder.start_window()
    clock.sleep(20.0)
    figure = recorder.end_window(window)
    assert (figure.total_j, figure.gap_s) == (pytest.approx(200.0), 20.0)


def test_a_counter_that_begins_anew_loses_only_that_stretch() -> None:
    clock = Clock()
    meter = FakeMeter(clock, 10.0)
    recorder = by_hand(meter, clock)
    window = recorder.start_window()
    clock.sleep(2.0)
    recorder.sample_once()
    meter.energy_j = 0.0
    clock.sleep(1.0)
    recorder.sample_once()
    clock.sleep(3.0)
    figure = recorder.end_window(window)
    assert (figure.total_j, figure.gap_s) == (pytest.approx(50.0), pytest.approx(1.0 + 2.0 + 3.0))
    assert figure.mean_power_w == pytest.approx(10.0)


def test_no_meter_is_unavailable_through_to_json() -> None:
    clock = Clock()
    recorder = by_hand(None, clock)
    window = recorder.start_window("epoch 1")
    clock.sleep(5.0)
    figure = recorder.end_window(window)
    answer = json.loads(json.dumps(figure.to_json()))
    assert answer["total_j"] is answer["net_j"] is answer["mean_power_w"] is answer["uncertainty_j"] is None
    assert (answer["source"], answer["meter"], answer["seconds"]) == ("unavailable", None, 5.0)
    assert recorder.measure_idle(3.0, sleep=clock.sleep) is None


def test_a_lost_meter_keeps_what_was_before_and_says_so_once() -> None:
    clock, events = Clock(), []
    meter = FakeMeter(clock, 10.0)
    recorder = by_hand(meter, clock, on_event=events.append)
    finished, cut = recorder.start_window("finished"), recorder.start_window("cut")
    clock.sleep(1.0)
    assert recorder.end_window(finished).total_j == pytest.approx(10.0)
    meter.unplug()
    clock.sleep(1.0)
    recorder.sample_once()
    reads = meter.reads
    meter.error = None
    recorder.sample_once()
    assert meter.reads == reads, "a meter that failed is not asked again: its figures would have a hole"
    later = recorder.start_window("later")
    clock.sleep(1.0)
    broken, after = recorder.end_window(cut), recorder.end_window(later)
    assert (broken.total_j, broken.source, broken.partial_j) == (None, "unavailable", pytest.approx(10.0))
    assert (after.total_j, after.source, after.partial_j) == (None, "unavailable", None)
    assert (broken.why, broken.meter) == ("it is gone", "fake")
    assert events == [
        {"event": "meter_lost", "meter": "fake", "why": "it is gone", "fix": "plug it in", "time_s": 102.0}
    ]


@pytest.mark.parametrize("error", [OSError("bus"), ValueError("text"), ZeroDivisionError()])
def test_no_error_of_a_driver_or_a_listener_reaches_the_run(error: Exception) -> None:
    clock = Clock()
    meter = FakeMeter(clock)
    meter.error = error

    def listener(event: dict[str, object]) -> None:
        raise RuntimeError("listener")

    recorder = by_hand(meter, clock, on_event=listener)
    window = recorder.start_window()
    clock.sleep(1.0)
    figure = recorder.end_window(window)
    assert figure.source == "unavailable"
    assert type(error).__name__ in str(figure.why)


def test_values_that_cannot_be_are_a_lost_meter() -> None:
    clock = Clock()
    meter = FakeMeter(clock)
    recorder = by_hand(meter, clock)
    window = recorder.start_window()
    meter.read = lambda now_s: Reading(now_s, None, float("inf"))  # type: ignore[method-assign]
    clock.sleep(1.0)
    assert recorder.end_window(window).source == "unavailable"
