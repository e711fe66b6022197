"""What every engine promises, on every plan of the built-in pack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edge_sel.arrays import Arrays
from edge_sel.edge.head import extend_head
from edge_sel.engines.base import Batch, Engine, Hyper, Trainer
from edge_sel.engines.torch import TorchEngine
from edge_sel.pack.builtin import builtin_pack
from edge_sel.pack.manifest import OPTIMIZER_STATE
from edge_sel.pack.reader import Pack

PLANS = builtin_pack().manifest.plans
STATE = OPTIMIZER_STATE[builtin_pack().manifest.optimizer]
ALL = tuple(PLANS)
TRAINED = tuple(name for name, plan in PLANS.items() if plan.trainable)
FROZEN = tuple(name for name in TRAINED if PLANS[name].bn_mode == "frozen")
BATCH_NORM = tuple(name for name, plan in PLANS.items() if plan.bn_mode == "batch")
BUDGETED = tuple(name for name, plan in PLANS.items() if plan.channels)
HYPER = Hyper(learning_rate=1e-3)

every_plan = pytest.mark.parametrize("plan", ALL)
trained_plan = pytest.mark.parametrize("plan", TRAINED)
frozen_plan = pytest.mark.parametrize("plan", FROZEN)
budgeted_plan = pytest.mark.parametrize("plan", BUDGETED)


@pytest.fixture(scope="module")
def trainers() -> dict[tuple[str, str], tuple[Trainer, Arrays]]:
    """Trainers made so far, with the state they started in: a session of ONNX Runtime takes longer than most tests."""
    return {}


@pytest.fixture
def trainer(engine: Engine, pack: Pack, plan: str, trainers: dict[tuple[str, str], tuple[Trainer, Arrays]]) -> Trainer:
    """One at its start."""
    if (engine.name, plan) not in trainers:
        made = engine.trainer(pack, plan, pack.weights())
        trainers[engine.name, plan] = made, made.state()
    trainer, start = trainers[engine.name, plan]
    trainer.load_state(start)
    return trainer


def first(batch: Batch, count: int) -> Batch:
    return Batch(*(field[:count].copy() for field in batch))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return np.log(np.exp(wide).sum(1)) - wide[np.arange(len(labels)), labels]


def gradients(trainer: Trainer) -> Arrays:
    """The (masked) gradients of a trainer's only step so far, from the momentum of SGD."""
    return {name: trainer.state()[f"momentum::{name}"] for name in trainer.plan.trainable}


def assert_same(a: Arrays, b: Arrays) -> None:
    """Equal to the bit."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype and value.shape == b[name].shape, name
        assert value.tobytes() == b[name].tobytes(), name


def test_the_plans_cover_every_form():
    assert FROZEN and BUDGETED and set(BATCH_NORM) - set(TRAINED) and set(BATCH_NORM) & set(BUDGETED)


@every_plan
def test_score_is_the_predictors_logits_and_their_cross_entropy(engine, pack, trainer, batch):
    losses, logits = trainer.score(batch.images, batch.labels)
    predicted = engine.predictor(pack, pack.weights())(batch.images)
    assert logits.shape == predicted.shape == (12, 10) and losses.shape == (12,)
    assert logits.dtype == losses.dtype == predicted.dtype == np.float32
    np.testing.assert_allclose(logits, predicted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, cross_entropy(logits, batch.labels), rtol=1e-5, atol=1e-6)
    assert losses.mean() > 0.1, "otherwise these tests would train nothing"


@every_plan
def test_a_step_reports_losses_and_logits_from_before_its_update(engine, pack, trainer, batch, plan):
    still = engine.trainer(pack, plan, pack.weights()).step(batch, Hyper(learning_rate=0.0))
    moved = trainer.step(batch, Hyper(learning_rate=0.1))
    np.testing.assert_array_equal(moved.losses, still.losses)
    np.testing.assert_array_equal(moved.logits, still.logits)
    np.testing.assert_allclose(moved.losses, cross_entropy(moved.logits, batch.labels), rtol=1e-5, atol=1e-6)


@frozen_plan
def test_with_frozen_statistics_a_step_sees_what_score_sees(trainer, batch):
    scored = trainer.score(batch.images, batch.labels)
    stepped = trainer.step(batch, Hyper(learning_rate=0.01))
    np.testing.assert_allclose(stepped.losses, scored.losses, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stepped.logits, scored.logits, rtol=1e-5, atol=1e-5)
    assert np.abs(trainer.score(batch.images, batch.labels).losses - scored.losses).max() > 1e-3


@trained_plan
def test_repeated_steps_lower_the_loss(trainer, batch):
    losses = [trainer.step(batch, HYPER).losses @ batch.weights for _ in range(8)]
    assert losses[-1] < 0.95 * losses[0]


@every_plan
def test_the_plans_tensors_change_and_no_others(engine, pack, trainer, batch, plan):
    before = pack.weights()
    for _ in range(2):
        trainer.step(batch, HYPER)
    after = trainer.weights()
    assert set(after) == {*PLANS[plan].trainable, *PLANS[plan].buffers}
    for name, value in after.items():
        assert value.dtype == np.float32 and np.isfinite(value).all(), name
        assert (value != before[name]).any(), f"{name} did not change"
    # A trainer that starts from the old weights with exactly those replaced computes the same, to the bit.
    rebuilt = engine.trainer(pack, plan, before | after)
    np.testing.assert_array_equal(
        rebuilt.score(batch.images, batch.labels).logits, trainer.score(batch.images, batch.labels).logits
    )
    np.testing.assert_allclose(
        engine.predictor(pack, before | after)(batch.images),
        trainer.score(batch.images, batch.labels).logits,
        rtol=1e-4,
        atol=1e-4,
    )


@every_plan
def test_the_callers_weights_are_not_changed(engine, pack, batch, plan):
    given = pack.weights()
    trainer, predict = engine.trainer(pack, plan, given), engine.predictor(pack, given)
    expected = predict(batch.images)
    for _ in range(2):
        trainer.step(batch, HYPER)
        trainer.guilt(batch)
    assert_same(given, pack.weights())
    np.testing.assert_array_equal(predict(batch.images), expected)


@every_plan
def test_weights_and_state_are_copies(trainer, batch):
    trainer.step(batch, HYPER)
    expected, state = trainer.score(batch.images, batch.labels), trainer.state()
    for value in (*trainer.weights().values(), *trainer.state().values()):
        value[...] = 3
    assert_same(trainer.state(), state)
    np.testing.assert_array_equal(trainer.score(batch.images, batch.labels).logits, expected.logits)
    kept = {name: value.copy() for name, value in state.items()}
    trainer.step(batch, HYPER)
    assert_same(state, kept)


@budgeted_plan
def test_a_budgeted_plan_changes_only_the_chosen_channels(pack, trainer, batch, plan):
    channels = PLANS[plan].channels
    rng = np.random.default_rng(1)
    shuffled = {name: rng.permutation(len(pack.weights()[name])) for name in channels}
    for turn in range(3):  # other channels in every turn, until there are no others
        chosen = {n: np.sort(np.roll(order, -turn * channels[n])[: channels[n]]) for n, order in shuffled.items()}
        before = trainer.state()
        trainer.set_channels(chosen)
        result = trainer.step(batch, HYPER)
        after = trainer.state()
        for name, rows in chosen.items():
            others = np.setdiff1d(np.arange(len(shuffled[name])), rows)
            for key in (name, *(f"{slot}::{name}" for slot in STATE)):
                assert before[key][others].tobytes() == after[key][others].tobytes(), key
                flat = (before[key][rows] != after[key][rows]).reshape(len(rows), -1)
                assert flat.any(1).all(), f"{key}: a chosen channel did not change"
        for name in set(PLANS[plan].trainable) - set(channels):
            assert (before[name] != after[name]).any(), name
        assert result.computed == sum(after[n][: channels.get(n)].size for n in PLANS[plan].trainable)


@budgeted_plan
def test_a_budget_gives_the_gradient_that_the_full_plan_gives_those_channels(engine, pack, trainer, batch, plan):
    whole = engine.trainer(pack, plan.split("-c")[0], pack.weights())
    rng = np.random.default_rng(2)
    weights = pack.weights()
    chosen = {n: np.sort(rng.permutation(len(weights[n]))[:k]) for n, k in PLANS[plan].channels.items()}
    trainer.set_channels(chosen)
    trainer.step(batch, HYPER)
    whole.step(batch, HYPER)
    expected = gradients(whole)
    for name, gradient in gradients(trainer).items():
        rows = chosen.get(name, slice(None))
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(gradient[rows], expected[name][rows], rtol=1e-3, atol=1e-4 * scale, err_msg=name)


@trained_plan
def test_a_huge_gamma_keeps_nothing_and_changes_no_weight(trainer, batch, plan):
    before = trainer.weights()
    result = trainer.step(batch, Hyper(learning_rate=0.1, gamma=1e9))
    after = trainer.weights()
    assert result.kept == 0
    assert_same({n: before[n] for n in PLANS[plan].trainable}, {n: after[n] for n in PLANS[plan].trainable})


@trained_plan
def test_gamma_masks_exactly_the_gradients_below_it(trainer, batch):
    start = trainer.state()
    unmasked = trainer.step(batch, HYPER)
    whole = np.concatenate([g.ravel() for g in gradients(trainer).values()])
    assert unmasked.kept == unmasked.computed, "a negative gamma keeps everything"
    previous = unmasked.kept
    for gamma in (0.0, *np.quantile(np.abs(whole), (0.2, 0.5, 0.8, 0.99)).tolist()):
        trainer.load_state(start)
        result = trainer.step(batch, Hyper(learning_rate=1e-3, gamma=gamma))
        masked = np.concatenate([g.ravel() for g in gradients(trainer).values()])
        assert result.computed == unmasked.computed
        assert result.kept == np.count_nonzero(masked) <= previous
        assert abs(result.kept - np.count_nonzero(np.abs(whole) > gamma)) <= 1  # γ itself is one of the values
        kept = masked != 0
        assert masked[kept].tobytes() == whole[kept].tobytes()
        assert np.abs(whole[~kept]).max(initial=0) <= np.abs(whole[kept]).min() * (1 + 1e-6)
        previous = result.kept


@trained_plan
def test_zero_sample_weights_change_no_weight(trainer, batch, plan):
    before = trainer.weights()
    trainer.step(batch._replace(weights=np.zeros(12, np.float32)), Hyper(learning_rate=0.1))
    after = trainer.weights()
    assert_same({n: before[n] for n in PLANS[plan].trainable}, {n: after[n] for n in PLANS[plan].trainable})


@trained_plan
def test_a_sample_of_weight_zero_has_no_influence_on_the_gradient(trainer, batch, plan):
    start = trainer.state()
    weights = batch.weights.copy()
    weights[5] = 0
    trainer.step(batch._replace(weights=weights), HYPER)
    expected = trainer.state()
    labels, images = batch.labels.copy(), batch.images.copy()
    labels[5] = (labels[5] + 1) % 10
    if plan in FROZEN:  # otherwise the image belongs to the batch's statistics
        images[5] = -images[5]
    trainer.load_state(start)
    trainer.step(Batch(images, labels, weights), HYPER)
    for name, value in trainer.state().items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7 * scale, err_msg=name)


@trained_plan
def test_the_gradient_is_linear_in_the_sample_weights(trainer, batch):
    start = trainer.state()
    parts = []
    for weights in (batch.weights, batch.weights * 4, batch.weights * (np.arange(12) < 6)):
        trainer.load_state(start)
        trainer.step(batch._replace(weights=weights.astype(np.float32)), HYPER)
        parts.append(gradients(trainer))
    trainer.load_state(start)
    trainer.step(batch._replace(weights=(batch.weights * (np.arange(12) >= 6)).astype(np.float32)), HYPER)
    rest = gradients(trainer)
    once, fourfold, half = parts
    largest = max(np.abs(g).max() for g in once.values())
    for name, gradient in once.items():
        scale = max(np.abs(gradient).max(), 1e-4 * largest)
        np.testing.assert_allclose(fourfold[name], 4 * gradient, rtol=1e-4, atol=1e-5 * scale, err_msg=name)
        np.testing.assert_allclose(half[name] + rest[name], gradient, rtol=1e-3, atol=1e-4 * scale, err_msg=name)


@every_plan
def test_any_batch_size_and_a_new_one_every_step(engine, pack, trainer, batch, plan):
    scored = trainer.score(batch.images, batch.labels)
    for count in (5, 1, 12, 2, 2, 7):
        result = trainer.step(first(batch, count), Hyper(learning_rate=0.0))
        assert result.losses.shape == (count,) and result.logits.shape == (count, 10)
        assert np.isfinite(result.losses).all()
        if PLANS[plan].bn_mode == "frozen":
            np.testing.assert_allclose(result.losses, scored.losses[:count], rtol=1e-4, atol=1e-5)
        assert trainer.score(batch.images[:count], batch.labels[:count]).losses.shape == (count,)
    assert all(np.isfinite(value).all() for value in trainer.state().values())
    predict = engine.predictor(pack, pack.weights())
    for count in (3, 1, 12):
        assert predict(batch.images[:count]).shape == (count, 10)


@every_plan
def test_a_loaded_state_continues_to_the_bit(engine, pack, trainer, batch, plan):
    rng = np.random.default_rng(3)
    batches = [first(batch, count) for count in (4, 12, 7, 3, 9)]
    hypers = [Hyper(1e-3 * (i + 1), gamma=1e-4 * i, weight_decay=0.01 * i, bn_momentum=0.1 * i) for i in range(5)]
    trainer.set_channels(
        {
            n: np.sort(rng.permutation(len(pack.weights()[n]))[:k]).astype(np.int64)
            for n, k in PLANS[plan].channels.items()
        }
    )
    for step in (0, 1):
        trainer.step(batches[step], hypers[step])
    fresh = engine.trainer(pack, plan, pack.weights())
    fresh.step(batches[4], hypers[4])  # whatever it did before is forgotten
    fresh.load_state(trainer.state())
    assert_same(fresh.state(), trainer.state())
    for step in (2, 3, 4):
        ours, theirs = fresh.step(batches[step], hypers[step]), trainer.step(batches[step], hypers[step])
        assert ours.kept == theirs.kept
        np.testing.assert_array_equal(ours.losses, theirs.losses)
    assert_same(fresh.state(), trainer.state())


@every_plan
def test_guilt_is_a_norm_per_channel_and_changes_nothing(pack, trainer, batch, plan):
    trainer.step(batch, HYPER)
    before, scored = trainer.state(), trainer.score(batch.images, batch.labels)
    guilt = trainer.guilt(batch)
    assert_same(trainer.state(), before)
    np.testing.assert_array_equal(trainer.score(batch.images, batch.labels).logits, scored.logits)
    weights = pack.weights()
    convolutions = {n for n in PLANS[plan].trainable if weights[n].ndim == 4} if not PLANS[plan].channels else set()
    assert set(guilt) == convolutions
    # ... and the step after it is the step that would have been.
    other = {name: value.copy() for name, value in before.items()}
    trainer.step(batch, HYPER)
    after = trainer.state()
    trainer.load_state(other)
    trainer.step(batch, HYPER)
    assert_same(trainer.state(), after)
    for name, norms in guilt.items():
        assert norms.shape == (len(weights[name]),) and (norms >= 0).all() and norms.any()
        gradient = after[f"momentum::{name}"] - np.float32(HYPER.momentum) * before[f"momentum::{name}"]
        expected = np.linalg.norm(gradient.reshape(len(norms), -1), axis=1)
        np.testing.assert_allclose(norms, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.parametrize("plan", BATCH_NORM)
def test_bn_momentum_one_takes_over_the_batchs_statistics(engine, pack, trainer, batch, plan):
    model = TorchEngine(1, device="cpu").model(pack, pack.weights()).train()
    seen: Arrays = {}

    def remember(name):
        def hook(module, inputs):
            x = inputs[0].detach()
            seen[f"{name}.running_mean"] = x.mean((0, 2, 3)).numpy()
            seen[f"{name}.running_var"] = x.var((0, 2, 3), unbiased=True).numpy()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(remember(name))
    with torch.no_grad():
        model(torch.from_numpy(batch.images))
    trainer.step(batch, Hyper(learning_rate=0.0, bn_momentum=1.0))
    after = trainer.weights()
    assert set(seen) == set(PLANS[plan].buffers)
    for name, expected in seen.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=name)
    before = pack.weights()
    assert_same({n: after[n] for n in PLANS[plan].trainable}, {n: before[n] for n in PLANS[plan].trainable})


@pytest.mark.parametrize("plan", BATCH_NORM)
def test_bn_momentum_mixes_linearly_and_zero_changes_nothing(pack, trainer, batch, plan):
    taken = {}
    start = trainer.state()
    for momentum in (0.0, 0.25, 1.0):
        trainer.load_state(start)
        trainer.step(batch, Hyper(learning_rate=0.0, bn_momentum=momentum))
        taken[momentum] = trainer.weights()
    before = pack.weights()
    for name in PLANS[plan].buffers:
        np.testing.assert_array_equal(taken[0.0][name], before[name])
        mixed = 0.75 * before[name] + 0.25 * taken[1.0][name]
        np.testing.assert_allclose(taken[0.25][name], mixed, rtol=1e-5, atol=1e-6)


@every_plan
def test_an_extended_head_learns_new_classes(engine, pack, batch, plan):
    head = pack.manifest.model.head
    weights = extend_head(pack.weights(), head, 13)
    labels = np.where(np.arange(12) < 6, 10 + np.arange(12) % 3, batch.labels)
    trainer = engine.trainer(pack, plan, weights)
    scored = trainer.score(batch.images, labels)
    assert scored.logits.shape == (12, 13)
    np.testing.assert_allclose(scored.losses, cross_entropy(scored.logits, labels), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(engine.predictor(pack, weights)(batch.images), scored.logits, rtol=1e-4, atol=1e-4)
    results = [trainer.step(Batch(batch.images, labels, np.ones(12, np.float32)), HYPER) for _ in range(8)]
    assert all(result.logits.shape == (12, 13) for result in results)
    if PLANS[plan].trainable:
        assert results[-1].losses[:6].mean() < 0.95 * results[0].losses[:6].mean()
        moved = trainer.weights()
        for name in head:
            assert moved[name].shape == weights[name].shape
            assert (moved[name][10:] != weights[name][10:]).reshape(3, -1).any(1).all(), name
        rebuilt = engine.predictor(pack, weights | moved)(batch.images)
        np.testing.assert_allclose(rebuilt, trainer.score(batch.images, labels).logits, rtol=1e-4, atol=1e-4)
    state = trainer.state()
    fresh = engine.trainer(pack, plan, weights)
    fresh.load_state(state)
    assert_same(fresh.state(), state)


@every_plan
def test_both_engines_keep_the_same_state(pack, engine, trainer, plan):
    other = TorchEngine(1, device="cpu").trainer(pack, plan, pack.weights())
    ours, theirs = trainer.state(), other.state()
    assert {n: (v.shape, v.dtype) for n, v in ours.items()} == {n: (v.shape, v.dtype) for n, v in theirs.items()}
