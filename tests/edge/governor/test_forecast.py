"""What the governor expects of the work ahead, from what the work behind has taken."""

import pytest

from edge_sel.edge.governor import Governor
from edge_sel.edge.limits import GO, Decision, Readings
from tests.edge.governor.bench import PAUSE, Bench, Scripted


def watched(*seconds, work=10.0, plan=100.0, watts=10.0):
    """After steps that took so long, each of them ``work`` of the ``plan``."""
    limit = Scripted(GO)
    bench = Bench(limit)
    bench.governor.at_boundary(plan)
    for done, taken_s in enumerate(seconds, start=1):
        bench.step(plan - done * work, taken_s, watts)
    return bench, limit


def test_before_the_first_step_nothing_is_expected():
    _, limit = watched()
    assert limit.forecast == (0.0, None, 0.0, 0.0, 0.0, None)


def test_the_work_ahead_takes_what_the_work_behind_took():
    _, limit = watched(2.0, 2.0, 2.0)
    forecast = limit.forecast
    assert (forecast.step_s, forecast.step_j) == (2.0, 20.0)
    assert (forecast.ahead_s, forecast.ahead_j) == (pytest.approx(7 * 2.0), pytest.approx(7 * 20.0))


def test_later_steps_count_more():
    _, limit = watched(*[1.0] * 200, *[3.0] * 200, work=1.0, plan=1000.0)
    assert 2.9 * 600 < limit.forecast.ahead_s < 3.0 * 600


def test_the_next_step_may_be_as_long_as_the_longest_of_late():
    bench, limit = watched(5.0, 1.0)
    assert (limit.forecast.step_s, limit.forecast.step_j) == (pytest.approx(4.5), pytest.approx(45.0))
    for left in range(70, 0, -1):
        bench.step(float(left))
    assert (limit.forecast.step_s, limit.forecast.step_j) == (1.0, 10.0)


@pytest.mark.parametrize("pressure", [0.0, 0.5, 0.8])
def test_under_pressure_the_same_work_would_have_taken_more(pressure):
    limit = Scripted(Decision(pressure=pressure))
    bench = Bench(limit)
    for left in (100.0, 90.0, 80.0):
        bench.step(left, seconds=2.0)
    assert limit.forecast.ahead_s == pytest.approx(8 * 2.0 / (1 - pressure))
    assert limit.forecast.ahead_j == pytest.approx(8 * 20.0 / (1 - pressure))


def test_what_is_skipped_is_no_step():
    bench, limit = watched(2.0)
    bench.work(500.0)
    bench.governor.skip()
    bench.step(90.0)
    assert limit.forecast.step_s == 2.0 and limit.forecast.ahead_s == pytest.approx(9 * 2.0)
    bench.step(80.0, seconds=2.0)
    assert limit.forecast.ahead_s == pytest.approx(8 * 2.0), "the next one counts again"


def test_a_new_plan_is_no_negative_work():
    bench, limit = watched(2.0, 2.0)
    bench.step(500.0, seconds=2.0)
    assert limit.forecast.ahead_s == pytest.approx(50 * 2.0)
    assert limit.forecast.ahead_j == pytest.approx(50 * 20.0)


def test_no_meter_no_joules():
    limit = Scripted(GO)
    governor = Governor([limit], iter([Readings(0.0), Readings(2.0), Readings(4.0)]).__next__, sleep=lambda s: None)
    for left in (100.0, 90.0, 80.0):
        governor.at_boundary(left)
    assert limit.forecast.step_s == 2.0 and limit.forecast.step_j is None and limit.forecast.ahead_j is None


def test_the_end_is_expected_to_need_as_much_rest_as_the_steps_did():
    limit = Scripted(GO, GO, PAUSE, PAUSE, PAUSE, PAUSE, PAUSE, GO)
    bench = Bench(limit)
    bench.governor.expect({"closing_s": 20.0, "closing_j": 200.0})
    bench.step(100.0)
    bench.step(90.0, seconds=10.0)
    assert (limit.forecast.closing_s, limit.forecast.closing_j) == (20.0, 200.0)
    bench.step(80.0, seconds=10.0)  # and five seconds of pause
    rest = pytest.approx(5 / 20, rel=0.05)
    assert limit.forecast.closing_s / 20.0 - 1 == rest
    assert (limit.forecast.closing_j - 200.0) / (20.0 * 2.0) == rest, "resting takes two watts"


def test_a_resumed_run_knows_what_a_step_took():
    bench, _ = watched(5.0, 1.0)
    bench.governor.expect({**bench.governor.expected(), "closing_s": 20.0, "closing_j": 200.0})
    limit = Scripted(GO)
    resumed = Bench(limit)
    resumed.governor.expect(bench.governor.expected())
    resumed.governor.at_boundary(None)
    forecast = limit.forecast
    assert (forecast.step_s, forecast.step_j) == (pytest.approx(4.5), pytest.approx(45.0))
    assert (forecast.closing_s, forecast.closing_j) == (20.0, 200.0)


def test_a_long_wait_does_not_make_the_end_endless():
    limit = Scripted(GO, *[PAUSE] * 30_000, GO)
    bench = Bench(limit)
    bench.governor.expect({"closing_s": 20.0, "closing_j": None})
    bench.step(100.0)
    bench.step(90.0)
    assert limit.forecast.closing_s <= 20.0 * 21
