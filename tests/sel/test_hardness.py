import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.sel import hardness
from edge_sel.sel.hardness import diverse_hardest, easiest

KINDS = ["loss", "delta", "flip"]


def visit(xp, state, indices, losses, correct, kind, gamma=0.25):
    return hardness.update(state, xp.asarray(indices), xp.asarray(losses), xp.asarray(correct), gamma=gamma, kind=kind)


def test_nobody_has_been_visited(xp):
    state = hardness.init(3, xp)
    assert np.asarray(state.r).tolist() == [1, 1, 1]
    assert np.asarray(state.seen).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "after_one", "after_two"),
    [
        # r = 0.25 a + 0.75 r; losses 3 then 2, right then wrong
        ("loss", 0.25 * 3 + 0.75, 0.25 * 2 + 0.75 * 1.5),
        ("delta", 1.0, 0.25 * 1 + 0.75),
        ("flip", 1.0, 0.25 * 1 + 0.75),
    ],
)
def test_hardness_is_a_running_mean_by_equation_one(xp, kind, after_one, after_two):
    state = visit(xp, hardness.init(3, xp), [1], [3.0], [True], kind)
    assert np.asarray(state.r).tolist() == [1.0, after_one, 1.0]
    assert np.asarray(state.last_loss).tolist() == [0.0, 3.0, 0.0]
    assert np.asarray(state.last_correct).tolist() == [False, True, False]
    state = visit(xp, state, [1], [2.0], [False], kind)
    assert np.asarray(state.r).tolist() == [1.0, after_two, 1.0]
    assert np.asarray(state.seen).tolist() == [0, 2, 0]


def test_no_flip_lets_the_hardness_fall(xp):
    state = visit(xp, hardness.init(1, xp), [0], [1.0], [True], "flip")
    assert float(visit(xp, state, [0], [1.0], [True], "flip").r[0]) == 0.75


def test_an_unknown_kind_is_refused(xp):
    with pytest.raises(ValueError, match="loss, delta or flip"):
        visit(xp, hardness.init(1, xp), [0], [1.0], [True], "losses")


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1), gamma=st.floats(0, 1))
def test_untouched_entries_are_the_same_bits(xp, kind, seed, gamma):
    rng = np.random.default_rng(seed)
    state = hardness.init(12, xp)
    for _ in range(3):
        before = [np.asarray(field).copy() for field in state]
        batch = rng.permutation(12)[: rng.integers(0, 12)]
        old, losses = state, rng.exponential(size=len(batch))
        state = visit(xp, state, batch, losses, rng.random(len(batch)) < 0.5, kind, gamma)
        rest = np.setdiff1d(np.arange(12), batch)
        for past, field, given_field in zip(before, state, old, strict=True):
            assert np.asarray(field)[rest].tobytes() == past[rest].tobytes()
            assert np.asarray(given_field).tobytes() == past.tobytes(), "the given state was modified"
        assert np.array_equal(np.asarray(state.seen)[batch], before[3][batch] + 1)
        assert np.asarray(state.last_loss)[batch] == pytest.approx(losses, rel=1e-6)


@given(seed=st.integers(0, 2**32 - 1), gamma=st.floats(0, 1))
def test_flip_hardness_stays_between_zero_and_one(xp, seed, gamma):
    rng = np.random.default_rng(seed)
    state = hardness.init(5, xp)
    for _ in range(5):
        state = visit(xp, state, np.arange(5), rng.exponential(size=5), rng.random(5) < 0.5, "flip", gamma)
    assert float(np.asarray(state.r).min()) >= 0
    assert float(np.asarray(state.r).max()) <= 1 + 1e-6


def with_r(xp, r):
    return hardness.init(len(r), xp)._replace(r=xp.asarray(np.array(r, dtype=np.float32)))


def test_probabilities_are_a_softmax_of_relative_hardness(xp):
    # r / mean = 0.5, 1, 1.5
    p = np.asarray(hardness.probabilities_exp(with_r(xp, [1, 2, 3]), 2.0))
    weights = np.exp([1.0, 2.0, 3.0])
    assert p == pytest.approx(weights / weights.sum(), rel=1e-5)


def test_probabilities_survive_no_hardness_and_a_huge_tau(xp):
    assert np.asarray(hardness.probabilities_exp(with_r(xp, [0, 0, 0]), 5.0)) == pytest.approx([1 / 3] * 3)
    assert np.asarray(hardness.probabilities_exp(with_r(xp, [1, 3]), 1e6)) == pytest.approx([0, 1])


@given(r=st.lists(st.floats(0, 100, width=32), min_size=1, max_size=30), tau=st.floats(0, 50))
def test_probabilities_sum_to_one_and_follow_hardness(xp, r, tau):
    p = np.asarray(hardness.probabilities_exp(with_r(xp, r), tau))
    assert p.sum() == pytest.approx(1, abs=1e-5)
    assert p.min() >= 0
    assert (np.diff(p[np.argsort(r, kind="stable")]) >= -1e-7).all()


def test_greedy_takes_the_hardest(xp):
    state = with_r(xp, [1, 5, 3, 5, math.nan])
    assert np.asarray(hardness.greedy(state, 3)).tolist() == [1, 3, 2]
    assert np.asarray(hardness.greedy(state, 99)).tolist() == [1, 3, 2, 0, 4]
    assert hardness.greedy(state, 2).dtype == xp.int64
    with pytest.raises(ValueError, match="-1"):
        hardness.greedy(state, -1)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), k=st.integers(0, 45))
def test_a_sample_has_no_duplicates_and_avoids_the_impossible(xp, seed, n, k):
    rng = np.random.default_rng(seed)
    p = rng.random(n) * (rng.random(n) < 0.7)
    chosen = np.asarray(hardness.weighted_sample(xp.asarray(p), k, xp.asarray(rng.random(n))))
    assert len(set(chosen)) == len(chosen) == min(k, n)
    possible = int((p > 0).sum())
    assert (p[chosen[:possible]] > 0).all()


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-30, 1e-3, 1e3, 1e30]))
def test_only_proportions_matter(xp, seed, scale):
    rng = np.random.default_rng(seed)
    p, u = rng.random(20), xp.asarray(rng.random(20))
    assert np.array_equal(
        np.asarray(hardness.weighted_sample(xp.asarray(p), 8, u)),
        np.asarray(hardness.weighted_sample(xp.asarray(p * scale), 8, u)),
    )


def test_the_ends_of_the_interval_do_not_break_the_draw(xp):
    for dtype in (xp.float32, xp.float64):
        u = xp.asarray([0.0, 1.0, 0.5], dtype=dtype)
        assert np.asarray(hardness.weighted_sample(xp.ones(3, dtype=dtype), 3, u)).tolist() == [1, 2, 0]


def test_samples_come_in_proportion(xp):
    rng = np.random.default_rng(0)
    p = np.array([0.5, 0.3, 0.2])
    draws = [np.asarray(hardness.weighted_sample(xp.asarray(p), 2, xp.asarray(u))) for u in rng.random((3000, 3))]
    first, second = np.array(draws).T
    assert np.bincount(first) / 3000 == pytest.approx(p, abs=0.03)
    # Given 0 came first, 1 and 2 follow in proportion 3 : 2.
    assert (second[first == 0] == 1).mean() == pytest.approx(0.6, abs=0.05)


def test_the_subset_shrinks_by_a_factor_down_to_one():
    assert hardness.shrink(100, 0.95) == 95.0
    assert hardness.shrink(1.01, 0.9) == 1.0
    k = 10.0
    for _ in range(10):
        k = hardness.shrink(k, 0.9)
    assert k == pytest.approx(10 * 0.9**10)


losses = st.lists(st.floats(0, 5), min_size=1, max_size=7).map(np.array)


def worth(chosen, loss, groups, diversity):
    spread = sum(np.sqrt(np.sum(groups[chosen] == g)) for g in np.unique(groups))
    return loss[chosen].sum() + diversity * spread


def test_the_easiest_come_first_and_nan_last():
    assert easiest(np.array([0.3, np.nan, 0.1, 0.3]), 3).tolist() == [2, 0, 3]
    assert len(easiest(np.array([0.3, 0.1]), 9)) == 2


@given(loss=losses, data=st.data(), diversity=st.floats(0, 3))
def test_no_other_subset_is_worth_more(loss, data, diversity):
    n = len(loss)
    groups = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    k = data.draw(st.integers(1, n))
    chosen = diverse_hardest(loss, groups, 3, k, diversity)
    assert len(set(chosen.tolist())) == k
    best = max(worth(list(subset), loss, groups, diversity) for subset in combinations(range(n), k))
    assert worth(chosen, loss, groups, diversity) == pytest.approx(best, abs=1e-9)


def test_without_diversity_the_hardest_win():
    loss, groups = np.array([1.0, 3.0, 2.9, 0.5]), np.array([0, 1, 1, 0])
    assert diverse_hardest(loss, groups, 2, 2, 0.0).tolist() == [1, 2]
    assert sorted(diverse_hardest(loss, groups, 2, 2, 9.0).tolist()) == [0, 1]


@pytest.mark.parametrize(
    "call", [lambda: easiest(np.zeros(2), -1), lambda: diverse_hardest(np.zeros(2), np.zeros(2, int), 1, -1, 0.0)]
)
def test_a_negative_number_is_refused(call):
    with pytest.raises(ValueError, match="-1"):
        call()
