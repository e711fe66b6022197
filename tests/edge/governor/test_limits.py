"""Each limit by itself: an energy budget, a deadline, a battery floor, mains only and quiet hours."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_sel.edge.limits import GO, LONGEST_PAUSE_S, BatteryFloor, Deadline, EnergyBudget, MainsOnly, QuietHours
from tests.edge.governor.asking import STEP, ask

AMOUNTS = st.floats(0, 1e6)


# Joules


def budget(spent_j, budget_j=100.0, **ahead):
    return ask(EnergyBudget(budget_j), look=STEP._replace(**ahead), spent_j=spent_j)


def test_a_budget_that_suffices_asks_for_nothing():
    assert budget(20.0, closing_j=30.0, ahead_j=50.0) == GO


def test_a_budget_is_spread_over_the_work_ahead():
    decision = budget(20.0, closing_j=30.0, ahead_j=200.0)
    assert (decision.action, decision.pressure, decision.duty) == ("go", 0.75, 1.0)
    assert "50 J left" in decision.why and "200 J" in decision.why


@given(AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS)
def test_a_budget_leaves_room_for_the_step_and_the_end(budget_j, spent_j, step_j, closing_j, ahead_j):
    decision = budget(spent_j, budget_j, step_j=step_j, closing_j=closing_j, ahead_j=ahead_j)
    left_j = budget_j - spent_j - closing_j
    assert decision.action == ("go" if left_j > step_j else "stop")
    if decision.pressure:
        assert ahead_j * (1 - decision.pressure) == pytest.approx(left_j)


@pytest.mark.parametrize(("spent_j", "action"), [(59.9, "go"), (60.0, "stop"), (99.0, "stop"), (1e9, "stop")])
def test_a_budget_keeps_what_the_end_takes(spent_j, action):
    decision = budget(spent_j, closing_j=30.0)
    assert decision.action == action
    assert ("30 J kept for the end" in decision.why) == (action == "stop")
    assert EnergyBudget.stopped == "budget"


def test_what_no_meter_tells_cannot_be_budgeted():
    decision = budget(None)
    assert decision.action == "stop" and "meter" in decision.why


def test_before_the_first_step_joules_ahead_are_unknown():
    assert budget(5.0, step_j=None, closing_j=None, ahead_j=None) == GO
    assert budget(100.0, step_j=None, closing_j=None, ahead_j=None).action == "stop"


# Seconds


def deadline(now_s, **ahead):
    return ask(Deadline(100.0), now_s, STEP._replace(**ahead))


def test_a_deadline_is_spread_over_the_work_ahead():
    assert deadline(20.0, closing_s=30.0, ahead_s=50.0) == GO
    assert deadline(20.0, closing_s=30.0, ahead_s=200.0).pressure == 0.75


@given(AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS)
def test_a_deadline_leaves_time_for_the_step_and_the_end(end_s, now_s, step_s, closing_s, ahead_s):
    look = STEP._replace(step_s=step_s, closing_s=closing_s, ahead_s=ahead_s)
    decision = ask(Deadline(end_s), now_s, look)
    assert decision.action == ("go" if end_s - now_s - closing_s > step_s else "stop")
    assert 0 <= decision.pressure < 1
    assert "\n" not in decision.why and "-" not in decision.why.replace("e-", "")  # no negative time is told


# The battery


@pytest.mark.parametrize(
    ("battery", "action", "pressure"),
    [(0.9, "go", 0), (0.31, "go", 0), (0.25, "go", 0.5), (0.21, "go", 0.9), (0.2, "stop", 0), (0.0, "stop", 0)],
)
def test_a_battery_is_saved_and_then_kept(battery, action, pressure):
    decision = ask(BatteryFloor(0.2), battery=battery, on_mains=False)
    assert (decision.action, decision.pressure) == (action, pytest.approx(pressure))
    assert "the floor is 20%" in decision.why and BatteryFloor.stopped == "battery"


@pytest.mark.parametrize(
    ("battery", "on_mains", "action"),
    [(0.1, True, "go"), (None, True, "go"), (0.1, None, "stop"), (None, None, "stop")],
)
def test_the_floor_holds_unless_mains_is_known(battery, on_mains, action):
    assert ask(BatteryFloor(0.2), battery=battery, on_mains=on_mains).action == action


def test_mains_only_waits_for_a_while():
    limit = MainsOnly()
    assert ask(limit, 0.0, on_mains=True) == ask(limit, 0.0, on_mains=None) == GO
    for since_s in (10.0, 5000.0):  # the patience begins anew
        assert ask(limit, since_s, on_mains=False).action == "pause"
        assert ask(limit, since_s + LONGEST_PAUSE_S, on_mains=False).action == "pause"
        assert ask(limit, since_s + LONGEST_PAUSE_S + 0.1, on_mains=True) == GO
    assert ask(limit, 9000.0, on_mains=False).action == "pause"
    assert ask(limit, 9000.1 + LONGEST_PAUSE_S, on_mains=False).action == "stop"


# The time of day


@pytest.mark.parametrize(
    ("minute", "action"), [(0, "pause"), (419, "pause"), (420, "go"), (1319, "go"), (1320, "pause"), (1439, "pause")]
)
def test_quiet_hours_across_midnight(minute, action):
    decision = ask(QuietHours(22 * 60, 7 * 60), minute=minute)
    assert (decision.action, decision.why) == (action, "until 07:00" if action == "pause" else "")


MINUTES = st.integers(0, 1439)


@given(MINUTES, MINUTES)
def test_quiet_hours_are_those_from_begin_to_end(begin, end):
    assume(begin != end)
    quiet, minute = set(), begin
    while minute != end:
        quiet.add(minute)
        minute = (minute + 1) % 1440
    limit = QuietHours(begin, end)
    for minute in {begin, end, (begin - 1) % 1440, (end - 1) % 1440, 0, 1439, (begin + end) // 2}:
        assert (ask(limit, minute=minute).action == "pause") == (minute in quiet), minute
