"""Rung after rung: the better model is kept, a rung that made it worse is undone, and a resumed climb is the same."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_sel.data.dataset import ImageSet
from edge_sel.edge.governor.decision import Decision, Limit
from edge_sel.edge.governor.limits import EnergyBudget
from edge_sel.edge.outputs.openmetrics import MetricsFile
from edge_sel.edge.train.ladder import LadderConfig, auto_ladder
from edge_sel.engines.ort import OrtEngine
from tests.edge.recording import Recording
from tests.edge.runs import (
    KillAt,
    Killed,
    StopAt,
    Tape,
    World,
    digits,
    events,
    governed,
    history,
    no_meter,
    outcome,
    pack,
    session,
)

SHORT = LadderConfig(head_epochs=1, e_per_epoch=0.1, most_epochs=2, most_body_stages=2, leave_below=0.0)
"""An automatic ladder of few epochs that goes on while the body gets any better."""
AUTO = {"plan": "auto", "ladder": SHORT, "learning_rate": None, "curriculum": "off", "batch_size": 32}
RUINOUS = {"learning_rate": 3.0, "gate": "off", "curriculum": "off", "epochs": 1, "batch_size": 32, "gamma": 0.0}
"""Whatever trains makes it worse; statistics, which train nothing, do not."""
IMPROVING = {"plan": "bn,last2", "learning_rate": None, "gate": "off", "curriculum": "off", "epochs": 3}


def without(*plans):
    kept = {name: info for name, info in pack().manifest.plans.items() if name not in plans}
    return pack().with_manifest(replace(pack().manifest, plans=kept))


PACKS = {"statistics first": pack(), "head first": without("bn")}
every_pack = pytest.mark.parametrize("base", PACKS)


@cache
def climbed(base="statistics first"):
    """The result, the outcome, the events and the table of an automatic run that nothing interrupted."""
    with TemporaryDirectory() as out:
        tape = Tape()
        result = session(Path(out), base=PACKS[base], listener=tape, **AUTO).run()
        return result, outcome(Path(out)), tape, history(Path(out))


def decided(result):
    return [(decision["plan"], decision["epochs"]) for decision in result["decisions"]]


def guard_loss(result, when):
    return result[when]["guard"]["loss"]


# An automatic climb


@every_pack
def test_rungs_are_as_decided(base):
    result, _, _, rows = climbed(base)
    plans = [plan for plan, _ in decided(result)]
    assert plans == [base.split()[0].replace("statistics", "bn"), "full", "full", None]
    epochs = [decision["plan"] for decision in result["decisions"] for _ in range(decision["epochs"])]
    assert epochs == [epoch["plan"] for epoch in result["epochs"]] == [row["plan"] for row in rows]
    assert [epoch["epoch"] for epoch in result["epochs"]] == list(range(1, len(epochs) + 1))


@every_pack
def test_decisions_are_the_events(base):
    result, _, tape, _ = climbed(base)
    *rungs, end = result["decisions"]
    told = [{"rung": n, **{key: e[key] for key in ("plan", "epochs", "why")}} for n, e in enumerate(tape.of("rung"))]
    assert rungs == told and all(decision["why"] for decision in result["decisions"])
    (climbed_,) = tape.of("climbed")
    assert end == {"rung": len(rungs), "plan": None, "epochs": 0, "why": climbed_["why"]}


@every_pack
def test_decisions_follow_from_the_history(base):
    """From what run.json tells; nothing else is needed."""
    result = json.loads(json.dumps(climbed(base)[0]))
    ladder = auto_ladder(PACKS[base], len(result["classes"]), SHORT)
    for decision in result["decisions"]:
        before = [epoch for epoch in result["epochs"] if epoch["rung"] < decision["rung"]]
        rung, why = ladder.decide(before, decision["rung"])
        assert (*(rung or (None, 0)), why) == (decision["plan"], decision["epochs"], decision["why"])


@pytest.mark.parametrize("given", [AUTO, {"plan": "bn,full,head", **RUINOUS}], ids=["good", "bad"])
def test_the_history_tells_where_each_rung_began(given, tmp_path):
    """With the best guard figures of all rungs before it."""
    result = session(tmp_path, **given).run()
    before = result["before"]["guard"]
    each = [figures["embarrassment"] for figures in before["classes"].values()]
    assert before["embarrassment"] == pytest.approx(np.mean(each))
    best, rungs = (before["loss"], before["embarrassment"]), {epoch["rung"] for epoch in result["epochs"]}
    for rung in sorted(rungs):
        epochs = [epoch for epoch in result["epochs"] if epoch["rung"] == rung]
        assert {(epoch["best_loss"], epoch["best_e"]) for epoch in epochs} == {best}
        best = min(best, (epochs[-1]["guard_loss"], epochs[-1]["guard_e"]))
    after = result["after"]["guard"]
    assert len(rungs) == 3 and (after["loss"], after["embarrassment"]) == best


def test_a_meter_changes_no_decision(tmp_path):
    """But the reason tells what it read."""
    world = World()
    result = governed(tmp_path, world, **AUTO)
    assert decided(result) == decided(climbed()[0])
    assert outcome(tmp_path)["weights"] == climbed()[1]["weights"]
    assert "per joule" in result["decisions"][-1]["why"] and "joule" not in climbed()[0]["decisions"][-1]["why"]


def test_epochs_are_the_ladders_not_the_settings(tmp_path):
    session(tmp_path, **AUTO, epochs=7).run()
    assert outcome(tmp_path)["weights"] == climbed()[1]["weights"]


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
    return range(1, len(climbed(base)[2].of("step")) + 1)


@every_pack
def test_an_automatic_climb_stopped_anywhere(base, tmp_path):
    assert len(boundaries(base)) > 20
    for boundary in boundaries(base)[::2]:
        out = tmp_path / str(boundary)
        session(out, base=PACKS[base], should_stop=StopAt(boundary), **AUTO).run()
        session(out, base=PACKS[base], **AUTO, resume=True).run()
        assert outcome(out) == climbed(base)[1], f"stopped at boundary {boundary}"


@every_pack
def test_an_automatic_climb_killed_anywhere(base, tmp_path):
    """Saved at some of the steps, so that a decision may have to be made again."""
    for boundary in boundaries(base)[1::5]:
        out = tmp_path / str(boundary)
        with pytest.raises(Killed):
            session(out, base=PACKS[base], listener=KillAt(boundary), checkpoint_every_s=7.0, **AUTO).run()
        session(out, base=PACKS[base], **AUTO, resume=True).run()
        assert outcome(out) == climbed(base)[1], f"killed at boundary {boundary}"


def test_a_rung_is_ended_without_asking_again(tmp_path):
    """The plan and its epochs are those that were decided before the interruption."""
    result, _, tape, _ = climbed()
    kinds = [event["event"] for event in tape.events if event["event"] in ("step", "epoch")]
    boundary = kinds[: kinds.index("epoch") + 2].count("step") + 1  # one more than those of the first rung
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


def test_an_automatic_climb_with_a_larger_budget_goes_on(tmp_path):
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


# Undone


class Begun(OrtEngine):
    """Keeps the weights that each plan began with."""

    def __init__(self):
        super().__init__(threads=1)
        self.weights = {}

    def trainer(self, pack, plan, weights):
        self.weights[plan] = digest(weights)
        return super().trainer(pack, plan, weights)


def digest(weights):
    return {name: np.asarray(value).tobytes() for name, value in weights.items()}


def test_a_rung_that_made_it_worse_is_undone(tmp_path):
    """What follows begins where it began, and what ships is what was there before it."""
    tape, engine = Tape(), Begun()
    result = session(tmp_path / "two", plan="bn,full,head", listener=tape, engine=engine, **RUINOUS).run()
    session(tmp_path / "one", plan="bn", **RUINOUS).run()
    after_bn = digest(load_file(tmp_path / "one" / "weights.safetensors"))
    assert engine.weights["bn"] == digest(pack().weights()) != after_bn
    assert engine.weights["full"] == engine.weights["head"] == after_bn
    assert [event["plan"] for event in tape.of("reverted")] == ["full", "head"]
    assert digest(load_file(tmp_path / "two" / "weights.safetensors")) == after_bn and result["shipped"]
    assert guard_loss(result, "after") == result["epochs"][0]["guard_loss"] < result["epochs"][1]["guard_loss"]
    kinds = [event["event"] for event in tape.events if event["event"] in ("rung", "epoch", "reverted")]
    assert kinds == ["rung", "epoch", "rung", "epoch", "reverted", "rung", "epoch", "reverted"]


def test_nothing_is_undone_where_every_rung_was_better(tmp_path):
    tape = Tape()
    result = session(tmp_path, listener=tape, **IMPROVING).run()
    assert not tape.of("reverted") and guard_loss(result, "after") == result["epochs"][-1]["guard_loss"]


def test_undone_rungs_stopped_anywhere(tmp_path):
    given = {**RUINOUS, "plan": "bn,full,head"}
    tape = Tape()
    session(tmp_path / "one", listener=tape, **given).run()
    expected = outcome(tmp_path / "one")
    for boundary in range(1, len(tape.of("step")) + 1):
        out = tmp_path / str(boundary)
        session(out, should_stop=StopAt(boundary), **given).run()
        session(out, **given, resume=True).run()
        assert outcome(out) == expected, f"stopped at boundary {boundary}"
        assert [event["plan"] for event in events(out) if event["event"] == "reverted"] == ["full", "head"]


LADDERS = {
    "auto": AUTO,
    "better and better": IMPROVING,
    "statistics last": {"plan": "last,bn", "curriculum": "off", "learning_rate": 3e-3},
    "good and bad": {"plan": "bn,full", **RUINOUS},
    "bad only": {"plan": "full", **RUINOUS},
}
DIVERGES = {**RUINOUS, "learning_rate": 1e30}


@pytest.mark.parametrize("case", LADDERS)
def test_never_worse_than_the_best_rung(case, tmp_path):
    """By the guard's loss at the end of each rung, and before the first."""
    result = session(tmp_path, **LADDERS[case]).run()
    ends = {epoch["rung"]: epoch["guard_loss"] for epoch in result["epochs"]}
    losses = [guard_loss(result, "before"), *(loss for loss in ends.values() if loss is not None)]
    assert result["stopped"] == "done" and guard_loss(result, "after") == min(losses)


def test_the_last_look_at_the_guard_is_not_repeated(tmp_path):
    """Its figures are those of the best rung, and they are true of the model that ships."""
    engine = Recording()
    one = session(tmp_path, plan="bn,full", engine=engine, **RUINOUS)
    after = one.run()["after"]["guard"]
    written = 4  # images that check the written model
    assert sum(engine.sizes("predict", "")) == 3 * len(one.judge.validation) + written, "before, and after each epoch"
    looked = one.judge.validate(load_file(tmp_path / "weights.safetensors")).to_json(digits().classes)
    assert {key: after[key] for key in looked} == json.loads(json.dumps(looked))


# Where it ends before its time, and what is told


class After(Limit):
    """Ends the run at the given boundary."""

    name = stopped = "told"

    def __init__(self, boundary):
        self.left = boundary

    def check(self, readings, forecast, *, paused, ending):
        self.left -= 1
        return Decision("go" if self.left else "stop")


def test_a_limit_in_a_bad_rung_leaves_the_best_one_before_it(tmp_path):
    given = {"plan": "bn,full", **RUINOUS}
    result = session(tmp_path / "two", limits=[After(8)], **given).run()
    assert result["stopped"] == "told" and [epoch["plan"] for epoch in result["epochs"]] == ["bn"]
    assert result["shipped"] and guard_loss(result, "after") == result["epochs"][0]["guard_loss"]
    session(tmp_path / "two", **given, resume=True).run()
    session(tmp_path / "one", **given).run()
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


def test_a_limit_in_a_good_rung_keeps_what_it_has_learnt(tmp_path):
    result = session(tmp_path, limits=[After(20)], **IMPROVING).run()
    assert result["stopped"] == "told" and len(result["epochs"]) < 1 + IMPROVING["epochs"]
    assert result["shipped"] and guard_loss(result, "after") < result["epochs"][0]["guard_loss"]


def test_a_plan_that_diverges_is_undone(tmp_path):
    tape = Tape()
    result = session(tmp_path, plan="bn,full", listener=tape, **DIVERGES).run()
    assert [event["plan"] for event in tape.of("reverted")] == ["full"] and result["shipped"]
    assert result["epochs"][1]["guard_loss"] is None and result["epochs"][1]["guard_e"] is None


@pytest.mark.parametrize("rate", [1.0, 1e30], ids=["worse", "diverges"])
@every_pack
def test_an_automatic_climb_outlives_plans_that_do_harm(base, rate, tmp_path):
    """Each is undone, the body is the last, and none is judged by what it left behind."""
    tape = Tape()
    result = session(tmp_path, base=PACKS[base], listener=tape, **{**AUTO, "learning_rate": rate}).run()
    assert result["stopped"] == "done" and decided(result) == [decided(climbed(base)[0])[0], ("full", 2), (None, 0)]
    assert tape.of("reverted")[-1]["plan"] == "full" and "inf" not in result["decisions"][-1]["why"]
    if base == "statistics first":
        assert result["shipped"] and guard_loss(result, "after") == result["epochs"][0]["guard_loss"]


def test_the_test_images_are_told_of_the_rung_whose_model_is_kept(tmp_path):
    result = session(tmp_path, plan="bn,full", test=digits(50, "test"), **RUINOUS).run()
    assert [epoch.get("test_full") for epoch in result["epochs"]] == [result["after"]["test"]["accuracy"], None]


def test_the_metrics_never_name_a_plan_that_there_is_not(tmp_path):
    recorder = no_meter()
    metrics = MetricsFile(tmp_path / "run.prom", recorder, "run", period_s=0)
    session(tmp_path, plan="bn", recorder=recorder, listener=metrics).run()
    assert 'plan="None"' not in (tmp_path / "run.prom").read_text()


def test_the_metrics_of_a_resumed_rung_name_its_plan(tmp_path):
    session(tmp_path, plan="head", should_stop=StopAt(9)).run()
    recorder = no_meter()
    metrics = MetricsFile(tmp_path / "run.prom", recorder, "run", period_s=0)
    session(tmp_path, plan="head", recorder=recorder, should_stop=StopAt(2), listener=metrics, resume=True).run()
    assert 'plan="head"' in (tmp_path / "run.prom").read_text()
