"""What a session says it did is what the engine was asked to do, and gated samples leave the batch."""

from itertools import pairwise

import numpy as np
import pytest

from edge_sel.edge.progress import Progress
from edge_sel.edge.train.gate import Gate, GateChoice
from edge_sel.edge.train.work import STATISTICS_IMAGES
from edge_sel.runs.checkpoint import load_checkpoint, unflatten
from edge_sel.sel.guilt import nominal_flops
from tests.edge.recording import Recording
from tests.edge.sessions import StopAt, Tape, digits, of_counts, pack, session, without_anchors

PLANS = ["head", "affine", "last", "last-c25", "first", "full"]


def run(out, **given):
    engine = Recording()
    return session(out, engine=engine, **given).run(), engine


def of_plan(result, plan):
    return [epoch for epoch in result["epochs"] if epoch["plan"] == plan]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("gate", "rate"), [("sundew", 0.3), ("random", 0.3), ("sundew", 0.05), ("off", 0.3)])
def test_gated_samples_leave_the_batch(gate, rate, tmp_path):
    result, engine = run(
        tmp_path, images=digits(400), plan="affine", gate=gate, target_rate=rate, curriculum="off", epochs=4
    )
    sizes = engine.sizes("step", "affine")
    trained = sum(epoch["trained"] for epoch in result["epochs"])
    passed = sum(epoch["active_rate"] * epoch["candidates"] for epoch in result["epochs"])
    assert sum(sizes) == trained == len(engine.labels("step", "affine"))
    assert set(sizes[:-1]) == {16} and 8 <= sizes[-1] <= 16  # full ones, and what was left at the end
    assert passed - 8 < trained <= round(passed)
    assert all(epoch["candidates"] == result["images"]["train"] for epoch in result["epochs"])
    expected = 1.0 if gate == "off" else rate
    assert passed / (4 * result["images"]["train"]) == pytest.approx(expected, abs=0.03)


def test_images_that_wait_for_a_full_batch_are_carried_over(tmp_path):
    """Each image that passed is trained on once, in the order in which it passed."""
    result, engine = run(
        tmp_path, images=digits(120), plan="head", gate="off", curriculum="off", epochs=3, batch_size=32
    )
    per_epoch = result["images"]["train"]
    assert per_epoch % 32
    images = [image.tobytes() for _, kind, batch, _ in engine.calls if kind == "step" for image in batch]
    assert len(images) == 3 * per_epoch
    for epoch in range(3):
        assert len(set(images[epoch * per_epoch : (epoch + 1) * per_epoch])) == per_epoch
    trained = [epoch["trained"] for epoch in result["epochs"]]
    assert trained[0] == per_epoch // 32 * 32 and sum(trained) == 3 * per_epoch


def test_images_that_wait_at_the_end_of_a_training_stage_are_let_go(tmp_path):
    """Six full batches of 16 from 100 images; the last 4 are too few for a batch, and are let go."""
    result, engine = run(tmp_path, plan="head,affine", gate="off", curriculum="off", epochs=1)
    assert result["images"]["train"] == 100
    assert engine.sizes("step", "head") == engine.sizes("step", "affine") == [16] * 6


def test_fewer_images_than_a_batch_are_collected_over_epochs(tmp_path):
    """They are collected over the epochs, and the last batch is as large as it can be."""
    images = of_counts(12, 12)
    result, engine = run(
        tmp_path, images=images, plan="bn,affine", gate="off", curriculum="off", epochs=3, batch_size=64
    )
    assert engine.sizes("step", "bn") == [16]
    assert engine.sizes("step", "affine") == [60]
    assert [epoch["trained"] for epoch in of_plan(result, "affine")] == [0, 0, 60]
    assert of_plan(result, "affine")[0]["train_acc"] is None


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("plan", "curriculum"), [*((plan, "off") for plan in PLANS), ("head", "cumulative")])
def test_executed_and_nominal_flops_of_an_epoch_are_those_of_what_the_engine_was_asked(plan, curriculum, tmp_path):
    engine, backbone_images = Recording(), [0]

    def note(event):
        if event["event"] == "epoch":
            backbone_images.append(sum(engine.sizes("backbone", plan)))

    given = {"plan": plan, "curriculum": curriculum, "target_rate": 0.4}
    result = session(tmp_path, engine=engine, listener=note, **given).run()
    info, parameters = pack().plan(plan), pack().manifest.model.parameters
    steps = list(zip(engine.sizes("step", plan), (kept for at, kept in engine.kept if at == plan), strict=True))
    forwards = [len(engine.labels("score", plan)), *[0] * len(result["epochs"])]
    assert forwards[0] == (0 if curriculum == "off" else result["images"]["train"])
    dense = pack().plan(plan.split("-c")[0])
    probes = sum(engine.sizes("guilt", dense.name)) * dense.flops_train / len(result["epochs"])
    assert bool(probes) == bool(info.channels)
    backbone = pack().backbone(plan)
    assert bool(backbone) == bool(backbone_images[-1])
    computed = [after - before for before, after in pairwise(backbone_images)]
    for epoch, scored, images in zip(result["epochs"], forwards[:-1], computed, strict=True):
        sizes, kept = [], 0
        while sum(sizes) < epoch["trained"]:
            size, passed = steps.pop(0)
            sizes, kept = [*sizes, size], kept + passed
        assert sum(sizes) == epoch["trained"]
        executed = epoch["trained"] * info.flops_train + scored * info.flops_forward + probes
        executed += images * backbone.flops if backbone else 0
        assert epoch["executed_flops_t"] * 1e12 == pytest.approx(executed)
        assert epoch["train_flops_t"] * 1e12 == pytest.approx(epoch["trained"] * info.flops_train + probes)
        assert 0 <= epoch["gradient_kept"] <= 1 and 0 <= epoch["sparsity"] <= 1
        assert epoch["sparsity"] == pytest.approx(1 - (kept / (parameters * len(sizes)) if sizes else 0))
        nominal = nominal_flops(parameters, epoch["trained"], epoch["sparsity"])
        assert epoch["nominal_flops_t"] * 1e12 == pytest.approx(nominal)
    assert not steps and kept > 0
    assert 0 < info.flops_forward <= info.flops_train


@pytest.mark.parametrize("curriculum", ["off", "cumulative"])
def test_an_engine_that_cuts_nothing_computes_the_backbone_in_its_steps(curriculum, tmp_path):
    """Then it is a part of what training takes, but scoring is not."""
    from edge_sel.engines.torch import TorchEngine

    engine = TorchEngine(threads=1, device="cpu")
    (epoch,) = session(tmp_path, engine=engine, plan="head", epochs=1, gate="off", curriculum=curriculum).run()[
        "epochs"
    ]
    step = pack().plan("head").flops_train + pack().backbone("head").flops
    assert epoch["train_flops_t"] * 1e12 == pytest.approx(epoch["trained"] * step)
    assert (epoch["executed_flops_t"] > epoch["train_flops_t"]) == (curriculum != "off")


def test_statistics_update_no_weight(tmp_path):
    result, engine = run(tmp_path, plan="bn", base=without_anchors())
    (epoch,) = result["epochs"]
    assert epoch["sparsity"] == 1 and epoch["nominal_flops_t"] == 0 and epoch["gradient_kept"] == 0
    info = pack().plan("bn")
    assert epoch["executed_flops_t"] * 1e12 == pytest.approx(sum(engine.sizes("step", "bn")) * info.flops_train)
    assert epoch["train_flops_t"] == epoch["executed_flops_t"]
    assert set(engine.sizes("step", "bn")) == {16}
    rates = [hyper.bn_momentum for hyper in engine.hypers]
    assert rates == [1 / n for n in range(1, len(rates) + 1)]  # a cumulative mean
    assert all(hyper.learning_rate == 0 for hyper in engine.hypers)


def test_statistics_take_some_images_and_remember_them(tmp_path):
    """At most 256; what the pass sees of their losses is what the gate begins with."""
    twice = digits(500).subset(np.tile(np.arange(500), 2))
    given = {"plan": "bn", "base": without_anchors()}
    result, engine = run(tmp_path, images=twice, checkpoint_every_s=0.1, **given)
    (epoch,) = result["epochs"]
    assert result["images"]["train"] > STATISTICS_IMAGES == epoch["candidates"] == sum(engine.sizes("step", "bn"))
    assert not engine.sizes("score", "bn")
    progress = unflatten(Progress, *load_checkpoint(tmp_path / "checkpoints")[:2])
    seen = progress.memory.hardness.seen > 0
    assert seen.sum() == STATISTICS_IMAGES == progress.memory.hardness.seen.sum()
    assert progress.memory.hardness.last_loss[seen].mean() == pytest.approx(epoch["train_loss"])
    assert progress.memory.hardness.last_correct[seen].mean() == pytest.approx(epoch["train_acc"])
    assert (progress.memory.entropy[seen] > 0).all() and not progress.memory.entropy[~seen].any()


@pytest.mark.parametrize("resumed", [False, True])
def test_the_gates_weights_stay_with_their_images(resumed, tmp_path, monkeypatch):
    """Through the queue to the loss, over batches and epochs, and through a checkpoint."""

    def choose(gate, state, ages, memory, entropy, candidates, u):
        mask = candidates % 3 > 0
        weights = np.where(mask, one.split.training.labels[candidates] + 1, 0)
        return GateChoice(mask, weights.astype(np.float32), state, ages)

    monkeypatch.setattr(Gate, "choose", choose)
    engine, given = Recording(), {"plan": "head", "curriculum": "off", "epochs": 3}
    one = session(tmp_path, engine=engine, should_stop=StopAt(6 if resumed else 0), **given)
    one.run()
    if resumed:
        session(tmp_path, engine=engine, **given, resume=True).run()
    trained = np.array(engine.labels("step", "head"))
    assert len(trained) > 150 and len(set(trained)) == 10
    assert np.array_equal(np.concatenate(engine.loss_weights), trained + 1)


def test_smaller_plans_execute_less():
    plans = pack().manifest.plans
    assert plans["bn"].flops_train < plans["affine"].flops_train < plans["full"].flops_train
    assert plans["last-c25"].flops_train < plans["last"].flops_train
    assert plans["head"].flops_train < plans["last"].flops_train < plans["last2"].flops_train


def test_a_learning_rate_follows_the_loss_and_anneals(tmp_path):
    base = 1e-3
    _, engine = run(tmp_path, plan="affine", gate="off", curriculum="off", epochs=4, learning_rate=base)
    rates = [hyper.learning_rate for hyper in engine.hypers]
    assert max(rates) <= 3 * base and min(rates) >= 0
    assert rates[-1] < 0.05 * max(rates)


def test_the_guilt_threshold_is_the_packs_unless_given_and_decays_with_the_curriculum(tmp_path):
    """The pack's by default; none is smaller than what the schedule's last stage leaves of it; 0 updates all."""
    gamma = pack().manifest.calibration.gamma
    for given, expected in ((None, gamma), (2 * gamma, 2 * gamma)):
        _, engine = run(tmp_path / str(given), plan="head", epochs=5, gate="off", gamma=given)
        used = [hyper.gamma for hyper in engine.hypers]
        assert used[0] == expected and 0.7 * expected <= min(used) <= expected
    result, engine = run(tmp_path / "all", plan="head", gate="off", curriculum="off", gamma=0.0)
    assert all(hyper.gamma < 0 for hyper in engine.hypers)
    assert all(epoch["gradient_kept"] == 1 for epoch in result["epochs"])


def test_channels_are_probed_once_an_epoch_and_not_at_random(tmp_path):
    _, engine = run(tmp_path, plan="last-c25", gate="off", epochs=3)
    assert len(engine.sizes("guilt", "last")) == 2 * 3 and engine.sizes("step", "last") == []


@pytest.mark.parametrize("curriculum", ["off", "cumulative", "staged"])
def test_a_cumulative_curriculum_offers_more_each_epoch_and_a_staged_one_a_part(curriculum, tmp_path):
    tape = Tape()
    result, engine = run(
        tmp_path, images=digits(300), plan="bn,head", epochs=5, gate="off", curriculum=curriculum, listener=tape
    )
    epochs = [epoch for epoch in tape.of("epoch") if epoch["plan"] == "head"]
    offered = [epoch["candidates"] for epoch in epochs]
    train = result["images"]["train"]
    assert sum(engine.sizes("score", "head")) == (0 if curriculum == "off" else train), "only a curriculum needs it"
    if curriculum == "off":
        assert offered == [train] * 5
    elif curriculum == "cumulative":
        assert offered == sorted(offered) and offered[0] < train / 2
    else:
        assert max(offered) < train / 2


def test_easy_images_come_first(tmp_path):
    """The first curriculum stage offers, of every class, those with the lowest loss at the start of the training stage."""
    engine = Recording()
    session(
        tmp_path, images=digits(300), plan="bn,head", epochs=5, gate="off", curriculum="staged", engine=engine
    ).run()
    scored = [(images, labels) for plan, kind, images, labels in engine.calls if (plan, kind) == ("head", "score")]
    first = next(i for i, call in enumerate(engine.calls) if call[:2] == ("head", "step"))
    trainer = engine._engine.trainer(pack(), "head", _after_bn(tmp_path))
    losses = {}
    for features, labels in scored:
        for row, loss in zip(features, trainer.score(features, labels).losses, strict=True):
            losses[row.tobytes()] = float(loss)
    batch = engine.calls[first][2]
    assert np.mean([losses[row.tobytes()] for row in batch]) < 0.3 * np.mean(list(losses.values()))


def _after_bn(out):
    """The weights that the second training stage began with: those of a run of the first alone."""
    from safetensors.numpy import load_file

    session(out / "bn", images=digits(300), plan="bn").run()
    return load_file(out / "bn" / "weights.safetensors")


@pytest.mark.parametrize("size", [1, 2, 500])
def test_any_batch_size(size, tmp_path):
    result, engine = run(
        tmp_path, images=of_counts(6, 6, 6), plan="bn,last-c25", batch_size=size, gate="off", curriculum="off"
    )
    assert result["stopped"] == "done"
    assert sum(engine.sizes("step", "last-c25")) == 2 * result["images"]["train"]
