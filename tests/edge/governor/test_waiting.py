"""How the governor waits: in a pause, in a rest after a step, and between the parts of what must be ended."""

import pytest

from edge_sel.edge.governor import LONGEST_REST_S, POLL_S
from edge_sel.edge.limits import GO, Decision
from tests.edge.governor.bench import PAUSE, STOP, Bench, Scripted

# How it waits


@pytest.mark.parametrize("after_s", [0.0, 0.3, 5.0, 100.2])
def test_an_interruption_ends_a_pause_at_once(after_s):
    bench = Bench(Scripted(PAUSE), interrupt_s=1001.0 + after_s)
    assert bench.step(1.0) is None, "the run's own end, not the limit's"
    assert 0 <= bench.now_s - (1001.0 + after_s) <= POLL_S
    assert max(bench.slept, default=0) <= POLL_S and bench.reported() == ["pause"]


def test_after_a_step_it_rests_for_the_duty():
    """A quarter of the time means three times as long as the step took."""
    bench = Bench(Scripted(Decision(duty=0.25)))
    bench.step(10.0)
    assert bench.slept == [], "the length of a step is not known yet"
    bench.step(9.0, seconds=2.5)
    assert sum(bench.slept) == 7.5 and max(bench.slept) <= POLL_S
    assert bench.idle == ["begin", "end"] * 2
    bench.step(8.0, seconds=100.0)
    assert sum(bench.slept) == 7.5 + LONGEST_REST_S


def test_an_interruption_ends_a_rest():
    bench = Bench(Scripted(Decision(duty=0.1)), interrupt_s=1005.0)
    bench.step(10.0)
    bench.step(9.0, seconds=2.0)
    assert 1005.0 <= bench.now_s <= 1005.0 + POLL_S


def test_what_is_slept_is_idle():
    bench = Bench(Scripted(PAUSE, PAUSE, GO))
    bench.step(1.0)
    assert bench.idle == ["begin", "end"] and bench.slept == [POLL_S] * 2


def test_limits_know_whether_there_was_work_since_they_were_asked():
    limit = Scripted(GO, PAUSE, PAUSE, GO)
    bench = Bench(limit)
    bench.step(2.0)
    bench.step(1.0)
    assert [paused for _, _, paused, _ in limit.asked] == [False, False, True, True]


# Between the parts of what must be ended


def test_breathing_stops_nothing():
    bench = Bench(Scripted(STOP, rests=True))
    assert bench.governor.pause_if_due() is None
    assert bench.slept == [] and bench.events == []


def test_breathing_waits_only_where_rest_is_what_helps():
    never, hot = Scripted(PAUSE, GO, name="quiet hours"), Scripted(PAUSE, PAUSE, GO, name="heat", rests=True)
    bench = Bench(never, hot)
    bench.governor.pause_if_due()
    assert never.asked == [] and bench.slept == [POLL_S] * 2 and bench.idle == ["begin", "end"]
    assert bench.reported() == ["pause", "resume"] and bench.reported("limit") == ["heat"] * 2
    assert all(ending for *_, ending in hot.asked)
    bench.step(1.0)
    assert not hot.asked[-1][-1] and len(never.asked) == 2


def test_breathing_ends_when_the_limit_gives_up():
    bench = Bench(Scripted(PAUSE, PAUSE, STOP, rests=True))
    for _ in range(3):
        bench.governor.pause_if_due()
    assert bench.slept == [POLL_S] * 2 and bench.reported() == ["pause"]


def test_breathing_leaves_the_gate_alone():
    bench = Bench(Scripted(Decision(pressure=0.9, duty=0.5, why="warm"), rests=True))
    bench.governor.pause_if_due()
    assert bench.governor.pressure == 0.0 and bench.reported() == ["duty"]


def test_breathing_is_no_step():
    limit = Scripted(GO, rests=True)
    bench = Bench(limit)
    bench.step(100.0)
    bench.work(500.0)
    bench.governor.pause_if_due()
    bench.step(90.0)
    assert limit.forecast.step_s == 0.0
