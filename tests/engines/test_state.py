"""Contract: what a step changes, what it does not, and that a saved state continues to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sel.engines.base import Hyper
from tests.engines.arrays import SLOTS, assert_same, part
from tests.engines.plans import HYPER, PLANS, every_form, trained_plan


@pytest.mark.sampled(5)
@trained_plan
def test_repeated_steps_lower_the_loss(trainer, batch):
    losses = [trainer.step(batch, HYPER).losses @ batch.weights for _ in range(8)]
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.sampled(5)
@every_form
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
    rebuilt, logits = engine.trainer(pack, plan, before | after), trainer.score(batch.images, batch.labels).logits
    np.testing.assert_array_equal(rebuilt.score(batch.images, batch.labels).logits, logits)
    np.testing.assert_allclose(engine.predictor(pack, before | after)(batch.images), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.sampled(5)
@every_form
def test_the_state_is_weights_statistics_optimizer_and_counts(pack, trainer, plan):
    info, weights = PLANS[plan], pack.weights()
    expected = {name: (weights[name].shape, np.float32) for name in (*info.trainable, *info.buffers)}
    for slot in SLOTS[pack.manifest.optimizer]:
        expected |= {f"{slot}::{name}": (weights[name].shape, np.float32) for name in info.trainable}
    for name, count in info.channels.items():
        expected[f"index::{name}"] = (count,), np.int64
        expected[f"steps::{name}"] = (len(weights[name]),), np.int64
    expected["steps"] = (), np.int64
    assert {name: (value.shape, value.dtype) for name, value in trainer.state().items()} == expected


@pytest.mark.sampled(5)
@every_form
def test_the_callers_weights_are_not_changed(pack, trainer, predict, given, batch):
    expected = predict(batch.images)
    for _ in range(2):
        trainer.step(batch, HYPER)
        trainer.guilt(batch)
    assert_same(given, pack.weights())
    np.testing.assert_array_equal(predict(batch.images), expected)


@pytest.mark.sampled(5)
@every_form
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


@pytest.mark.sampled(5)
@every_form
def test_a_loaded_state_continues_to_the_bit(pack, trainer, other_trainer, batch, plan):
    rng, weights = np.random.default_rng(3), pack.weights()
    batches = [part(batch, 0, count) for count in (4, 12, 7, 3, 9)]
    hypers = [Hyper(1e-3 * (i + 1), gamma=1e-4 * i, bn_momentum=0.1 * i) for i in range(5)]
    trainer.set_channels({n: np.sort(rng.permutation(len(weights[n]))[:k]) for n, k in PLANS[plan].channels.items()})
    for step in (0, 1):
        trainer.step(batches[step], hypers[step])
    other_trainer.step(batches[4], hypers[4])  # whatever it did before is forgotten
    other_trainer.load_state(trainer.state())
    assert_same(other_trainer.state(), trainer.state())
    for step in (2, 3, 4):
        ours, theirs = (t.step(batches[step], hypers[step]) for t in (other_trainer, trainer))
        assert ours.kept == theirs.kept
        np.testing.assert_array_equal(ours.losses, theirs.losses)
    assert_same(other_trainer.state(), trainer.state())
