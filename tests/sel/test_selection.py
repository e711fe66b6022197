"""Soft selection: the rate is held, the weighted sum is unbiased, nobody starves, the unknown are neutral."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.sel import selection, sundew
from edge_sel.sel.selection import SoftConfig
from edge_sel.sel.sundew import SundewConfig

UNCUT = SoftConfig(max_weight=math.inf)
temperatures = st.sampled_from([0.02, 0.1, 0.25, 1.0, 10.0])
shares = st.floats(0.02, 0.98)
floors = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])


def losses(seed, n, unknown=0.0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < unknown, np.nan, rng.exponential(1.0, n))


def known_odds(config, significance, rate, overdue=None):
    return [np.asarray(field) for field in selection.odds(config, significance, rate, overdue)]


# --- ranks


def test_ties_share_the_middle_and_the_unknown_take_no_part(xp):
    s = xp.asarray([2.0, math.nan, 2.0, 9.0, 2.0, -math.inf, 1.0, math.inf])
    ranks = np.asarray(selection.middle_rank(s))
    # Five known: 1 < 2 = 2 = 2 < 9, the middles of fifths.
    assert ranks.tolist() == pytest.approx([0.5, math.nan, 0.5, 0.9, 0.5, math.nan, 0.1, math.nan], nan_ok=True)


@given(values=st.lists(st.sampled_from([0.0, 1.0, 2.5, math.nan]), min_size=1, max_size=30))
def test_ranks_average_to_one_half(xp, values):
    ranks = np.asarray(selection.middle_rank(xp.asarray(values)))
    assert np.array_equal(np.isnan(ranks), np.isnan(values))
    if not np.isnan(ranks).all():
        assert np.nanmean(ranks) == pytest.approx(0.5)


# --- probabilities


def test_odds_are_a_sigmoid_of_the_rank_above_the_floor(xp):
    p, w = known_odds(SoftConfig(temperature=0.25, floor=0.2), xp.asarray([1.0, 9.0, 4.0, 5.0]), 0.5)
    # At one half the centre is 1/2 (by symmetry); the floor of 0.1 leaves (0.5 - 0.1) / 0.9 = 4/9 for the sigmoid.
    share = 4 / 9
    centre = 0.25 * math.log((math.exp(4) - math.exp(4 * share)) / (math.exp(4 * share) - 1))
    expected = [0.1 + 0.9 / (1 + math.exp((centre - s) / 0.25)) for s in (0.125, 0.875, 0.375, 0.625)]
    assert p == pytest.approx(expected, rel=1e-6)
    assert w == pytest.approx(np.mean(expected) / np.array(expected), rel=1e-6)


@given(seed=st.integers(0, 2**32 - 1), t=temperatures, rate=shares, floor=floors)
def test_the_mean_is_the_rate_whatever_the_shape(xp, seed, t, rate, floor):
    p, _ = known_odds(SoftConfig(t, floor), xp.asarray(losses(seed, 2000, unknown=0.3)), rate)
    assert p.mean() == pytest.approx(rate, abs=0.005)


@given(seed=st.integers(0, 2**32 - 1), t=temperatures, rate=shares, floor=floors)
def test_probability_follows_significance_and_respects_the_floor(xp, seed, t, rate, floor):
    s = losses(seed, 64)
    p, w = known_odds(SoftConfig(t, floor), xp.asarray(s), rate)
    assert (np.diff(p[np.argsort(s)]) >= -1e-12).all()
    assert p.min() >= floor * rate - 1e-12
    assert p.max() <= 1
    assert w.min() >= 0 and w.max() <= 5.0


def test_temperature_runs_from_hard_to_random(xp):
    s = xp.asarray(losses(3, 100))
    hard, _ = known_odds(SoftConfig(0.02, floor=0.0), s, 0.3)
    assert (np.sort(hard)[:60] < 0.01).all() and (np.sort(hard)[80:] > 0.99).all()
    even, weights = known_odds(SoftConfig(10.0, floor=0.0), s, 0.3)
    assert even == pytest.approx(0.3, abs=0.02)
    assert weights == pytest.approx(1.0, abs=0.06)


def test_the_floor_is_the_whole_rate_for_random(xp):
    p, w = known_odds(SoftConfig(floor=1.0), xp.asarray(losses(4, 50)), 0.3)
    assert p == pytest.approx(0.3, abs=1e-5) and w == pytest.approx(1.0, abs=1e-4)


# --- unbiasedness


@given(seed=st.integers(0, 2**32 - 1), t=temperatures, rate=shares, unknown=st.sampled_from([0.0, 0.4, 1.0]))
def test_the_weighted_sum_is_exactly_unbiased(xp, seed, t, rate, unknown):
    """E[mask] = p, so the expectation of sum w mask x is sum w p x: no draws needed."""
    late = np.random.default_rng(seed).random(40) < 0.1
    config = UNCUT._replace(temperature=t)
    p, w = known_odds(config, xp.asarray(losses(seed, 40, unknown)), rate, xp.asarray(late))
    x = np.random.default_rng(seed).normal(size=40)
    assert (p * w * x).sum() == pytest.approx(p.mean() * x.sum(), rel=1e-6, abs=1e-9)
    assert (p[late] == 1).all()
    assert w[late] == pytest.approx(p.mean())
    # The mean weight of those that pass.
    assert (p * w).sum() / p.sum() == pytest.approx(1.0)


def test_drawing_is_unbiased_too(xp):
    """The same by draws, against an estimate that is not: the unweighted one leans towards the hard."""
    rng, s = np.random.default_rng(0), losses(0, 64)
    p, w = selection.odds(UNCUT, xp.asarray(s), 0.5)
    masks = np.array([np.asarray(selection.draw(p, xp.asarray(u))) for u in rng.random((4000, 64))])
    assert masks.mean(0) == pytest.approx(np.asarray(p), abs=0.035)
    weighted, plain = (masks * np.asarray(w) * s).sum(1), (masks * s).sum(1)
    assert weighted.mean() == pytest.approx(0.5 * s.sum(), rel=0.01)
    assert plain.mean() > 1.2 * 0.5 * s.sum()


def test_weighting_beats_random_selection_on_what_significance_predicts():
    """Less variance at the same rate is all that an unbiased gate can win."""
    rng, s = np.random.default_rng(1), losses(1, 64)
    p, w = selection.odds(UNCUT, s, 0.5)
    u = rng.random((4000, 64))
    soft, even = ((u < p) * w * s).sum(1), ((u < 0.5) * s).sum(1)
    assert soft.var() < 0.6 * even.var()


def test_draw_is_exact_at_the_ends(xp):
    p, u = xp.asarray([0.0, 1.0, 0.5, 0.5]), xp.asarray([0.0, 1 - 2**-24, 0.5, 0.4999])
    assert np.asarray(selection.draw(p, u)).tolist() == [False, True, False, True]


def test_cutting_weights_loses_what_the_text_says(xp):
    s = xp.asarray(losses(2, 30))
    p, w = known_odds(SoftConfig(floor=0.1, max_weight=2.0), s, 0.5)
    lost = 1 - p * w / p.mean()
    assert lost == pytest.approx(np.maximum(0, 1 - 2.0 * p / p.mean()))
    assert lost.max() > 0.1


# --- the unknown


@given(seed=st.integers(0, 2**32 - 1), rate=shares)
def test_the_unknown_pass_at_the_plain_rate_and_change_nothing_for_others(xp, seed, rate):
    s = losses(seed, 50, unknown=0.5)
    unknown = np.isnan(s)
    p, w = known_odds(UNCUT, xp.asarray(s), rate)
    alone, _ = known_odds(UNCUT, xp.asarray(s[~unknown]), rate)
    assert p[unknown] == pytest.approx(rate)
    assert w[unknown] == pytest.approx(p.mean() / rate)
    assert p[~unknown] == pytest.approx(alone)


@pytest.mark.parametrize("s", [[math.nan] * 3, [math.inf, math.nan, -math.inf]])
def test_when_nothing_is_known_it_is_random_selection(xp, s):
    p, w = known_odds(SoftConfig(), xp.asarray(s), 0.3)
    assert p == pytest.approx(0.3) and w == pytest.approx(1.0)


def test_without_candidates_there_are_no_odds(xp):
    p, w = known_odds(SoftConfig(), xp.asarray([]), 0.3)
    assert len(p) == len(w) == 0


# --- the rate, held by the controller


@pytest.mark.sampled(5)
@pytest.mark.parametrize("size", [1, 4, 32, 64])
@pytest.mark.parametrize("target", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("config", [SoftConfig(), SoftConfig(0.05, 0.0)])
def test_the_controller_holds_the_rate(config, target, size):
    """From a threshold that is wrong, too, and with a tenth of the samples overdue at first."""
    rng, loop = np.random.default_rng(0), SundewConfig.fast(target)
    state = sundew.init(loop._replace(initial_threshold=0.5))
    rates = []
    for step in range(300):
        late = (rng.random(size) < 0.1) & (step < 20)
        p, _ = selection.odds(config, losses([1, step], size, unknown=0.2), 1 - state.threshold, late)
        state = sundew.update(loop, state, float(p.mean()))
        rates.append(selection.draw(p, rng.random(size)).mean())
    noise = 2.5 * math.sqrt(target * (1 - target) / (200 * size))
    assert np.mean(rates[100:]) == pytest.approx(target, abs=0.01 + noise)


# --- starvation


def test_ages_count_the_decisions_since_a_sample_last_passed(xp):
    ages = selection.init_ages(4, xp)
    for indices, mask in (([0, 1], [True, False]), ([1, 2], [False, False]), ([0, 1], [False, False])):
        before = np.asarray(ages.waited).copy()
        old, ages = ages, selection.update_ages(ages, xp.asarray(indices), xp.asarray(mask))
        assert np.asarray(old.waited).tolist() == before.tolist(), "the given ages were modified"
    assert np.asarray(ages.waited).tolist() == [1, 3, 1, 0]
    assert ages.waited.dtype == xp.int32
    everyone = xp.asarray([3, 2, 1, 0])
    assert np.asarray(selection.overdue(ages, everyone, 3)).tolist() == [False, False, True, False]
    assert np.asarray(selection.overdue(ages, everyone, 2)).tolist() == [False, True, True, True]
    assert np.asarray(selection.update_ages(ages, xp.asarray([1]), xp.asarray([True])).waited).tolist() == [1, 0, 1, 0]


@given(seed=st.integers(0, 2**32 - 1), limit=st.sampled_from([1.0, 2.0, 3.5, 8.0]))
def test_any_limit_decisions_contain_a_pass(xp, seed, limit):
    """With a gate that would never let anyone pass."""
    rng, ages = np.random.default_rng(seed), selection.init_ages(10, xp)
    longest = np.zeros(10, int)
    for _ in range(60):
        indices = rng.permutation(10)[: rng.integers(1, 10)]
        late = selection.overdue(ages, xp.asarray(indices), limit)
        ages = selection.update_ages(ages, xp.asarray(indices), late)
        longest[indices] = np.where(np.asarray(late), 0, longest[indices] + 1)
        assert longest.max() < math.ceil(limit)


def test_pruning_the_easy_ones_is_unbiased():
    rng = np.random.default_rng(0)
    losses = np.array([0.1, 0.2, 3.0, np.nan, 0.3])
    total = np.zeros(5)
    for _ in range(4000):
        kept, weights = selection.prune_easy(losses, rng.random(5), 0.6)
        assert kept[2] and kept[3] and weights[2] == weights[3] == 1
        total += kept * weights
    np.testing.assert_allclose(total / 4000, 1, atol=0.08)


def test_pruning_everything_easy_is_refused():
    with pytest.raises(ValueError, match="share"):
        selection.prune_easy(np.zeros(3), np.zeros(3), 1.0)


def test_importance_grows_with_the_rank_of_the_loss():
    losses = np.array([5.0, 0.1, 2.0, 1.0])
    p = selection.relative_importance(losses, 0.5)
    np.testing.assert_allclose(p, np.array([4, 1, 3, 2]) / 10)
    np.testing.assert_allclose(selection.relative_importance(losses, 1.0), 0.25)
