"""Statistics and the head in closed form as one stage: what both do one after the other, judged once, resumable."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_sel.data.dataset import ImageSet
from edge_sel.edge.governor.governor import Governor
from edge_sel.edge.governor.limits import Deadline
from edge_sel.edge.progress import Progress
from edge_sel.edge.train import ridge_stage
from edge_sel.edge.train.ladder import PlannedStage
from edge_sel.edge.train.work import stage_work
from edge_sel.errors import UsageError
from edge_sel.pack.manifest import CLOSED, RIDGE
from edge_sel.runs.checkpoint import load_checkpoint
from edge_sel.runs.flatten import unflatten
from edge_sel.sel.ridge import fit_head
from tests.edge.recording import Recording
from tests.edge.sessions import (
    KillAt,
    Killed,
    StopAt,
    Tape,
    digits,
    outcome,
    pack,
    session,
    some_or_all,
    without_anchors,
)
from tests.edge.world import World, governed

GIVEN = {"curriculum": "off", "batch_size": 32, "learning_rate": None}
NOWHERE = {"feature_cache_mb": 0, "feature_cache_disk_mb": 0}
FILE = {"feature_cache_mb": 0, "feature_cache_disk_mb": 64}
PLACES = pytest.mark.parametrize("place", [{}, FILE, NOWHERE], ids=["memory", "file", "nowhere"])
HEAD, BUFFERS = {*pack().plan("head").trainable}, {*pack().plan("bn").buffers}


@cache
def ran(plan, count, precision="fp32"):
    """The result, the weights and the events of a session."""
    with TemporaryDirectory() as out:
        tape = Tape()
        given = {**GIVEN, "plan": plan, "prefix_precision": precision}
        result = session(Path(out), images=digits(count), listener=tape, **given).run()
        return result, load_file(Path(out) / "weights.safetensors"), tape


def flops(result, kind):
    return sum(epoch[f"{kind}_flops_t"] for epoch in result["epochs"])


# What it does


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("count", "precision"), [(120, "fp32"), (400, "fp32"), (120, "int8")])
def test_it_is_statistics_then_the_head_to_the_bit(count, precision):
    """The same images, and features by the new statistics."""
    (closed, weights, _), (both, expected, _) = (ran(plan, count, precision) for plan in (CLOSED, "bn,ridge"))
    assert all(np.array_equal(weights[name], expected[name]) for name in expected) and weights.keys() == expected.keys()
    assert closed["after"]["guard"]["classes"] == both["after"]["guard"]["classes"] and closed["shipped"]
    before = pack().weights()
    assert {name for name in weights if not np.array_equal(weights[name], before[name])} == HEAD | BUFFERS


@pytest.mark.parametrize("count", [120, 400])
def test_its_flops_are_those_of_both_and_it_is_judged_once(count):
    (closed, _, _), (both, _, _) = ran(CLOSED, count), ran("bn,ridge", count)
    (epoch,) = closed["epochs"]
    assert len(both["epochs"]) == 2 and epoch["stage_name"] == "closed form"
    assert flops(closed, "executed") == pytest.approx(flops(both, "executed"))
    assert flops(closed, "train") == flops(both, "train") == both["epochs"][0]["train_flops_t"] > 0
    fit = both["epochs"][1]
    same = ("trained", "candidates", "train_acc", "train_loss", "sparsity", "gradient_kept", "guard_acc", "guard_loss")
    assert {key: epoch[key] for key in same} == {key: fit[key] for key in same}
    assert epoch["best_acc"] == closed["before"]["guard"]["accuracy"]


def test_every_image_goes_through_the_backbone_once(tmp_path):
    engine = Recording()
    given = {**GIVEN, "base": without_anchors()}
    result = session(tmp_path, images=digits(400), plan=CLOSED, engine=engine, gate="hard", **given).run()
    train = result["images"]["train"]
    assert sum(engine.sizes("step", "bn")) == 256 and not engine.sizes("step", CLOSED)
    assert len(engine.images("backbone")) == train == sum(engine.sizes("backbone", CLOSED))


@pytest.mark.parametrize("plan", [CLOSED, RIDGE])
def test_a_later_gate_knows_every_image_by_its_left_out_loss(plan, tmp_path):
    result = session(tmp_path, plan=plan, checkpoint_every_s=0.1, **GIVEN).run()
    memory = unflatten(Progress, *load_checkpoint(tmp_path / "checkpoints")[:2]).memory
    (epoch,) = result["epochs"]
    assert (memory.hardness.seen == 1).all() and (memory.entropy > 0).all()
    assert memory.hardness.r.mean() == pytest.approx(epoch["train_loss"]) == memory.last_loss
    assert memory.hardness.last_correct.mean() == pytest.approx(epoch["train_acc"])


def test_the_first_update_is_the_fit():
    """Statistics train nothing."""
    events = [
        event["event"] for event in ran(CLOSED, 120)[2].events if event["event"] in ("step", "epoch", "first_step")
    ]
    assert events.count("first_step") == 1 and events.index("first_step") > events.index("epoch")


def test_joules_of_the_fit_have_a_phase_of_their_own(tmp_path, monkeypatch):
    world = World()

    def slow(*given):
        world.spend(7.0)
        return fit_head(*given)

    monkeypatch.setattr(ridge_stage, "fit_head", slow)
    (epoch,) = governed(tmp_path, world, plan=CLOSED, **GIVEN)["epochs"]
    assert epoch["phases"]["fit"]["total_j"] == pytest.approx(70.0)
    assert epoch["phases"]["train"]["total_j"] == pytest.approx(96 * 0.06 * 10), "96 images for the statistics"


def test_a_class_of_the_device_gets_a_row(tmp_path):
    plain = digits(400)
    labels = np.where(plain.labels == 7, 10, plain.labels)
    keep = np.isin(labels, [0, 1, 2, 3, 10])
    images = ImageSet.from_arrays(plain.read(np.flatnonzero(keep)), labels[keep], (*plain.classes, "odd"))
    result = session(tmp_path, images=images, plan=CLOSED, **GIVEN).run()
    assert result["after"]["guard"]["classes"]["odd"]["accuracy"] > 0.8 and result["shipped"]


# Interrupted


@pytest.mark.parametrize(
    "place",
    [pytest.param({}, marks=pytest.mark.slow), FILE, pytest.param(NOWHERE, marks=pytest.mark.slow)],
    ids=["memory", "file", "nowhere"],
)
@some_or_all
def test_stopped_or_killed_anywhere_it_ends_the_same(place, apart, tmp_path):
    given = {**GIVEN, **place, "batch_size": 16, "plan": "closed,last", "epochs": 1, "gate": "off"}
    tape = Tape()
    session(tmp_path / "one", listener=tape, **given).run()
    expected = outcome(tmp_path / "one")
    assert len(tape.of("step")) > 12
    for boundary in range(1, len(tape.of("step")), apart):  # after the last one nothing is left to be killed
        out = tmp_path / str(boundary)
        session(out, should_stop=StopAt(boundary), **given).run()
        with pytest.raises(Killed):
            session(out, listener=KillAt(1), checkpoint_every_s=0.1, resume=True, **given).run()
        session(out, resume=True, **given).run()
        assert outcome(out) == expected, f"stopped at boundary {boundary}"


@pytest.mark.sampled(3)
@PLACES
def test_stopped_again_and_again_it_ends_the_same(place, tmp_path):
    """Twice in the statistics, which go on where they were, and twice in the pass, which begins anew."""
    given = {**GIVEN, **place, "batch_size": 16, "plan": CLOSED}
    session(tmp_path / "one", **given).run()
    for part, boundary in enumerate((1, 1, 3, 2)):
        stop = StopAt(boundary)
        assert session(tmp_path / "parts", should_stop=stop, resume=part > 0, **given).run()["stopped"] == "signal"
    session(tmp_path / "parts", resume=True, **given).run()
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "one")


@pytest.mark.parametrize("seconds", [2.0, 5.5, 8.0], ids=["statistics", "later", "pass"])
def test_a_deadline_before_its_end_leaves_a_model_that_is_no_worse(seconds, tmp_path):
    result = governed(tmp_path, World(), Deadline(seconds), plan=CLOSED, **{**GIVEN, "batch_size": 8})
    assert result["stopped"] == "deadline" and not result["epochs"]
    assert result["after"]["guard"]["loss"] <= result["before"]["guard"]["loss"]


# Undone


def ruinous(features, labels, weight, bias):
    fit = fit_head(features, labels, weight, bias)
    return fit._replace(weight=-weight, bias=bias, left_out=-fit.left_out)


def test_it_is_undone_where_it_does_harm(tmp_path, monkeypatch):
    """The statistics too, though they alone may have helped; what follows begins with the model as it was."""
    monkeypatch.setattr(ridge_stage, "fit_head", ruinous)
    tape = Tape()
    result = session(tmp_path, plan=CLOSED, listener=tape, **GIVEN).run()
    assert [event["plan"] for event in tape.of("reverted")] == [CLOSED] and not result["shipped"]
    weights, before = load_file(tmp_path / "weights.safetensors"), pack().weights()
    assert all(np.array_equal(weights[name], before[name]) for name in before)
    followed = session(tmp_path / "followed", plan="closed,head", **GIVEN).run()
    assert followed["epochs"][1]["best_loss"] == followed["before"]["guard"]["loss"]


# The work ahead


@PLACES
def test_the_work_left_is_exact_in_both_passes(place, tmp_path, monkeypatch):
    """100 images: statistics of six batches of 16, then features in batches of 16."""
    told = []
    monkeypatch.setattr(Governor, "at_boundary", lambda self, left: told.append(left))
    given = {**GIVEN, **place, "batch_size": 16, "plan": CLOSED}
    governed(tmp_path, World(), Deadline(1e9), **given)
    bn, closed, prefix = pack().plan("bn"), pack().plan(CLOSED), pack().prefix(CLOSED)
    image = closed.flops_train + prefix.flops
    expected = [100 * image + (100 - 16 * n) * bn.flops_train for n in range(1, 6)]
    expected += [(100 - 16 * n) * image for n in range(1, 7)]
    assert told[1:] == pytest.approx([*expected, 0.0])


def test_the_work_of_the_stage_is_that_of_both():
    for count in (100, 1000):
        closed, *parts = (
            stage_work(pack(), PlannedStage(plan, 1), count, 0.5, scores=True) for plan in (CLOSED, "bn", RIDGE)
        )
        assert closed == pytest.approx(sum(parts))


# Where there is no such plan


def changed(**changes):
    plans = {n: replace(info, **changes.get(n, {})) for n, info in pack().manifest.plans.items()}
    return pack().with_manifest(replace(pack().manifest, plans=plans))


@pytest.mark.parametrize(
    ("base", "others"),
    [(changed(bn={"buffers": ()}), {RIDGE}), (changed(head={"prefix": ""}), set())],
    ids=["no statistics", "no vector of features"],
)
def test_a_pack_that_lacks_a_part_has_no_such_plan(base, others):
    assert {RIDGE, CLOSED} <= {*pack().plan_names} and {RIDGE, CLOSED} & {*base.plan_names} == others
    with pytest.raises(UsageError, match="no plan closed"):
        base.plan(CLOSED)


def test_what_the_plan_is_made_of():
    plan = pack().plan(CLOSED)
    assert {*plan.trainable} == HEAD and {*plan.buffers} == BUFFERS and not plan.stepped and not plan.train
    assert plan.flops_train == pack().plan(RIDGE).flops_train and pack().prefix(CLOSED) == pack().prefix("head")
