"""Labels in doubt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.sel.calibration import find_label_errors, surest_label_errors

CLASSES = 8


def seen(count, accuracy, seed):
    """True classes, and logits of a model that is right about so many of them."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, count)
    given = np.where(rng.random(count) < accuracy, truth, rng.integers(0, CLASSES, count))
    return truth, 3.0 * np.eye(CLASSES)[given] + rng.normal(0, 1, (count, CLASSES))


def swapped(truth, share, seed):
    rng, labels = np.random.default_rng(seed), truth.copy()
    hit = rng.permutation(len(labels))[: round(share * len(labels))]
    labels[hit] = (labels[hit] + rng.integers(1, CLASSES, len(hit))) % CLASSES
    return labels


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6])
def test_about_as_many_are_doubted_as_were_swapped(share):
    truth, logits = seen(3000, 0.98, 1)
    labels = swapped(truth, share, 2)
    found = find_label_errors(logits, labels)
    assert (found >= 0).mean() == pytest.approx(share, abs=0.06)
    swapped_ones = labels != truth
    if share:
        assert (found[swapped_ones] == truth[swapped_ones]).mean() > 0.5, "and it names the right class"


@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0, 1))
def test_it_never_names_the_label_itself_or_a_class_that_nobody_has(seed, count, accuracy):
    truth, logits = seen(count, accuracy, seed)
    labels = swapped(truth, 0.3, seed)
    found = find_label_errors(logits, labels)
    assert found.dtype == np.int64 and not (found == labels).any()
    assert set(found[found >= 0].tolist()) <= set(labels.tolist())


def test_a_label_that_agrees_is_never_doubted():
    _, logits = seen(500, 0.9, 3)
    assert (find_label_errors(logits, logits.argmax(1)) == -1).all()


def hard(count, seed):
    """True classes, and logits of a model that knows how unsure it is: right in six of ten cases."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (count, CLASSES)) * rng.uniform(0.5, 4, (count, 1))
    p = np.exp(logits - logits.max(1, keepdims=True))
    return (p.cumsum(1) / p.sum(1, keepdims=True) > rng.random((count, 1))).argmax(1), logits


@pytest.mark.parametrize("count", [100, 280, 3000])
def test_a_model_that_knows_how_unsure_it_is_blames_no_label(count):
    """By the confident joint alone a tenth of such labels and more looks wrong."""
    cases = [hard(count, seed)[::-1] for seed in range(10)]
    assert np.mean([(find_label_errors(*case) >= 0).mean() for case in cases]) > 0.1
    assert max((surest_label_errors(*case) >= 0).mean() for case in cases) <= 0.02


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_the_surest_are_mostly_swapped_ones(share):
    truth, logits = seen(3000, 0.98, 1)
    labels = swapped(truth, share, 2)
    found = surest_label_errors(logits, labels) >= 0
    assert share - 0.06 <= found.mean() <= share + 0.01
    assert not share or (labels != truth)[found].mean() > 0.8


@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_the_surest_are_some_of_those_in_doubt(seed, count, accuracy, share):
    truth, logits = seen(count, accuracy, seed)
    labels = swapped(truth, share, seed)
    surest, all_ = surest_label_errors(logits, labels), find_label_errors(logits, labels)
    assert surest.dtype == np.int64 and ((surest == all_) | (surest == -1)).all()
