"""The power cap: the average it keeps, what may be drawn in advance, and when it gives up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.edge.limits import BURST_S, LONGEST_PAUSE_S, PowerCap
from tests.edge.governor.asking import ask

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
    limit, messages = PowerCap(10.0), []
    for now_s, spent_j in enumerate([0, 50, 109, 119, 129, 139, 141, 141, 141, 142, 142]):
        decision = ask(limit, float(now_s), spent_j=float(spent_j))
        messages.append((decision.action, round(decision.pressure, 2)))
    assert messages[:3] == [("go", 0.0), ("go", 0.8), ("go", 1.0)]
    assert messages[3:6] == [("go", 1.0)] * 3, "as much as the cap leaves the level where it is"
    assert ask(limit, 10.5, spent_j=220.0).why == "115 J above an average of 10 W"
    messages = [ask(limit, 10.5 + later_s, spent_j=220.0, paused=True).action for later_s in (2, 4, 6, 6.6)]
    assert messages == ["pause", "pause", "pause", "go"]


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
