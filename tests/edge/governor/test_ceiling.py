"""The temperature ceiling: pressure before it, pauses and rests below it, and a sensor that falls silent."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.edge.limits import (
    BLIND_S,
    GO,
    HYSTERESIS_C,
    LEAST_DUTY,
    LONGEST_PAUSE_S,
    PRESSURE_BAND_C,
    SENSOR_LAG_S,
    Ceiling,
)
from tests.edge.governor.asking import STEP, ask


def steady(limit, temp_c, seconds, since_s=0.0, **given):
    """The last decision after so many seconds at one temperature."""
    for second in range(math.ceil(seconds) + 1):
        decision = ask(limit, since_s + second, temp_c=temp_c, **given)
    return decision


SETTLED_S = 200
"""By then a ceiling has forgotten its guess of how fast the device warms."""
MARGIN_C = 0.1 * (STEP.step_s + SENSOR_LAG_S)
"""The smallest: a tenth of a degree a second."""


def settled(max_c=70.0, temp_c=40.0, **given):
    limit = Ceiling(max_c, **given)
    assert steady(limit, temp_c, SETTLED_S).action == "go"
    return limit


BETWEEN_READINGS_S = st.floats(1.001 * SENSOR_LAG_S, 9.99 * SENSOR_LAG_S)
"""Strictly within what the ceiling learns from: the clock's sums are rounded."""


@given(
    st.lists(st.tuples(BETWEEN_READINGS_S, st.floats(-20.0, 110.0), st.booleans()), min_size=2, max_size=30),
    st.floats(0.0, 20.0),
    st.floats(40.0, 100.0),
    st.booleans(),
)
def test_no_step_begins_that_would_cross_the_ceiling_at_the_rate_just_seen(seen, step_s, max_c, ending):
    limit, now_s, before_c = Ceiling(max_c), 0.0, None
    for seconds, temp_c, paused in seen:
        now_s += seconds
        decision = ask(limit, now_s, STEP._replace(step_s=step_s), temp_c=temp_c, paused=paused, ending=ending)
        rise_c = 0.0 if before_c is None else (temp_c - before_c) / seconds * (step_s + SENSOR_LAG_S)
        before_c = temp_c
        if decision.action == "go":
            assert temp_c + min(rise_c, max_c / 2) < max_c + 1e-9
            assert 0 <= decision.pressure <= 1 and LEAST_DUTY <= decision.duty <= 1


def test_the_margin_is_what_the_sensor_was_seen_to_rise():
    """Two degrees a second and a step of a second, a second late: four degrees below."""
    limit, now_s = settled(temp_c=50.0), SETTLED_S
    for temp_c in range(52, 67, 2):
        now_s += 1
        decision = ask(limit, now_s, temp_c=float(temp_c))
        assert decision.action == ("go" if temp_c < 66 else "pause"), temp_c
    assert decision.why == "66.0 °C of 70 °C"
    assert steady(settled(), 66.0, 0, since_s=SETTLED_S + 1000).action == "go"  # the same warmth, reached unseen


def test_the_margin_grows_with_the_step():
    for step_s, action in ((1.0, "go"), (3.0, "go"), (4.1, "pause")):
        limit = settled()
        ask(limit, SETTLED_S + 1, temp_c=41.0)
        look = STEP._replace(step_s=step_s)
        assert ask(limit, SETTLED_S + 1.5, look, temp_c=65.0).action == action, step_s


@pytest.mark.parametrize(("seconds", "action"), [(0, "pause"), (30, "go")])
def test_a_quick_rise_is_forgotten_slowly(seconds, action):
    limit = settled()
    steady(limit, 44.0, seconds, SETTLED_S + 1)
    assert ask(limit, SETTLED_S + 1.5 + seconds, temp_c=64.0).action == action


def test_pressure_comes_before_the_pause():
    asked = {}
    for below_c in (PRESSURE_BAND_C + 1, PRESSURE_BAND_C / 2, 0.01, 0.0):
        decision = ask(settled(), SETTLED_S + 0.5, temp_c=70.0 - MARGIN_C - below_c)
        asked[below_c] = (decision.action, round(decision.pressure, 2))
    assert list(asked.values()) == [("go", 0.0), ("go", 0.5), ("go", 1.0), ("pause", 1.0)]


@pytest.mark.parametrize(("ending", "cool_c"), [(False, 70 - MARGIN_C - HYSTERESIS_C), (True, 70 - MARGIN_C)])
def test_it_goes_on_when_it_is_cooler_not_where_it_paused(ending, cool_c):
    """What must be ended goes on sooner: it needs no reserve for many steps."""
    limit = settled(temp_c=60.0)
    assert ask(limit, SETTLED_S, temp_c=70.0).action == "pause"
    quickly = {"paused": True, "ending": ending}
    assert ask(limit, SETTLED_S + 0.5, temp_c=cool_c + 0.01, **quickly).action == "pause"
    assert ask(limit, SETTLED_S + 0.6, temp_c=cool_c - 0.01, **quickly).action == "go"


def test_every_pause_halves_the_duty_down_to_the_least():
    limit, duties = settled(), []
    for pause in range(7):
        now_s = SETTLED_S + pause / 10
        hot = [ask(limit, now_s + later_s, temp_c=75.0).duty for later_s in (0.01, 0.02)]
        duties.append(ask(limit, now_s + 0.05, temp_c=60.0).duty)
        assert hot == [duties[-1]] * 2
    assert duties == [0.5, 0.25, 0.125, 0.0625, LEAST_DUTY, LEAST_DUTY, LEAST_DUTY]


def paused_once():
    limit = settled(temp_c=60.0)
    ask(limit, SETTLED_S, temp_c=75.0)
    assert ask(limit, SETTLED_S + 0.1, temp_c=60.0).duty == 0.5
    return limit


def test_the_duty_recovers_while_it_works_well_below():
    assert steady(paused_once(), 60.0, 1, SETTLED_S + 1).duty == pytest.approx(0.5 * 1.1**2)
    assert steady(paused_once(), 60.0, 20, SETTLED_S + 1).duty == 1.0
    assert steady(paused_once(), 67.0, 20, SETTLED_S + 20).duty == 0.5, "too near the ceiling"
    assert steady(paused_once(), 60.0, 20, SETTLED_S + 1, paused=True).duty == 0.5, "a pause proves nothing"


def test_a_device_that_does_not_cool_is_left_alone():
    limit = settled()
    assert steady(limit, 70.0, LONGEST_PAUSE_S, SETTLED_S + 1, paused=True).action == "pause"
    decision = ask(limit, SETTLED_S + LONGEST_PAUSE_S + 2, temp_c=70.0, paused=True)
    assert decision.action == "stop" and "70.0 °C of 70 °C after 30m" in decision.why
    assert limit.stopped == "temperature"


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_lost_sensor_ends_a_run_that_was_to_be_watched(seen_before):
    limit = settled() if seen_before else Ceiling(70.0)
    blind_s = SETTLED_S + (0 if seen_before else 1)
    for second in range(int(BLIND_S) + 1):
        assert ask(limit, blind_s + second, temp_c=None).action == "go"
    decision = ask(limit, blind_s + BLIND_S + 0.1, temp_c=None)
    assert decision.action == "stop" and "no sensor has answered for 30" in decision.why


def test_a_sensor_that_answers_now_and_then_is_not_lost():
    limit = settled()
    for second in range(600):
        reading = 50.0 if second % 25 == 0 else None
        assert ask(limit, SETTLED_S + second, temp_c=reading).action == "go"


def test_without_a_sensor_the_ceiling_of_a_profile_does_not_hold():
    assert steady(Ceiling(70.0, strict=False), None, 1000) == GO
    limit = settled(strict=False)
    ask(limit, SETTLED_S, temp_c=75.0)
    ask(limit, SETTLED_S + 1, temp_c=50.0)
    assert steady(limit, None, 1000, SETTLED_S + 2).duty == pytest.approx(0.55, rel=0.1), "as it was when last seen"


@pytest.mark.parametrize(("strict", "after"), [(True, "stop"), (False, "go")])
def test_a_pause_does_not_end_because_the_sensor_falls_silent(strict, after):
    limit = settled(strict=strict)
    assert ask(limit, SETTLED_S, temp_c=75.0).action == "pause"
    for second in range(1, int(BLIND_S) + 1):
        assert ask(limit, SETTLED_S + second, temp_c=None, paused=True).action == "pause"
    assert ask(limit, SETTLED_S + BLIND_S + 1, temp_c=None, paused=True).action == after
    assert steady(limit, 60.0, 0, SETTLED_S + 2 * LONGEST_PAUSE_S).action == "go"
