"""The head in closed form: what leave-one-out says is what leaving out gives; hard cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.sel.ridge import fit_head

CLASSES = 4


def samples(count, width, seed=0, noise=1.0):
    """Features of normal classes, labels, and a head that knows less than the features tell."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    centres = rng.normal(size=(CLASSES, width))
    features = (centres[labels] + noise * rng.normal(size=(count, width)) + 3).astype(np.float32)
    weight = (0.3 * centres + 0.5 * rng.normal(size=(CLASSES, width))).astype(np.float32)
    return features, labels, weight, rng.normal(size=CLASSES).astype(np.float32)


def loss(features, labels, weight, bias):
    logits = features.astype(float) @ weight.T.astype(float) + bias
    logits -= logits.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]))


def left_out_one_by_one(features, labels, weight, bias, ridge, step):
    """Logits of each sample under the correction that is fitted to the others, with the ridge of the whole set."""
    centred = features - features.mean(0)
    unit = np.linalg.norm(centred.astype(float)) ** 2 / min(features.shape)
    found = []
    for out in range(len(labels)):
        rest = np.arange(len(labels)) != out
        x, y = features[rest].astype(float), labels[rest]
        logits = x @ weight.T.astype(float) + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        residual = np.eye(CLASSES)[y] - p / p.sum(1, keepdims=True)
        mean = x.mean(0)
        scatter = (x - mean).T @ (x - mean) + ridge * unit * np.eye(features.shape[1])
        solved = np.linalg.solve(scatter, (x - mean).T @ residual)
        more = step * ((features[out] - mean) @ solved + residual.mean(0))
        found.append(features[out].astype(float) @ weight.T.astype(float) + bias + more)
    return np.array(found)


def losses_of(logits, labels):
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]


@given(
    st.integers(0, 50), st.sampled_from([(24, 6), (12, 30)]), st.sampled_from([0.03, 1.0]), st.sampled_from([0.5, 4])
)
def test_leave_one_out_is_what_leaving_out_gives(seed, shape, ridge, step):
    """In both directions of the decomposition, and with the mean left out too; no scale, which is fitted to all."""
    features, labels, weight, bias = samples(*shape, seed)
    found = fit_head(features, labels, weight, bias, ridges=(ridge,), steps=(step,), scales=(1.0,))
    without = left_out_one_by_one(features, labels, weight, bias, ridge, step)
    old = features.astype(float) @ weight.T.astype(float) + bias
    kept, corrected = losses_of(old, labels), losses_of(without, labels)
    worse = kept - corrected
    taken = worse.mean() > max(0, worse.std() / len(worse) ** 0.5)
    assert found.scale == 1.0 and found.step == (step if taken else 0.0)
    assert found.old_loss == pytest.approx(kept.mean(), rel=1e-5)
    assert found.loss == pytest.approx((corrected if taken else kept).mean(), rel=1e-4)
    np.testing.assert_allclose(found.left_out, without if taken else old, rtol=1e-3, atol=1e-3)


@given(st.integers(0, 50), st.sampled_from([(24, 6), (12, 30), (2, 16)]), st.booleans())
def test_the_loss_is_that_of_the_logits_left_out(seed, shape, chance):
    """Also where there is no correction: then they are the old head's, scaled."""
    features, labels, weight, bias = samples(*shape, seed)
    labels = np.random.default_rng(seed).permutation(labels) if chance else labels
    found = fit_head(features, labels, weight, bias)
    assert found.left_out.shape == (len(labels), CLASSES)
    assert losses_of(found.left_out, labels).mean() == pytest.approx(found.loss)
    assert found.loss <= found.old_loss + 1e-9
    if not found.step:
        np.testing.assert_allclose(found.left_out, found.scale * (features @ weight.T + bias), rtol=1e-4, atol=1e-4)


def test_a_poor_head_gets_better_on_other_samples():
    features, labels, weight, bias = samples(600, 16)
    fit = fit_head(features[:300], labels[:300], weight, bias)
    before = loss(features[300:], labels[300:], weight, bias)
    after = loss(features[300:], labels[300:], fit.weight, fit.bias)
    assert after < 0.8 * before and after == pytest.approx(fit.loss, rel=0.15)


def test_a_new_class_gets_a_row():
    features, labels, weight, bias = samples(400, 16, noise=0.5)
    known = np.concatenate([weight[:3], weight[:3].mean(0, keepdims=True)])
    start = np.concatenate([bias[:3], bias[:3].mean(keepdims=True)])
    fit = fit_head(features[:200], labels[:200], known, start)
    new = labels[200:] == 3
    guessed = (features[200:] @ fit.weight.T + fit.bias).argmax(1)
    assert (guessed[new] == 3).mean() > 0.9 and (guessed[~new] == labels[200:][~new]).mean() > 0.8


def test_only_the_class_shares_have_changed():
    """Then the bias learns it: the step along the mean residual needs no feature."""
    features, _, weight, bias = samples(400, 16, noise=0.5)
    constant = np.zeros_like(features)
    constant[:, 0] = np.linspace(-1e-6, 1e-6, len(constant))
    rare = np.select([np.arange(400) % 20 == 0, np.arange(400) % 80 == 1, np.arange(400) % 80 == 2], [1, 2, 3])
    fit = fit_head(constant, rare, weight, np.zeros_like(bias))
    assert fit.loss < fit.old_loss and fit.bias[0] > fit.bias[1] > max(fit.bias[2:])


@pytest.mark.parametrize("count", [2, 3])
def test_hardly_any_samples(count):
    features, labels, weight, bias = samples(count, 16)
    fit = fit_head(features, labels, weight, bias)
    assert np.isfinite(fit.weight).all() and fit.weight.dtype == np.float32 and fit.loss <= fit.old_loss


def test_features_that_are_all_the_same_give_no_correction():
    features, labels, weight, bias = samples(20, 6)
    fit = fit_head(np.ones_like(features), labels, weight, bias, scales=(1.0,))
    assert fit.step == 0 and fit.weight is weight and fit.bias is bias
    scaled = fit_head(np.ones_like(features), labels, weight, bias)
    assert scaled.step == 0 and np.array_equal(scaled.weight, (scaled.scale * weight.astype(float)).astype(np.float32))
