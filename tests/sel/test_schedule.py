from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.errors import UsageError
from edge_sel.sel.schedule import annealed, sel_learning_rate


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
