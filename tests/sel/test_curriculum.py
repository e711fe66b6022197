import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.errors import UsageError
from edge_sel.sel.curriculum import STAGES, Stage, annealed, scale_epochs, sel_learning_rate, stage_passed, stage_pool


def window(start, end):
    return Stage("w", start, end, 0.5, 1)


def datasets(max_n=80):
    def build(seed, n, coarse):
        rng = np.random.default_rng(seed)
        losses = rng.exponential(size=n)
        # Coarse losses have many equal values.
        return (np.round(losses) if coarse else losses), rng.integers(0, 4, n) * 3

    return st.builds(build, st.integers(0, 2**32 - 1), st.integers(1, max_n), st.booleans())


def naive_pool(losses, labels, stage, cap):
    """The definition, one class and one sample at a time."""
    pool = []
    for c in np.unique(labels):
        members = [i for i in sorted(range(len(labels)), key=lambda i: (losses[i], i)) if labels[i] == c]
        n = len(members)
        begin = min(math.floor(round(stage.start * n, 6)), n - 1)
        end = max(begin + 1, math.ceil(round(stage.end * n, 6)))
        inside = members[begin:end]
        if len(inside) > cap:
            inside = [inside[j * len(inside) // cap] for j in range(cap)]
        pool += inside
    return pool


def test_the_published_windows():
    assert [s[1:] for s in STAGES] == [
        (0.00, 0.25, 0.30, 10),
        (0.20, 0.50, 0.45, 10),
        (0.40, 0.65, 0.58, 10),
        (0.60, 0.82, 0.68, 10),
        (0.78, 1.00, 0.76, 10),
    ]


def test_the_window_is_cut_from_each_class_by_loss(xp):
    losses = xp.asarray([0.8, 0.1, 0.4, 0.2, 0.3, 9.0, 7.0])
    labels = xp.asarray([1, 1, 1, 1, 1, 0, 0])
    # Class 0: n = 2, positions 0..0. Class 1: n = 5, floor(1.0) .. ceil(2.5) = positions 1, 2.
    assert np.asarray(stage_pool(losses, labels, window(0.2, 0.5))).tolist() == [6, 3, 4]


def test_equal_losses_keep_the_order_of_the_data(xp):
    pool = stage_pool(xp.zeros(8), xp.zeros(8, dtype=xp.int64), window(0.25, 0.75))
    assert np.asarray(pool).tolist() == [2, 3, 4, 5]


def test_over_the_cap_the_window_is_thinned_evenly(xp):
    losses = xp.arange(100, dtype=xp.float64)
    labels = xp.zeros(100, dtype=xp.int64)
    assert np.asarray(stage_pool(losses, labels, window(0.2, 0.5), per_class_cap=5)).tolist() == [
        20,
        26,
        32,
        38,
        44,
    ]
    assert np.asarray(stage_pool(losses, labels, window(0.0, 0.07), per_class_cap=3)).tolist() == [0, 2, 4]


def test_binary_fractions_do_not_shift_the_window(xp):
    # 0.29 * 100 = 28.999999999999996 and 0.07 * 100 = 7.000000000000001
    losses = xp.arange(100, dtype=xp.float64)
    labels = xp.zeros(100, dtype=xp.int64)
    assert np.asarray(stage_pool(losses, labels, window(0.29, 0.31))).tolist() == [29, 30]
    assert np.asarray(stage_pool(losses, labels, window(0.0, 0.07))).tolist() == list(range(7))


def test_nan_counts_as_hardest(xp):
    losses = xp.asarray([math.nan, 2.0, 1.0, 3.0])
    assert np.asarray(stage_pool(losses, xp.asarray([0, 0, 0, 0]), window(0.75, 1.0))).tolist() == [0]


def test_no_samples_give_no_pool(xp):
    pool = stage_pool(xp.zeros(0), xp.zeros(0, dtype=xp.int64), STAGES[0])
    assert pool.shape == (0,)
    assert pool.dtype == xp.int64


def test_a_cap_of_zero_is_refused(xp):
    with pytest.raises(UsageError):
        stage_pool(xp.zeros(1), xp.zeros(1, dtype=xp.int64), STAGES[0], per_class_cap=0)


@given(
    data=datasets(),
    stage=st.sampled_from([*STAGES, window(0.5, 0.5), window(1.0, 1.0), window(0.0, 1.0)]),
    cap=st.sampled_from([1, 2, 3, 7, 2000]),
)
def test_pool_equals_the_definition(xp, data, stage, cap):
    losses, labels = data
    pool = stage_pool(xp.asarray(losses), xp.asarray(labels), stage, per_class_cap=cap)
    assert np.asarray(pool).tolist() == naive_pool(losses, labels, stage, cap)


@given(data=datasets(), total=st.integers(1, 12))
def test_the_stages_together_reach_every_sample(xp, data, total):
    losses, labels = data
    pools = [np.asarray(stage_pool(xp.asarray(losses), xp.asarray(labels), s)) for s in scale_epochs(STAGES, total)]
    assert set(np.concatenate(pools)) == set(range(len(losses)))


def test_a_stage_is_passed_at_its_threshold():
    assert stage_passed(0.30, STAGES[0])
    assert not stage_passed(0.2999, STAGES[0])


def test_the_published_epochs_are_unchanged():
    assert scale_epochs(STAGES, 50) == STAGES


def test_spare_epochs_go_to_the_largest_remainders():
    assert [s.epochs for s in scale_epochs(STAGES, 7)] == [2, 2, 1, 1, 1]
    uneven = [Stage("a", 0.0, 0.5, 0.1, 1), Stage("b", 0.5, 1.0, 0.2, 6)]
    # One each, 4 more in proportion 1 : 6, quotas 0.57 and 3.43.
    assert [s.epochs for s in scale_epochs(uneven, 6)] == [2, 4]


def test_fewer_epochs_than_stages_merge_the_last():
    assert scale_epochs(STAGES, 3) == (
        STAGES[0]._replace(epochs=1),
        STAGES[1]._replace(epochs=1),
        Stage("hard-hardest", 0.40, 1.00, 0.76, 1),
    )
    assert scale_epochs(STAGES, 1) == (Stage("easy-hardest", 0.0, 1.0, 0.76, 1),)


@pytest.mark.parametrize("total", [0, -3])
def test_no_epochs_are_refused(total):
    with pytest.raises(UsageError, match="at least 1 epoch"):
        scale_epochs(STAGES, total)


@given(total=st.integers(1, 200), epochs=st.lists(st.integers(0, 20), min_size=5, max_size=5))
def test_scaling_keeps_the_sum_and_leaves_no_gap(total, epochs):
    scaled = scale_epochs([s._replace(epochs=e) for s, e in zip(STAGES, epochs, strict=True)], total)
    assert len(scaled) == min(5, total)
    assert sum(s.epochs for s in scaled) == total
    assert min(s.epochs for s in scaled) >= 1
    assert scaled[0].start == 0
    assert scaled[-1].end == 1
    for before, after in pairwise(scaled):
        assert after.start <= before.end
        assert after.threshold > before.threshold


def test_the_rate_grows_by_twice_the_loss(xp):
    assert sel_learning_rate(1e-3, 0.0) == 1e-3
    assert sel_learning_rate(1e-3, 2.0) == pytest.approx(5e-3)
    assert np.asarray(sel_learning_rate(1e-3, xp.asarray([0.5, 1.0]))) == pytest.approx([2e-3, 3e-3])


def test_annealing_is_half_a_cosine_after_a_linear_warmup():
    assert [annealed(2.0, s, 4) for s in range(5)] == pytest.approx([2.0, 1.7071068, 1.0, 0.2928932, 0.0])
    assert [annealed(1.0, s, 6, 4) for s in range(7)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.0])


def test_a_run_that_is_all_warmup():
    assert [annealed(1.0, s, 2, 4) for s in range(3)] == pytest.approx([0.25, 0.5, 0.0])


@pytest.mark.parametrize(("total", "warmup"), [(0, 0), (5, -1)])
def test_impossible_schedules_are_refused(total, warmup):
    with pytest.raises(UsageError):
        annealed(1.0, 0, total, warmup)


@given(total=st.integers(1, 300), warmup=st.integers(0, 300))
def test_it_rises_once_then_falls_within_bounds(total, warmup):
    rates = [annealed(0.1, s, total, warmup) for s in range(total + 2)]
    assert min(rates[:total]) > 0
    assert max(rates) <= 0.1
    assert rates[total:] == [0.0, 0.0]
    top = min(warmup, total)
    assert all(a < b for a, b in pairwise(rates[:top]))
    assert all(a >= b for a, b in pairwise(rates[top:]))
