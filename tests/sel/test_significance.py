import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_sel.sel import sundew

values = arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 20))
distinct = arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 20), unique=True)


def test_v1_by_hand(xp):
    s = sundew.significance_v1(xp.asarray([1.0, 3.0]), xp.asarray([0.1, 0.3]))
    assert np.asarray(s) == pytest.approx([0.7 * 0.5 + 0.3 * 0.5, 0.7 * 1.5 + 0.3 * 1.5])


@given(loss=values)
def test_v1_always_has_mean_one(xp, loss):
    s = np.asarray(sundew.significance_v1(xp.asarray(loss), xp.asarray(np.arange(len(loss)) + 1.0)))
    assert s.mean() == pytest.approx(1.0 if loss.any() else 0.3)


def test_v1_of_a_perfect_batch_is_not_nan(xp):
    s = sundew.significance_v1(xp.zeros(2), xp.zeros(2))
    assert np.asarray(s).tolist() == [0, 0]


def test_v101_by_hand(xp):
    s = sundew.significance_v101(xp.asarray([1.0, 0.0]), xp.asarray([0.5, 2.0]))
    assert np.asarray(s) == pytest.approx([0.85, 0.6])


def test_rank_by_hand(xp):
    s = sundew.significance_rank(xp.asarray([5.0, 1.0, 9.0, 1.0]))
    assert np.asarray(s).tolist() == [0.625, 0.125, 0.875, 0.375]


def test_ties_are_broken_by_chance_if_there_is_any(xp):
    s = sundew.significance_rank(xp.asarray([1.0, 1.0, 0.0, 1.0]), xp.asarray([0.9, 0.2, 0.99, 0.5]))
    assert np.asarray(s).tolist() == [0.875, 0.375, 0.125, 0.625]


def test_a_diverged_sample_never_ranks_high(xp):
    s = xp.asarray([math.nan, 1.0, math.inf, 2.0])
    assert np.asarray(sundew.significance_rank(s)).argsort().tolist()[2:] == [1, 3]
    squashed = np.asarray(sundew.significance_logistic(s))
    assert squashed[[0, 2]].tolist() == [0, 0]
    # The two others are at z = -1 and 1.
    assert squashed[[1, 3]] == pytest.approx([1 / (1 + math.exp(1.702)), 1 / (1 + math.exp(-1.702))])


@given(s=values)
def test_ranks_are_evenly_spread_whatever_the_losses(xp, s):
    ranked = np.asarray(sundew.significance_rank(xp.asarray(s)))
    assert np.sort(ranked) == pytest.approx((np.arange(len(s)) + 0.5) / len(s))
    assert (np.diff(s[ranked.argsort()]) >= 0).all()


@given(s=distinct, seed=st.integers(0, 99))
def test_normalisation_follows_permutations(xp, s, seed):
    p = np.random.default_rng(seed).permutation(len(s))
    for f in (sundew.significance_rank, sundew.significance_logistic):
        assert np.asarray(f(xp.asarray(s[p]))) == pytest.approx(np.asarray(f(xp.asarray(s)))[p], abs=1e-6)


@given(s=values, scale=st.sampled_from([1e-3, 0.2, 5.0, 1e3]))
def test_normalisation_ignores_the_scale_of_the_losses(xp, s, scale):
    for f in (sundew.significance_rank, sundew.significance_logistic):
        assert np.asarray(f(xp.asarray(s * scale))) == pytest.approx(np.asarray(f(xp.asarray(s))), abs=1e-6)


@given(s=values)
def test_logistic_is_bounded_and_keeps_the_order(xp, s):
    squashed = np.asarray(sundew.significance_logistic(xp.asarray(s)))
    assert squashed.min() >= 0
    assert squashed.max() <= 1
    assert (np.diff(squashed[s.argsort()]) >= 0).all()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64])
def test_equal_values_are_all_a_half(xp, n):
    # The mean of three times 0.1 is not 0.1.
    assert np.asarray(sundew.significance_logistic(xp.full(n, 0.1, dtype=xp.float64))).tolist() == [0.5] * n


def test_normalised_does_what_the_config_says(xp):
    s, u = xp.asarray([3.0, 3.0, 9.0]), xp.asarray([0.7, 0.1, 0.2])
    raw = sundew.normalised(sundew.PUBLISHED_10, s)
    assert np.asarray(raw).tolist() == [3.0, 3.0, 9.0]
    ranked = sundew.normalised(sundew.SundewConfig.fast(0.1), s, u)
    assert np.asarray(ranked) == pytest.approx([0.5, 1 / 6, 5 / 6])
    squashed = sundew.normalised(sundew.SundewConfig.fast(0.1, normalise="logistic"), s)
    assert np.asarray(squashed)[2] == pytest.approx(1 / (1 + math.exp(-1.702 * math.sqrt(2))))
