"""Real sessions under limits, in a world whose time, joules and heat are those of the work."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from edge_sel.edge.governor.governor import POLL_S
from edge_sel.edge.governor.limits import (
    BURST_S,
    BatteryFloor,
    Ceiling,
    Deadline,
    EnergyBudget,
    MainsOnly,
    PowerCap,
    QuietHours,
)
from edge_sel.power.battery import Supply
from edge_sel.runs.checkpoint import list_checkpoints
from tests.edge.runs import KillAt, Killed, StopAt, Tape, World, digits, governed, outcome

OPEN = {"plan": "bn,affine", "epochs": 4, "gate": "off", "curriculum": "off"}
"""Every image is trained on, whatever the pressure: pauses and stops change when, never what."""
GATED = {"plan": "affine", "epochs": 6, "gate": "sundew", "curriculum": "off"}
FILES = {"run.json", "events.jsonl", "model.onnx", "weights.safetensors"}
"""Beside them ``history.csv``, once there was an epoch."""


@pytest.fixture
def world():
    return World()


@cache
def free(tests=0):
    """The world and the outcome of the open run without limits."""
    with TemporaryDirectory() as out:
        world = World()
        governed(Path(out), world, test=digits(tests, "test") if tests else None, **OPEN)
        return world, outcome(Path(out))


class Steps(Tape):
    """Also keeps what each step took of the world, and when it was told what."""

    def __init__(self, world):
        super().__init__()
        self.world, self.step_j, self._last_j = world, [], 0.0
        self.when = []

    def __call__(self, event):
        super().__call__(event)
        if event["event"] == "step":
            self.step_j.append(self.world.energy_j - self._last_j)
        self._last_j = self.world.energy_j
        self.when.append((event["event"], self.world.now_s, self.world.energy_j))

    def decisions(self, action):
        return [event for event in self.of("governor") if event["action"] == action]


def files(out):
    return {path.name for path in out.iterdir() if path.is_file()} - {"history.csv"}


# Joules


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("tests", [0, 200], ids=["guard", "guard and test"])
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
    """Of 4 J for the images of the guard and 40 J for the test images the stop knows before they are looked at."""
    tape = Steps(world)
    governed(tmp_path, world, EnergyBudget(250.0), test=digits(200, "test"), listener=tape, **OPEN)
    at_stop_j = next(energy_j for event, _, energy_j in tape.when if event == "stopped")
    closing_j = world.energy_j - at_stop_j
    assert closing_j > 44.0
    assert at_stop_j < 250.0 - closing_j < 250.0 - 44.0
    assert world.energy_j <= 250.0


@pytest.mark.parametrize(("tests", "budget_j"), [(200, 300.0), (300, 300.0), (390, 350.0)])
def test_the_rests_of_the_end_are_in_the_budget(tests, budget_j, world, tmp_path):
    """The power cap makes the looks at the end take far longer than their work."""
    tape, test = Steps(world), digits(tests, "test")
    result = governed(tmp_path, world, EnergyBudget(budget_j), PowerCap(4.0), test=test, listener=tape, **OPEN)
    assert result["stopped"] == "budget"
    assert 0.7 * budget_j < world.energy_j <= budget_j + max(tape.step_j)


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


def test_a_budget_that_never_sufficed(world, tmp_path):
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


# What never binds


def never(world):
    world.supply = lambda: Supply(0.9, True)
    return [
        EnergyBudget(1e9), Deadline(1e9), BatteryFloor(0.1), Ceiling(149.0), PowerCap(1e6), MainsOnly(), QuietHours(60, 120),
    ]  # fmt: skip


@pytest.mark.parametrize("given", [OPEN, GATED, {"plan": "bn,last-c25"}], ids=["open", "gated", "channels"])
def test_limits_that_never_bind_change_no_bit(given, world, tmp_path):
    tape = Steps(world)
    governed(tmp_path / "free", World(), **given)
    assert governed(tmp_path / "held", world, *never(world), listener=tape, **given)["stopped"] == "done"
    assert tape.of("governor") == []
    assert outcome(tmp_path / "held") == outcome(tmp_path / "free")


def test_the_same_world_gives_the_same_run(tmp_path):
    told = []
    for out in ("one", "two"):
        world = World()
        tape = Steps(world)
        governed(tmp_path / out, world, Ceiling(70.0), EnergyBudget(300.0), listener=tape, **GATED)
        told.append((tape.when, tape.of("governor"), outcome(tmp_path / out)))
    assert told[0] == told[1] and len(told[0][1]) > 5


# Degrees


def test_a_ceiling_pauses_and_the_run_is_done(world, tmp_path):
    unlimited, expected = free()
    assert unlimited.hottest_c > 90.0
    tape = Steps(world)
    result = governed(tmp_path, world, Ceiling(70.0), listener=tape, **OPEN)
    assert result["stopped"] == "done" and world.hottest_c <= 71.0
    assert len(tape.decisions("pause")) == len(tape.decisions("resume")) > 0
    assert outcome(tmp_path) == expected, "it took longer, and nothing else"
    idle = result["energy"]["phases"]["idle"]
    assert idle["seconds"] == pytest.approx(world.now_s - unlimited.now_s, rel=0.01)
    assert idle["total_j"] == pytest.approx(2.0 * idle["seconds"], rel=0.01)


def test_the_evaluations_are_cooled_too(world, tmp_path):
    """Most of this run is looking at test images."""
    given = {**OPEN, "epochs": 1, "test": digits(500)}
    free = World()
    governed(tmp_path / "free", free, **given)
    assert free.hottest_c > 90.0
    assert governed(tmp_path / "held", world, Ceiling(80.0), **given)["stopped"] == "done"
    assert world.hottest_c <= 81.0 and outcome(tmp_path / "held") == outcome(tmp_path / "free")


def test_a_device_that_stays_hot_is_left_alone(world, tmp_path):
    result = governed(tmp_path, world, Ceiling(46.0), **OPEN)
    assert result["stopped"] == "temperature" and files(tmp_path) == FILES
    assert world.trained < 100


# Seconds and the rest


@pytest.mark.parametrize("seconds", [10.0, 20.0, 30.0])
def test_a_deadline_is_when_everything_is_written(seconds, world, tmp_path):
    tape = Steps(world)
    test = digits(100, "test")
    result = governed(tmp_path, world, Deadline(seconds), test=test, listener=tape, **OPEN)
    assert result["stopped"] == "deadline" and files(tmp_path) == FILES
    assert 0.6 * seconds < world.now_s <= seconds + max(tape.step_j) / 10.0
    assert [event["limit"] for event in tape.decisions("stop")] == ["deadline"]


def test_a_battery_floor(world, tmp_path):
    world.supply = lambda: Supply(1.0 - world.energy_j / 400.0, False)
    result = governed(tmp_path, world, BatteryFloor(0.5), **OPEN)
    assert result["stopped"] == "battery" and files(tmp_path) == FILES
    assert 0.3 < world.supply().level < 0.5, "looked at every five seconds, and then the end"
    world.supply = lambda: Supply(0.3, True)
    assert governed(tmp_path, world, BatteryFloor(0.5), resume=True, **OPEN)["stopped"] == "done"


def test_on_ac_only_waits_for_the_plug(world, tmp_path):
    world.supply = lambda: Supply(0.8, not 8.0 <= world.now_s < 60.0)
    tape = Steps(world)
    assert governed(tmp_path, world, MainsOnly(), listener=tape, **OPEN)["stopped"] == "done"
    (pause,), (resume,) = tape.decisions("pause"), tape.decisions("resume")
    assert pause["limit"] == resume["limit"] == "on AC only"
    assert 40.0 < resume["paused_s"] < 60.0 and outcome(tmp_path) == free()[1]


def test_quiet_hours_wait_until_the_morning(world, tmp_path):
    world.minute = lambda: (23 * 60 + int(world.now_s)) % 1440  # a minute passes in a second
    tape = Steps(world)
    assert governed(tmp_path, world, QuietHours(22 * 60, 7 * 60), listener=tape, **OPEN)["stopped"] == "done"
    assert tape.decisions("pause")[0]["why"] == "until 07:00"
    assert 8 * 60 < world.now_s < 8 * 60 + 60
    assert outcome(tmp_path) == free()[1]


@pytest.mark.parametrize("cap_w", [4.0, 7.0])
def test_a_power_cap(cap_w, world, tmp_path):
    tape = Steps(world)
    assert governed(tmp_path, world, PowerCap(cap_w), listener=tape, **OPEN)["stopped"] == "done"
    assert world.energy_j <= cap_w * (world.now_s + BURST_S) + 2 * max(tape.step_j)
    assert tape.decisions("pause") and outcome(tmp_path) == free()[1]


# Signals


@pytest.mark.parametrize("asked_s", [30.0, 100.5])
def test_a_signal_during_a_pause(asked_s, world, tmp_path):
    """At once, and as a signal: the limit is no longer what matters."""
    result = governed(
        tmp_path, world, Ceiling(48.0), should_stop=lambda: "signal" if world.now_s >= asked_s else None, **OPEN
    )
    assert result["stopped"] == "signal" and result["after"] is None
    assert asked_s <= world.now_s <= asked_s + POLL_S + 1.0
    assert not {"run.json", "model.onnx"} & files(tmp_path) and list_checkpoints(tmp_path / "checkpoints")
    assert governed(tmp_path, world, resume=True, **OPEN)["stopped"] == "done"
    assert outcome(tmp_path) == free()[1]


# The pass that scores every image has boundaries of its own

SCORED = {"plan": "head", "epochs": 2, "gate": "sundew"}
LOOKS = 6
"""Between seven batches of 100 images."""


@cache
def scored():
    with TemporaryDirectory() as out:
        governed(Path(out), World(), **SCORED)
        return outcome(Path(out))


@pytest.mark.parametrize("boundary", range(1, LOOKS + 1))
def test_stopped_while_scoring(boundary, world, tmp_path):
    assert governed(tmp_path, world, should_stop=StopAt(boundary), **SCORED)["stopped"] == "signal"
    assert world.scored == 16 * boundary and world.trained == 0
    governed(tmp_path, world, resume=True, **SCORED)
    assert world.scored == 16 * boundary + 100, "the pass begins anew"
    assert outcome(tmp_path) == scored()


def test_killed_while_scoring(world, tmp_path):
    with pytest.raises(Killed):
        governed(tmp_path, world, listener=KillAt(4), checkpoint_every_s=0.1, **SCORED)
    assert list_checkpoints(tmp_path / "checkpoints") and world.trained == 0
    governed(tmp_path, world, resume=True, **SCORED)
    assert outcome(tmp_path) == scored()


def test_a_deadline_while_scoring(world, tmp_path):
    result = governed(tmp_path, world, Deadline(3.0), **SCORED)
    assert result["stopped"] == "deadline" and not result["shipped"]
    assert 0 < world.scored < 100 and world.trained == 0
    governed(tmp_path, world, resume=True, **SCORED)
    assert outcome(tmp_path) == scored()


def test_a_pause_while_scoring(world, tmp_path):
    tape = Steps(world)
    governed(tmp_path, world, Ceiling(50.0), listener=tape, **SCORED)
    first_step_s = next(now_s for event, now_s, _ in tape.when if event == "first_step")
    paused = [now_s for event, now_s, _ in tape.when if event == "governor"]
    assert min(paused) < first_step_s and outcome(tmp_path)["weights"] is not None
