"""Contract: the guilt mask, the sample weights and guilt itself."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sel.engines.base import Hyper
from tests.engines.arrays import assert_same, first_gradients, gradient_between
from tests.engines.plans import FROZEN, HYPER, PLANS, every_form, trained_plan


def flat(gradients):
    return np.concatenate([gradient.ravel() for gradient in gradients.values()])


def threshold(gradients: np.ndarray, share: float) -> float:
    """A γ near this quantile of |gradient|, in the middle of a gap: rounding carries nothing across it."""
    ordered = np.sort(np.abs(gradients))
    around = int(share * len(ordered))
    near = ordered[max(around - 20, 0) : around + 20]
    widest = int(np.argmax(np.diff(near)))
    return float(near[widest] + near[widest + 1]) / 2


@pytest.mark.sampled(5)
@trained_plan
def test_a_huge_gamma_keeps_nothing_and_changes_no_weight(trainer, batch, plan):
    before = trainer.weights()
    result = trainer.step(batch, Hyper(learning_rate=0.1, gamma=1e9))
    after = trainer.weights()
    assert result.kept == 0
    assert_same(*({n: weights[n] for n in PLANS[plan].trainable} for weights in (before, after)))


@pytest.mark.sampled(5)
@trained_plan
def test_gamma_masks_exactly_the_gradients_below_it(pack, trainer, batch):
    start = trainer.state()
    unmasked = trainer.step(batch, HYPER)
    whole = flat(first_gradients(trainer, pack))
    assert unmasked.kept == unmasked.computed, "a negative gamma keeps everything"
    for gamma in (0.0, *(threshold(whole[whole != 0], share) for share in (0.2, 0.5, 0.8, 0.99))):
        trainer.load_state(start)
        result = trainer.step(batch, Hyper(learning_rate=1e-3, gamma=gamma))
        masked = flat(first_gradients(trainer, pack))
        guilty = np.abs(whole) > gamma
        assert 0 < result.kept == np.count_nonzero(guilty) and result.computed == unmasked.computed
        assert masked.tobytes() == np.where(guilty, whole, np.float32(0)).tobytes()


@pytest.mark.sampled(5)
@trained_plan
def test_zero_sample_weights_change_no_weight(trainer, batch, plan):
    before = trainer.weights()
    trainer.step(batch._replace(weights=np.zeros(12, np.float32)), Hyper(learning_rate=0.1))
    after = trainer.weights()
    assert_same(*({n: weights[n] for n in PLANS[plan].trainable} for weights in (before, after)))


@pytest.mark.sampled(5)
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
    trainer.step(batch._replace(images=images, labels=labels, weights=weights), HYPER)
    for name, value in trainer.state().items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7 * scale, err_msg=name)


@pytest.mark.sampled(5)
@trained_plan
def test_the_gradient_is_linear_in_the_sample_weights(pack, trainer, batch):
    start, first_half = trainer.state(), np.arange(12) < 6
    found = []
    for factor in (1, 4, first_half, ~first_half):
        trainer.load_state(start)
        trainer.step(batch._replace(weights=(batch.weights * factor).astype(np.float32)), HYPER)
        found.append(first_gradients(trainer, pack))
    once, fourfold, half, rest = found
    largest = max(np.abs(g).max() for g in once.values())
    for name, gradient in once.items():
        scale = max(np.abs(gradient).max(), 1e-4 * largest)
        np.testing.assert_allclose(fourfold[name], 4 * gradient, rtol=1e-4, atol=1e-5 * scale, err_msg=name)
        np.testing.assert_allclose(half[name] + rest[name], gradient, rtol=1e-3, atol=1e-4 * scale, err_msg=name)


@pytest.mark.sampled(5)
@every_form
def test_guilt_is_the_norm_of_the_next_steps_gradient_per_channel(pack, trainer, batch, plan):
    trainer.step(batch, HYPER)
    guilt, before = trainer.guilt(batch), trainer.state()
    trainer.step(batch, HYPER)
    after, weights = trainer.state(), pack.weights()
    limited = bool(PLANS[plan].channels)
    assert set(guilt) == {n for n in PLANS[plan].trainable if weights[n].ndim == 4 and not limited}
    for name, norms in guilt.items():
        gradient = gradient_between(before, after, name, pack, HYPER)
        expected = np.linalg.norm(gradient.reshape(len(gradient), -1), axis=1)
        assert norms.shape == expected.shape and norms.any()
        np.testing.assert_allclose(norms, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.sampled(5)
@every_form
def test_measuring_guilt_changes_neither_the_state_nor_the_next_step(trainer, batch):
    trainer.step(batch, HYPER)
    before, scored = trainer.state(), trainer.score(batch.images, batch.labels)
    trainer.step(batch, HYPER)
    expected = trainer.state()
    trainer.load_state(before)
    trainer.guilt(batch)
    assert_same(trainer.state(), before)
    np.testing.assert_array_equal(trainer.score(batch.images, batch.labels).logits, scored.logits)
    trainer.step(batch, HYPER)
    assert_same(trainer.state(), expected)
