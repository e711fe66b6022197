"""The head in closed form, in a session: one pass, statistics where they help, resumable, refused where it cannot be."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_sel.cli.main import cli
from edge_sel.data.builtin import load_digits
from edge_sel.data.dataset import ImageSet
from edge_sel.edge.governor import Governor
from edge_sel.edge.limits import Deadline
from edge_sel.edge.progress import Progress
from edge_sel.edge.train import closed_form_stage
from edge_sel.edge.train.schedule import PlannedStage
from edge_sel.edge.train.work import probed_images, stage_work
from edge_sel.errors import UsageError
from edge_sel.pack.plan_kinds import CLOSED, RIDGE
from edge_sel.runs.checkpoint import load_checkpoint, unflatten
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


def parameters_of_head():
    return sum(pack().weights()[name].size for name in HEAD)


def changed_weights(folder):
    before = pack().weights()
    return {name for name, value in load_file(folder / "weights.safetensors").items()
            if not np.array_equal(value, before[name])}  # fmt: skip


def clean(count):
    """Digits as the server's: nothing is new in them."""
    images = load_digits("pretrain")
    return images.subset(np.random.default_rng(0).permutation(len(images))[:count])


# What it does


@pytest.mark.slow
def test_it_beats_three_epochs_of_steps(tmp_path):
    test = digits(390, "test")
    closed = session(tmp_path / "closed_form", images=digits(400), test=test, plan=CLOSED, **GIVEN).run()
    steps = session(tmp_path / "head", images=digits(400), test=test, plan="bn,head", epochs=3, **GIVEN).run()
    assert closed["accuracy"]["after"] > steps["accuracy"]["after"] + 0.02 and closed["shipped"]
    assert closed["accuracy"]["after"] > 0.98


def test_where_pictures_have_changed_it_takes_new_statistics_too(tmp_path):
    result = session(tmp_path, images=digits(400), plan=CLOSED, **GIVEN).run()
    (epoch,) = result["epochs"]
    assert epoch["statistics"] == "new" and epoch["stage_name"] == "closed form"
    assert changed_weights(tmp_path) == HEAD | BUFFERS


def test_where_they_have_not_it_keeps_those_of_the_network(tmp_path):
    """And ships nothing that is worse."""
    engine = Recording()
    result = session(tmp_path, images=clean(300), plan=CLOSED, engine=engine, base=without_anchors(), **GIVEN).run()
    (epoch,) = result["epochs"]
    assert epoch["statistics"] == "old" and changed_weights(tmp_path) <= HEAD
    assert result["after"]["validation"]["accuracy"] >= result["before"]["validation"]["accuracy"]
    train, tried = result["images"]["train"], probed_images(result["images"]["train"])
    assert sum(engine.sizes("step", "bn")) == tried // 16 * 16, "a trial of some images, and no more"
    once = train + tried // 16 * 16 + result["images"]["validation"]
    assert len(engine.images("backbone")) <= once + 16, "each image is looked at once, but for the trial"


def test_only_the_head_changes_and_only_in_one_pass(tmp_path):
    engine = Recording()
    result = session(tmp_path, plan=RIDGE, engine=engine, gate="sundew", target_rate=0.1, epochs=5, **GIVEN).run()
    (epoch,) = result["epochs"]
    train, held = result["images"]["train"], result["images"]["validation"]
    assert train == epoch["trained"] == epoch["candidates"] and epoch["statistics"] == "old"
    assert len(engine.images("backbone")) == train + held, "validation images are looked at once too"
    assert not engine.sizes("step", RIDGE) and not engine.sizes("step", "bn")
    assert epoch["sparsity"] == pytest.approx(1 - parameters_of_head() / pack().manifest.model.parameters)
    plan = pack().plan(RIDGE)
    executed = train * (plan.flops_train + pack().backbone(RIDGE).flops)
    assert epoch["executed_flops_t"] * 1e12 == pytest.approx(executed, rel=0.01) and epoch["train_flops_t"] == 0


def test_it_tells_which_head_it_chose(tmp_path):
    (epoch,) = session(tmp_path, plan=RIDGE, **GIVEN).run()["epochs"]
    assert epoch["head"].keys() == {"prior", "ridge", "old", "features"} and epoch["head"]["features"] in (64, 192)


@pytest.mark.parametrize("plan", [CLOSED, RIDGE])
def test_a_later_gate_knows_every_image_by_its_left_out_loss(plan, tmp_path):
    result = session(tmp_path, plan=plan, checkpoint_every_s=0.1, **GIVEN).run()
    memory = unflatten(Progress, *load_checkpoint(tmp_path / "checkpoints")[:2]).memory
    (epoch,) = result["epochs"]
    assert (memory.hardness.seen == 1).all() and (memory.entropy > 0).all()
    assert (
        memory.hardness.r.mean()
        == pytest.approx(epoch["train_loss"], rel=1e-4)
        == pytest.approx(memory.last_loss, rel=1e-4)
    )
    assert memory.hardness.last_correct.mean() == pytest.approx(epoch["train_acc"])


def test_a_class_of_the_device_gets_a_row(tmp_path):
    plain = digits(400)
    labels = np.where(plain.labels == 7, 10, plain.labels)
    keep = np.isin(labels, [0, 1, 2, 3, 10])
    images = ImageSet.from_arrays(plain.read(np.flatnonzero(keep)), labels[keep], (*plain.classes, "odd"))
    result = session(tmp_path, images=images, plan=CLOSED, **GIVEN).run()
    assert result["after"]["validation"]["classes"]["odd"]["accuracy"] > 0.8 and result["shipped"]


@pytest.mark.parametrize(
    "place",
    [pytest.param({}, marks=pytest.mark.slow), FILE, pytest.param(NOWHERE, marks=pytest.mark.slow)],
    ids=["memory", "file", "nowhere"],
)
@some_or_all
def test_stopped_or_killed_anywhere_it_ends_the_same(place, apart, tmp_path):
    given = {**GIVEN, **place, "batch_size": 16, "plan": "closed_form,last", "epochs": 1, "gate": "off"}
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
    assert result["after"]["validation"]["loss"] <= result["before"]["validation"]["loss"]


def test_joules_of_the_fit_have_a_phase_of_their_own(tmp_path, monkeypatch):
    world = World()

    def slow(*given, **more):
        world.spend(7.0)
        return fit_head(*given, **more)

    monkeypatch.setattr(closed_form_stage, "fit_head", slow)
    (epoch,) = governed(tmp_path, world, plan=RIDGE, **GIVEN)["epochs"]
    assert epoch["phases"]["fit"]["total_j"] == pytest.approx(70.0)


def test_labels_of_chance_are_not_believed(tmp_path):
    plain = digits(200)
    labels = np.random.default_rng(0).permutation(plain.labels)
    images = ImageSet.from_arrays(plain.read(np.arange(200)), labels, plain.classes)
    result = session(tmp_path, images=images, plan=CLOSED, **GIVEN).run()
    assert result["epochs"][0]["train_loss"] > 2.0, "leave-one-out does not believe that it has learnt"
    assert not result["shipped"]


def test_a_head_that_is_left_alone_counts_as_unchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(closed_form_stage, "fit_head", partial(fit_head, ridges=()))
    (epoch,) = session(tmp_path, plan=RIDGE, **GIVEN).run()["epochs"]
    assert epoch["sparsity"] == 1.0


# Undone


def ruinous(*given, **more):
    fit = fit_head(*given, **more)
    return fit._replace(weight=-fit.weight, bias=fit.bias, left_out=-fit.left_out)


def test_it_is_undone_where_it_does_harm(tmp_path, monkeypatch):
    """What follows begins with the model as it was."""
    monkeypatch.setattr(closed_form_stage, "fit_head", ruinous)
    tape = Tape()
    result = session(tmp_path, plan=CLOSED, listener=tape, **GIVEN).run()
    assert [event["plan"] for event in tape.of("reverted")] == [CLOSED] and not result["shipped"]
    weights, before = load_file(tmp_path / "weights.safetensors"), pack().weights()
    assert all(np.array_equal(weights[name], before[name]) for name in before)
    followed = session(tmp_path / "followed", plan="closed_form,head", **GIVEN).run()
    assert followed["epochs"][1]["best_loss"] == followed["before"]["validation"]["loss"]


# The work ahead


@PLACES
def test_the_work_left_of_the_pass_is_exact(place, tmp_path, monkeypatch):
    """100 images in batches of 16."""
    lefts = []
    monkeypatch.setattr(Governor, "at_boundary", lambda self, left: lefts.append(left))
    governed(tmp_path, World(), Deadline(1e9), **{**GIVEN, **place, "batch_size": 16, "plan": RIDGE})
    image = pack().plan(RIDGE).flops_train + pack().backbone(RIDGE).flops
    assert lefts[1:] == pytest.approx([*((100 - 16 * n) * image for n in range(1, 7)), 0.0])


def test_the_work_of_a_trial_is_foreseen():
    bn, backbone = pack().plan("bn"), pack().backbone(CLOSED)
    for count, tried in ((20, 20), (100, 32), (1000, 125), (10_000, 256)):
        closed, ridge = (stage_work(pack(), PlannedStage(plan, 1), count, 0.5, scores=True) for plan in (CLOSED, RIDGE))
        assert (
            closed - ridge == pytest.approx(tried * (bn.flops_train + backbone.flops)) and probed_images(count) == tried
        )


# Where there is no such plan


def changed(**changes):
    plans = {n: replace(info, **changes.get(n, {})) for n, info in pack().manifest.plans.items()}
    return pack().with_manifest(replace(pack().manifest, plans=plans))


@pytest.mark.parametrize(
    ("base", "others"),
    [(changed(bn={"buffers": ()}), {RIDGE}), (changed(head={"backbone": ""}), set())],
    ids=["no statistics", "no vector of features"],
)
def test_a_pack_that_lacks_a_part_has_no_such_plan(base, others):
    assert {RIDGE, CLOSED} <= {*pack().plan_names} and {RIDGE, CLOSED} & {*base.plan_names} == others
    with pytest.raises(UsageError, match="no plan closed_form"):
        base.plan(CLOSED)


def test_what_the_plan_is_made_of():
    plan = pack().plan(CLOSED)
    assert {*plan.trainable} == HEAD and {*plan.buffers} == BUFFERS and not plan.kind.stepped and not plan.train
    assert plan.flops_train == pack().plan(RIDGE).flops_train and pack().backbone(CLOSED) == pack().backbone("head")


def test_a_pack_whose_head_has_no_vector_of_features_has_no_such_plan():
    plans = {name: replace(info, backbone="") for name, info in pack().manifest.plans.items()}
    without = pack().with_manifest(replace(pack().manifest, plans=plans))
    assert RIDGE in pack().plan_names and RIDGE not in without.plan_names
    with pytest.raises(UsageError, match="no plan ridge"):
        without.plan(RIDGE)


@pytest.mark.parametrize("plans", ["bn,ridge", "closed_form", "closed_form,full"])
def test_the_torch_engine_is_refused_before_anything_is_read(plans, tmp_path):
    with pytest.raises(UsageError, match="needs features") as error:
        arguments = ["finetune", "--plan", plans, "--engine", "torch", "--out", str(tmp_path / "run")]
        cli.main(arguments, standalone_mode=False)
    assert "\n" not in str(error.value) and plans in str(error.value.where) and "--engine ort" in error.value.fix
    assert not (tmp_path / "run").exists()


# What the server knew


def priors_of(tmp_path, monkeypatch, **given):
    """The prior of each fit."""
    seen = []

    def spy(*samples, **more):
        seen.append(more["prior"])
        return fit_head(*samples, **more)

    monkeypatch.setattr(closed_form_stage, "fit_head", spy)
    session(tmp_path, **{**GIVEN, **given}).run()
    return seen


def test_the_servers_sums_are_used_with_the_servers_body(tmp_path, monkeypatch):
    assert priors_of(tmp_path, monkeypatch, plan="bn,ridge")[-1] is not None, "new statistics may go with them"


def test_sums_say_nothing_of_the_features_of_another_body(tmp_path, monkeypatch):
    given = {"plan": "full,ridge", "epochs": 1, "learning_rate": 0.01, "gate": "off"}
    assert priors_of(tmp_path, monkeypatch, **given)[-1] is None
