"""Each limit by itself: when it asks for pressure, for rest, for a pause and for the end."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_sel.config.profiles import Profile
from edge_sel.config.settings import resolve
from edge_sel.edge.governor.decision import GO, Forecast, Readings
from edge_sel.edge.governor.from_settings import limits_of, make_reader
from edge_sel.edge.governor.limits import (
    BLIND_S,
    BURST_S,
    HYSTERESIS_C,
    LEAST_DUTY,
    LONGEST_PAUSE_S,
    PRESSURE_BAND_C,
    SENSOR_LAG_S,
    BatteryFloor,
    Ceiling,
    Deadline,
    EnergyBudget,
    MainsOnly,
    PowerCap,
    QuietHours,
)
from edge_sel.power.battery import Supply

AMOUNTS = st.floats(0, 1e6)
STEP = Forecast(step_s=1.0, step_j=10.0, closing_s=0.0, closing_j=0.0, ahead_s=0.0, ahead_j=0.0)


def ask(limit, now_s=0.0, look=STEP, *, paused=False, ending=False, **readings):
    return limit.check(Readings(now_s, **readings), look, paused=paused, ending=ending)


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
    assert action == "go" or ("30 J kept for the end" in decision.why and EnergyBudget.stopped == "budget")


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


# Degrees


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


@given(
    st.lists(st.tuples(st.floats(SENSOR_LAG_S, 10.0), st.floats(-20.0, 110.0), st.booleans()), min_size=2, max_size=30),
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
        told = 50.0 if second % 25 == 0 else None
        assert ask(limit, SETTLED_S + second, temp_c=told).action == "go"


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


# Watts

LOADS = st.lists(st.tuples(st.floats(0.0, 60.0), st.floats(0.01, 6.0)), min_size=20, max_size=60)


def work_under(limit, loads, idle_w=1.0):
    """(joules, seconds) of each step and of each second of pause, as the limit has it."""
    now_s = spent_j = 0.0
    drawn = []
    ask(limit, now_s, spent_j=spent_j)
    for power_w, seconds in loads:
        drawn.append((power_w * seconds, seconds))
        now_s, spent_j = now_s + seconds, spent_j + power_w * seconds
        paused = False
        while ask(limit, now_s, spent_j=spent_j, paused=paused).action == "pause":
            drawn.append((idle_w, 1.0))
            now_s, spent_j, paused = now_s + 1.0, spent_j + idle_w, True
    return drawn


@given(LOADS, st.floats(2.0, 40.0))
def test_the_average_over_any_window_is_the_cap_and_a_burst(loads, cap_w):
    excess_j = [joules - cap_w * seconds for joules, seconds in work_under(PowerCap(cap_w), loads)]
    worst_j = most_j = 0.0
    for step_j in excess_j:  # the sum of the worst window
        worst_j = max(0.0, worst_j + step_j)
        most_j = max(most_j, worst_j)
    assert most_j <= cap_w * BURST_S + max(0.0, *excess_j) + 1e-6


def test_what_must_be_ended_waits_only_until_the_bucket_is_no_longer_full():
    actions = {}
    for ending in (False, True):
        limit = PowerCap(10.0)
        joules = {0.0: 0, 1.0: 120, 3.0: 120}
        looks = [ask(limit, now_s, spent_j=spent_j, ending=ending) for now_s, spent_j in joules.items()]
        actions[ending] = [decision.action for decision in looks]
    assert actions == {False: ["go", "pause", "pause"], True: ["go", "pause", "go"]}


@pytest.mark.parametrize("power_w", [9.0, 12.0, 40.0])
def test_the_cap_is_used(power_w):
    """What is below it is never held up, what is above it is not held down further than needed."""
    drawn = work_under(PowerCap(10.0), [(power_w, 0.5)] * 2000)
    mean_w = sum(joules for joules, _ in drawn) / sum(seconds for _, seconds in drawn)
    assert mean_w == pytest.approx(min(power_w, 10.0), rel=0.03)
    assert (len(drawn) > 2000) == (power_w > 10.0)


def test_a_full_bucket_is_rested_off_to_the_half():
    """Ten watts for ten seconds are a full one; below the half of it work may go on, and it presses the gate before."""
    limit, told = PowerCap(10.0), []
    for now_s, spent_j in enumerate([0, 50, 109, 119, 129, 139, 141, 141, 141, 142, 142]):
        decision = ask(limit, float(now_s), spent_j=float(spent_j))
        told.append((decision.action, round(decision.pressure, 2)))
    assert told[:3] == [("go", 0.0), ("go", 0.8), ("go", 1.0)]
    assert told[3:6] == [("go", 1.0)] * 3, "as much as the cap leaves the level where it is"
    assert ask(limit, 10.5, spent_j=220.0).why == "115 J above an average of 10 W"
    told = [ask(limit, 10.5 + later_s, spent_j=220.0, paused=True).action for later_s in (2, 4, 6, 6.6)]
    assert told == ["pause", "pause", "pause", "go"]


def test_a_device_that_idles_above_the_cap_is_left_alone():
    limit = PowerCap(10.0)
    ask(limit, 0.0, spent_j=0.0)
    for second in range(1, 3000):
        decision = ask(limit, float(second), spent_j=second * 200.0, paused=second > 1)
        if decision.action == "stop":
            break
        assert decision.action == "pause"
    assert second == 1 + LONGEST_PAUSE_S + 1 and "while it does nothing" in decision.why


def test_what_no_meter_tells_cannot_be_capped():
    assert ask(PowerCap(10.0), spent_j=None).action == "stop"


# From settings


def test_no_setting_no_limit():
    assert limits_of(resolve(), 100.0) == []


def test_every_setting_is_a_limit_those_that_stop_first():
    flags = {
        "on_ac_only": "true", "quiet_hours": "22:00-07:00", "power_cap_w": "8W", "max_temp_c": "75C",
        "battery_floor": "20%", "deadline_s": "30m", "energy_budget_j": "500J",
    }  # fmt: skip
    limits = limits_of(resolve(flags=flags), 100.0)
    assert limits[:3] == [EnergyBudget(500.0), Deadline(1900.0), BatteryFloor(0.2)]
    ceiling, cap, mains, hours = limits[3:]
    assert isinstance(ceiling, Ceiling) and (ceiling.max_c, ceiling.strict) == (75.0, True)
    assert isinstance(cap, PowerCap) and cap.cap_w == 8.0
    assert isinstance(mains, MainsOnly) and hours == QuietHours(1320, 420)
    for key, text in flags.items():
        assert len(limits_of(resolve(flags={key: text}), 0.0)) == 1
    assert len({limit.name for limit in limits}) == 7 and all(limit.stopped for limit in limits)


def test_the_ceiling_of_a_profile_is_not_strict():
    (limit,) = limits_of(resolve(profile=Profile("board", 1.0, 2.0, max_c=78.0)), 0.0)
    assert (limit.max_c, limit.strict) == (78.0, False)


def test_one_look_at_all_sensors():
    """The battery changes slowly: every five seconds are enough for it."""
    now_s, asked = 0.0, []

    def supply():
        asked.append(now_s)
        return Supply(0.5 - now_s / 100, now_s < 6)

    sense = make_reader(lambda: now_s, lambda: 10 * now_s, lambda: 40 + now_s, supply, lambda: 600)
    looks = []
    for now_s in (0.0, 1.0, 4.9, 5.0, 9.0, 10.0):  # noqa: B007 (the sensors look at it)
        looks.append(sense())
    assert looks[1] == Readings(1.0, 10.0, 41.0, 0.5, True, 600)
    assert looks[-1] == Readings(10.0, 100.0, 50.0, 0.4, False, 600)
    assert asked == [0.0, 5.0, 10.0]
