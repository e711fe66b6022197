"""The governor: which limit it follows, what it tells, how it waits, and what it expects of the work ahead."""

from contextlib import contextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.edge.governor.decision import GO, Decision, Limit, Readings
from edge_sel.edge.governor.governor import LONGEST_REST_S, POLL_S, PRESSURE_STEP, Governor
from edge_sel.edge.governor.limits import BatteryFloor, Ceiling, Deadline, EnergyBudget, MainsOnly, PowerCap, QuietHours

PAUSE, STOP = Decision("pause", "too much"), Decision("stop", "far too much")


class Scripted(Limit):
    """Gives these verdicts in turn, the last one for ever, and keeps what it was asked."""

    def __init__(self, *verdicts, name="script", rests=False):
        self.name, self.stopped, self.rests = name, f"by {name}", rests
        self.verdicts, self.asked = list(verdicts), []

    def check(self, readings, forecast, *, paused, ending):
        self.asked.append((readings, forecast, paused, ending))
        return self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]

    @property
    def forecast(self):
        return self.asked[-1][1]


class Bench:
    """A governor with time and joules of its own: sleeping takes two watts."""

    def __init__(self, *limits, interrupt_s=float("inf")):
        self.now_s, self.spent_j = 1000.0, 0.0
        self.looks, self.events, self.slept, self.idle = 0, [], [], []
        self.governor = Governor(
            limits, self.sense, sleep=self.sleep, emit=self.emit,
            interrupted=lambda: self.now_s >= interrupt_s, idle=self.resting,
        )  # fmt: skip

    def sense(self):
        self.looks += 1
        return Readings(self.now_s, self.spent_j)

    def sleep(self, seconds):
        assert self.idle[-1] == "begin", "what is slept is idle"
        self.slept.append(seconds)
        self.work(seconds, 2.0)

    def emit(self, event, **details):
        assert event == "governor"
        self.events.append(details)

    @contextmanager
    def resting(self):
        self.idle.append("begin")
        yield
        self.idle.append("end")

    def work(self, seconds, watts=10.0):
        self.now_s, self.spent_j = self.now_s + seconds, self.spent_j + seconds * watts

    def step(self, left, seconds=1.0, watts=10.0):
        self.work(seconds, watts)
        return self.governor.at_boundary(left)

    def told(self, key="action"):
        return [event[key] for event in self.events]


# Whom it follows


@pytest.mark.parametrize("order", [(GO, PAUSE, STOP), (STOP, PAUSE, GO), (PAUSE, STOP, GO)])
def test_stop_beats_pause_beats_go(order):
    bench = Bench(*(Scripted(decision, name=decision.action) for decision in order))
    assert bench.step(1.0) == "by stop"
    assert bench.slept == [] and bench.told() == ["stop"]
    bench = Bench(*(Scripted(decision, GO, name=decision.action) for decision in order if decision is not STOP))
    assert bench.step(1.0) is None
    assert bench.told() == ["pause", "resume"] and bench.told("limit") == ["pause"] * 2


def test_the_first_of_equals_is_named():
    bench = Bench(Scripted(STOP, name="one"), Scripted(STOP, name="two"))
    assert bench.step(1.0) == "by one" and bench.told("limit") == ["one"]


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
    assert bench.told() == ["pause", "stop"] and bench.told("limit") == ["script", "late"]
    assert sum(bench.slept) == 3 * POLL_S


def test_one_pause_after_another_is_one_pause():
    """It ends when nobody wants it any more."""
    bench = Bench(Scripted(PAUSE, GO), Scripted(GO, PAUSE, PAUSE, GO))
    assert bench.step(1.0) is None
    assert bench.told() == ["pause", "resume"]
    assert bench.events[-1]["paused_s"] == sum(bench.slept) == 3 * POLL_S


def test_without_limits_it_looks_at_nothing():
    bench = Bench()
    assert bench.step(1.0) is None
    bench.governor.breathe()
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
    assert bench.told() == ["pressure", "pause", "pressure", "duty", "resume", "duty", "stop"]
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
    assert bench.told() == ["pause", "resume"] and bench.events[-1]["paused_s"] == 500 * POLL_S


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60))
def test_pressure_moves_in_steps_and_stays_near_what_is_wanted(wanted):
    bench = Bench(Scripted(*(Decision(pressure=value) for value in wanted)))
    for value in wanted:
        bench.step(1.0)
        now = bench.governor.pressure
        assert 0 <= now <= 1 and abs(now - value) <= PRESSURE_STEP + 1e-9
        assert value or now == 0.0, "nothing is saved once nobody asks for it"
    changes = [0.0, *bench.told("pressure")]
    assert all(one != two for one, two in pairwise(changes)), "each one is a change"
    assert all(round(value, 1) == value for value in changes)


def test_what_flickers_is_not_told():
    bench = Bench(Scripted(*[Decision(pressure=p) for p in (0.31, 0.38, 0.27, 0.34, 0.39, 0.22)]))
    for left in range(6):
        bench.step(float(6 - left))
    assert bench.told("pressure") == [0.3]


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


# How it waits


@pytest.mark.parametrize("after_s", [0.0, 0.3, 5.0, 100.2])
def test_an_interruption_ends_a_pause_at_once(after_s):
    bench = Bench(Scripted(PAUSE), interrupt_s=1001.0 + after_s)
    assert bench.step(1.0) is None, "the run's own end, not the limit's"
    assert 0 <= bench.now_s - (1001.0 + after_s) <= POLL_S
    assert max(bench.slept, default=0) <= POLL_S and bench.told() == ["pause", "resume"]


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
    assert bench.governor.breathe() is None
    assert bench.slept == [] and bench.events == []


def test_breathing_waits_only_where_rest_is_what_helps():
    never, hot = Scripted(PAUSE, GO, name="quiet hours"), Scripted(PAUSE, PAUSE, GO, name="heat", rests=True)
    bench = Bench(never, hot)
    bench.governor.breathe()
    assert never.asked == [] and bench.slept == [POLL_S] * 2 and bench.idle == ["begin", "end"]
    assert bench.told() == ["pause", "resume"] and bench.told("limit") == ["heat"] * 2
    assert all(ending for *_, ending in hot.asked)
    bench.step(1.0)
    assert not hot.asked[-1][-1] and len(never.asked) == 2


def test_breathing_ends_when_the_limit_gives_up():
    bench = Bench(Scripted(PAUSE, PAUSE, STOP, rests=True))
    for _ in range(3):
        bench.governor.breathe()
    assert bench.slept == [POLL_S] * 2 and bench.told() == ["pause"]


def test_breathing_leaves_the_gate_alone():
    bench = Bench(Scripted(Decision(pressure=0.9, duty=0.5, why="warm"), rests=True))
    bench.governor.breathe()
    assert bench.governor.pressure == 0.0 and bench.told() == ["duty"]


def test_breathing_is_no_step():
    limit = Scripted(GO, rests=True)
    bench = Bench(limit)
    bench.step(100.0)
    bench.work(500.0)
    bench.governor.breathe()
    bench.step(90.0)
    assert limit.forecast.step_s == 0.0


# What it expects


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
            governor.breathe()
    except StopIteration:  # a pause that these looks never end
        reasons.append("endless")
    return events, reasons


@given(LOOKS)
def test_the_same_senses_give_the_same_decisions(looks):
    one, two = decide(looks), decide(looks)
    assert one == two
    assert one[1]
