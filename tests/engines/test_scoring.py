"""Contract: what an engine computes forwards, and what of it an update leaves alone."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sel.edge.progress import extend_head
from edge_sel.engines.base import Batch, Hyper
from tests.engines.arrays import assert_same, cross_entropy, part
from tests.engines.plans import FORMS, FROZEN, HYPER, PLANS, TRAINED, every_form, frozen_plan


def test_every_form_of_a_plan_is_among_those_of_the_contract():
    def form(name: str) -> tuple[bool, ...]:
        plan = PLANS[name]
        return bool(plan.trainable), plan.bn_mode == "batch", bool(plan.channels), bool(plan.backbone)

    assert {form(name) for name in FORMS} == {form(name) for name in PLANS}
    assert len({form(name) for name in FORMS}) == 6


@pytest.mark.sampled(5)
@every_form
def test_scores_are_the_predictors_logits_and_their_cross_entropy(trainer, predict, batch):
    losses, logits = trainer.score(batch.images, batch.labels)
    predicted = predict(batch.images)
    assert logits.shape == predicted.shape == (12, 10) and losses.shape == (12,)
    assert logits.dtype == losses.dtype == predicted.dtype == np.float32
    np.testing.assert_allclose(logits, predicted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, cross_entropy(logits, batch.labels), rtol=1e-5, atol=1e-6)
    assert losses.mean() > 0.1, "otherwise these tests would train nothing"


@pytest.mark.sampled(5)
@every_form
def test_a_step_reports_losses_and_logits_from_before_its_update(trainer, other_trainer, batch):
    still = other_trainer.step(batch, Hyper(learning_rate=0.0))
    moved = trainer.step(batch, Hyper(learning_rate=0.1))
    np.testing.assert_array_equal(moved.losses, still.losses)
    np.testing.assert_array_equal(moved.logits, still.logits)
    np.testing.assert_allclose(moved.losses, cross_entropy(moved.logits, batch.labels), rtol=1e-5, atol=1e-6)


@pytest.mark.sampled(5)
@frozen_plan
def test_with_frozen_statistics_a_step_sees_what_score_sees(trainer, batch):
    scored = trainer.score(batch.images, batch.labels)
    stepped = trainer.step(batch, Hyper(learning_rate=0.01))
    np.testing.assert_allclose(stepped.losses, scored.losses, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stepped.logits, scored.logits, rtol=1e-5, atol=1e-5)
    assert np.abs(trainer.score(batch.images, batch.labels).losses - scored.losses).max() > 1e-3


@pytest.mark.sampled(5)
@every_form
def test_the_batch_size_may_be_another_in_every_step(trainer, predict, batch, plan):
    scored = trainer.score(batch.images, batch.labels)
    for count in (5, 1, 12, 2, 2, 7):
        result = trainer.step(part(batch, 0, count), Hyper(learning_rate=0.0))
        assert result.losses.shape == (count,) and result.logits.shape == (count, 10)
        assert np.isfinite(result.losses).all()
        if plan in FROZEN:
            np.testing.assert_allclose(result.losses, scored.losses[:count], rtol=1e-4, atol=1e-5)
        assert trainer.score(batch.images[:count], batch.labels[:count]).losses.shape == (count,)
    assert all(np.isfinite(value).all() for value in trainer.state().values())
    predicted = predict(batch.images)
    for count in (3, 1):
        np.testing.assert_allclose(predict(batch.images[:count]), predicted[:count], rtol=1e-4, atol=1e-4)


@pytest.mark.sampled(9)
@every_form
def test_an_extended_head_learns_new_classes(engine, pack, batch, plan):
    head = pack.manifest.model.head
    weights = extend_head(pack.weights(), pack.manifest.model, 13)
    labels = np.where(np.arange(12) < 6, 10 + np.arange(12) % 3, batch.labels)
    trainer = engine.trainer(pack, plan, weights)
    scored = trainer.score(batch.images, labels)
    assert scored.logits.shape == (12, 13)
    np.testing.assert_allclose(scored.losses, cross_entropy(scored.logits, labels), rtol=1e-5, atol=1e-6)
    results = [trainer.step(Batch(batch.images, labels, np.ones(12, np.float32)), HYPER) for _ in range(8)]
    assert all(result.logits.shape == (12, 13) for result in results)
    state = trainer.state()
    if plan in TRAINED:
        assert results[-1].losses[:6].mean() < 0.95 * results[0].losses[:6].mean()
        for name in head:
            assert state[name].shape == weights[name].shape
            assert (state[name][10:] != weights[name][10:]).reshape(3, -1).any(1).all(), name
    expected = trainer.score(batch.images, labels)
    predicted = engine.predictor(pack, weights | trainer.weights())(batch.images)
    np.testing.assert_allclose(predicted, expected.logits, rtol=1e-4, atol=1e-4)
    trainer.step(part(batch, 0, 12), HYPER)
    trainer.load_state(state)
    assert_same(trainer.state(), state)
    np.testing.assert_array_equal(trainer.score(batch.images, labels).logits, expected.logits)
