"""An energy budget of a whole session: it ends in order, resumes with a larger one, and is spread by pressure."""

import pytest

from edge_sel.edge.limits import EnergyBudget, PowerCap
from edge_sel.runs.checkpoint import list_checkpoints
from tests.edge.governor.limited_sessions import FILES, GATED, OPEN, Steps, files, free
from tests.edge.sessions import StopAt, digits, outcome, pack
from tests.edge.world import World, governed


@pytest.mark.sampled(8)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("tests", [0, 200], ids=["validation", "validation and test"])
def test_a_budget_ends_the_run_in_order(share, tests, world, tmp_path):
    """The test images make the end a good part of the whole, and it still fits."""
    tape, test = Steps(world), digits(tests, "test") if tests else None
    unlimited, _ = free(tests)
    budget_j = share * unlimited.energy_j
    result = governed(tmp_path, world, EnergyBudget(budget_j), test=test, listener=tape, **OPEN)
    assert result["stopped"] == "budget" and files(tmp_path) == FILES
    assert result["energy"]["total_j"] == pytest.approx(world.energy_j)
    assert 0.75 * budget_j < world.energy_j <= budget_j + max(tape.step_j)
    assert list_checkpoints(tmp_path / "checkpoints")
    assert 0 < world.trained < unlimited.trained
    (stop,) = tape.decisions("stop")
    assert stop["limit"] == "energy budget" and "kept for the end" in stop["why"]
    assert tape.of("stopped")[0]["reason"] == "budget"


def test_what_the_end_takes_is_kept_and_spent(world, tmp_path):
    """Of 4 J for the validation set and 40 J for the test images, less what the head takes, the stop knows before."""
    tape = Steps(world)
    governed(tmp_path, world, EnergyBudget(250.0), test=digits(200, "test"), listener=tape, **OPEN)
    at_stop_j = next(energy_j for event, _, energy_j in tape.when if event == "stopped")
    closing_j = world.energy_j - at_stop_j
    assert closing_j > 43.0
    assert at_stop_j < 250.0 - closing_j < 250.0 - 43.0
    assert world.energy_j <= 250.0


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("tests", "budget_j"), [(200, 300.0), (300, 300.0), (390, 350.0)])
def test_the_rests_of_the_end_are_in_the_budget(tests, budget_j, world, tmp_path):
    """The power cap makes the looks at the end take far longer than their work."""
    tape, test = Steps(world), digits(tests, "test")
    result = governed(tmp_path, world, EnergyBudget(budget_j), PowerCap(4.0), test=test, listener=tape, **OPEN)
    assert result["stopped"] == "budget"
    assert 0.6 * budget_j < world.energy_j <= budget_j + max(tape.step_j)


@pytest.mark.slow
def test_a_larger_budget_finishes_the_run(world, tmp_path):
    unlimited, expected = free()
    energy_j = unlimited.energy_j
    parts = [governed(tmp_path, world, EnergyBudget(s * energy_j), resume=True, **OPEN) for s in (0.5, 0.7, 0.9)]
    assert [part["stopped"] for part in parts] == ["budget"] * 3
    trained = [part["epochs"][-1]["epoch"] for part in parts]
    assert trained == sorted(trained)
    whole = governed(tmp_path, world, EnergyBudget(2 * energy_j), resume=True, **OPEN)
    assert whole["stopped"] == "done" and whole["epochs"][:-1][: trained[0]] == parts[0]["epochs"]
    assert outcome(tmp_path) == expected


def test_a_budget_given_to_a_resumed_run_keeps_the_end_too(world, tmp_path):
    """It began without one, so that nobody had to know then what its end would take."""
    tape, test = Steps(world), digits(200, "test")
    governed(tmp_path, world, should_stop=StopAt(12), test=test, **OPEN)
    result = governed(tmp_path, world, EnergyBudget(300.0), resume=True, test=test, listener=tape, **OPEN)
    assert result["stopped"] == "budget"
    assert 200.0 < result["energy"]["total_j"] <= 300.0 + max(tape.step_j[1:])


def test_an_exhausted_budget_takes_no_step(world, tmp_path):
    assert governed(tmp_path, world, EnergyBudget(200.0), **OPEN)["stopped"] == "budget"
    trained, scored = world.trained, world.scored
    assert trained > 0
    for _ in range(2):
        assert governed(tmp_path, world, EnergyBudget(200.0), resume=True, **OPEN)["stopped"] == "budget"
    assert (world.trained, world.scored) == (trained, scored)


def test_a_budget_below_what_is_spent_takes_no_step(world, tmp_path):
    governed(tmp_path, world, EnergyBudget(200.0), **OPEN)
    trained = world.trained
    assert governed(tmp_path, world, EnergyBudget(180.0), resume=True, **OPEN)["stopped"] == "budget"
    assert world.trained == trained > 0


def test_a_budget_that_never_sufficed_ships_the_original_model(world, tmp_path):
    """The run ends as any other: with a model, which is the one it began with."""
    result = governed(tmp_path, world, EnergyBudget(1.0), **OPEN)
    assert result["stopped"] == "budget" and not result["shipped"]
    assert world.trained == world.scored == 0 and files(tmp_path) == FILES


def test_resuming_an_exhausted_budget_leaves_the_model_as_it_was(world, tmp_path):
    first = governed(tmp_path, world, EnergyBudget(320.0), **OPEN)
    assert first["shipped"] and first["epochs"][-1]["plan"] == "affine"
    assert governed(tmp_path, world, EnergyBudget(100.0), resume=True, **OPEN)["after"] == first["after"]


def test_the_joules_of_every_part_count(world, tmp_path):
    """Those too that a part took after it had been stopped, to look at its model and write it."""
    for budget_j in (150.0, 200.0, 250.0, 1e9):
        result = governed(tmp_path, world, EnergyBudget(budget_j), resume=True, **OPEN)
        assert result["energy"]["total_j"] == pytest.approx(world.energy_j, rel=0.01)


def test_pressure_lowers_the_number_of_images_trained(tmp_path):
    """The same candidates, fewer of them trained on: the budget lasts for all the epochs."""
    free, held = World(), World()
    governed(tmp_path / "free", free, **GATED)
    tape = Steps(held)
    result = governed(tmp_path / "held", held, EnergyBudget(0.72 * free.energy_j), listener=tape, **GATED)
    assert tape.decisions("pressure")
    rates = [epoch["active_rate"] for epoch in result["epochs"]]
    assert held.trained < 0.8 * free.trained and min(rates) < 0.4
    assert len(result["epochs"]) >= 4


def test_a_lost_meter_ends_a_run_with_a_budget(world, tmp_path):
    world.lost_s = 15.0
    result = governed(tmp_path, world, EnergyBudget(1e6), **OPEN)
    assert result["stopped"] == "budget" and result["energy"]["total_j"] is None
    assert files(tmp_path) == FILES and world.now_s < 25.0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_the_look_at_the_packs_anchors_fits_too(share, world, tmp_path):
    unlimited, _ = free()
    budget_j = unlimited.energy_j * share + 100.0
    tape = Steps(world)
    result = governed(tmp_path, world, EnergyBudget(budget_j), base=pack(), listener=tape, **OPEN)
    assert files(tmp_path) == FILES and world.energy_j <= budget_j + max(tape.step_j)
    assert result["evidence"]["images"] == result["images"]["validation"]
