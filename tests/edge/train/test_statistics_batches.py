"""Which images batch normalisation's statistics are estimated from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.edge.train.stage import BATCH, statistics_batches
from edge_sel.edge.train.work import STATISTICS_IMAGES


def batches(labels, seed=0):
    return statistics_batches(np.asarray(labels), np.random.default_rng(seed))


def of_counts(*counts):
    """So many labels 0, 1, 2 …, the rare ones last."""
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [
        ((1000, 300, 20), (118, 118, 20)),
        ((500, 500, 500, 500), (64, 64, 64, 64)),
        ((2000, 1), (255, 1)),
        ((50, 40, 30), (50, 40, 30)),
    ],
    ids=str,
)
def test_of_each_class_as_many_as_far_as_there_are(counts, chosen):
    labels = of_counts(*counts)
    found = np.bincount(labels[np.concatenate(batches(labels))], minlength=len(counts))
    left_out = sum(chosen) % BATCH  # a last partial batch, of whatever class
    assert found.sum() == sum(chosen) - left_out
    assert all(most - left_out <= n <= most for n, most in zip(found, chosen, strict=True))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(0, 99))
def test_every_image_at_most_once_in_equal_batches(counts, seed):
    labels = np.random.default_rng(seed).permutation(of_counts(*counts))
    found = batches(labels, seed)
    count = min(len(labels), STATISTICS_IMAGES)
    size = min(BATCH, count)
    assert [len(indices) for indices in found] == [size] * (count // size) and found
    together = np.concatenate(found)
    assert len(set(together.tolist())) == len(together) and 0 <= together.min() <= together.max() < len(labels)


@given(st.lists(st.integers(1, 400), min_size=2, max_size=8), st.integers(0, 99))
def test_no_class_has_fewer_than_another_unless_all_of_it_is_there(counts, seed):
    """Where no partial batch is left out."""
    labels = of_counts(*counts)
    if len(labels) < STATISTICS_IMAGES:
        return
    found = np.bincount(labels[np.concatenate(batches(labels, seed=seed))], minlength=len(counts))
    scarce = [n for n, there in zip(found, counts, strict=True) if n < there]
    assert all(n == there or n >= found.max() - 1 for n, there in zip(found, counts, strict=True))
    assert not scarce or max(scarce) - min(scarce) <= 1


def test_every_batch_is_a_mixture():
    """Not the rare class first, nor last: each batch has statistics of its own."""
    labels = of_counts(1000, 1000, 64)
    found = [np.bincount(labels[indices], minlength=3) for indices in batches(labels)]
    assert len(found) == STATISTICS_IMAGES // BATCH and sum(counts[2] > 0 for counts in found) >= 14
    assert np.std([counts[2] for counts in found]) > 0.5, "by chance"


def test_the_same_chance_gives_the_same_batches_and_another_other_ones():
    labels = of_counts(300, 300)
    one, same, other = (np.stack(batches(labels, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(np.sort(one, None), np.sort(other, None))
