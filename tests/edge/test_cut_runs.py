"""Runs whose power is cut: no joule is forgotten, budgets hold over all parts, and there is progress."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sel.edge.energy import Bookkeeper, Spent
from edge_sel.edge.limits import EnergyBudget
from edge_sel.edge.outputs.earlier import JOURNAL, exhausted, look_into
from edge_sel.errors import BudgetSpentError
from edge_sel.runs.checkpoint import list_checkpoints
from tests.edge.governor.limited_sessions import OPEN, Steps, free
from tests.edge.sessions import Killed, StopAt, Tape, Ticks, events, outcome
from tests.edge.world import World, governed

EVERY = {"checkpoint_every_s": 30.0}


def cut_after(out, world, joules, *limits, **given):
    """One part of the run; None if its power was cut after so many joules."""
    world.cut_j = world.energy_j + joules
    try:
        return governed(out, world, *limits, resume=True, **{**OPEN, **EVERY, **given})
    except Killed:
        return None


def until_the_end(out, world, joules, *limits, parts=60, **given):
    """Its result, and how many times the power was cut."""
    for cuts in range(parts):
        if (result := cut_after(out, world, joules, *limits, **given)) is not None:
            return result, cuts
    raise AssertionError("no progress")


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(20.0, 250.0), max_size=5))
def test_every_joule_of_every_part_is_in_the_total(tmp_path_factory, joules):
    out, world = tmp_path_factory.mktemp("run"), World()
    result = None
    for joule in [*joules, 1e9]:
        result = result or cut_after(out, world, joule)
    energy = result["energy"]
    assert energy["total_j"] == pytest.approx(world.energy_j, rel=0.02)
    assert sum(part["total_j"] for part in energy["phases"].values()) == pytest.approx(energy["total_j"])
    assert result["time_s"] == pytest.approx(world.now_s, rel=0.02)
    assert outcome(out) == free()[1]


def test_what_was_lost_is_told(world, tmp_path):
    assert cut_after(tmp_path, world, 100.0) is None
    tape = Tape()
    result = governed(tmp_path, World(), resume=True, listener=tape, **OPEN)
    assert result["energy"]["lost_j"] == pytest.approx(100.0, rel=0.03)
    assert result["energy"]["lost_s"] == pytest.approx(10.0, rel=0.03)
    assert result["energy"]["phases"]["lost"]["total_j"] == result["energy"]["lost_j"]
    (lost,) = tape.of("lost")
    assert lost["energy_j"] == result["energy"]["lost_j"] and lost["cut"] is True
    assert json.loads((tmp_path / "run.json").read_text())["energy"] == result["energy"]


def test_a_run_that_ends_in_order_loses_nothing(world, tmp_path):
    tape = Tape()
    for boundary in (5, 5):
        governed(tmp_path, world, resume=True, should_stop=StopAt(boundary), listener=tape, **OPEN)
    result = governed(tmp_path, world, resume=True, listener=tape, **OPEN)
    assert result["energy"]["lost_j"] == 0.0 and tape.of("lost") == []
    assert result["energy"]["total_j"] == pytest.approx(world.energy_j)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("joules", [60.0, 90.0])
def test_a_run_that_is_cut_again_and_again_makes_progress(joules, world, tmp_path):
    """Every 6 and 9 seconds, with a checkpoint every 30; the first look takes 4."""
    result, cuts = until_the_end(tmp_path, world, joules)
    assert result["stopped"] == "done" and cuts > 4
    assert outcome(tmp_path) == free()[1]
    assert result["energy"]["total_j"] == pytest.approx(world.energy_j, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["closed_form", "head", "bn,last"])
def test_progress_with_features_too(plan, world, tmp_path):
    given = {"plan": plan, "epochs": 2, "gate": "off", "curriculum": "off"}
    whole = World()
    governed(tmp_path / "whole", whole, **given)
    result, cuts = until_the_end(tmp_path / "cut", world, 0.6 * whole.energy_j, **given)
    assert result["stopped"] == "done" and cuts > 0
    assert outcome(tmp_path / "cut")["weights"] == outcome(tmp_path / "whole")["weights"]


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(45.0, 120.0), st.floats(120.0, 260.0))
def test_a_budget_holds_over_all_parts(tmp_path_factory, joules, budget_j):
    out, world = tmp_path_factory.mktemp("run"), World()
    steps = Steps(world)
    for _ in range(40):
        try:
            if (why := exhausted(look_into(out), out, budget_j)) is not None:
                assert why["stopped"] == "budget"
                break
        except BudgetSpentError:
            break
        cut_after(out, world, joules, EnergyBudget(budget_j), listener=steps)
    else:
        raise AssertionError("it never ends")
    assert world.energy_j <= 1.02 * budget_j + max(steps.step_j, default=0.0)


def test_an_exhausted_run_is_seen_without_opening_it(world, tmp_path):
    first = governed(tmp_path, world, EnergyBudget(200.0), **OPEN)
    why = exhausted(look_into(tmp_path), tmp_path, 200.0)
    assert why["stopped"] == "budget" and why["after"] == first["after"]
    assert why["energy"]["total_j"] == pytest.approx(world.energy_j)
    assert exhausted(look_into(tmp_path), tmp_path, 400.0) is None
    assert exhausted(look_into(tmp_path), tmp_path, None) is None
    (tmp_path / "model.onnx").unlink()
    assert exhausted(look_into(tmp_path), tmp_path, 200.0) is None, "its files are to be written"


def test_a_run_without_a_result_and_without_joules_is_refused(world, tmp_path):
    cut_after(tmp_path, world, 150.0, EnergyBudget(1e6))
    with pytest.raises(BudgetSpentError, match=r"1[45]\d(\.\d)? J of 100 J spent .* --energy-budget") as caught:
        exhausted(look_into(tmp_path), tmp_path, 100.0)
    assert caught.value.exit_code == 75


def test_checkpoints_come_sooner_after_cuts_and_seldom_again(world, tmp_path):
    """A cut halves the interval; what runs for long is no longer in a hurry."""
    assert cut_after(tmp_path, world, 100.0) is None
    assert not list_checkpoints(tmp_path / "checkpoints")
    saved = []
    for _ in range(3):
        tape = Steps(world)
        began_s = world.now_s
        assert cut_after(tmp_path, world, 130.0, listener=tape) is None
        saved.append([at_s - began_s for event, at_s, _ in tape.when if event == "checkpoint"])
    assert all(times for times in saved) and len(saved[2]) > len(saved[0])
    assert look_into(tmp_path).cuts(30.0) == 4
    assert look_into(tmp_path).cuts(10.0) == 1, "it ran longer than that"


def test_a_torn_line_is_normal_and_damage_is_told_once(world, tmp_path):
    cut_after(tmp_path, world, 100.0)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"at": "ru')
    assert cut_after(tmp_path, world, 50.0) is None
    assert "journal_damaged" not in {event["event"] for event in events(tmp_path)}
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 1
    journal.write_bytes(content)
    world.cut_j = 1e9
    result = governed(tmp_path, world, resume=True, **OPEN)
    assert [event["event"] for event in events(tmp_path)].count("journal_damaged") == 1
    assert result["energy"]["total_j"] == pytest.approx(world.energy_j, rel=0.02)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"mine\n", b"[1]\n" * 9, b'{"at": "run"}\n'])
def test_a_journal_of_nothing_is_passed_over(content, world, tmp_path):
    governed(tmp_path, world, should_stop=StopAt(9), **OPEN)
    (tmp_path / JOURNAL).write_bytes(content)
    assert governed(tmp_path, world, resume=True, **OPEN)["stopped"] == "done"
    assert outcome(tmp_path) == free()[1]


def test_a_journal_that_cannot_be_written_stops_nothing(world, tmp_path):
    (tmp_path / JOURNAL).mkdir(parents=True)
    assert governed(tmp_path, world, resume=True, **OPEN)["stopped"] == "done"
    names = [event["event"] for event in events(tmp_path)]
    assert names.count("journal_damaged") == names.count("journal_stopped") == 1


def test_what_is_withdrawn_stays_withdrawn(tmp_path):
    """The thread that books what is spent may be about to write a line."""
    (tmp_path / JOURNAL).write_bytes(b"")
    book = Bookkeeper(tmp_path / JOURNAL, Ticks(), every_s=1e9)
    book.begin(lambda: Spent(total_j=1.0), runs=False)
    assert (tmp_path / JOURNAL).stat().st_size > 0
    book.withdraw()
    for _ in range(10):
        book.tick()
    assert not (tmp_path / JOURNAL).exists() or (tmp_path / JOURNAL).stat().st_size == 0
