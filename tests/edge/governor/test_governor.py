"""The governor: which limit it follows, what it tells, and that it decides the same again."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_sel.edge.governor import POLL_S, PRESSURE_STEP, Governor
from edge_sel.edge.limits import (
    GO,
    BatteryFloor,
    Ceiling,
    Deadline,
    Decision,
    EnergyBudget,
    MainsOnly,
    PowerCap,
    QuietHours,
    Readings,
)
from tests.edge.governor.bench import PAUSE, STOP, Bench, Scripted

# Whom it follows


@pytest.mark.parametrize("order", [(GO, PAUSE, STOP), (STOP, PAUSE, GO), (PAUSE, STOP, GO)])
def test_stop_beats_pause_beats_go(order):
    bench = Bench(*(Scripted(decision, name=decision.action) for decision in order))
    assert bench.step(1.0) == "by stop"
    assert bench.slept == [] and bench.reported() == ["stop"]
    bench = Bench(*(Scripted(decision, GO, name=decision.action) for decision in order if decision is not STOP))
    assert bench.step(1.0) is None
    assert bench.reported() == ["pause", "resume"] and bench.reported("limit") == ["pause"] * 2


def test_the_first_of_equals_is_named():
    bench = Bench(Scripted(STOP, name="one"), Scripted(STOP, name="two"))
    assert bench.step(1.0) == "by one" and bench.reported("limit") == ["one"]


def test_the_highest_pressure_and_the_least_duty_win():
    limits = [
        Scripted(Decision(pressure=p, duty=d, why=n), name=n)
        for p, d, n in ((0.2, 1, "a"), (0.8, 0.6, "b"), (0.3, 0.5, "c"))
    ]
    bench = Bench(*limits)
    bench.step(1.0)
    assert bench.governor.pressure == 0.8
    assert bench.events == [
        {"action": "pressure", "limit": "b", "why": "b", "pressure": 0.8},
        {"action": "duty", "limit": "c", "why": "c", "duty": 0.5},
    ]


def test_a_stop_during_a_pause_ends_it():
    bench = Bench(Scripted(PAUSE), Scripted(GO, GO, GO, STOP, name="late"))
    assert bench.step(1.0) == "by late"
    assert bench.reported() == ["pause", "stop"] and bench.reported("limit") == ["script", "late"]
    assert sum(bench.slept) == 3 * POLL_S


def test_one_pause_after_another_is_one_pause():
    """It ends when nobody wants it any more."""
    bench = Bench(Scripted(PAUSE, GO), Scripted(GO, PAUSE, PAUSE, GO))
    assert bench.step(1.0) is None
    assert bench.reported() == ["pause", "resume"]
    assert bench.events[-1]["paused_s"] == sum(bench.slept) == 3 * POLL_S


def test_without_limits_it_looks_at_nothing():
    bench = Bench()
    assert bench.step(1.0) is None
    bench.governor.pause_if_due()
    assert bench.looks == 0 and bench.events == [] and bench.governor.pressure == 0


# What it tells


def test_every_decision_is_told_with_limit_and_reason():
    script = [
        GO,
        Decision(why="warm", pressure=0.5),
        Decision("pause", "hot"),
        Decision(duty=0.5, why="after"),
        GO,
        STOP,
    ]
    bench = Bench(Scripted(*script))
    reasons = [bench.step(1.0) for _ in range(5)]
    assert reasons == [None] * 4 + ["by script"]
    assert bench.reported() == ["pressure", "pause", "pressure", "duty", "resume", "duty", "stop"]
    assert all(event["limit"] == "script" for event in bench.events)
    whys = [event.get("why") for event in bench.events]
    assert whys == ["warm", "hot", "after", "after", None, "", "far too much"]


@pytest.mark.parametrize("decision", [GO, Decision(pressure=0.7, why="x"), Decision(duty=0.3, why="x")])
def test_nothing_is_told_twice_while_nothing_changes(decision):
    bench = Bench(Scripted(decision))
    for left in range(50, 0, -1):
        bench.step(float(left))
    assert len(bench.events) == (0 if decision == GO else 1)


def test_a_long_pause_is_told_once():
    bench = Bench(Scripted(*[PAUSE] * 500, GO))
    bench.step(1.0)
    assert bench.reported() == ["pause", "resume"] and bench.events[-1]["paused_s"] == 500 * POLL_S


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60))
@example([0.14, 0.0])
def test_pressure_moves_in_steps_and_stays_near_what_is_wanted(wanted):
    bench = Bench(Scripted(*(Decision(pressure=value) for value in wanted)))
    for value in wanted:
        bench.step(1.0)
        now = bench.governor.pressure
        assert 0 <= now <= 1 and abs(now - value) <= PRESSURE_STEP + 1e-9
        if value == 0.0:
            assert now == 0.0, "nothing is saved once nobody asks for it"
    changes = [0.0, *bench.reported("pressure")]
    assert all(one != two for one, two in pairwise(changes)), "each one is a change"
    assert all(round(value, 1) == value for value in changes)


def test_what_flickers_is_not_told():
    bench = Bench(Scripted(*[Decision(pressure=p) for p in (0.31, 0.38, 0.27, 0.34, 0.39, 0.22)]))
    for left in range(6):
        bench.step(float(6 - left))
    assert bench.reported("pressure") == [0.3]


def test_who_lets_go_is_whoever_pressed():
    """Not the first in the list, which never asked for anything."""
    hot = Scripted(Decision(pressure=0.8, duty=0.5, why="hot"), Decision(why="cool"))
    bench = Bench(Scripted(Decision(why="plenty"), name="budget"), hot)
    bench.step(2.0)
    bench.step(1.0)
    assert [(e["action"], e["limit"], e["why"]) for e in bench.events] == [
        ("pressure", "script", "hot"),
        ("duty", "script", "hot"),
        ("pressure", "script", "cool"),
        ("duty", "script", "cool"),
    ]


# The same again

OFTEN = st.sampled_from([True] * 9 + [False])
LOOKS = st.lists(
    st.builds(
        lambda seconds, joules, temp_c, battery, seen, on_mains, minute: Readings(
            seconds, joules, temp_c if seen else None, battery, on_mains, minute
        ),
        st.floats(0.1, 5.0),
        st.floats(0.0, 100.0),
        st.floats(50.0, 68.0),
        st.floats(0.15, 1.0),
        OFTEN,
        OFTEN,
        st.integers(390, 1439),
    ),
    min_size=1,
    max_size=40,
)  # fmt: skip


def decide(looks):
    """All limits at once, on this sequence of looks (seconds and joules since the one before), again and again."""
    events, reasons, at = [], [], iter(looks * 200)
    now_s = spent_j = 0.0

    def sense():
        nonlocal now_s, spent_j
        look = next(at)
        now_s += look.now_s
        spent_j += look.spent_j
        return look._replace(now_s=now_s, spent_j=spent_j)

    limits = [
        EnergyBudget(4e3), Deadline(300.0), BatteryFloor(0.1), Ceiling(70.0), PowerCap(30.0), MainsOnly(), QuietHours(1400, 400),
    ]  # fmt: skip
    governor = Governor(
        limits, sense, sleep=lambda s: None, emit=lambda event, **details: events.append((now_s, event, details))
    )
    governor.expect({"closing_s": 5.0, "closing_j": 50.0})
    try:
        for left in range(30, 0, -1):
            reasons.append((governor.at_boundary(float(left)), governor.pressure, now_s))
            governor.pause_if_due()
    except StopIteration:  # a pause that these looks never end
        reasons.append("endless")
    return events, reasons


@given(LOOKS)
def test_the_same_senses_give_the_same_decisions(looks):
    one, two = decide(looks), decide(looks)
    assert one == two
    assert one[1]
