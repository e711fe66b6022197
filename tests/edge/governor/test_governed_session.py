"""Sessions under limits of heat, time, mains and power, and under limits that never bind."""

import pytest

from edge_sel.edge.governor import POLL_S
from edge_sel.edge.limits import (
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
from tests.edge.governor.limited_sessions import FILES, GATED, OPEN, Steps, files, free
from tests.edge.sessions import digits, outcome
from tests.edge.world import World, governed

# What never binds


def never(world):
    world.supply = lambda: Supply(0.9, True)
    return [
        EnergyBudget(1e9), Deadline(1e9), BatteryFloor(0.1), Ceiling(149.0), PowerCap(1e6), MainsOnly(), QuietHours(60, 120),
    ]  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("given", [OPEN, GATED, {"plan": "bn,last-c25"}], ids=["open", "gated", "channels"])
def test_limits_that_never_bind_change_no_bit(given, world, tmp_path):
    tape = Steps(world)
    governed(tmp_path / "free", World(), **given)
    assert governed(tmp_path / "held", world, *never(world), listener=tape, **given)["stopped"] == "done"
    assert tape.of("governor") == []
    assert outcome(tmp_path / "held") == outcome(tmp_path / "free")


@pytest.mark.slow
def test_the_same_world_gives_the_same_run(tmp_path):
    samples = []
    for out in ("one", "two"):
        world = World()
        tape = Steps(world)
        governed(tmp_path / out, world, Ceiling(70.0), EnergyBudget(300.0), listener=tape, **GATED)
        samples.append((tape.when, tape.of("governor"), outcome(tmp_path / out)))
    assert samples[0] == samples[1] and len(samples[0][1]) > 5


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


@pytest.mark.slow
def test_a_device_that_stays_hot_is_left_alone(world, tmp_path):
    result = governed(tmp_path, world, Ceiling(46.0), **OPEN)
    assert result["stopped"] == "temperature" and files(tmp_path) == FILES
    assert world.trained < 100


# Seconds and the rest


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seconds", [10.0, 20.0, 30.0])
def test_a_deadline_is_when_everything_is_written(seconds, world, tmp_path):
    tape = Steps(world)
    test = digits(100, "test")
    result = governed(tmp_path, world, Deadline(seconds), test=test, listener=tape, **OPEN)
    assert result["stopped"] == "deadline" and files(tmp_path) == FILES
    assert 0.6 * seconds < world.now_s <= seconds + max(tape.step_j) / 10.0
    assert [event["limit"] for event in tape.decisions("stop")] == ["deadline"]


def test_a_battery_floor_ends_the_run_and_mains_lets_it_go_on(world, tmp_path):
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


@pytest.mark.sampled(2)
@pytest.mark.parametrize("cap_w", [4.0, 7.0])
def test_a_power_cap_pauses_and_changes_no_bit(cap_w, world, tmp_path):
    tape = Steps(world)
    assert governed(tmp_path, world, PowerCap(cap_w), listener=tape, **OPEN)["stopped"] == "done"
    assert world.energy_j <= cap_w * (world.now_s + BURST_S) + 2 * max(tape.step_j)
    assert tape.decisions("pause") and outcome(tmp_path) == free()[1]


# Signals


def test_a_signal_in_quiet_hours_stops_before_a_stage_begins(world, tmp_path):
    """Nothing goes on, and nothing says that it does."""
    messages = []
    result = governed(
        tmp_path, world, QuietHours(0, 24 * 60 - 1), listener=messages.append,
        should_stop=lambda: "signal" if world.now_s >= 100.0 else None, **OPEN,
    )  # fmt: skip
    assert result["stopped"] == "signal" and not result["epochs"] and list_checkpoints(tmp_path / "checkpoints")
    assert not [event for event in messages if event["event"] == "stage_begun" or event.get("action") == "resume"]
    assert governed(tmp_path, world, resume=True, **OPEN)["stopped"] == "done"
    assert outcome(tmp_path) == free()[1]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("asked_s", [30.0, 100.5])
def test_a_signal_during_a_pause_stops_at_once(asked_s, world, tmp_path):
    """At once, and as a signal: the limit is no longer what matters."""
    result = governed(
        tmp_path, world, Ceiling(48.0), should_stop=lambda: "signal" if world.now_s >= asked_s else None, **OPEN
    )
    assert result["stopped"] == "signal" and result["after"] is None
    assert asked_s <= world.now_s <= asked_s + POLL_S + 1.0
    assert not {"run.json", "model.onnx"} & files(tmp_path) and list_checkpoints(tmp_path / "checkpoints")
    assert governed(tmp_path, world, resume=True, **OPEN)["stopped"] == "done"
    assert outcome(tmp_path) == free()[1]
