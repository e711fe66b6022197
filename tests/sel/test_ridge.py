"""The head in closed form: what leave-one-out says is what leaving out gives, and the old head is kept where it is best."""

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


@given(
    st.integers(0, 50), st.sampled_from([(24, 6), (12, 30)]), st.sampled_from([0.03, 1.0]), st.sampled_from([0.5, 4])
)
def test_leave_one_out_is_what_leaving_out_gives(seed, shape, ridge, step):
    """With the ridge of the whole set; in both directions of the decomposition, and with the mean left out too."""
    features, labels, weight, bias = samples(*shape, seed)
    centred = features - features.mean(0)
    unit = np.linalg.norm(centred.astype(float)) ** 2 / min(shape)
    found = fit_head(features, labels, weight, bias, ridges=(ridge,), steps=(step,))
    losses = []
    for out in range(len(labels)):
        rest = np.arange(len(labels)) != out
        x, y = features[rest].astype(float), labels[rest]
        logits = x @ weight.T.astype(float) + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        residual = np.eye(CLASSES)[y] - p / p.sum(1, keepdims=True)
        mean = x.mean(0)
        solved = np.linalg.solve((x - mean).T @ (x - mean) + ridge * unit * np.eye(shape[1]), (x - mean).T @ residual)
        more = step * ((features[out] - mean) @ solved + residual.mean(0))
        losses.append(loss(features[[out]], labels[[out]], weight, bias + more))
    expected = np.mean(losses)
    kept = loss(features, labels, weight, bias)
    assert found.old_loss == pytest.approx(kept, rel=1e-5)
    assert found.loss == pytest.approx(min(expected, kept), rel=1e-4)
    assert found.step == (step if expected < kept else 0.0)


def test_a_poor_head_gets_better_on_other_samples():
    features, labels, weight, bias = samples(600, 16)
    fit = fit_head(features[:300], labels[:300], weight, bias)
    before = loss(features[300:], labels[300:], weight, bias)
    after = loss(features[300:], labels[300:], fit.weight, fit.bias)
    assert after < 0.8 * before and after == pytest.approx(fit.loss, rel=0.15)


def test_a_good_head_is_kept_or_hardly_changed():
    """Twelve samples with labels of chance tell nothing about a head that is right on all others."""
    features, labels, _, _ = samples(600, 8, noise=0.3)
    centres = np.stack([features[labels == c].mean(0) for c in range(CLASSES)])
    weight, bias = (8 * centres).astype(np.float32), (-4 * (centres**2).sum(1)).astype(np.float32)
    chance = np.random.default_rng(1).permutation(labels[:12])
    right = features[:12], labels[:12]
    fit = fit_head(*right, weight, bias)
    assert loss(features, labels, fit.weight, fit.bias) <= 1.2 * loss(features, labels, weight, bias) + 1e-3
    lied = fit_head(features[:12], chance, weight, bias)
    assert lied.loss <= lied.old_loss


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
    rare = np.where(np.arange(400) % 20 == 0, 1, 0)
    fit = fit_head(constant, rare, weight, np.zeros_like(bias))
    assert fit.loss < fit.old_loss and fit.bias[0] > fit.bias[1] > max(fit.bias[2:])


@pytest.mark.parametrize("count", [2, 3])
def test_hardly_any_samples(count):
    features, labels, weight, bias = samples(count, 16)
    fit = fit_head(features, labels, weight, bias)
    assert np.isfinite(fit.weight).all() and fit.weight.dtype == np.float32 and fit.loss <= fit.old_loss


def test_features_that_are_all_the_same_leave_the_head_alone():
    features, labels, weight, bias = samples(20, 6)
    fit = fit_head(np.ones_like(features), labels, weight, bias)
    assert fit.step == 0 and fit.weight is weight and fit.bias is bias
