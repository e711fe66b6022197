"""The head in closed form, in a session: one pass, as good as epochs of steps, resumable, and refused where it cannot be."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from edge_sel.cli.main import cli
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.governor.limits import Deadline
from edge_sel.edge.train import ridge_stage
from edge_sel.errors import UsageError
from edge_sel.pack.manifest import RIDGE
from edge_sel.sel.ridge import fit_head
from tests.edge.recording import Recording
from tests.edge.sessions import KillAt, Killed, StopAt, Tape, digits, outcome, pack, session
from tests.edge.world import World, governed

GIVEN = {"curriculum": "off", "batch_size": 32, "learning_rate": None}
NOWHERE = {"feature_cache_mb": 0, "feature_cache_disk_mb": 0}
FILE = {"feature_cache_mb": 0, "feature_cache_disk_mb": 64}


def test_it_beats_three_epochs_of_steps(tmp_path):
    test = digits(390, "test")
    closed = session(tmp_path / "ridge", images=digits(400), test=test, plan="bn,ridge", **GIVEN).run()
    steps = session(tmp_path / "head", images=digits(400), test=test, plan="bn,head", epochs=3, **GIVEN).run()
    assert closed["accuracy"]["after"] > steps["accuracy"]["after"] + 0.01 and closed["shipped"]


def test_only_the_head_changes_and_only_in_one_pass(tmp_path):
    engine = Recording()
    result = session(tmp_path, plan=RIDGE, engine=engine, gate="sundew", target_rate=0.1, epochs=5, **GIVEN).run()
    (epoch,) = result["epochs"]
    train = result["images"]["train"]
    assert len(engine.images("backbone")) == train == epoch["trained"] == epoch["candidates"]
    assert not engine.sizes("step", RIDGE) and epoch["stage_name"] == "closed form"
    plan, head = pack().plan(RIDGE), 64 * 10 + 10
    assert epoch["sparsity"] == pytest.approx(1 - head / pack().manifest.model.parameters)
    chunks = sum(engine.sizes("backbone", RIDGE))
    executed = train * plan.flops_train + chunks * pack().prefix(RIDGE).flops
    assert epoch["executed_flops_t"] * 1e12 == pytest.approx(executed) and epoch["train_flops_t"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [pytest.param({}, marks=pytest.mark.slow), FILE, pytest.param(NOWHERE, marks=pytest.mark.slow)],
    ids=["memory", "file", "nowhere"],
)
def test_stopped_or_killed_anywhere_it_ends_the_same(place, tmp_path):
    given = {**GIVEN, **place, "batch_size": 16, "plan": "bn,ridge,last", "epochs": 1, "gate": "off"}
    tape = Tape()
    session(tmp_path / "one", listener=tape, **given).run()
    expected = outcome(tmp_path / "one")
    for boundary in range(1, len(tape.of("step")), 2):  # after the last one nothing is left to be killed
        out = tmp_path / str(boundary)
        session(out, should_stop=StopAt(boundary), **given).run()
        with pytest.raises(Killed):
            session(out, listener=KillAt(1), checkpoint_every_s=0.1, resume=True, **given).run()
        session(out, resume=True, **given).run()
        assert outcome(out) == expected, f"stopped at boundary {boundary}"


def test_a_deadline_in_its_pass_keeps_the_model(tmp_path):
    result = governed(tmp_path, World(), Deadline(4.0), plan=RIDGE, **{**GIVEN, "batch_size": 8})
    assert result["stopped"] == "deadline" and not result["epochs"] and not result["shipped"]


def test_a_class_of_the_device_gets_a_row(tmp_path):
    plain = digits(400)
    labels = np.where(plain.labels == 7, 10, plain.labels)
    keep = np.isin(labels, [0, 1, 2, 3, 10])
    images = ImageSet.from_arrays(plain.read(np.flatnonzero(keep)), labels[keep], (*plain.classes, "odd"))
    result = session(tmp_path, images=images, plan="bn,ridge", **GIVEN).run()
    assert result["after"]["guard"]["classes"]["odd"]["accuracy"] > 0.8 and result["shipped"]


def test_labels_of_chance_leave_the_head_alone(tmp_path):
    plain = digits(200)
    labels = np.random.default_rng(0).permutation(plain.labels)
    images = ImageSet.from_arrays(plain.read(np.arange(200)), labels, plain.classes)
    result = session(tmp_path, images=images, plan=RIDGE, **GIVEN).run()
    assert result["epochs"][0]["train_loss"] > 2.0, "leave-one-out does not believe that it has learnt"


def test_a_head_that_is_only_scaled_counts_as_changed_and_predicts_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(ridge_stage, "fit_head", partial(fit_head, ridges=()))
    result = session(tmp_path, plan=RIDGE, **GIVEN).run()
    (epoch,) = result["epochs"]
    assert epoch["sparsity"] == pytest.approx(1 - (64 * 10 + 10) / pack().manifest.model.parameters)
    before, after = (result[when]["guard"] for when in ("before", "after"))
    assert after["loss"] < before["loss"] and after["accuracy"] == before["accuracy"]
    assert not result["shipped"], "it knows no more than before"


def test_a_head_that_is_left_alone_counts_as_unchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(ridge_stage, "fit_head", partial(fit_head, ridges=(), scales=(1.0,)))
    (epoch,) = session(tmp_path, plan=RIDGE, **GIVEN).run()["epochs"]
    assert epoch["sparsity"] == 1.0


def test_a_pack_whose_head_has_no_vector_of_features_has_no_such_plan():
    plans = {name: replace(info, prefix="") for name, info in pack().manifest.plans.items()}
    without = pack().with_manifest(replace(pack().manifest, plans=plans))
    assert RIDGE in pack().plan_names and RIDGE not in without.plan_names
    with pytest.raises(UsageError, match="no plan ridge"):
        without.plan(RIDGE)


@pytest.mark.parametrize("plans", ["bn,ridge", "closed", "closed,full"])
def test_the_torch_engine_is_refused_before_anything_is_read(plans, tmp_path):
    with pytest.raises(UsageError, match="needs features") as error:
        arguments = ["finetune", "--plan", plans, "--engine", "torch", "--out", str(tmp_path / "run")]
        cli.main(arguments, standalone_mode=False)
    assert "\n" not in str(error.value) and plans in str(error.value.where) and "--engine ort" in error.value.fix
    assert not (tmp_path / "run").exists()
