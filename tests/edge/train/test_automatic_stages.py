"""Training stages that a session decides by itself: from its history, and the same after any interruption."""

import json
from dataclasses import replace

import numpy as np
import pytest

from edge_sel.data.dataset import ImageSet
from edge_sel.edge.governor.limits import EnergyBudget
from edge_sel.edge.train.ladder import auto_ladder
from tests.edge.sessions import KillAt, Killed, StopAt, digits, events, outcome, pack, session
from tests.edge.train.stages import AUTO, PACKS, RUINOUS, SHORT, automatic_run, decided, every_pack, without
from tests.edge.world import World, governed

# Decisions


@every_pack
def test_training_stages_are_as_decided(base):
    result, _, _, rows = automatic_run(base)
    plans = [plan for plan, _ in decided(result)]
    assert plans == [base.split()[0].replace("statistics", "bn"), "full", "full", None]
    epochs = [decision["plan"] for decision in result["decisions"] for _ in range(decision["epochs"])]
    assert epochs == [epoch["plan"] for epoch in result["epochs"]] == [row["plan"] for row in rows]
    assert [epoch["epoch"] for epoch in result["epochs"]] == list(range(1, len(epochs) + 1))


@every_pack
def test_decisions_are_the_events(base):
    result, _, tape, _ = automatic_run(base)
    *stages, end = result["decisions"]
    told = [{"rung": n, **{key: e[key] for key in ("plan", "epochs", "why")}} for n, e in enumerate(tape.of("rung"))]
    assert stages == told and all(decision["why"] for decision in result["decisions"])
    (ended,) = tape.of("climbed")
    assert end == {"rung": len(stages), "plan": None, "epochs": 0, "why": ended["why"]}


@every_pack
def test_decisions_follow_from_the_history(base):
    """From what run.json tells; nothing else is needed."""
    result = json.loads(json.dumps(automatic_run(base)[0]))
    ladder = auto_ladder(PACKS[base], len(result["classes"]), SHORT)
    for decision in result["decisions"]:
        before = [epoch for epoch in result["epochs"] if epoch["rung"] < decision["rung"]]
        stage, why = ladder.decide(before, decision["rung"])
        assert (*(stage or (None, 0)), why) == (decision["plan"], decision["epochs"], decision["why"])


@pytest.mark.parametrize("given", [AUTO, {"plan": "bn,full,head", **RUINOUS}], ids=["good", "bad"])
def test_the_history_tells_where_each_training_stage_began(given, tmp_path):
    """With the best validation figures of all training stages before it."""
    result = session(tmp_path, **given).run()
    before = result["before"]["guard"]
    each = [figures["embarrassment"] for figures in before["classes"].values()]
    assert before["embarrassment"] == pytest.approx(np.mean(each))
    best, stages = (before["loss"], before["embarrassment"]), {epoch["rung"] for epoch in result["epochs"]}
    for stage in sorted(stages):
        epochs = [epoch for epoch in result["epochs"] if epoch["rung"] == stage]
        assert {(epoch["best_loss"], epoch["best_e"]) for epoch in epochs} == {best}
        best = min(best, (epochs[-1]["guard_loss"], epochs[-1]["guard_e"]))
    after = result["after"]["guard"]
    assert len(stages) == 3 and (after["loss"], after["embarrassment"]) == best


def test_a_meter_changes_no_decision(tmp_path):
    """But the reason tells what it read."""
    world = World()
    result = governed(tmp_path, world, **AUTO)
    assert decided(result) == decided(automatic_run()[0])
    assert outcome(tmp_path)["weights"] == automatic_run()[1]["weights"]
    assert "per joule" in result["decisions"][-1]["why"] and "joule" not in automatic_run()[0]["decisions"][-1]["why"]


def test_epochs_are_the_ladders_not_the_settings(tmp_path):
    session(tmp_path, **AUTO, epochs=7).run()
    assert outcome(tmp_path)["weights"] == automatic_run()[1]["weights"]


def test_a_model_that_is_good_enough_is_left_alone(tmp_path):
    """On images like the server's, or nearly so."""
    calibration = replace(pack().manifest.calibration, embarrassment=(9.0,) * 10)
    easy = pack().with_manifest(replace(pack().manifest, calibration=calibration))
    result = session(tmp_path, base=easy, **AUTO).run()
    assert decided(result) == [("bn", 1), (None, 0)] and "on the server's images" in result["decisions"][-1]["why"]


def test_classes_of_its_own_get_the_head(tmp_path):
    plain = digits()
    labels = np.where(np.arange(len(plain)) % 10 == 0, 10, plain.labels)
    images = ImageSet.from_arrays(plain.read(np.arange(len(plain))), labels, (*plain.classes, "odd"))
    result = session(tmp_path, images=images, **AUTO).run()
    assert decided(result)[:3] == [("bn", 1), ("head", 1), ("full", 2)]


def test_a_pack_without_the_plan_full(tmp_path):
    result = session(tmp_path, base=without("full"), **AUTO).run()
    assert decided(result)[:2] == [("bn", 1), ("last2", 2)] and result["shipped"]


def test_a_pack_without_any_plan(tmp_path):
    result = session(tmp_path, base=without(*pack().manifest.plans), **AUTO).run()
    assert decided(result) == [(None, 0)] and not result["epochs"] and not result["shipped"]


# Resumed


def boundaries(base):
    return range(1, len(automatic_run(base)[2].of("step")) + 1)


@every_pack
def test_an_automatic_run_stopped_anywhere(base, tmp_path):
    assert len(boundaries(base)) > 20
    for boundary in boundaries(base)[::2]:
        out = tmp_path / str(boundary)
        session(out, base=PACKS[base], should_stop=StopAt(boundary), **AUTO).run()
        session(out, base=PACKS[base], **AUTO, resume=True).run()
        assert outcome(out) == automatic_run(base)[1], f"stopped at boundary {boundary}"


@every_pack
def test_an_automatic_run_killed_anywhere(base, tmp_path):
    """Saved at some of the steps, so that a decision may have to be made again."""
    for boundary in boundaries(base)[1::5]:
        out = tmp_path / str(boundary)
        with pytest.raises(Killed):
            session(out, base=PACKS[base], listener=KillAt(boundary), checkpoint_every_s=7.0, **AUTO).run()
        session(out, base=PACKS[base], **AUTO, resume=True).run()
        assert outcome(out) == automatic_run(base)[1], f"killed at boundary {boundary}"


def test_a_training_stage_is_ended_without_asking_again(tmp_path):
    """The plan and its epochs are those that were decided before the interruption."""
    result, _, tape, _ = automatic_run()
    kinds = [event["event"] for event in tape.events if event["event"] in ("step", "epoch")]
    boundary = kinds[: kinds.index("epoch") + 2].count("step") + 1  # one more than those of the first training stage
    session(tmp_path, should_stop=StopAt(boundary), **AUTO).run()
    told = len(events(tmp_path))
    assert session(tmp_path, **AUTO, resume=True).run()["decisions"] == result["decisions"]
    first, *resumed = [event for event in events(tmp_path)[told:] if event["event"] in ("rung", "epoch", "climbed")]
    second = result["decisions"][1]
    assert second["why"] != first["why"] == "goes on"
    assert [first[key] for key in ("event", "plan", "epochs")] == ["rung", second["plan"], second["epochs"]]
    epochs = resumed[: second["epochs"]]
    assert [(event["event"], event["plan"]) for event in epochs] == [("epoch", second["plan"])] * second["epochs"]
    assert resumed[second["epochs"]]["event"] != "epoch"


def test_an_automatic_run_with_a_larger_budget_goes_on(tmp_path):
    """And tells all of its decisions in the end, so far as it has come before."""
    given, world = {**AUTO, "gate": "off"}, World()
    whole = governed(tmp_path / "one", world, **given)
    parts = World()
    for share in (0.4, 0.7):
        budget = EnergyBudget(share * world.energy_j)
        part = governed(tmp_path / "parts", parts, budget, resume=True, **given)
        assert part["stopped"] == "budget" and decided(part) == decided(whole)[: len(part["decisions"])]
        assert part["decisions"][-1]["plan"], "it has not come to its end"
    last = governed(tmp_path / "parts", parts, resume=True, **given)
    one, other = (outcome(tmp_path / name) for name in ("one", "parts"))
    assert other["weights"] == one["weights"] and last["stopped"] == "done"
    assert decided(last) == decided(whole)
