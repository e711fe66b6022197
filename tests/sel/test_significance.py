import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_sel.sel.significance import significance_v1, significance_v101


def test_v1_weighs_loss_and_deviation_relative_to_their_means(xp):
    s = significance_v1(xp.asarray([1.0, 3.0]), xp.asarray([0.1, 0.3]))
    assert np.asarray(s) == pytest.approx([0.7 * 0.5 + 0.3 * 0.5, 0.7 * 1.5 + 0.3 * 1.5])


@given(loss=arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 20)))
def test_v1_always_has_mean_one(xp, loss):
    s = np.asarray(significance_v1(xp.asarray(loss), xp.asarray(np.arange(len(loss)) + 1.0)))
    assert s.mean() == pytest.approx(1.0 if loss.any() else 0.3)


def test_v1_of_a_perfect_batch_is_not_nan(xp):
    s = significance_v1(xp.zeros(2), xp.zeros(2))
    assert np.asarray(s).tolist() == [0, 0]


def test_v101_weighs_loss_and_entropy_as_they_are(xp):
    s = significance_v101(xp.asarray([1.0, 0.0]), xp.asarray([0.5, 2.0]))
    assert np.asarray(s) == pytest.approx([0.85, 0.6])
