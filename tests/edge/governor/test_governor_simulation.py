"""The real governor on the simulated board of tools/simulate_governor.py: an hour of heat and joules in a second."""

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge_sel.edge.limits import BURST_S, LONGEST_PAUSE_S

TOOL = Path(__file__).parents[3] / "tools" / "simulate_governor.py"
MAX_C, BUDGET_J, CAP_W = 70.0, 14_000.0, 5.0
SEEDS = pytest.mark.parametrize("seed", range(6))
MANY_SEEDS = pytest.mark.parametrize("seed", range(6, 60))


@cache
def tool():
    spec = importlib.util.spec_from_file_location("simulate_governor", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@cache
def hour(seed, max_c=None, budget_j=None, cap_w=None, **given):
    return tool().simulate(seed, minutes=60, max_c=max_c, budget_j=budget_j, cap_w=cap_w, **given)


def actions(run):
    return [decision["action"] for decision in run.decisions]


def held(seed):
    run = hour(seed, MAX_C, BUDGET_J)
    assert run.hottest_c <= MAX_C + 1
    assert run.energy_j <= BUDGET_J + run.longest_step_j
    assert run.stopped == "budget" and actions(run).count("stop") == 1
    return run


def test_the_board_remembers_how_hot_it_was():
    board = tool().Board(None)
    board.spend(300.0, 9.0)
    peak_c, energy_j = board.chip_c, board.energy_j
    board.spend(600.0, 2.7)
    assert board.chip_c < peak_c - 20 and board.hottest_c == peak_c
    assert energy_j == pytest.approx(2700.0) and board.energy_j == pytest.approx(2700.0 + 600 * 2.7)


@pytest.mark.sampled(3)
@SEEDS
def test_an_hour_within_both_limits(seed):
    run = held(seed)
    assert {"pressure", "pause", "resume", "duty"} <= set(actions(run))
    assert all(decision["limit"] for decision in run.decisions)


@pytest.mark.slow
@MANY_SEEDS
def test_an_hour_within_both_limits_with_many_seeds(seed):
    held(seed)


@pytest.mark.sampled(3)
@SEEDS
def test_without_limits_the_same_hour_is_too_hot_and_takes_too_much(seed):
    """So that the tests above can fail."""
    run = hour(seed)
    assert run.stopped == "time" and run.decisions == []
    assert run.hottest_c > MAX_C + 20 and run.energy_j > BUDGET_J * 1.5


def test_the_limits_are_used_not_only_kept():
    """As warm and as costly as allowed, and most of the work is done."""
    run = hour(0, MAX_C, BUDGET_J)
    assert run.hottest_c > MAX_C - 3 and run.energy_j > 0.98 * BUDGET_J
    assert run.work_done > 0.75


def test_the_same_seed_decides_the_same():
    one, two = (vars(tool().simulate(3, minutes=60, max_c=MAX_C, budget_j=BUDGET_J, cap_w=None)) for _ in range(2))
    assert one == two and len(one["decisions"]) > 20
    assert one["decisions"] != hour(4, MAX_C, BUDGET_J).decisions


@pytest.mark.sampled(3)
@SEEDS
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_budget_alone(seed, share):
    """It is spread over the work: the gate saves long before the end."""
    budget_j = share * BUDGET_J
    run = hour(seed, None, budget_j)
    assert run.stopped == "budget"
    assert 0.9 * budget_j < run.energy_j <= budget_j + run.longest_step_j
    assert set(actions(run)) == {"pressure", "stop"} and {d["limit"] for d in run.decisions} == {"energy budget"}


def most_w(run, cap_w):
    """The cap and a burst; and the first and the last step, which no look precedes or follows."""
    return cap_w + (cap_w * BURST_S + 2 * run.longest_step_j) / run.seconds


@pytest.mark.sampled(3)
@SEEDS
def test_a_power_cap_alone(seed):
    run = hour(seed, cap_w=CAP_W)
    assert 0.95 * CAP_W < run.mean_w <= most_w(run, CAP_W)
    assert {d["limit"] for d in run.decisions} == {"power cap"} and "stop" not in actions(run)


@pytest.mark.sampled(3)
@SEEDS
def test_a_ceiling_alone(seed):
    run = hour(seed, MAX_C)
    assert run.stopped == "time" and run.hottest_c <= MAX_C + 1
    assert {d["limit"] for d in run.decisions} == {"temperature"}


@pytest.mark.sampled(5)
@SEEDS
@pytest.mark.parametrize(("budget_j", "cap_w"), [(2000.0, 3.8), (4000.0, 4.0), (8000.0, 4.2)])
def test_the_rests_of_the_end_are_in_the_budget(seed, budget_j, cap_w):
    """Where the power cap makes the end take longer than its work."""
    run = hour(seed, None, budget_j, cap_w)
    assert run.stopped == "budget" and run.energy_j <= budget_j + run.longest_step_j
    assert run.mean_w <= most_w(run, cap_w)


@pytest.mark.sampled(3)
@SEEDS
def test_all_limits_together(seed):
    run = hour(seed, MAX_C, BUDGET_J, CAP_W)
    assert run.hottest_c <= MAX_C + 1 and run.energy_j <= BUDGET_J + run.longest_step_j
    assert run.mean_w <= most_w(run, CAP_W)


@pytest.mark.parametrize(("max_c", "after_s"), [(50.0, 0.0), (60.0, 1200.0)], ids=["from the beginning", "in the sun"])
def test_a_ceiling_below_what_the_idle_device_has(max_c, after_s):
    run = hour(0, max_c)
    assert run.stopped == "temperature"
    assert after_s + LONGEST_PAUSE_S < run.seconds < after_s + 1.3 * LONGEST_PAUSE_S
    last = run.decisions[-1]
    assert last["action"] == "stop" and last["limit"] == "temperature" and f"of {max_c:.0f} °C" in last["why"]


def test_the_tool_tells_of_the_hour_with_limits_and_without():
    result = CliRunner().invoke(tool().main, ["--minutes", "5", "--max-temp", "60C", "--power-cap", "5W", "--json"])
    summary = json.loads(result.output)
    assert summary["free"]["decisions"] == [] and summary["held"]["hottest_c"] < 61 < summary["free"]["hottest_c"]
    shown = CliRunner().invoke(tool().main, ["--minutes", "5"]).output
    assert shown.count("\n") == 2 and "without limits" in shown and "hottest" in shown
