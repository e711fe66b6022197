"""Stage after stage the better model is kept, and a stage that made it worse is undone."""

import json
import re
from itertools import groupby

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_sel.edge.limits import Decision, Limit
from edge_sel.edge.outputs.openmetrics import MetricsFile
from edge_sel.engines.ort import OrtEngine
from tests.edge.recording import Recording
from tests.edge.sessions import (
    StopAt,
    Tape,
    digits,
    events,
    no_meter,
    outcome,
    pack,
    session,
    some_or_all,
    without_anchors,
)
from tests.edge.train.stages import AUTO, IMPROVING, PACKS, RUINOUS, STAGES, decided, every_pack, validation_loss

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


def test_a_training_stage_that_made_it_worse_is_undone(tmp_path):
    """What follows begins where it began, and what ships is what was there before it."""
    tape, engine = Tape(), Begun()
    given = {**RUINOUS, "plan": "bn,full,head", "base": without_anchors()}
    result = session(tmp_path / "two", listener=tape, engine=engine, **given).run()
    session(tmp_path / "one", plan="bn", **RUINOUS).run()
    after_bn = digest(load_file(tmp_path / "one" / "weights.safetensors"))
    assert engine.weights["bn"] == digest(pack().weights()) != after_bn
    assert engine.weights["full"] == engine.weights["head"] == after_bn
    assert [event["plan"] for event in tape.of("reverted")] == ["full", "head"]
    assert digest(load_file(tmp_path / "two" / "weights.safetensors")) == after_bn and result["shipped"]
    assert (
        validation_loss(result, "after")
        == result["epochs"][0]["validation_loss"]
        < result["epochs"][1]["validation_loss"]
    )
    kinds = [event["event"] for event in tape.events if event["event"] in ("stage_begun", "epoch", "reverted")]
    assert kinds == [
        "stage_begun",
        "epoch",
        "stage_begun",
        "epoch",
        "reverted",
        "stage_begun",
        "epoch",
        "reverted",
    ]


def test_nothing_is_undone_where_every_training_stage_was_better(tmp_path):
    tape = Tape()
    result = session(tmp_path, listener=tape, **IMPROVING).run()
    assert not tape.of("reverted") and validation_loss(result, "after") == result["epochs"][-1]["validation_loss"]


@pytest.mark.slow
@some_or_all
def test_undone_training_stages_stopped_anywhere(apart, tmp_path):
    given = {**RUINOUS, "plan": "bn,full,head"}
    tape = Tape()
    session(tmp_path / "one", listener=tape, **given).run()
    expected = outcome(tmp_path / "one")
    for boundary in range(1, len(tape.of("step")) + 1, apart):
        out = tmp_path / str(boundary)
        session(out, should_stop=StopAt(boundary), **given).run()
        session(out, **given, resume=True).run()
        assert outcome(out) == expected, f"stopped at boundary {boundary}"
        assert [event["plan"] for event in events(out) if event["event"] == "reverted"] == ["full", "head"]


SCHEDULES = {
    "auto": AUTO,
    "better and better": IMPROVING,
    "statistics last": {"plan": "last,bn", "curriculum": "off", "learning_rate": 3e-3},
    "good and bad": {"plan": "bn,full", **RUINOUS},
    "bad only": {"plan": "full", **RUINOUS},
}
DIVERGES = {**RUINOUS, "learning_rate": 1e30}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", SCHEDULES)
def test_never_worse_than_the_best_training_stage(case, tmp_path):
    """By the validation loss at the end of each training stage, and before the first."""
    result = session(tmp_path, **SCHEDULES[case]).run()
    ends = {epoch["training_stage"]: epoch["validation_loss"] for epoch in result["epochs"]}
    losses = [validation_loss(result, "before"), *(loss for loss in ends.values() if loss is not None)]
    assert result["stopped"] == "done" and validation_loss(result, "after") == min(losses)


def test_the_last_look_at_the_validation_set_is_not_repeated(tmp_path):
    """Its figures are those of the best training stage, and they are true of the model that ships."""
    engine = Recording()
    one = session(tmp_path, plan="bn,full", engine=engine, base=without_anchors(), **RUINOUS)
    after = one.run()["after"]["validation"]
    written = 4  # images that check the written model
    count = len(one.judge.validation)
    assert sum(engine.sizes("backbone", "ridge")) == 3 * count, "before, and after each epoch"
    compared = 4  # of one pack's graphs
    assert sum(engine.sizes("predict", "")) == compared + written
    looked = one.judge.validate(load_file(tmp_path / "weights.safetensors")).to_json(digits().classes)
    assert {key: after[key] for key in looked} == json.loads(json.dumps(looked))


# Where it ends before its time, and what is told


class After(Limit):
    """Ends the run at the given boundary."""

    name = stopped = "test"

    def __init__(self, boundary):
        self.left = boundary

    def check(self, readings, forecast, *, paused, ending):
        self.left -= 1
        return Decision("go" if self.left else "stop")


@pytest.mark.slow
def test_a_limit_in_a_bad_training_stage_leaves_the_best_one_before_it(tmp_path):
    given = {"plan": "bn,full", **RUINOUS}
    result = session(tmp_path / "two", limits=[After(8)], **given).run()
    assert result["stopped"] == "test" and [epoch["plan"] for epoch in result["epochs"]] == ["bn"]
    assert result["shipped"] and validation_loss(result, "after") == result["epochs"][0]["validation_loss"]
    session(tmp_path / "two", **given, resume=True).run()
    session(tmp_path / "one", **given).run()
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


def test_a_limit_in_a_good_training_stage_keeps_what_it_has_learnt(tmp_path):
    result = session(tmp_path, limits=[After(20)], **IMPROVING).run()
    assert result["stopped"] == "test" and len(result["epochs"]) < 1 + IMPROVING["epochs"]
    assert result["shipped"] and validation_loss(result, "after") < result["epochs"][0]["validation_loss"]


def test_a_plan_that_diverges_is_undone(tmp_path):
    tape = Tape()
    result = session(tmp_path, plan="bn,full", listener=tape, **DIVERGES).run()
    assert [event["plan"] for event in tape.of("reverted")] == ["full"] and result["shipped"]
    assert result["epochs"][1]["validation_loss"] is None and result["epochs"][1]["validation_e"] is None


@pytest.mark.sampled(4)
@pytest.mark.parametrize("rate", [1.0, 1e30], ids=["worse", "diverges"])
@every_pack
def test_an_automatic_run_outlives_plans_that_do_harm(base, rate, tmp_path):
    """Each is undone, it is the last of its plan, and none is judged by what it left behind."""
    tape = Tape()
    result = session(tmp_path, base=PACKS[base], listener=tape, **{**AUTO, "learning_rate": rate}).run()
    assert result["stopped"] == "done" and decided(result)[-1] == (None, 0)
    assert base == "body only" or decided(result)[:-1] == [STAGES[base][0], ("full", 3)]
    assert result["decisions"][-2]["came"]["gain"] == 0
    assert tape.of("reverted")[-1]["plan"] == "full" and "inf" not in result["decisions"][-1]["why"]
    if base == "statistics first":
        assert result["shipped"] and validation_loss(result, "after") == result["epochs"][0]["validation_loss"]


def test_the_test_images_are_told_of_the_training_stage_whose_model_is_kept(tmp_path):
    result = session(tmp_path, plan="bn,full", test=digits(50, "test"), **RUINOUS).run()
    assert [epoch.get("test_full") for epoch in result["epochs"]] == [result["after"]["test"]["accuracy"], None]


def test_the_metrics_never_name_a_plan_that_there_is_not(tmp_path):
    recorder = no_meter()
    metrics = MetricsFile(tmp_path / "run.prom", recorder, "run", period_s=0)
    named = []

    def look(event):
        metrics(event)
        named.append(re.search('plan="(.*?)"', (tmp_path / "run.prom").read_text())[1])

    session(tmp_path, plan="bn", recorder=recorder, listener=look).run()
    assert [plan for plan, _ in groupby(named)] == ["", "bn"]


def test_the_metrics_of_a_resumed_training_stage_name_its_plan(tmp_path):
    session(tmp_path, plan="head", should_stop=StopAt(9)).run()
    recorder = no_meter()
    metrics = MetricsFile(tmp_path / "run.prom", recorder, "run", period_s=0)
    session(tmp_path, plan="head", recorder=recorder, should_stop=StopAt(2), listener=metrics, resume=True).run()
    assert 'plan="head"' in (tmp_path / "run.prom").read_text()
