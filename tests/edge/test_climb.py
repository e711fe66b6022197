"""Rung after rung: the better model is kept, a rung that made it worse is undone, and a resumed climb is the same."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_sel.edge import ladder as ladder_module
from edge_sel.edge.ladder import LEAST_GUILT, MOST_RUNGS
from edge_sel.edge.limits import EnergyBudget, Limit, Verdict
from edge_sel.edge.metrics import MetricsFile
from edge_sel.edge.probe import step_flops
from edge_sel.edge.rungs import PROBE, FixedLadder, Rung
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import UsageError
from edge_sel.pack.reader import Pack
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
    outcome,
    pack,
    resolved,
    session,
)

AUTO = {"plan": "auto", "learning_rate": None, "curriculum": "off", "batch_size": 32}
RUINOUS = {"learning_rate": 3.0, "gate": "off", "curriculum": "off", "epochs": 1, "batch_size": 32, "gamma": 0.0}
"""Whatever trains makes it worse; statistics, which train nothing, do not."""
IMPROVING = {"plan": "bn,last2", "learning_rate": None, "gate": "off", "curriculum": "off", "epochs": 3}


@pytest.fixture(autouse=True)
def short_rungs(monkeypatch):
    """An automatic ladder of few epochs."""
    monkeypatch.setattr(ladder_module, "MOST_EPOCHS", 2)


@cache
def climbed():
    """The result, the outcome, the events and the table of an automatic run that nothing interrupted."""
    with TemporaryDirectory() as out:
        tape = Tape()
        result = session(Path(out), listener=tape, **AUTO).run()
        return result, outcome(Path(out)), tape, history(Path(out))


def without(*plans):
    kept = {name: info for name, info in pack().manifest.plans.items() if name not in plans}
    return Pack(pack().path, replace(pack().manifest, plans=kept), pack()._content)


def guard_loss(result, when):
    return result[when]["guard"]["loss"]


# An automatic climb


def test_statistics_then_a_probe_before_every_plan():
    result, _, tape, _ = climbed()
    plans = [epoch["plan"] for epoch in result["epochs"]]
    assert plans[:2] == ["bn", PROBE] and plans[2] in pack().manifest.plans
    assert 1 <= plans.count(PROBE) <= MOST_RUNGS
    decisions = tape.of("rung")
    visited = [plan for plan, before in zip(plans, ["", *plans[:-1]], strict=True) if plan != before]
    assert [event["plan"] for event in decisions] == visited
    assert all(event["why"] for event in [*decisions, *tape.of("climbed")]) and len(tape.of("climbed")) == 1
    for rung, event in enumerate(decisions):
        assert len([epoch for epoch in result["epochs"] if epoch["rung"] == rung]) == event["epochs"] <= 2
    assert [epoch["epoch"] for epoch in result["epochs"]] == list(range(1, len(plans) + 1))


def test_the_plan_that_follows_a_probe_is_its_best():
    result, *_ = climbed()
    for before, after in zip(result["epochs"], result["epochs"][1:], strict=False):
        if before["plan"] == PROBE:
            paying = {plan: told for plan, told in before["probe"].items() if told["guilt"] >= LEAST_GUILT}
            per_joule = {plan: told["guilt_per_j"] for plan, told in paying.items()}
            assert after["plan"] == max(per_joule, key=per_joule.get)


def test_what_a_probe_leaves():
    result, _, tape, rows = climbed()
    probes = [epoch for epoch in result["epochs"] if epoch["plan"] == PROBE]
    assert [event["plans"] for event in tape.of("probe")] == [epoch["probe"] for epoch in probes]
    assert [row["plan"] for row in rows] == [epoch["plan"] for epoch in result["epochs"]]
    for epoch, row in zip(result["epochs"], rows, strict=True):
        if epoch["plan"] == PROBE:
            assert epoch["trained"] == epoch["nominal_flops_t"] == 0 < epoch["executed_flops_t"]
            assert float(row["executed_flops_T"]) == epoch["executed_flops_t"]
            assert row["guard_acc"] == row["train_loss"] == row["acc_3"] == "" and row["sparsity"] == "1.0"
            assert set(epoch["probe"]) == {"head", "affine", "last", "last2", "first", "full"}


def test_a_probe_costs_joules_and_the_meter_tells_what_a_step_would(tmp_path):
    world, tape = World(), Tape()
    result = governed(tmp_path, world, listener=tape, **AUTO)
    first = next(epoch for epoch in result["epochs"] if epoch["plan"] == PROBE)
    assert first["energy_j"] == pytest.approx(100 * 0.06 * 10.0), "a step of every image of this world"
    assert first["energy_source"] == "measured" and first["phases"]["train"]["total_j"] == first["energy_j"]
    statistics = result["epochs"][0]
    per_tflop = statistics["energy_j"] / statistics["executed_flops_t"]
    for plan, figures in first["probe"].items():
        joules = per_tflop * step_flops(pack(), plan, resolved(**AUTO).settings) / 1e12
        assert figures["j_per_step"] == pytest.approx(joules)
        assert figures["guilt_per_j"] == pytest.approx(figures["guilt"] / joules)
    assert outcome(tmp_path)["weights"] == climbed()[1]["weights"], "the meter changes no decision"
    assert sum(epoch["energy_j"] for epoch in result["epochs"]) <= result["energy"]["total_j"]


def test_epochs_are_the_ladders_not_the_settings(tmp_path):
    session(tmp_path, **AUTO, epochs=7).run()
    assert outcome(tmp_path)["weights"] == climbed()[1]["weights"]


def test_without_statistics_the_probe_is_first(tmp_path):
    result = session(tmp_path, base=without("bn"), **AUTO).run()
    assert [epoch["plan"] for epoch in result["epochs"]][:1] == [PROBE] and result["shipped"]


def test_a_model_that_is_good_enough_is_left_alone(tmp_path):
    """On images like the server's, or nearly so."""
    calibration = replace(pack().manifest.calibration, embarrassment=(9.0,) * 10)
    easy = Pack(pack().path, replace(pack().manifest, calibration=calibration), pack()._content)
    result = session(tmp_path, base=easy, **AUTO).run()
    assert [epoch["plan"] for epoch in result["epochs"]] == ["bn"]
    (why,) = [event["why"] for event in events(tmp_path) if event["event"] == "climbed"]
    assert "no more embarrassed" in why


def test_a_pack_without_the_plan_full(tmp_path):
    with pytest.raises(UsageError, match="full"):
        session(tmp_path, base=without("full"), **AUTO).run()


# Resumed


def boundaries():
    return range(1, len(climbed()[2].of("step")) + 1)


def test_an_automatic_climb_stopped_anywhere(tmp_path):
    assert len(boundaries()) > 12
    for boundary in boundaries():
        out = tmp_path / str(boundary)
        session(out, should_stop=StopAt(boundary), **AUTO).run()
        session(out, **AUTO).run(resume=True)
        assert outcome(out) == climbed()[1], f"stopped at boundary {boundary}"


def test_an_automatic_climb_killed_anywhere(tmp_path):
    """Saved at every step or some of them, so that a probe and its decision may have to be made again."""
    for boundary in boundaries()[::3]:
        out = tmp_path / str(boundary)
        with pytest.raises(Killed):
            session(out, listener=KillAt(boundary), checkpoint_every_s=7.0, **AUTO).run()
        session(out, **AUTO).run(resume=True)
        assert outcome(out) == climbed()[1], f"killed at boundary {boundary}"


def test_a_rung_is_ended_without_asking_again(tmp_path):
    """The plan and its epochs are those that were decided before the interruption."""
    tape = climbed()[2]
    kinds = [event["event"] for event in tape.events if event["event"] in ("step", "probe")]
    session(tmp_path, should_stop=StopAt(kinds.index("probe") + 2), **AUTO).run()
    told = len(events(tmp_path))
    session(tmp_path, **AUTO).run(resume=True)
    first, *resumed = [event for event in events(tmp_path)[told:] if event["event"] in ("rung", "epoch", "climbed")]
    decided = tape.of("rung")[2]
    assert decided["why"] != first["why"] == "goes on"
    assert [first[key] for key in ("event", "plan", "epochs")] == ["rung", decided["plan"], decided["epochs"]]
    epochs = resumed[: decided["epochs"]]
    assert [(event["event"], event["plan"]) for event in epochs] == [("epoch", decided["plan"])] * decided["epochs"]
    assert resumed[decided["epochs"]]["event"] != "epoch"


def test_an_automatic_climb_with_a_larger_budget_goes_on(tmp_path):
    """Joules of all parts, so that what a step costs is told as without the stops."""
    given, world = {**AUTO, "gate": "off"}, World()
    whole = governed(tmp_path / "one", world, **given)
    parts = World()
    for share in (0.4, 0.7):
        budget = EnergyBudget(share * world.energy_j)
        assert governed(tmp_path / "parts", parts, budget, resume=True, **given)["stopped"] == "budget"
    last = governed(tmp_path / "parts", parts, resume=True, **given)
    one, other = (outcome(tmp_path / name) for name in ("one", "parts"))
    assert other["weights"] == one["weights"] and last["stopped"] == "done"
    costs = [[e["probe"]["head"]["j_per_step"] for e in run["epochs"] if e["plan"] == PROBE] for run in (whole, last)]
    assert costs[0] == pytest.approx(costs[1], rel=0.1), "a stop itself takes a few joules"


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
        session(out, **given).run(resume=True)
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
    ends = {epoch["rung"]: epoch["guard_loss"] for epoch in result["epochs"] if epoch["plan"] != PROBE}
    losses = [guard_loss(result, "before"), *(loss for loss in ends.values() if loss is not None)]
    assert result["stopped"] == "done" and guard_loss(result, "after") == min(losses)


def test_the_last_look_at_the_guard_is_not_repeated(tmp_path):
    """Its figures are those of the best rung, and they are true of the model that ships."""
    engine = Recording()
    one = session(tmp_path, plan="bn,full", engine=engine, **RUINOUS)
    after = one.run()["after"]["guard"]
    written = 4  # images that check the written model
    assert sum(engine.sizes("predict", "")) == 3 * len(one.guard) + written, "before, and after each epoch"
    looked = one.evaluate(load_file(tmp_path / "weights.safetensors"), one.guard).to_json(digits().classes)
    assert {key: after[key] for key in looked} == json.loads(json.dumps(looked))


def test_a_probe_sees_the_best_weights(tmp_path):
    """Also after a rung that was undone."""
    rungs = [Rung("bn", 1), Rung("full", 1), Rung(PROBE, 1)]
    engine = Begun()
    plain = session(tmp_path / "two", plan="bn,full", engine=engine, **RUINOUS)
    result = replace(plain, ladder=FixedLadder(rungs)).run()
    session(tmp_path / "one", plan="bn", **RUINOUS).run()
    assert result["epochs"][-1]["plan"] == PROBE
    assert engine.weights["full"] == digest(load_file(tmp_path / "one" / "weights.safetensors"))


# Where it ends before its time, and what is told


class After(Limit):
    """Ends the run at the given boundary."""

    name = stopped = "told"

    def __init__(self, boundary):
        self.left = boundary

    def check(self, senses, outlook, *, paused, ending):
        self.left -= 1
        return Verdict("go" if self.left else "stop")


def test_a_limit_in_a_bad_rung_leaves_the_best_one_before_it(tmp_path):
    given = {"plan": "bn,full", **RUINOUS}
    result = replace(session(tmp_path / "two", **given), limits=[After(8)]).run()
    assert result["stopped"] == "told" and [epoch["plan"] for epoch in result["epochs"]] == ["bn"]
    assert result["shipped"] and guard_loss(result, "after") == result["epochs"][0]["guard_loss"]
    session(tmp_path / "two", **given).run(resume=True)
    session(tmp_path / "one", **given).run()
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


def test_a_limit_in_a_good_rung_keeps_what_it_has_learnt(tmp_path):
    result = replace(session(tmp_path, **IMPROVING), limits=[After(20)]).run()
    assert result["stopped"] == "told" and len(result["epochs"]) < 1 + IMPROVING["epochs"]
    assert result["shipped"] and guard_loss(result, "after") < result["epochs"][0]["guard_loss"]


def test_a_plan_that_diverges_is_undone(tmp_path):
    tape = Tape()
    result = session(tmp_path, plan="bn,full", listener=tape, **DIVERGES).run()
    assert [event["plan"] for event in tape.of("reverted")] == ["full"] and result["shipped"]
    assert result["epochs"][1]["guard_loss"] is None and result["epochs"][1]["guard_e"] is None


def test_an_automatic_climb_outlives_a_plan_that_diverges(tmp_path):
    result = session(tmp_path, **{**AUTO, "learning_rate": 1e30}).run()
    assert result["stopped"] == "done" and guard_loss(result, "after") == result["epochs"][0]["guard_loss"]


def test_without_statistics_a_plan_that_made_it_worse_is_the_last(tmp_path):
    tape = Tape()
    session(tmp_path, base=without("bn"), listener=tape, **{**AUTO, "learning_rate": 0.1}).run()
    assert len(tape.of("reverted")) == 1 and "inf" not in tape.of("climbed")[0]["why"]


def test_a_probe_that_ends_the_climb_is_in_the_table(tmp_path):
    rungs = [Rung("bn", 1), Rung(PROBE, 1)]
    replace(session(tmp_path, plan="bn"), ladder=FixedLadder(rungs)).run()
    assert [row["plan"] for row in history(tmp_path)] == ["bn", PROBE]


def test_the_test_images_are_told_of_the_rung_whose_model_is_kept(tmp_path):
    result = session(tmp_path, plan="bn,full", test=digits(50, "test"), **RUINOUS).run()
    assert [epoch.get("test_full") for epoch in result["epochs"]] == [result["after"]["test"]["accuracy"], None]


def test_the_metrics_never_name_a_plan_that_there_is_not(tmp_path):
    plain = session(tmp_path, plan="bn")
    replace(plain, listener=MetricsFile(tmp_path / "run.prom", plain.recorder, "run", period_s=0)).run()
    assert 'plan="None"' not in (tmp_path / "run.prom").read_text()


def test_the_metrics_of_a_resumed_rung_name_its_plan(tmp_path):
    session(tmp_path, plan="head", should_stop=StopAt(9)).run()
    plain = session(tmp_path, plan="head", should_stop=StopAt(2))
    replace(plain, listener=MetricsFile(tmp_path / "run.prom", plain.recorder, "run", period_s=0)).run(resume=True)
    assert 'plan="head"' in (tmp_path / "run.prom").read_text()
