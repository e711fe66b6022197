"""The tests by which a model replaces another: what they must never say, and what they must."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.edge.evidence import WORSE, compare, fair_losses, less_accurate


def rng(seed=0):
    return np.random.default_rng(seed)


def model(truth, knows, seed, classes=10, sure=3.0):
    """Logits of a model that knows a share of the images' true classes; the others it guesses."""
    chance = rng(seed)
    given = np.where(chance.random(len(truth)) < knows, truth, chance.integers(0, classes, len(truth)))
    return sure * np.eye(classes)[given] + chance.normal(0, 0.5, (len(truth), classes))


def labels(count, seed=0, classes=10):
    return rng(seed).integers(0, classes, count)


def swapped(truth, share, seed=1, classes=10):
    """A share of the labels at random."""
    chance = rng(seed)
    return np.where(chance.random(len(truth)) < share, chance.integers(0, classes, len(truth)), truth)


def better(before, after, truth, level=0.95):
    return compare(before, after, truth, rng(), level=level).better(level)


def test_a_model_that_knows_more_is_better():
    truth = labels(200)
    assert better(model(truth, 0.5, 1), model(truth, 0.7, 2), truth)
    assert not better(model(truth, 0.7, 2), model(truth, 0.5, 1), truth)


@given(st.integers(0, 10**6), st.integers(0, 60), st.floats(0.5, 0.999))
def test_a_model_is_never_better_than_itself(seed, count, level):
    truth = labels(count, seed)
    logits = model(truth, 0.6, seed)
    found = compare(logits, logits, truth, rng(), level=level)
    assert not found.better(level) and found.gain == 0 and found.p_loss == 1 and found.images_needed is None


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 1.0])
def test_less_sure_is_not_better_however_many_labels_are_wrong(share):
    """It has less loss on such labels, and knows nothing more."""
    truth = labels(500)
    logits, given = model(truth, 0.9, 1, sure=8.0), swapped(truth, share)
    softer = logits / 4
    cross_entropy = [(-z[range(500), given] + np.log(np.exp(z).sum(1))).mean() for z in (logits, softer)]
    assert cross_entropy[1] < cross_entropy[0] and not better(logits, softer, given, level=0.8)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_equal_models_seem_better_as_seldom_as_the_level_says(level):
    tries = 150
    hits = 0
    for seed in range(tries):
        truth = labels(60, seed)
        hits += better(model(truth, 0.7, 2 * seed), model(truth, 0.7, 2 * seed + 1), truth, level)
    allowed = (1 - level) * tries
    assert hits <= allowed + 3 * (allowed * level) ** 0.5


@given(st.integers(1, 4))
def test_a_few_images_never_show_anything(count):
    truth = labels(count)
    right, wrong = 9.0 * np.eye(10)[truth], 9.0 * np.eye(10)[(truth + 1) % 10]
    assert not better(wrong, right, truth)


def test_many_more_right_are_enough_by_themselves():
    """However little the loss says."""
    truth = labels(400)
    before = model(truth, 0.5, 1)
    after = model(truth, 0.9, 2)
    wrong = np.flatnonzero(after.argmax(1) != truth)[:8]
    after[wrong] += 40.0 * np.eye(10)[(truth[wrong] + 1) % 10]  # hopelessly sure of a few wrong ones
    found = compare(before, after, truth, rng(), level=0.9)
    assert found.p_right < 1e-4 and found.better(0.9)


def test_how_many_images_would_do_shrinks_with_what_there_is_to_show():
    truth = labels(300)
    little, much = (
        compare(model(truth, 0.5, 1), model(truth, knows, 2), truth, rng()).images_needed for knows in (0.65, 0.9)
    )
    assert much < little


def test_no_number_of_images_would_show_what_is_less_accurate():
    """Less loss alone is no gain."""
    truth = labels(300)
    before = model(truth, 0.5, 1)
    right = before.argmax(1) == truth
    after = before + np.where(right, 0.0, 1.0)[:, None] * np.eye(10)[truth]  # nearer to the truth, though still wrong
    after[np.flatnonzero(right)[:20]] = np.roll(after[np.flatnonzero(right)[:20]], 1, axis=1)
    found = compare(before, after, truth, rng())
    assert found.gain < 0 and found.p_loss < 0.5 and found.images_needed is None


def test_what_diverged_is_never_better():
    truth = labels(50)
    for value in (np.nan, np.inf, -np.inf):
        after = model(truth, 1.0, 1)
        after[3, 4] = value
        assert not better(model(truth, 0.1, 2), after, truth)
    before = np.full((50, 10), np.nan)
    assert better(before, model(truth, 1.0, 1), truth)


def test_less_accurate_is_an_exact_tail():
    truth = np.zeros(40, np.int64)
    right, wrong = np.eye(2)[[0]], np.eye(2)[[1]]
    for won, lost in ((0, 4), (0, 5), (2, 9), (3, 9), (5, 5)):
        before = np.concatenate([np.repeat(wrong, won, 0), np.repeat(right, 40 - won, 0)])
        after = np.concatenate([np.repeat(right, 40 - lost, 0), np.repeat(wrong, lost, 0)])
        tail = sum(comb(won + lost, k) for k in range(lost, won + lost + 1)) / 2 ** (won + lost)
        assert less_accurate(before, after, truth) is (tail <= WORSE)
        assert compare(before, after, truth, rng()).p_worse == pytest.approx(tail)


@given(st.integers(0, 10**6), st.integers(1, 80), st.floats(0.5, 0.99))
def test_every_figure_is_in_its_range(seed, count, level):
    truth = labels(count, seed)
    found = compare(model(truth, 0.4, seed), model(truth, 0.6, seed + 1), truth, rng(), level=level)
    assert -1 <= found.low <= found.high <= 1 and 0 < found.p_loss <= 1 and 0 < found.p_worse <= 1


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 12), st.floats(0.1, 20))
def test_fair_losses_do_not_depend_on_how_sure_a_model_is_and_are_never_above_chance(seed, count, classes, factor):
    truth = labels(count, seed, classes)
    losses = fair_losses(model(truth, 0.5, seed, classes, sure=factor), truth)
    prior = (np.bincount(truth, minlength=classes) + 1) / (count + classes)
    assert np.isfinite(losses).all() and losses.mean() <= -np.log(prior[truth]).mean() + 1e-9
