"""Training stages that a session decides by itself: from its history, and the same after any interruption."""

import json

import numpy as np
import pytest

from edge_sel.data.dataset import ImageSet
from edge_sel.edge.limits import EnergyBudget
from edge_sel.edge.train.auto_schedule import auto_schedule
from edge_sel.engines.ort import OrtEngine
from tests.edge.sessions import (
    KillAt,
    Killed,
    StopAt,
    Tape,
    digits,
    events,
    outcome,
    pack,
    resolved,
    session,
    some_or_all,
)
from tests.edge.train.stages import AUTO, MANY, PACKS, RUINOUS, STAGES, automatic_run, decided, every_pack, without
from tests.edge.world import World, governed

# Decisions


@pytest.mark.sampled(4)
@every_pack
def test_training_stages_are_as_decided(base):
    result, _, _, rows = automatic_run(base)
    assert decided(result) == STAGES[base]
    epochs = [decision["plan"] for decision in result["decisions"] for _ in range(decision["epochs"])]
    assert epochs == [epoch["plan"] for epoch in result["epochs"]] == [row["plan"] for row in rows]
    assert [epoch["epoch"] for epoch in result["epochs"]] == list(range(1, len(epochs) + 1))


@pytest.mark.sampled(4)
@every_pack
def test_decisions_are_the_events(base):
    result, _, tape, _ = automatic_run(base)
    *stages, end = result["decisions"]
    decided = [
        {"training_stage": n, **{key: e[key] for key in ("plan", "epochs", "why")}}
        for n, e in enumerate(tape.of("stage_begun"))
    ]
    assert [{key: stage[key] for key in ("training_stage", "plan", "epochs", "why")} for stage in stages] == decided
    assert all(decision["why"] for decision in result["decisions"])
    (ended,) = tape.of("stages_ended")
    assert (end["training_stage"], end["plan"], end["epochs"], end["why"]) == (len(stages), None, 0, ended["why"])


@every_pack
def test_decisions_follow_from_the_history(base):
    """From what run.json tells; nothing else is needed."""
    result = json.loads(json.dumps(automatic_run(base)[0]))
    settings = resolved(**AUTO).settings
    schedule = auto_schedule(PACKS[base], settings, images=result["images"]["train"])
    for decision in result["decisions"]:
        before = [epoch for epoch in result["epochs"] if epoch["training_stage"] < decision["training_stage"]]
        stage, why, expected = schedule.decide(before, decision["training_stage"])
        assert (*(stage or (None, 0)), why) == (decision["plan"], decision["epochs"], decision["why"])
        assert decision.get("expected") == (expected and expected._asdict())


@every_pack
def test_a_decision_tells_what_was_expected_and_what_came(base):
    """The first is not asked for its gain; the last one has none."""
    first, *stages, end = automatic_run(base)[0]["decisions"]
    assert "expected" not in first and "came" in first and "came" not in end
    assert ("expected" in end) == (base != "body only"), "there it may be trained no more, whatever it gains"
    for decision in stages:
        assert decision["expected"]["gain"] > 0 and decision["expected"]["energy_j"] is None
    result = automatic_run(base)[0]
    for number, decision in enumerate([first, *stages]):
        begin, *_, last = [e for e in result["epochs"] if e["training_stage"] == number for _ in range(2)]
        kept = last["validation_loss"] < begin["best_loss"]
        assert decision["came"]["gain"] == (last["validation_acc"] - begin["best_acc"] if kept else 0)
        assert decision["came"]["energy_j"] is None


def test_joules_that_came_are_those_of_the_epochs(tmp_path):
    result = governed(tmp_path, World(), base=PACKS["body only"], **AUTO, min_gain_per_kj=0)
    for number, decision in enumerate(result["decisions"][:-1]):
        joules = [epoch["energy_j"] for epoch in result["epochs"] if epoch["training_stage"] == number]
        assert decision["came"]["energy_j"] == pytest.approx(sum(joules)) and sum(joules) > 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize("given", [AUTO, {"plan": "bn,full,head", **RUINOUS}], ids=["good", "bad"])
def test_the_history_tells_where_each_training_stage_began(given, tmp_path):
    """With the best validation figures of all training stages before it."""
    result = session(tmp_path, base=PACKS["statistics first"] if given is AUTO else None, **given).run()
    before = result["before"]["validation"]
    each = [figures["embarrassment"] for figures in before["classes"].values()]
    assert before["embarrassment"] == pytest.approx(np.mean(each))
    best = (before["loss"], before["embarrassment"], before["accuracy"])
    stages = {epoch["training_stage"] for epoch in result["epochs"]}
    for stage in sorted(stages):
        epochs = [epoch for epoch in result["epochs"] if epoch["training_stage"] == stage]
        assert {(epoch["best_loss"], epoch["best_e"], epoch["best_acc"]) for epoch in epochs} == {best}
        best = min(best, tuple(epochs[-1][f"validation_{key}"] for key in ("loss", "e", "acc")))
    after = result["after"]["validation"]
    assert len(stages) >= 2 and (after["loss"], after["embarrassment"], after["accuracy"]) == best


@pytest.mark.parametrize(("worth", "more"), [(1.0, True), (1e6, False)])
def test_joules_decide_what_is_worth_its_price(worth, more, tmp_path):
    result = governed(tmp_path, World(), base=PACKS["statistics first"], **AUTO, min_gain_per_kj=worth)
    first, *others, last = decided(result)
    assert first == ("bn", 1) and last == (None, 0) and bool(others) == more
    assert all(d["expected"]["energy_j"] > 0 for d in result["decisions"][1:])
    assert " J" in result["decisions"][-1]["why"]
    assert " J" not in automatic_run("statistics first")[0]["decisions"][-1]["why"]


@pytest.mark.slow
def test_a_price_is_about_what_the_stage_then_takes(tmp_path):
    """In a world where joules follow the work; without the gate, which lets through more or less than planned."""
    result = governed(tmp_path, World(), base=PACKS["body only"], **AUTO, min_gain_per_kj=0, gate="off")
    for decision in result["decisions"][1:-1]:
        assert decision["came"]["energy_j"] == pytest.approx(decision["expected"]["energy_j"], rel=0.1)


def test_epochs_are_the_schedules_not_the_settings(tmp_path):
    session(tmp_path, images=MANY, base=PACKS["body only"], **AUTO, epochs=7).run()
    assert outcome(tmp_path)["weights"] == automatic_run("body only")[1]["weights"]


def test_a_model_that_is_good_enough_is_left_alone(tmp_path):
    result = session(tmp_path, base=without(), **AUTO, target_accuracy="30%").run()
    assert (
        decided(result) == [("closed_form", 1), (None, 0)] and "30.0% is good enough" in result["decisions"][-1]["why"]
    )
    assert "expected" not in result["decisions"][-1]


def test_a_pack_of_an_older_format_is_trained_by_the_generic_table(tmp_path):
    assert pack().manifest.gains == ()
    result = session(tmp_path, **AUTO).run()
    assert decided(result)[0] == ("closed_form", 1) and result["stopped"] == "done" and result["shipped"]


def test_classes_of_its_own_are_learnt(tmp_path):
    plain = digits()
    labels = np.where(np.arange(len(plain)) % 10 == 0, 10, plain.labels)
    images = ImageSet.from_arrays(plain.read(np.arange(len(plain))), labels, (*plain.classes, "odd"))
    result = session(tmp_path, images=images, base=without(), **AUTO).run()
    assert decided(result)[:2] == [("closed_form", 1), ("full", 3)]


class Featureless(OrtEngine):
    """Stands in for the engine that gives no features: there no head is fitted in closed form."""

    name = "torch"


def test_an_engine_without_features_trains_the_head_in_steps(tmp_path):
    result = session(tmp_path, base=without(), engine=Featureless(threads=1), **AUTO).run()
    assert decided(result)[:2] == [("bn", 1), ("head", 3)]


def test_a_pack_without_the_plan_full(tmp_path):
    result = session(tmp_path, base=without("full", "head"), forget=0.67, **AUTO).run()
    assert decided(result)[:2] == [("bn", 1), ("last2", 3)] and result["shipped"]


def test_a_pack_without_any_plan(tmp_path):
    result = session(tmp_path, base=without(*pack().manifest.plans), **AUTO).run()
    assert decided(result) == [(None, 0)] and not result["epochs"] and not result["shipped"]


# Resumed


def boundaries(base):
    return range(1, len(automatic_run(base)[2].of("step")) + 1)


@pytest.mark.sampled(4)
@every_pack
@some_or_all
def test_an_automatic_run_stopped_anywhere(base, apart, tmp_path):
    assert len(boundaries(base)) > 15
    for boundary in boundaries(base)[:: 2 * apart]:
        out = tmp_path / str(boundary)
        session(out, images=MANY, base=PACKS[base], should_stop=StopAt(boundary), **AUTO).run()
        result = session(out, images=MANY, base=PACKS[base], **AUTO, resume=True).run()
        assert outcome(out) == automatic_run(base)[1], f"stopped at boundary {boundary}"
        assert result["decisions"] == automatic_run(base)[0]["decisions"], "there is no meter: every word is the same"


@pytest.mark.slow
@every_pack
def test_an_automatic_run_killed_anywhere(base, tmp_path):
    """Saved at some of the steps, so that a decision may have to be made again."""
    for boundary in boundaries(base)[1::8]:
        out = tmp_path / str(boundary)
        with pytest.raises(Killed):
            session(out, images=MANY, base=PACKS[base], listener=KillAt(boundary), checkpoint_every_s=7.0, **AUTO).run()
        session(out, images=MANY, base=PACKS[base], **AUTO, resume=True).run()
        assert outcome(out) == automatic_run(base)[1], f"killed at boundary {boundary}"


def test_a_training_stage_is_ended_without_asking_again(tmp_path):
    """The plan and its epochs are those that were decided before the interruption."""
    base = "statistics first"
    result, _, tape, _ = automatic_run(base)
    kinds = [event["event"] for event in tape.events if event["event"] in ("step", "epoch")]
    boundary = kinds[: kinds.index("epoch") + 2].count("step") + 1  # one more than those of the first training stage
    session(tmp_path, images=MANY, base=PACKS[base], should_stop=StopAt(boundary), **AUTO).run()
    length = len(events(tmp_path))
    resumed_result = session(tmp_path, images=MANY, base=PACKS[base], **AUTO, resume=True).run()
    assert resumed_result["decisions"] == result["decisions"]
    first, *resumed = [
        event for event in events(tmp_path)[length:] if event["event"] in ("stage_begun", "epoch", "stages_ended")
    ]
    second = result["decisions"][1]
    assert second["why"] != first["why"] == "goes on"
    assert [first[key] for key in ("event", "plan", "epochs")] == ["stage_begun", second["plan"], second["epochs"]]
    epochs = resumed[: second["epochs"]]
    assert [(event["event"], event["plan"]) for event in epochs] == [("epoch", second["plan"])] * second["epochs"]
    assert resumed[second["epochs"]]["event"] != "epoch"


@pytest.mark.slow
def test_an_automatic_run_with_a_larger_budget_goes_on(tmp_path):
    """And tells all of its decisions in the end, so far as it has come before."""
    given, world = {**AUTO, "gate": "off", "base": PACKS["statistics first"], "min_gain_per_kj": 0}, World()
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


def test_a_resumed_run_decides_from_the_joules_of_its_history(tmp_path):
    """What the earlier part has cost is the price; nothing is measured again."""
    given = {**AUTO, "base": PACKS["statistics first"], "min_gain_per_kj": 0}
    world = World()
    governed(tmp_path, world, should_stop=StopAt(5), **given)
    result = governed(tmp_path, world, resume=True, **given)
    schedule = auto_schedule(
        given["base"], resolved(**AUTO, min_gain_per_kj=0).settings, images=result["images"]["train"]
    )
    for decision in result["decisions"][1:]:
        before = [epoch for epoch in result["epochs"] if epoch["training_stage"] < decision["training_stage"]]
        assert schedule.decide(before, decision["training_stage"]).expected._asdict() == decision["expected"]
        assert decision["expected"]["energy_j"] > 0


def test_a_decision_by_joules_outlives_a_kill(tmp_path):
    """Else a run that was cut would decide by the joules of another moment, and end with other weights."""

    def killed_in_the_body(event):
        killed_in_the_body.plan = event.get("plan", killed_in_the_body.plan)
        if event["event"] == "step" and killed_in_the_body.plan == "full":
            raise Killed

    killed_in_the_body.plan = None
    tape, given = Tape(), {"images": MANY, "base": without(), **AUTO}
    with pytest.raises(Killed):
        session(tmp_path, listener=killed_in_the_body, **given).run()
    result = session(tmp_path, listener=tape, resume=True, **given).run()
    assert tape.of("stage_begun")[0] | {"t_s": 0} == {
        "event": "stage_begun",
        "plan": "full",
        "epochs": 3,
        "why": "goes on",
        "t_s": 0,
    }
    assert [decision["plan"] for decision in result["decisions"]][:2] == ["closed_form", "full"]
