import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.data.split import stratified_split

labels_lists = st.lists(st.integers(0, 6), max_size=120)
fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**32 - 1)


def split(labels, fraction, seed, **options):
    return stratified_split(labels, fraction, np.random.default_rng(seed), **options)


@given(labels_lists, fractions, seeds, st.none() | st.integers(0, 150))
def test_a_split_is_a_sorted_partition_and_deterministic(labels, fraction, seed, cap):
    rest, held = split(labels, fraction, seed, cap=cap)
    assert rest.dtype == held.dtype == np.int64
    assert sorted([*rest, *held]) == list(range(len(labels)))
    assert (np.diff(rest) > 0).all() and (np.diff(held) > 0).all()
    for first, again in zip((rest, held), split(labels, fraction, seed, cap=cap), strict=True):
        np.testing.assert_array_equal(first, again)


@given(labels_lists, fractions, seeds)
def test_every_class_is_on_both_sides_in_proportion(labels, fraction, seed):
    _, held = split(labels, fraction, seed)
    for kind in set(labels):
        size, taken = labels.count(kind), sum(labels[index] == kind for index in held)
        if size == 1:
            assert taken == 0
        else:
            assert 1 <= taken <= size - 1
            assert abs(taken - size * fraction) <= 1


@given(labels_lists, fractions, seeds, st.integers(0, 60))
def test_the_cap_is_used_up_and_shared_out(labels, fraction, seed, cap):
    values = np.array(labels, dtype=np.int64)
    _, free = split(labels, fraction, seed)
    _, held = split(labels, fraction, seed, cap=cap)
    assert len(held) == min(cap, len(free))
    wanted = np.bincount(values[free], minlength=7)
    taken = np.bincount(values[held], minlength=7)
    assert (taken <= wanted).all()
    if cap >= (wanted > 0).sum():
        assert ((taken > 0) == (wanted > 0)).all()


def test_a_tiny_cap_goes_to_the_largest_classes():
    labels = [0] * 4 + [1] * 40 + [2] * 20
    _, held = split(labels, 0.5, 0, cap=2)
    assert sorted(labels[index] for index in held) == [1, 2]


def test_the_seed_matters_and_the_choice_is_spread():
    labels = np.zeros(100, dtype=int)
    chosen = [tuple(split(labels, 0.1, seed)[1]) for seed in range(20)]
    assert len(set(chosen)) > 15


def test_labels_need_not_be_dense():
    rest, held = split([-3, -3, 1000, 1000, 5], 0.5, 0)
    assert len(held) == 2 and 4 in rest


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_outside_0_to_1_are_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        split([0, 0], fraction, 0)


def test_a_negative_cap_is_refused():
    with pytest.raises(ValueError, match="cap"):
        split([0, 0], 0.5, 0, cap=-1)
