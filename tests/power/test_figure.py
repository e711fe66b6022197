"""What a figure says at the edges of what a meter can tell, and gross against net."""

from __future__ import annotations

import pytest
from power_fakes import Clock, FakeMeter, by_hand

from edge_sel.config.profiles import Profile


def test_a_counter_that_stopped_is_not_zero_joules() -> None:
    clock = Clock()
    meter = FakeMeter(clock, 10.0)
    recorder = by_hand(meter, clock)
    run = recorder.start_window("run")
    clock.sleep(2.0)
    recorder.sample_once()
    meter.power_w = 0.0
    window = recorder.start_window("stopped")
    clock.sleep(2.0)
    stopped = recorder.end_window(window)
    assert (stopped.total_j, stopped.source) == (None, "unavailable")
    assert "no energy at all for 2 s" in str(stopped.why)
    assert recorder.end_window(run).total_j == pytest.approx(20.0)


def test_a_window_too_short_for_the_meter_is_uncertain_not_free() -> None:
    """A counter that moves every 100 ms does not move within 20 ms: 0 J, give or take what the run draws."""
    clock = Clock()
    meter = FakeMeter(clock, 10.0)
    recorder = by_hand(meter, clock)
    recorder.sample_once()
    clock.sleep(2.0)
    recorder.sample_once()
    meter.power_w = 0.0
    window = recorder.start_window()
    clock.sleep(0.02)
    figure = recorder.end_window(window)
    assert figure.total_j == 0.0
    assert figure.uncertainty_j is not None
    assert figure.uncertainty_j >= 10.0 * 0.02


def test_the_first_short_window_of_a_counter_that_did_not_move_is_unavailable() -> None:
    clock = Clock()
    recorder = by_hand(FakeMeter(clock, 0.0), clock)
    window = recorder.start_window()
    clock.sleep(0.02)
    assert recorder.end_window(window).source == "unavailable"


def test_uncertainty_grows_as_the_window_shrinks() -> None:
    clock = Clock()
    recorder = by_hand(FakeMeter(clock, 10.0), clock)
    shares = []
    for seconds in (60.0, 5.0, 0.6, 0.4, 0.1):
        window = recorder.start_window()
        clock.sleep(seconds)
        figure = recorder.end_window(window)
        assert figure.uncertainty_j is not None
        assert figure.total_j
        shares.append(figure.uncertainty_j / figure.total_j)
    assert shares == sorted(shares)
    assert shares[0] < 0.06
    assert shares[3] > 1.0, "shorter than min_window_s: the figure says little"


def test_power_that_jumps_between_two_samples_is_uncertain() -> None:
    """Anything from 100 J to 300 J fits 10 W before and 30 W after."""
    clock = Clock()
    steady, jumping = FakeMeter(clock, 20.0, counter=False), FakeMeter(clock, 10.0, counter=False)
    figures = []
    for meter, then_w in ((steady, 20.0), (jumping, 30.0)):
        recorder = by_hand(meter, clock, period_s=2.0)
        window = recorder.start_window()
        meter.power_w = then_w
        clock.sleep(10.0)
        figures.append(recorder.end_window(window))
    assert [figure.total_j for figure in figures] == [pytest.approx(200.0)] * 2
    assert figures[0].uncertainty_j is not None
    assert figures[1].uncertainty_j == pytest.approx(figures[0].uncertainty_j + 100.0)


def test_net_is_gross_less_the_measured_idle() -> None:
    clock = Clock()
    meter = FakeMeter(clock, 4.0)
    recorder = by_hand(meter, clock, profile=Profile("p", idle_w=99.0, max_w=100.0))
    window = recorder.start_window()
    clock.sleep(1.0)
    assert recorder.end_window(window).net_j is None, "a profile's watts are not this meter's"
    assert recorder.measure_idle(3.0, sleep=clock.sleep) == pytest.approx(4.0)
    meter.power_w = 10.0
    window = recorder.start_window()
    clock.sleep(5.0)
    figure = recorder.end_window(window)
    assert (figure.total_j, figure.net_j) == (pytest.approx(50.0), pytest.approx(30.0))
    assert figure.idle_w == pytest.approx(4.0)


def test_net_is_never_below_nothing() -> None:
    clock = Clock()
    meter = FakeMeter(clock, 4.0, counter=False)
    recorder = by_hand(meter, clock)
    recorder.measure_idle(1.0, sleep=clock.sleep)
    meter.power_w = 3.0
    recorder.sample_once()
    window = recorder.start_window()
    clock.sleep(0.5)
    assert recorder.end_window(window).net_j == 0.0


def test_a_suspended_machine_is_not_charged_idle_power() -> None:
    clock = Clock()
    meter = FakeMeter(clock, 4.0)
    recorder = by_hand(meter, clock)
    recorder.measure_idle(1.0, sleep=clock.sleep)
    meter.power_w = 10.0
    window = recorder.start_window()
    clock.sleep(0.5)
    recorder.sample_once()
    meter.power_w = 0.0
    clock.sleep(1000.0)
    recorder.sample_once()
    figure = recorder.end_window(window)
    assert (figure.total_j, figure.net_j) == (pytest.approx(5.0), pytest.approx(3.0))


def test_idle_is_watched_for_at_least_the_shortest_window() -> None:
    clock = Clock()
    recorder = by_hand(FakeMeter(clock, 4.0), clock)
    before = clock()
    recorder.measure_idle(0.01, sleep=clock.sleep)
    assert clock() - before == pytest.approx(0.5)


def test_what_recording_costs_is_unknown_without_a_profile() -> None:
    clock = Clock()
    recorder = by_hand(FakeMeter(clock), clock)
    recorder.sample_once()
    cost = recorder.cost()
    assert cost.cpu_s > 0
    assert (cost.energy_j, cost.source) == (None, "unavailable")
