"""How much of a head is changed: its scale alone, or the smallest correction that is not worse than the best."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.sel.ridge import RIDGES, SCALES, STEPS, fit_head
from tests.sel.test_ridge import CLASSES, left_out_one_by_one, loss, losses_of, samples


def good_head(features, labels):
    """That of linear discriminant analysis with equal spreads in all directions."""
    centres = np.stack([features[labels == c].mean(0) for c in range(CLASSES)]).astype(float)
    spread = np.mean((features - centres[labels]) ** 2)
    bias = -(centres**2).sum(1) / 2 / spread
    return (centres / spread).astype(np.float32), bias.astype(np.float32)


def right(features, labels, weight, bias):
    return float(((features @ weight.T + bias).argmax(1) == labels).mean())


@given(st.integers(0, 30), st.sampled_from([0.25, 0.6, 1.0, 4.0]))
def test_the_scale_alone_keeps_every_prediction_and_has_the_least_loss(seed, factor):
    features, labels, weight, bias = samples(200, 8, seed)
    weight, bias = np.float32(factor) * weight, np.float32(factor) * bias
    fit = fit_head(features, labels, weight, bias, ridges=())
    losses = {scale: loss(features, labels, scale * weight, scale * bias) for scale in SCALES}
    assert losses[fit.scale] == pytest.approx(min(losses.values())) and fit.step == 0 and np.isinf(fit.ridge)
    before, after = (features @ w.T + b for w, b in ((weight, bias), (fit.weight, fit.bias)))
    assert np.array_equal(before.argmax(1), after.argmax(1)) and fit.weight.dtype == np.float32
    np.testing.assert_allclose(after, fit.scale * before, rtol=1e-4, atol=1e-4)
    assert fit.loss == pytest.approx(losses[fit.scale], rel=1e-5)


def test_a_head_that_is_too_sure_is_scaled_down_and_one_that_doubts_up():
    features, labels, _, _ = samples(600, 8, noise=1.5)
    weight, bias = good_head(features, labels)
    scales = [fit_head(features, labels, f * weight, f * bias, ridges=()).scale for f in (2.0, 1.0, 0.4)]
    assert scales[0] < 0.8 and 0.8 < scales[1] < 1.3 and scales[2] > 2


def test_of_equal_scales_none_is_taken():
    features, labels, weight, bias = samples(20, 6)
    fit = fit_head(features, labels, 0 * weight, 0 * bias, ridges=())
    assert fit.scale == 1.0 and not fit.weight.any() and fit.loss == pytest.approx(np.log(CLASSES))


@pytest.mark.parametrize("seed", range(6))
def test_the_least_change_is_taken_of_those_not_worse_by_a_standard_error(seed):
    """Told from the losses of every candidate, each sample left out one by one."""
    ridges, steps = (0.03, 1.0, 10.0), (0.5, 2.0, 8.0)
    features, labels, weight, bias = samples(40, 6, seed, noise=2.0)
    found = fit_head(features, labels, weight, bias, ridges=ridges, steps=steps, scales=(1.0,))
    old = features.astype(float) @ weight.T.astype(float) + bias
    candidates = [(0.0, 0.0, np.inf, losses_of(old, labels))]
    for ridge, step in product(ridges, steps):
        logits = left_out_one_by_one(features, labels, weight, bias, ridge, step)
        candidates.append((np.linalg.norm(logits - old), step, ridge, losses_of(logits, labels)))
    best = min((losses for *_, losses in candidates), key=np.mean)
    good = [c for c in candidates if (c[3] - best).mean() <= (c[3] - best).std() / 40**0.5]
    _, step, ridge, losses = min((c for c in good if c[3].mean() <= losses_of(old, labels).mean()), key=lambda c: c[0])
    assert (found.step, found.ridge) == (step, ridge) and found.loss == pytest.approx(losses.mean(), rel=1e-4)


def test_it_is_not_always_the_best():
    """Else the test above would tell nothing of the rule."""
    fits = [fit_head(*samples(40, 6, seed, noise=2.0), scales=(1.0,)) for seed in range(6)]
    alone = []
    for seed in range(6):
        tried = (fit_head(*samples(40, 6, seed, noise=2.0), ridges=(r,), steps=STEPS, scales=(1.0,)) for r in RIDGES)
        alone.append(min(fit.loss for fit in tried))
    assert any(fit.loss > least + 1e-3 for fit, least in zip(fits, alone, strict=True))


@given(st.integers(0, 200), st.sampled_from([6, 12, 30]), st.sampled_from([1.0, 3.0, 30.0]))
def test_no_correction_is_taken_that_is_worse_than_none(seed, count, factor):
    """However much the losses of one vary; labels are chance."""
    features, labels, weight, bias = samples(count, 8, seed, noise=2.0)
    labels = np.random.default_rng(seed).permutation(labels)
    fit = fit_head(features, labels, factor * weight, factor * bias, scales=(1.0,))
    assert fit.loss <= fit.old_loss + 1e-9


@pytest.mark.parametrize("count", [24, 60, 200])
def test_a_good_head_stays_nearly_as_it_is(count):
    """What it gets right of fresh samples does not become less, whichever samples it was fitted to."""
    before, after, moved = [], [], []
    for seed in range(8):
        features, labels, _, _ = samples(1400, 8, seed, noise=1.5)
        weight, bias = good_head(features, labels)
        fit = fit_head(features[:count], labels[:count], weight, bias)
        fresh = features[400:], labels[400:]
        before.append(right(*fresh, weight, bias))
        after.append(right(*fresh, fit.weight, fit.bias))
        moved.append(np.linalg.norm(fit.weight - fit.scale * weight) / np.linalg.norm(weight))
    assert np.mean(after) > np.mean(before) - 0.003 and np.median(moved) < 0.05
    assert min(np.subtract(after, before)) > -0.02


def test_labels_of_chance_do_not_spoil_a_good_head():
    features, labels, _, _ = samples(1400, 8, noise=1.5)
    weight, bias = good_head(features, labels)
    chance = np.random.default_rng(1).permutation(labels[:12])
    fit = fit_head(features[:12], chance, weight, bias)
    assert (
        right(features[400:], labels[400:], fit.weight, fit.bias)
        > right(features[400:], labels[400:], weight, bias) - 0.1
    )


@given(st.integers(0, 30), st.sets(st.integers(0, CLASSES - 1), min_size=2, max_size=CLASSES - 1))
def test_nothing_is_learnt_of_classes_without_samples(seed, met):
    """Their logits are the old ones times the scale: absence from a few samples says nothing."""
    features, labels, weight, bias = samples(200, 8, seed)
    here = np.isin(labels, list(met))
    fit = fit_head(features[here], labels[here], weight, bias)
    for label in set(range(CLASSES)) - met:
        np.testing.assert_allclose(fit.weight[label], fit.scale * weight[label], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(fit.bias[label], fit.scale * bias[label], rtol=1e-5, atol=1e-6)
